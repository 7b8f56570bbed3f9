"""Detached runs whose devices are taken, and runs for which there are more: they go on by themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import environment, free, until

from aios_jupyter.cluster import embedded
from aios_jupyter.config import settings
from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect

pytest.importorskip("torch")

# Saves when it is told to end, and says where each attempt begins, until the file `end` is there.
TRAINING = """
import os, pathlib, time
import torch
import torch.distributed as dist
from aios_jupyter import train
folder = pathlib.Path(FOLDER)
model = train.prepare(torch.nn.Linear(1, 1))
state = {"model": model, "seen": 0}
first = train.restore(state)
here = folder / f"{os.environ['TORCHELASTIC_RESTART_COUNT']}-{train.rank()}"
here.write_text(f"{train.world_size()} {first}")
for step in range(first, 100_000):
    state["seen"] += 1
    if step == 3:
        train.checkpoint(state, step + 1)
    if train.should_stop():
        train.checkpoint(state, step + 1)
        break
    # Of those that look at the same moment one may see it and another not.
    end = torch.tensor([float((folder / "end").exists())])
    dist.all_reduce(end, op=dist.ReduceOp.MAX)
    if end:
        break
    time.sleep(0.02)
result = (first, step, state["seen"])
"""


def _begun(folder: Path, attempt: int, world: int) -> int:
    """The step from which an attempt of so many ranks begins, once all are there."""

    def steps() -> list[int]:
        texts = [path.read_text() for path in folder.glob(f"{attempt}-*")]
        there = [text.split() for text in texts if text]
        ready = len(there) == world and all(int(size) == world for size, _ in there)
        return [int(first) + 1 for _, first in there] if ready else []

    found: list[int] = until(steps, f"attempt {attempt} with {world} ranks has begun", 60)
    assert len(set(found)) == 1
    return found[0] - 1


def _row(session: Session, run: str) -> dict[str, object]:
    return next(row for row in session.runs() if row["id"] == run)


def _kernel(code: str, folder: Path) -> subprocess.Popen[bytes]:
    """Another kernel, that starts a detached run which may be taken from its devices."""
    source = f"""
import pathlib, time
from aios_jupyter import connect
session = connect(label="gone.ipynb")
handle = session.start({code!r}, cell=True, gpus=3, preemptible=True, max_restarts=1, detach=True, pull=["result"])
pathlib.Path({str(folder / "run")!r}).write_text(handle.id)
time.sleep(600)
"""
    return subprocess.Popen([sys.executable, "-c", source], env=environment())


def test_a_detached_run_goes_on_by_itself_when_it_has_devices_again(
    session: Session, tmp_path: Path
) -> None:
    session.policy("priority")
    kernel = _kernel(TRAINING.replace("FOLDER", repr(str(tmp_path))), tmp_path)
    assert _begun(tmp_path, 0, 3) == 0
    run = (tmp_path / "run").read_text()
    until(lambda: _row(session, run)["detail"], "there is a checkpoint")
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    taken = session.alloc(gpus=2, priority=1, wait="60s")
    row = _row(session, run)
    assert row["state"] == "restarting"
    assert "it goes on when request" in str(row["reason"])
    (waiting,) = session.queue()
    assert waiting["id"] == row["awaits"]
    follower = session.attach(run)
    session.release(taken.id)
    first = _begun(tmp_path, 1, 3)
    assert first >= 4
    (tmp_path / "end").touch()
    text = "".join(e["text"] for e in follower.events() if e["type"] == "log" and e["rank"] == 0)
    began, ended, seen = follower.wait().pulled["result"]
    assert (began, seen) == (first, ended + 1)
    assert "--- preempted by request" in text
    assert "--- goes on, as preempted by request" in text
    until(lambda: len(free(session)) == 4, "the devices are free")
    assert _row(session, run)["state"] == "succeeded"


def test_a_run_that_waits_for_devices_can_be_stopped_from_any_shell(
    session: Session, tmp_path: Path
) -> None:
    session.policy("priority")
    code = "import time\nprint('up', flush=True)\ntime.sleep(600)"
    with connect() as other:
        handle = other.start(code, cell=True, gpus=3, preemptible=True, max_restarts=1, detach=True)
        run = handle.id
        next(event for event in handle.events() if event["type"] == "log")
    taken = session.alloc(gpus=2, priority=1, wait="60s")
    assert _row(session, run)["state"] == "restarting"
    aios = [sys.executable, "-c", "from aios_jupyter.commands import main; main()"]
    subprocess.run([*aios, "stop", run], env=environment(), check=True, timeout=60)
    assert _row(session, run)["state"] == "stopped"
    assert session.queue() == []
    assert "up" in "".join(session.logs(run))
    session.release(taken.id)
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_it_goes_on_at_another_node_that_gets_its_code_from_the_first(
    own_second_node: Path, tmp_path: Path
) -> None:
    code = TRAINING.replace("FOLDER", repr(str(tmp_path))) + "\nresult = (*result, sent)"
    kept = str(tmp_path / "kept")
    with connect() as session:
        session.policy("priority")
        held = session.alloc(gpus=2, placement="node")
        handle = session.start(
            code,
            cell=True,
            gpus=2,
            preemptible=True,
            max_restarts=1,
            detach=True,
            checkpoints=kept,
            push={"sent": "from the notebook"},
            pull=["result"],
        )
        assert _begun(tmp_path, 0, 2) == 0
        until(lambda: _row(session, handle.id)["detail"], "there is a checkpoint")
        taken = session.alloc(gpus=2, priority=1, wait="60s")
        session.release(held.id)
        assert _begun(tmp_path, 1, 2) >= 4
        (tmp_path / "end").touch()
        text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
        assert handle.wait().pulled["result"][-1] == "from the notebook"
        assert f"--- it goes on at {held.slots[0].node} ---" in text
        assert "--- goes on, as preempted" in text
        # A reader that comes later has the whole log, of both nodes.
        later = "".join(session.logs(handle.id))
        assert "--- preempted by request" in later
        assert "--- goes on, as preempted" in later
        session.release(taken.id)
        until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_run_takes_devices_that_stay_free(
    no_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_GROW_AFTER", "1")
    monkeypatch.setenv("AIOS_GROW_INTERVAL", "2")
    settings.cache_clear()
    embedded.ensure(simulate_gpus=4)
    folder = tmp_path / "seen"
    folder.mkdir()
    with connect() as session, connect() as other:
        held = other.alloc(gpus=2)
        code = TRAINING.replace("FOLDER", repr(str(folder)))
        handle = session.start(code, cell=True, gpus="2:4", max_restarts=1, pull=["result"])
        assert _begun(folder, 0, 2) == 0
        assert len(session.leases()[-1].slots) == 2
        other.release(held.id)
        first = _begun(folder, 1, 4)
        assert first >= 4
        (folder / "end").touch()
        text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
        began, ended, seen = handle.wait().pulled["result"]
        assert (began, seen) == (first, ended + 1), "it had saved its last step"
        assert "--- goes on, with 4 ranks for 2, as 2 more devices are free ---" in text
        row = _row(session, handle.id)
        assert (row["attempt"], row["uncounted"], row["world_size"]) == (1, 1, 4)
        until(lambda: len(free(session)) == 4, "the devices are free")


def test_pids_are_gone_when_devices_are_given_to_others(session: Session, tmp_path: Path) -> None:
    """The devices of a run that waits are granted once no process of it is left."""
    session.policy("priority")
    code = f"""
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
path = pathlib.Path({str(tmp_path)!r}, "pids-" + os.environ["RANK"])
path.with_suffix(".part").write_text(f"{{os.getpid()}} {{child.pid}}")
path.with_suffix(".part").rename(path)
time.sleep(600)
"""
    handle = session.start(code, cell=True, gpus=3, preemptible=True, max_restarts=1, detach=True)
    until(lambda: len(list(tmp_path.glob("pids-?"))) == 3, "all ranks are there")
    pids = [int(pid) for path in tmp_path.glob("pids-?") for pid in path.read_text().split()]
    taken = session.alloc(gpus=2, priority=1, wait="60s")
    assert not any(alive(pid) for pid in pids)
    session.stop(handle.id)
    session.release(taken.id)
    until(lambda: len(free(session)) == 4, "the devices are free")
