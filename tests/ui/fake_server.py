"""Runs in the Jupyter server of the browser tests: gives it a made-up cluster.

The file named by `FAKE_SCENARIO` says which: a scenario of `fake_cluster`, or `none`.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from fake_cluster import FakeUpstream

from aios_jupyter.errors import NoClusterError
from aios_jupyter.server import routes

INTERVAL = 0.4


async def open_fake() -> FakeUpstream:
    """A session with the made-up cluster, which changes when the file does."""
    name = _scenario()
    if name == "none":
        raise NoClusterError("No cluster is running; start one with: aios up")
    upstream = FakeUpstream(name, interval=INTERVAL)
    upstream.task = asyncio.create_task(_follow(upstream, name))  # type: ignore[attr-defined]
    return upstream


def fake_log(run: str, rank: int | None, tail: int | None) -> list[str]:
    """In place of a session's log: two ranks that train, and a line that tries to be HTML."""
    lines = ["<img src=x onerror=\"document.title='hacked'\">"]
    lines += [
        f"[{r}] step {step}: loss {2.3 / (1 + step):.4f}" for step in range(200) for r in (0, 1)
    ]
    return [line for line in lines if rank is None or line.startswith(f"[{rank}]")]


routes._log = fake_log


async def _follow(upstream: FakeUpstream, name: str) -> None:
    while not upstream.closed.is_set():
        await asyncio.sleep(0.1)
        now = _scenario()
        if now == "none":
            upstream.closed.set()
        elif now != name:
            upstream.switch(now)
        name = now


def _scenario() -> str:
    path = Path(os.environ["FAKE_SCENARIO"])
    return str(json.loads(path.read_text())) if path.is_file() else "busy"
