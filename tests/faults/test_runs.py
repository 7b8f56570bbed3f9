"""Runs that go wrong in every way on a live cluster: the first words are the cause, and nothing is left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import free, until

from aios_jupyter.errors import AiosError, RunError
from aios_jupyter.session import Session

IS_LINUX = sys.platform.startswith("linux")


@pytest.fixture(autouse=True)
def _nothing_is_left(session: Session) -> Iterator[None]:
    """Afterwards the devices are free, and of each run no process is there."""
    before = {row["id"] for row in session.runs()}
    yield
    until(lambda: len(free(session)) == 4, "the devices are free")
    runs = {row["id"] for row in session.runs()} - before
    until(lambda: not _processes(runs), "no process of the run is left")


def _processes(runs: set[str]) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AIOS_RUN") in runs:
                found.append(process.pid)
    return found


def _fails(session: Session, code: str, **options: object) -> RunError:
    with pytest.raises(RunError) as caught:
        session.train(code, cell=True, gpus=2, **options)
    return caught.value


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise KeyError('weights')", "rank 1 raised KeyError: 'weights'"),
        ("ctypes.string_at(0)", "rank 1 was killed by SIGSEGV (a crash in native code)"),
        ("os.kill(os.getpid(), 9)", "rank 1 was killed by SIGKILL (out of memory?)"),
        ("os._exit(3)", "rank 1 exited with code 3"),
    ],
)
def test_the_cause_comes_first_however_a_rank_ends(session: Session, code: str, words: str) -> None:
    # The other one waits for it, and has started a child that outlives it if it can.
    cell = f"""
import ctypes, os, subprocess, time
if os.environ["RANK"] == "1":
    {code}
subprocess.Popen(["sleep", "600"], start_new_session=True)
time.sleep(600)
"""
    error = _fails(session, cell)
    assert str(error).partition(" failed: ")[2].startswith(words)
    assert error.rank == 1


def test_a_collective_that_one_rank_never_reaches_is_stopped(session: Session) -> None:
    pytest.importorskip("torch")
    cell = """
import os, signal, time
import torch.distributed as dist
import torch
signal.signal(signal.SIGTERM, signal.SIG_IGN)
dist.init_process_group("gloo")
print("up", flush=True)
if os.environ["RANK"] == "0":
    dist.all_reduce(torch.ones(1))
time.sleep(600)
"""
    handle = session.start(cell, cell=True, gpus=2)
    up = 0
    for event in handle.events():
        up += event["type"] == "log" and event["text"].count("up")
        if up == 2:
            handle.stop()
            up = 3
    with pytest.raises(RunError, match="was stopped"):
        handle.wait()


def test_a_run_that_prints_without_end_is_kept_whole_and_stops(session: Session) -> None:
    megabytes = 1024
    cell = f"""
import os, sys
line = "x" * 1023 + "\\n"
if os.environ["RANK"] == "1":
    for _ in range({megabytes} * 1024):
        sys.stdout.write(line)
    sys.stdout.flush()
    raise RuntimeError("that was all")
import time
time.sleep(600)
"""
    error = _fails(session, cell)
    assert "rank 1 raised RuntimeError: that was all" in str(error)
    text = sum(len(part) for part in session.logs(error.run, rank=1))
    assert text >= megabytes * 1024 * 1024


@pytest.mark.skipif(not IS_LINUX, reason="a folder in which not even root can write")
def test_a_folder_that_cannot_be_written_is_the_codes_own_failure(session: Session) -> None:
    cell = "from pathlib import Path\nPath('weights.pt').write_text('x')"
    error = _fails(session, cell, cwd="/proc")
    assert "weights.pt" in str(error)
    assert "write_text" in error.traceback
    # Code that writes nothing there is not concerned.
    assert session.train("print('fine')", cell=True, gpus=1, cwd="/proc").state == "succeeded"


def test_a_folder_that_is_not_there_is_named(session: Session, tmp_path: Path) -> None:
    with pytest.raises(AiosError, match="nowhere"):
        session.train(tmp_path / "nowhere.py", gpus=1)


CHECKPOINT = """
import resource
import torch
from aios_jupyter import train
model = train.prepare(torch.nn.Linear(1000, 1000))
train.checkpoint({"model": model}, 1)
# From here on no file may grow beyond a thousand bytes: to the code it is as a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
train.checkpoint({"model": model}, 2)
"""


def test_a_full_disk_for_checkpoints_is_a_sentence_and_keeps_the_last_one(
    session: Session, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    kept = tmp_path / "kept"
    error = _fails(session, CHECKPOINT, checkpoints=str(kept))
    assert "The checkpoint of step 2 could not be written" in str(error)
    assert "--checkpoints" in str(error)
    assert [path.name for path in kept.glob("step-*")] == ["step-1"]
