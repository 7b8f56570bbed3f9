"""The metrics of replicas on several machines, told by each of them as one sum.

`prometheus_client` has each process keep its numbers in files of one folder. Those of other machines
are copied into the endpoint's (`changed`, `keep`), which adds up all and has every replica answer
with the same text (`TOLD`): were each to add up what it knows, a counter could be seen to fall.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
TOLD = "summed.txt"
"""In the folder: what replicas tell in place of their own sum."""

_USED = struct.Struct("i")


def changed(folder: Path, seen: dict[str, bytes]) -> dict[str, bytes]:
    """Files of numbers that are others than in `seen`, which is brought up to date.

    Only the part that is in use: they are allocated by the megabyte.
    """
    found = {}
    for path in sorted(folder.glob("*.db")):
        with path.open("rb") as file:
            head = file.read(_USED.size)
            used = _USED.unpack(head)[0] if len(head) == _USED.size else 0
            content = head + file.read(max(0, used - _USED.size))
        if seen.get(path.name) != content:
            seen[path.name] = found[path.name] = content
    return found


def keep(folder: Path, machine: int, files: dict[str, bytes]) -> None:
    """Put another machine's files beside our own; their names say of which process they are."""
    for name, content in files.items():
        kind, _, process = name.removesuffix(".db").rpartition("_")
        if not kind or not process.isalnum() or not kind.replace("_", "").isalpha():
            continue
        write(folder / f"{kind}_{machine}x{process}.db", content)


def write(path: Path, content: bytes) -> None:
    """Write a file so that nobody reads half of it."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    aside.replace(path)


def summed(folder: Path) -> bytes:
    """The sum of all files, as Prometheus reads it."""
    from prometheus_client import CollectorRegistry, multiprocess
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def told() -> bytes | None:
    """What this replica is to tell in place of its own sum; None where there is nothing (yet)."""
    folder = os.environ.get(FOLDER)
    try:
        return (Path(folder) / TOLD).read_bytes() if folder else None
    except FileNotFoundError:
        return None
