"""What an endpoint is to serve: references made into files, again when an alias moves.

Light: the registry is asked in another process, so that MLflow's imports and memory do not stay.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import msgspec

from ..errors import ConflictError, from_kind

PARTS = ("main", "canary", "shadow")
"""What may answer: most requests, a share of them, and copies whose answers nobody gets."""


async def packages(refs: list[str]) -> list[dict[str, Any]]:
    """The files of each version (`predictor.Package`).

    Raises
    ------
    AiosError
        One of them is not there, or the registry cannot be asked.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aios_jupyter.models.download",
        *refs,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # the endpoint ends meanwhile
            process.kill()
            await process.wait()
    try:
        if process.returncode == 0:
            return [msgspec.json.decode(line) for line in output.splitlines()]
        refused = msgspec.json.decode(output, type=dict[str, str])
    except msgspec.DecodeError:
        raise ConflictError(
            f"The registry could not be asked (exit status {process.returncode}); the reason is "
            "above in this log."
        ) from None
    raise from_kind(refused["kind"], refused["message"])


def text(serving: dict[str, Any]) -> str:
    """As people read it: `3`, `3 (10% 4)` or `3 (shadow 4)`. Pure."""
    beside = []
    if canary := serving.get("canary"):
        beside.append(f"{serving['share']:.0%} {canary['version']}")
    if shadow := serving.get("shadow"):
        beside.append(f"shadow {shadow['version']}")
    main = str(serving["main"]["version"])
    return f"{main} ({', '.join(beside)})" if beside else main


async def moved(
    refs: dict[str, tuple[str, str]], serving: dict[str, Any], unfit: set[tuple[str, int]], uri: str
) -> dict[str, str]:
    """Parts whose alias names another version than is served, with that version.

    `refs` are name and alias by part; `unfit` are versions that could not be served.
    """
    from . import alias_watch

    found = {}
    for part, (name, alias) in refs.items():
        version = await asyncio.to_thread(alias_watch.named, uri, name, alias)
        if version is None or (part, version) in unfit:
            continue
        if version != int(serving[part]["version"]):
            found[part] = f"{name}/{version}"
    return found
