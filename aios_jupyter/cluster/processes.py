"""Detached processes of a cluster: each writes a small file when it is ready, with pid and start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import QUIET_DASK
from ..errors import ClusterError, NoClusterError
from ..process import alive

START_TIMEOUT = 60.0
GONE = "The cluster's processes are gone; start it again with: aios up"


class _Detached(subprocess.Popen[bytes]):
    """A process that is meant to outlive this one: no warning that it still runs."""

    def __del__(self) -> None:
        self.poll()


def running(path: Path) -> dict[str, Any] | None:
    """What a broker or node wrote about itself, or None when that process is gone."""
    facts = read(path)
    return facts if facts and alive(facts["pid"], facts["start"]) else None


def detach(command: list[str], extra: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, in its own session, with its output in a file."""
    environment = {**QUIET_DASK, **os.environ, **extra, "PYTHONUNBUFFERED": "1"}
    # What belongs to the kernel that happens to be first must not mark the whole cluster.
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "MPLBACKEND"):
        environment.pop(name, None)
    with log.open("ab") as output:
        return _Detached(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )


def wait(
    path: Path,
    process: subprocess.Popen[bytes],
    log: Path,
    what: str = "cluster",
    needs: Path | None = None,
) -> dict[str, Any]:
    """Wait until a process that was just started has written its file.

    `needs` is the file of another that it cannot do without.

    Raises
    ------
    ClusterError
        It has ended, with the last line of its log; or it is not ready in time, and is killed.
    NoClusterError
        What it needs has gone; it is killed too.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        facts = running(path)
        if facts:
            return facts
        if needs is not None and not running(needs):
            end_now(process)
            raise NoClusterError(GONE)
        if process.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ClusterError(f"The {what} did not start: {last} (whole log: {log})")
        time.sleep(0.02)
    end_now(process)
    raise ClusterError(f"The {what} did not start within {START_TIMEOUT:.0f} s; see {log}")


def end_now(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was just started."""
    process.kill()
    process.wait()


def end(processes: list[dict[str, Any]], number: signal.Signals, timeout: float) -> bool:
    """Signal processes, by pid and start time; whether they are gone in time."""
    for facts in processes:
        if alive(facts["pid"], facts["start"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["pid"], number)
    deadline = time.monotonic() + timeout
    while any(alive(facts["pid"], facts["start"]) for facts in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Only one process at a time starts, mends or stops what the lock is for."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path: Path) -> dict[str, Any] | None:
    """A file that `write` made; None where there is none, or no whole one."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except ValueError:
        return None


def read_list(path: Path) -> list[Any]:
    """A list that `write` kept, [] where there is none."""
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []


def write(path: Path, value: dict[str, Any] | list[Any]) -> None:
    """Write a value as JSON, for nobody else to read, aside and then into place."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    aside.replace(path)
