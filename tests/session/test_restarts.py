"""Runs that are started again after a failure, on a live cluster, and go on from a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clusters import free, pid_of, until

from aios_jupyter.errors import NotFoundError, RunError, UsageError
from aios_jupyter.schema import DeviceKind, Lease, Slot
from aios_jupyter.session import Session, connect

FAILS_TWICE = """
import os, time
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("attempt", attempt, "rank", os.environ["RANK"], flush=True)
if os.environ["RANK"] == "1" and attempt < 2:
    raise ValueError(f"no luck at {attempt}")
while os.environ["RANK"] == "0" and attempt < 2:
    time.sleep(0.05)
result = attempt
"""


def test_all_ranks_start_again_until_none_fails(session: Session) -> None:
    handle = session.start(FAILS_TWICE, cell=True, gpus=2, max_restarts=3, pull=["result"])
    events = list(handle.events())
    assert handle.wait().pulled == {"result": 2}
    logs = [event for event in events if event["type"] == "log"]
    for rank in range(2):
        text = "".join(event["text"] for event in logs if event["rank"] == rank)
        for attempt in range(3):
            assert f"attempt {attempt} rank {rank}" in text
    text = "".join(event["text"] for event in logs if event["rank"] == 0)
    assert "--- restart 1 of at most 3, as rank 1 raised ValueError: no luck at 0" in text
    assert [event["attempt"] for event in events if event["type"] == "restart"] == [1, 2]
    # A reader that comes later needs one rising sequence over all attempts.
    numbers = [event["seq"] for event in events]
    assert numbers == list(range(1, len(numbers) + 1))
    row = next(row for row in session.runs() if row["id"] == handle.id)
    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_the_last_failure_is_told_when_no_restart_is_left(session: Session) -> None:
    with pytest.raises(RunError, match="no luck at 1") as caught:
        session.train(FAILS_TWICE, cell=True, gpus=2, max_restarts=1)
    assert "ValueError" in caught.value.traceback
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_rank_that_is_killed_is_started_again(session: Session, tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
Path(r"{tmp_path}", os.environ["RANK"] + "-" + os.environ["TORCHELASTIC_RESTART_COUNT"]).write_text(
    str(os.getpid())
)
while os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    time.sleep(0.05)
"""
    handle = session.start(code, cell=True, gpus=2, max_restarts=1)
    file = tmp_path / "1-0"
    until(lambda: file.exists() and file.read_text(), "rank 1 is there")
    os.kill(int(file.read_text()), signal.SIGKILL)
    assert handle.wait().state == "succeeded"
    assert {path.name for path in tmp_path.iterdir()} == {"0-0", "1-0", "0-1", "1-1"}


def test_stop_ends_a_run_that_would_start_again(session: Session) -> None:
    code = "import time\nprint('up', flush=True)\ntime.sleep(60)"
    handle = session.start(code, cell=True, gpus=2, max_restarts=5)
    assert next(event for event in handle.events() if event["type"] == "log")
    handle.stop()
    with pytest.raises(RunError, match="was stopped"):
        handle.wait()
    row = next(row for row in session.runs() if row["id"] == handle.id)
    assert (row["state"], row["attempt"]) == ("stopped", 0)
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_run_without_a_kernel_is_started_again(session: Session, tmp_path: Path) -> None:
    mark = tmp_path / "done"
    code = f"""
import os, time
from pathlib import Path
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    time.sleep(1)
    raise SystemExit(3)
Path(r"{mark}").write_text("yes")
"""
    with connect() as other:
        run = other.start(code, cell=True, gpus=1, max_restarts=1, detach=True).id
    until(mark.exists, "the second attempt has run")
    until(
        lambda: next(r for r in session.runs() if r["id"] == run)["state"] == "succeeded",
        "the run has ended",
    )


def test_a_broker_that_is_killed_meanwhile_starts_the_run_again(session: Session) -> None:
    code = """
import os, time
print("up", flush=True)
time.sleep(2)
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    raise SystemExit(3)
"""
    handle = session.start(code, cell=True, gpus=2, max_restarts=1)
    next(event for event in handle.events() if event["type"] == "log")
    os.kill(pid_of("broker"), signal.SIGKILL)
    time.sleep(3)
    assert handle.wait().state == "succeeded"
    row = next(row for row in session.runs() if row["id"] == handle.id)
    assert row["attempt"] == 1
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_restarts_that_make_no_sense_are_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="restarted 0 to"):
        session.start("pass", cell=True, gpus=1, max_restarts=-1)
    with pytest.raises(NotFoundError, match="no run 'r-nothing'"):
        session.start("pass", cell=True, gpus=1, resume="r-nothing")
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_run_goes_on_though_the_lease_that_was_taken_from_it_has_not_ended_yet() -> None:
    """A run ends before its lease does, and both are told."""
    slot = Slot(node="n", device="d", kind=DeviceKind.SIMULATED, index=0, address="n:1")
    taken = Lease(
        id="L1", request="q-1", session="s", user="u", slots=(slot,), fence=1, granted=0.0
    )
    told = RunError("preempted", run="r-1", preempted="L1")

    class Preempted(Session):
        def __init__(self, leases: dict[str, Lease]) -> None:
            self.leases_now, self.preempted = leases, {}

        def _call(self, op: str, body: Any = None, result: Any = None) -> Any:
            if body.id not in self.leases_now:
                raise NotFoundError("There is no such lease.")
            return self.leases_now[body.id]

        def again(self, lease: Lease, **_: object) -> Lease:
            return msgspec.structs.replace(lease, id="L2")

    asked = {"lease": "L1", "max_restarts": 1}
    ending = Preempted({"L1": taken})
    assert ending.go_on_after(told, asked) == {**asked, "lease": "L2", "resume": "r-1"}
    ended = Preempted({})
    ended.preempted["L1"] = taken
    assert ended.go_on_after(told, asked)["lease"] == "L2"


TRAINING = """
import os, signal
import torch
from aios_jupyter import train

torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
model, optimizer = train.prepare(model, optimizer)
inputs = torch.linspace(-1, 1, 64).reshape(16, 4)[train.rank() :: train.world_size()]
targets = inputs.sum(1, keepdim=True)
state = {"model": model, "optimizer": optimizer, "seen": 0}
first = train.restore(state)
print("begins at", first, "after", state["seen"], flush=True)
for step in range(first, 30):
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    state["seen"] += len(inputs)
    if (step + 1) % 5 == 0:
        train.checkpoint(state, step + 1)
    if step == dies_at and train.rank() == 1 and first == 0:
        os.kill(os.getpid(), signal.SIGKILL)
weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
seen = state["seen"]
"""


def _trained(session: Session, dies_at: int, **options: object) -> tuple[str, list[float], int]:
    push = {"dies_at": dies_at}
    pull = ["weights", "seen"]
    handle = session.start(TRAINING, cell=True, gpus=2, push=push, pull=pull, **options)  # type: ignore[arg-type]
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    result = handle.wait()
    return text, result.pulled["weights"], result.pulled["seen"]


@pytest.mark.slow
def test_a_restarted_training_ends_as_one_that_nothing_happened_to(session: Session) -> None:
    pytest.importorskip("torch")
    _, undisturbed, seen = _trained(session, -1)
    text, weights, also_seen = _trained(session, 13, max_restarts=1)
    assert "begins at 10 after 80" in text
    assert weights == undisturbed
    assert seen == also_seen == 30 * 8


@pytest.mark.slow
def test_a_run_goes_on_with_the_checkpoints_of_another(session: Session) -> None:
    pytest.importorskip("torch")
    handle = session.start(TRAINING, cell=True, gpus=2, push={"dies_at": 13}, pull=["seen"])
    with pytest.raises(RunError, match="SIGKILL"):
        handle.wait()
    text, _, seen = _trained(session, 13, resume=handle.id)
    assert "begins at 10 after 80" in text
    assert seen == 30 * 8
