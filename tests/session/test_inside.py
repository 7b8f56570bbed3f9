"""Looking into runs on a live cluster: stacks of ranks at work, variables of those that failed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from clusters import free, session_of, until

from aios_jupyter.broker.messages import ById
from aios_jupyter.errors import AccessError, NotFoundError, RunError
from aios_jupyter.node.stacks import find_spy
from aios_jupyter.runs.handle import RunHandle
from aios_jupyter.runs.messages import Inspect, RankStacks
from aios_jupyter.session import Session, connect

STUCK = """
import ctypes, os, time
print("up", flush=True)

def waits_for_ever():
    # Native code that gives nobody the interpreter: no handler of Python's own would run.
    ctypes.PyDLL(None).sleep(600)

def works():
    while True:
        time.sleep(0.01)

waits_for_ever() if os.environ["RANK"] == "1" else works()
"""


def functions(rank: RankStacks, thread: str = "MainThread") -> list[str]:
    (found,) = [stack for stack in rank.threads if stack.name == thread]
    return [frame.function for frame in found.frames if frame.users]


def started(session: Session, code: str, **options: object) -> RunHandle:
    """Start a cell on two ranks and wait until both have said `up`."""
    handle = session.start(code, cell=True, filename="cell-3.py", gpus=2, **options)  # type: ignore[arg-type]
    up = set()
    for event in handle.events():
        if event["type"] == "log" and "up" in event["text"]:
            up.add(event["rank"])
        if len(up) == 2:
            break
    return handle


def test_stacks_show_a_rank_that_is_stuck_in_native_code(session: Session) -> None:
    handle = started(session, STUCK)
    ranks: list[RankStacks] = []

    def both_are_there() -> bool:
        ranks[:] = session.stacks(handle.id)
        return functions(ranks[1])[:1] == ["waits_for_ever"] and "works" in functions(ranks[0])

    until(both_are_there, "both ranks are where they stay")
    assert [rank.rank for rank in ranks] == [0, 1]
    pids = {rank.pid for rank in ranks}
    assert len(pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    stack = ranks[1].threads[0]
    users = [frame for frame in stack.frames if frame.users]
    assert users[0].source == "ctypes.PyDLL(None).sleep(600)"
    assert users[-1].function == "<module>"
    assert all(frame.file.endswith("cell-3.py") for frame in users)
    assert not any("aios_jupyter" in frame.file for frame in stack.frames)
    assert bool(ranks[0].note) == (not find_spy())
    (only,) = session.stacks(handle.id, rank=1)
    assert only.rank == 1
    with pytest.raises(NotFoundError, match="no rank 7 at work"):
        session.stacks(handle.id, rank=7)
    # Looking changed nothing.
    assert not handle.done
    handle.stop()
    until(lambda: len(free(session)) == 4, "the devices are free")


SLOWLY = """
import time
class Slow:
    def __repr__(self):
        time.sleep(0.3)
        return "slow"
slow, quick = Slow(), 7
raise ValueError("no")
"""


def test_where_it_failed_is_kept_also_when_its_lease_ends_with_it(session: Session) -> None:
    # The session gives the lease back as soon as it hears of the failure, and ranks are then ended.
    with pytest.raises(RunError) as failed:
        session.train(SLOWLY, cell=True, gpus=1)
    run = failed.value.run
    until(lambda: len(free(session)) == 4, "the devices are free")
    (rank,) = session.stacks(run)
    assert "slow = slow" in rank.failure
    assert "ValueError: no" in rank.failure


def test_a_detached_run_is_seen_from_another_session(session: Session) -> None:
    with connect() as other:
        handle = started(other, STUCK, detach=True)
    until(lambda: "works" in functions(session.stacks(handle.id)[0]), "rank 0 is at work")
    session.stop(handle.id)
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_stacks_and_profiles_are_for_the_owner(session: Session, tmp_path: Path) -> None:
    handle = started(session, STUCK)
    session.user_add("mallory", "user", tmp_path / "mallory")
    with session_of(tmp_path / "mallory") as mallory:
        with pytest.raises(AccessError, match="belongs to"):
            mallory.stacks(handle.id)
        with pytest.raises(AccessError, match="belongs to"):
            mallory.profile(handle.id, tmp_path / "trace.json")
        # The broker refused these; the agent does so itself.
        _, addresses = session._located(handle.id)
        asked = {
            "run.stacks": Inspect(run=handle.id),
            "run.pulled": ById(id=handle.id),
            "run.share": ById(id=handle.id),
        }
        launcher = mallory._launcher
        assert launcher is not None
        for op, body in asked.items():
            with pytest.raises(AccessError, match="belongs to"):
                mallory._loop.run(launcher.ask(addresses, op, body, Any, 10))

    def refused() -> set[str]:
        rows = [row for row in session.audit(50) if row["what"] == "refused"]
        return {row["detail"]["op"] for row in rows if row["who"] == "mallory"}

    until(lambda: set(asked) <= refused(), "the refusals are on record")
    handle.stop()
    until(lambda: len(free(session)) == 4, "the devices are free")


FAILS = """
import os
import numpy as np

def inner(batch, api_key):
    weights = np.zeros((3, 4), dtype=np.float32)
    class Broken:
        def __repr__(self):
            raise SystemError("no")
    broken = Broken()
    long = "x" * 100_000
    return batch[17]

rate = 0.25
if os.environ["RANK"] == "1":
    inner([1, 2, 3], "do not " + "show")
import time; time.sleep(60)
"""


def test_a_rank_that_raised_shows_its_variables_after_the_end(session: Session) -> None:
    with pytest.raises(RunError, match="IndexError") as caught:
        session.train(FAILS, cell=True, filename="cell-9.py", gpus=2)
    run = caught.value.run
    (failed,) = session.stacks(run)
    text = failed.failure
    assert failed.rank == 1
    assert 'File "cell-9.py", line 12, in inner\n    return batch[17]\n' in text
    assert "batch = [1, 2, 3]" in text
    assert "rate = 0.25" in text
    assert "weights = ndarray (3, 4) float32" in text
    assert "do not show" not in text
    assert "broken = <Broken instance at 0x" in text
    assert text.rstrip().endswith("IndexError: list index out of range")
    assert len(text) < 10_000
    # Nothing of it is in the broker.
    row = next(row for row in session.runs() if row["id"] == run)
    assert "0.25" not in json.dumps(row, default=str)


def test_a_run_without_a_failure_has_none_to_show(session: Session) -> None:
    run = session.train("x = 1", cell=True, gpus=1).id
    with pytest.raises(NotFoundError, match="no rank at work and no rank that raised"):
        session.stacks(run)
    with pytest.raises(NotFoundError, match="no profile of rank 0"):
        session.profile(run, "never.json")
    with pytest.raises(NotFoundError, match="r-nothing"):
        session.stacks("r-nothing")


def test_a_rank_that_is_killed_leaves_the_others_visible(session: Session) -> None:
    handle = started(session, STUCK, max_restarts=0)
    pid = session.stacks(handle.id, rank=0)[0].pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunError, match="SIGKILL"):
        handle.wait()
    with pytest.raises(NotFoundError):
        session.stacks(handle.id)


TRAINING = """
import torch
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(steps):
    loss = model(torch.randn(32, 64)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize("which", ["first", "all"])
def test_a_profile_has_a_table_and_a_trace(session: Session, tmp_path: Path, which: str) -> None:
    pytest.importorskip("torch")
    handle = session.start(
        TRAINING, cell=True, gpus=2, push={"steps": 30}, profile=which, framework="torch"
    )
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    handle.wait()
    assert "--- profile of rank 0, 10 steps ---" in text
    assert "aten::addmm" in text
    trace = json.loads(session.profile(handle.id, tmp_path / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert sum(name == "aten::addmm" for name in names) == 10
    assert ("--- profile of rank 1" in text) == (which == "all")
    if which == "all":
        assert session.profile(handle.id, tmp_path / "other.json", rank=1).stat().st_size
    else:
        with pytest.raises(NotFoundError, match="no profile of rank 1"):
            session.profile(handle.id, tmp_path / "other.json", rank=1)


def test_a_run_too_short_for_a_profile_says_so(session: Session) -> None:
    pytest.importorskip("torch")
    handle = session.start(TRAINING, cell=True, gpus=1, push={"steps": 4}, profile="first")
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    handle.wait()
    assert "Nothing was profiled on rank 0: it made 4 optimizer steps" in text
