"""Runs that go on with fewer devices when a node dies, and with more when there are more again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from clusters import agent_of, free, until

from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect, join_node

# Each attempt writes who is there, and goes on from the step that the one before has kept.
TRAINING = """
import os, pathlib, signal, time
import torch
import torch.distributed as dist
from aios_jupyter import train

attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
torch.manual_seed(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model, optimizer = train.prepare(model, optimizer)
state = {"model": model, "optimizer": optimizer, "sent": sent}
first = train.restore(state)
here = pathlib.Path(folder, f"{attempt}-{train.rank()}-of-{train.world_size()}-from-{first}")
here.write_text(str(os.getpid()))
for step in range(first, 10_000):
    loss = model(torch.ones(2, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % 5 == 0:
        train.checkpoint(state, step + 1)
        pathlib.Path(folder, "step").write_text(str(step + 1))
    time.sleep(0.01)
    end = torch.tensor([float(pathlib.Path(folder, "end").exists())])
    dist.all_reduce(end, op=dist.ReduceOp.MAX)
    if end:
        break
result = (train.world_size(), state["sent"])
dist.destroy_process_group()
"""


def _ranks(folder: Path, attempt: int) -> dict[int, tuple[int, int, int]]:
    """Of each rank of an attempt: pid, world size, and the step from which it went on."""
    found = {}
    for path in folder.glob(f"{attempt}-*"):
        _, rank, _, world, _, first = path.name.split("-")
        if text := path.read_text():
            found[int(rank)] = (int(text), int(world), int(first))
    return found


def _all_there(folder: Path, attempt: int, world: int) -> dict[int, tuple[int, int, int]]:
    def there() -> dict[int, tuple[int, int, int]]:
        found = _ranks(folder, attempt)
        return found if len(found) == world else {}

    found: dict[int, tuple[int, int, int]] = until(there, f"attempt {attempt} has begun", 60)
    return found


def _step(folder: Path) -> int:
    path = folder / "step"
    return int(path.read_text() or 0) if path.exists() else 0


def _state(session: Session, run: str) -> str:
    return str(next(row for row in session.runs() if row["id"] == run)["state"])


def test_a_run_shrinks_when_a_node_dies_and_grows_back_at_the_next_restart(
    second_node: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    folder, kept = tmp_path / "seen", tmp_path / "kept"
    folder.mkdir()
    with connect() as session:
        handle = session.start(
            TRAINING,
            cell=True,
            gpus="2:4",
            max_restarts=3,
            checkpoints=str(kept),
            push={"folder": str(folder), "sent": "from the notebook"},
            pull=["result"],
        )
        first = _all_there(folder, 0, 4)
        until(lambda: _step(folder) >= 5, "there is a checkpoint")
        os.kill(agent_of("far"), signal.SIGKILL)
        second = _all_there(folder, 1, 2)
        assert {world for _, world, _ in second.values()} == {2}
        assert all(start >= 5 for _, _, start in second.values())
        assert not any(alive(pid) for pid, _, _ in first.values())
        lease = session.leases()[0]
        assert len(lease.slots) == 2
        # The node comes back: its devices are free, and the next restart takes them.
        join_node(second_node, simulate_gpus=2)
        until(lambda: len(free(session)) == 2, "the node's devices are free")
        os.kill(second[1][0], signal.SIGKILL)
        third = _all_there(folder, 2, 4)
        assert {world for _, world, _ in third.values()} == {4}
        (folder / "end").touch()
        text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
        assert handle.wait().pulled == {"result": (4, "from the notebook")}
        assert "restart 1 of at most 3, with 2 ranks for 4, as node far was lost" in text
        assert "restart 2 of at most 3, with 4 ranks for 2, as rank 1 was killed by SIGKILL" in text
        row = next(row for row in session.runs() if row["id"] == handle.id)
        assert (row["state"], row["attempt"], row["world_size"]) == ("succeeded", 2, 4)
        until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_node_that_comes_back_in_time_is_part_of_the_next_attempt(
    second_node: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    folder, kept = tmp_path / "seen", tmp_path / "kept"
    folder.mkdir()
    with connect() as session:
        # Of one size alone: without the node there is nothing to do but wait for it.
        handle = session.start(
            TRAINING,
            cell=True,
            gpus=4,
            max_restarts=1,
            checkpoints=str(kept),
            push={"folder": str(folder), "sent": 1},
            pull=["result"],
        )
        _all_there(folder, 0, 4)
        until(lambda: _step(folder) >= 5, "there is a checkpoint")
        os.kill(agent_of("far"), signal.SIGKILL)
        until(lambda: _state(session, handle.id) == "restarting", "the run waits for its node")
        join_node(second_node, simulate_gpus=2)
        again = _all_there(folder, 1, 4)
        assert all(start >= 5 for _, _, start in again.values())
        (folder / "end").touch()
        assert handle.wait().pulled == {"result": (4, 1)}


def test_a_run_that_waits_for_its_node_can_be_stopped(second_node: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "seen"
    folder.mkdir()
    with connect() as session:
        handle = session.start(
            TRAINING,
            cell=True,
            gpus=4,
            max_restarts=1,
            checkpoints=str(tmp_path / "kept"),
            push={"folder": str(folder), "sent": 1},
        )
        _all_there(folder, 0, 4)
        os.kill(agent_of("far"), signal.SIGKILL)
        until(lambda: _state(session, handle.id) == "restarting", "the run waits for its node")
        session.stop(handle.id)
        until(lambda: _state(session, handle.id) == "stopped", "it has ended")
