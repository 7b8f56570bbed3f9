"""How stacks are read: from py-spy, and from faulthandler where that may not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from gangs import Gang

from aios_jupyter.config import IS_LINUX
from aios_jupyter.node import stacks
from aios_jupyter.runs.messages import RankStacks

pytestmark = pytest.mark.skipif(
    not IS_LINUX, reason="a rank writes its stacks on a signal of Linux"
)

# Native code that does not come back, and does not let go of the interpreter.
STUCK = """
import ctypes
def stuck():
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    print("up", flush=True)
    libc.pthread_mutex_lock(mutex)
stuck()
"""


async def looked_at(directory: Path, times: int = 1) -> list[RankStacks]:
    gang = await Gang(directory, STUCK, world=1).start()
    try:
        await gang.until(lambda: "up" in gang.text())
        await asyncio.sleep(0.1)
        return [rank for _ in range(times) for rank in await stacks.look(gang.gang.at_work)]
    finally:
        await gang.gang.stop(0.1)
        (end,) = await gang.gang.wait()
        assert end.code == -9
        assert "most recent call" not in end.traceback


def check(rank: RankStacks) -> None:
    (main,) = [thread for thread in rank.threads if thread.name == "MainThread"]
    assert [frame.function for frame in main.frames] == ["stuck", "<module>"]
    assert main.frames[0].users
    assert main.frames[0].source == "libc.pthread_mutex_lock(mutex)"
    assert Path(main.frames[0].file).name == "cell-7.py"
    assert (rank.rank, rank.device) == (0, "cpu-0")


@pytest.mark.asyncio
async def test_a_rank_writes_its_own_stacks_without_py_spy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "find_spy", lambda: "")
    ranks = await looked_at(tmp_path, times=2)
    for rank in ranks:
        assert "py-spy is not installed" in rank.note
        check(rank)


@pytest.mark.asyncio
async def test_a_refused_py_spy_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = tmp_path / "py-spy"
    refused.write_text("#!/bin/sh\necho 'Error: Permission denied (os error 13)' >&2\nexit 1\n")
    refused.chmod(0o700)
    monkeypatch.setattr(stacks, "find_spy", lambda: str(refused))
    (rank,) = await looked_at(tmp_path)
    assert "cannot read the process (Error: Permission denied (os error 13))" in rank.note
    check(rank)


@pytest.mark.asyncio
async def test_a_py_spy_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "py-spy"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o700)
    monkeypatch.setattr(stacks, "find_spy", lambda: str(slow))
    monkeypatch.setattr(stacks, "TIMEOUT", 0.2)
    (rank,) = await looked_at(tmp_path)
    assert "py-spy took over 0.2 s." in rank.note
    check(rank)


@pytest.mark.asyncio
@pytest.mark.skipif(not stacks.find_spy(), reason="py-spy is not installed")
async def test_py_spy_reads_a_rank_that_is_stuck(tmp_path: Path) -> None:
    (rank,) = await looked_at(tmp_path)
    assert not rank.note
    check(rank)


@pytest.mark.asyncio
async def test_a_rank_that_gave_up_the_signal_is_not_ended_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "find_spy", lambda: "")
    gang = await Gang(
        tmp_path,
        """
        import os
        print("up", flush=True)
        os.execvp("sleep", ["sleep", "600"])
        """,
        world=1,
    ).start()
    await gang.until(lambda: "up" in gang.text())
    await asyncio.sleep(0.3)
    (rank,) = await stacks.look(gang.gang.at_work)
    assert rank.threads == ()
    assert "no longer prepared" in rank.note
    assert gang.gang.at_work
    await gang.gang.stop(1)
    await gang.gang.wait()


def test_only_plain_files_are_read_for_their_lines(tmp_path: Path) -> None:
    import os

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    frames = [
        {"name": "f", "filename": str(fifo), "line": 1},
        {"name": "g", "filename": "/dev/zero", "line": 1},
    ]
    data = json.dumps([{"thread_name": None, "thread_id": 5, "active": True, "frames": frames}])
    (stack,) = stacks._readable(stacks.parse_spy(data.encode()))
    assert stack.name == "5"
    assert [frame.source for frame in stack.frames] == ["", ""]
