"""Who a process is: its pid and its start time, so that a reused pid is never mistaken for it."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from pathlib import Path

from .config import IS_LINUX

PR_SET_PDEATHSIG = 1


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot (proc(5), field 22); 0 where unknown.

    Only Linux tells it without a library; elsewhere a pid is trusted alone.
    """
    if not IS_LINUX:
        return 0
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def alive(pid: int, start: int = 0) -> bool:
    """Whether that very process runs. A zombie is dead; `start` 0 matches any start time."""
    if pid <= 0:
        return False
    if IS_LINUX:
        fields = _stat(pid)
        return bool(fields) and fields[0] not in "ZX" and start in (0, int(fields[19]))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def own_memory(pid: int) -> int:
    """Bytes of a process, of what it shares with others only its part; 0 where unknown."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def users_of(pid: int) -> tuple[int, ...]:
    """The user ids of a process (Linux): real, effective, saved, and for files.

    Raises
    ------
    FileNotFoundError, ProcessLookupError
        There is no such process.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return tuple(map(int, line.split()[1:]))
    raise ProcessLookupError(pid)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """In a new child (`preexec_fn`), Linux: a signal when the parent's thread ends; see prctl(2)."""
    _libc().prctl(PR_SET_PDEATHSIG, number)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (state first), or [] when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()
