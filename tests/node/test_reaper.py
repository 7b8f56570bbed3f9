"""Processes end by record, with all that came from them, and nobody else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aios_jupyter.config import IS_LINUX
from aios_jupyter.node import reaper
from aios_jupyter.node.reaper import MARK, Started, alive, descendants, process_start

pytestmark = pytest.mark.skipif(not IS_LINUX, reason="needs /proc")

# Starts one child in its group, one in a session of its own, and one orphan, and tells their pids.
FAMILY = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    orphan = subprocess.Popen(sleep)
    os.write(writing, str(orphan.pid).encode())
    os._exit(0)
os.wait()
pids.append(int(os.read(reading, 20)))
print(*pids, flush=True)
time.sleep(60)
"""

Spawn = Callable[..., tuple[subprocess.Popen[str], list[int]]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a script in its own session; gives the process and the pids that it prints."""
    left: list[tuple[int, int]] = []
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, mark: str = "") -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, MARK: mark},
        )
        processes.append(process)
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        left.extend((pid, process_start(pid)) for pid in [process.pid, *pids])
        return process, pids

    yield start
    for pid, start_time in left:
        if start_time and alive(pid, start_time):
            os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def started(process: subprocess.Popen[str], mark: str = "") -> Started:
    return Started(
        pid=process.pid, start=process_start(process.pid), run="r1", lease="l1", mark=mark
    )


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    start = process_start(process.pid)
    deadline = time.monotonic() + 10
    while alive(process.pid, start) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(process.pid, start)
    assert process_start(process.pid) == start
    process.wait()
    assert process_start(process.pid) == 0


def test_descendants_are_found_through_living_parents(spawn: Spawn) -> None:
    process, (child, session, orphan) = spawn(FAMILY)
    assert descendants(process.pid) == sorted([child, session])
    assert orphan not in descendants(process.pid)


@pytest.mark.asyncio
async def test_the_end_of_a_rank_is_the_end_of_all_that_it_started(spawn: Spawn) -> None:
    process, pids = spawn(FAMILY, mark="m1")
    bystander, _ = spawn("import time; print(flush=True); time.sleep(60)", mark="m2")
    killed = await reaper.end(started(process, "m1"))
    assert sorted(killed) == sorted([process.pid, *pids])
    assert not any(alive(pid) for pid in killed)
    assert bystander.poll() is None


@pytest.mark.asyncio
async def test_what_a_dead_rank_has_left_is_found_by_its_mark(spawn: Spawn) -> None:
    process, pids = spawn(FAMILY, mark="m3")
    record = started(process, "m3")
    process.kill()
    process.wait()
    assert sorted(await reaper.end(record)) == sorted(pids)


@pytest.mark.asyncio
async def test_a_reused_pid_is_nobody_of_ours(spawn: Spawn) -> None:
    """The pid and its session belong to a process with another start time."""
    process, (child, *_) = spawn(FAMILY, mark="theirs")
    stale = Started(pid=process.pid, start=1, run="r", lease="l", mark="ours")
    assert await reaper.end(stale) == []
    assert not reaper.send(process.pid, 1, signal.SIGKILL)
    assert alive(child)
    assert process.poll() is None


@pytest.mark.asyncio
async def test_a_process_that_heeds_sigterm_ends_within_the_grace(spawn: Spawn) -> None:
    process, _ = spawn(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print(flush=True)\ntime.sleep(60)"
    )
    begun = time.monotonic()
    assert await reaper.kill_group(process.pid, process_start(process.pid), grace=20)
    assert time.monotonic() - begun < 15
    assert process.wait(20) == 7


@pytest.mark.asyncio
async def test_a_process_that_ignores_sigterm_is_killed_with_its_children(spawn: Spawn) -> None:
    process, pids = spawn("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY)
    child, session, orphan = pids
    assert await reaper.kill_group(process.pid, process_start(process.pid), grace=0.2)
    assert process.wait(20) == -signal.SIGKILL
    assert not alive(child)
    assert not alive(session)
    # Without a mark nothing tells whose it was.
    assert alive(orphan)


@pytest.mark.asyncio
async def test_children_of_a_leader_that_ended_in_time_end_too(spawn: Spawn) -> None:
    process, (child, session, _) = spawn(FAMILY)
    assert await reaper.kill_group(process.pid, process_start(process.pid), grace=10)
    assert process.wait(20) == -signal.SIGTERM
    assert not alive(child)
    assert not alive(session)


@pytest.mark.asyncio
async def test_a_sweep_ends_what_an_earlier_agent_has_left(tmp_path: Path, spawn: Spawn) -> None:
    process, pids = spawn(FAMILY, mark="m4")
    run = tmp_path / "r1"
    run.mkdir()
    reaper.record(run, [started(process, "m4")])
    (tmp_path / "r2").mkdir()
    (tmp_path / "r2" / reaper.RECORD).write_text("{")
    assert await reaper.sweep(tmp_path) == 4
    assert process.wait(20) == -signal.SIGKILL
    assert not any(alive(pid) for pid in pids)
    assert not (run / reaper.RECORD).exists()
    assert await reaper.sweep(tmp_path) == 0


@pytest.mark.asyncio
async def test_a_sweep_of_nothing_is_no_error(tmp_path: Path) -> None:
    assert await reaper.sweep(tmp_path / "nothing") == 0


def test_signals_to_the_dead_are_refused() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    start = process_start(process.pid)
    process.wait()
    assert not reaper.send(process.pid, start, signal.SIGTERM)
