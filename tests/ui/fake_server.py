"""Runs in the Jupyter server of the browser tests: gives it a made-up cluster.

The file named by `FAKE_SCENARIO` says which: a scenario of `fake_cluster`, or `none`.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import fake_run
from fake_cluster import FakeUpstream
from fake_run import FakeCatalog, FakeRegistry, FakeSession

from aios_jupyter.errors import NoClusterError, NotFoundError
from aios_jupyter.server import acting, datasets, routes, trying, watching

# Seconds between two changes of the cluster.
INTERVAL = float(os.environ.get("FAKE_INTERVAL", "0.4"))
# Changes that are worked out before the first: a benchmark is not to measure that.
RECORDED = int(os.environ.get("FAKE_RECORDED", "0"))


async def open_fake() -> FakeUpstream:
    """A session with the made-up cluster, which changes when the file does."""
    name = _scenario()
    if name == "none":
        raise NoClusterError("No cluster is running; start one with: aios up")
    upstream = FakeUpstream(name, interval=INTERVAL, recorded=RECORDED)
    upstream.task = asyncio.create_task(_follow(upstream, name))  # type: ignore[attr-defined]
    return upstream


def open_runs() -> FakeSession:
    """A session in which every run has said the same."""
    return FakeSession()


def _no_profile(run: str, rank: int) -> bytes:
    if rank:
        raise NotFoundError(f"Run {run} has no profile of rank {rank}.")
    return b'{"traceEvents": []}'


def _no_form(name: str) -> dict[str, object]:
    raise NotFoundError(f"No endpoint {name!r} answers here: the cluster is made up.")


registry = FakeRegistry()
catalog = FakeCatalog()
datasets._datasets = catalog.datasets
datasets._versions = catalog.versions
routes._models = registry.versions
acting._promote = registry.promote
acting._rollback = registry.rollback
trying._form = _no_form
watching._stacks = fake_run.stacks
watching._profile = _no_profile


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
