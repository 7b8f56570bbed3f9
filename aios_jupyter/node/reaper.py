"""Ends processes that this node has started, by record and never by name.

A rank is known by its pid together with its start time, and everything that descends from it by a
mark in its environment (`MARK`), which survives new sessions and dead parents. Each run's directory
has a record of its ranks while they may live, so that the next agent ends what one that was killed
has left. Other systems than Linux show neither: there a pid is trusted alone and its group is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ..config import IS_LINUX
from ..process import alive, process_start
from ..schema import Struct

__all__ = [
    "MARK",
    "Started",
    "alive",
    "descendants",
    "end",
    "family",
    "forget",
    "kill_group",
    "process_start",
    "record",
    "sweep",
]

log = logging.getLogger("aios.node")

MARK = "AIOS_RANK_MARK"
RECORD = "ranks.json"
CONFIRM_TIMEOUT = 5.0
_POLL = 0.01


class Started(Struct):
    """A process that this node has started, the leader of its own session and group."""

    pid: int
    start: int
    run: str
    lease: str
    rank: int = 0
    mark: str = ""


class _Row(Struct):
    """What proc(5) says of one process."""

    pid: int
    parent: int
    group: int
    session: int
    start: int


# --- the record


def record(directory: Path, started: Iterable[Started]) -> None:
    """Write down which processes a run has here."""
    aside = directory / f".{RECORD}"
    aside.write_bytes(msgspec.json.encode(tuple(started)))
    aside.replace(directory / RECORD)


def forget(directory: Path) -> None:
    """The run's processes are gone."""
    (directory / RECORD).unlink(missing_ok=True)


async def sweep(directory: Path) -> int:
    """End what an earlier agent has left of its runs; returns how many processes that were.

    Parameters
    ----------
    directory
        Has one subdirectory for each run.
    """
    ended = 0
    for run, left in await asyncio.to_thread(_records, directory):
        for started in left:
            gone = await end(started)
            if gone:
                log.warning("ended %d processes left by run %s", len(gone), started.run)
            ended += len(gone)
        forget(run)
    return ended


def _records(directory: Path) -> list[tuple[Path, tuple[Started, ...]]]:
    found = []
    for path in sorted(directory.glob(f"*/{RECORD}")):
        try:
            left = msgspec.json.decode(path.read_bytes(), type=tuple[Started, ...])
        except msgspec.DecodeError as error:
            log.warning("%s is not a record of ranks: %s", path, error)
            continue
        found.append((path.parent, left))
    return found


# --- who belongs to whom


def descendants(pid: int) -> list[int]:
    """Live processes that descend from `pid` through living parents; [] where nobody tells."""
    rows = list(_rows())
    found = {pid}
    while new := {row.pid for row in rows if row.parent in found} - found:
        found |= new
    return sorted(found - {pid})


def family(started: Started) -> list[tuple[int, int]]:
    """Pid and start of every live process that came from a rank, itself included.

    These are those that carry its mark, those that descend from it and, as long as it has not been
    waited for, the members of its group and session: later these numbers may be a stranger's.
    """
    if not IS_LINUX:
        return [(started.pid, 0)] if alive(started.pid) else []
    rows = {row.pid: row for row in _rows()}
    found = set()
    if process_start(started.pid) == started.start:
        for row in rows.values():
            if started.pid in (row.pid, row.group, row.session):
                found.add(row.pid)
    for row in rows.values():
        if row.start >= started.start and row.pid not in found and _marked(row.pid, started.mark):
            found.add(row.pid)
    while new := {row.pid for row in rows.values() if row.parent in found} - found:
        found |= new
    found.discard(os.getpid())
    return [(pid, rows[pid].start) for pid in sorted(found)]


def _marked(pid: int, mark: str) -> bool:
    if not mark:
        return False
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        # It is gone, or another user's.
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def _rows() -> Iterator[_Row]:
    """Every live process. One that ends while it is looked at is left out."""
    if not IS_LINUX:
        return
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(entry.path, "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] not in "ZX":
            yield _Row(
                pid=int(entry.name),
                parent=int(fields[1]),
                group=int(fields[2]),
                session=int(fields[3]),
                start=int(fields[19]),
            )


# --- ending


def send(pid: int, start: int, number: signal.Signals) -> bool:
    """Send a signal to that very process; False when it is gone.

    On Linux the pid is held while its start is looked at, so that no other process can be hit.
    """
    if not hasattr(signal, "pidfd_send_signal"):
        if not alive(pid, start):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(pid, start):
            return False
        signal.pidfd_send_signal(held, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(held)
    return True


async def kill_group(pid: int, start: int, grace: float) -> bool:
    """End a process and what belongs to it, and confirm it.

    It gets SIGTERM; after `grace` seconds, or when it is gone, what is left gets SIGKILL.

    Returns
    -------
    bool
        False when something was still there `CONFIRM_TIMEOUT` seconds after SIGKILL.
    """
    started = Started(pid=pid, start=start, run="", lease="")
    # Taken before, because with the process its ties to the others end.
    members = await asyncio.to_thread(family, started)
    send(pid, start, signal.SIGTERM)
    await _gone([(pid, start)], grace)
    members += await asyncio.to_thread(family, started)
    for member in members:
        send(*member, signal.SIGKILL)
    return await _gone(members, CONFIRM_TIMEOUT)


async def end(started: Started) -> list[int]:
    """SIGKILL for a rank and everything that came from it, until nothing is left of it.

    Returns
    -------
    list of int
        Pids that were killed.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + CONFIRM_TIMEOUT
    # What forks while it is being killed shows in the next look.
    while members := await asyncio.to_thread(family, started):
        for pid, start in members:
            if send(pid, start, signal.SIGKILL):
                killed.add(pid)
        await _gone(members, CONFIRM_TIMEOUT)
        if time.monotonic() > deadline:
            log.error("processes %s do not end", [pid for pid, _ in members])
            break
    return sorted(killed)


async def _gone(members: Iterable[tuple[int, int]], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while any(alive(*member) for member in members):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL)
    return True
