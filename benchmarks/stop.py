"""From Stop until every rank is gone: ranks that end on SIGTERM, that wait in native code for ever,
and that ignore it (those have the grace, which is taken off).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from report import report
from steps_per_second import RANKS, cluster

ROUNDS = 5
HONOR = """
import os, time
print("pid", os.getpid(), flush=True)
while True:
    time.sleep(0.1)
"""
STUCK = """
import ctypes, os
print("pid", os.getpid(), flush=True)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)
"""
IGNORE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
while True:
    time.sleep(0.1)
"""


def main() -> None:
    from aios_jupyter.config import settings

    grace = settings().stop_grace
    with cluster() as session:
        seconds = {
            name: [stopped(session, code) for _ in range(ROUNDS)]
            for name, code in (("honored", HONOR), ("stuck", STUCK), ("ignored", IGNORE))
        }
    report(
        "stop",
        {
            "honored_seconds": statistics.median(seconds["honored"]),
            "honored_worst_seconds": max(seconds["honored"]),
            "stuck_seconds": statistics.median(seconds["stuck"]),
            "ignored_over_grace_seconds": statistics.median(seconds["ignored"]) - grace,
            "grace_seconds": grace,
            "ranks": RANKS,
        },
        {},
    )


def stopped(session: Any, code: str) -> float:
    """Seconds from the call of Stop until the last rank's process is gone."""
    from aios_jupyter.errors import RunError
    from aios_jupyter.process import alive, process_start

    handle = session.start(code, cell=True)
    ranks: list[tuple[int, int]] = []
    for event in handle.events():
        if event["type"] == "log":
            found = [int(line.split()[1]) for line in event["text"].splitlines() if line]
            ranks += [(pid, process_start(pid)) for pid in found]
        if len(ranks) == RANKS:
            break
    start = time.perf_counter()
    handle.stop()
    while any(alive(*rank) for rank in ranks):
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    try:
        handle.wait()
    except RunError:
        return seconds
    raise SystemExit("the run ended by itself")


if __name__ == "__main__":
    main()
