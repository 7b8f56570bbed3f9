"""Two people in two queues of one cluster: one borrows, the other takes its quota back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clusters import free, session_of, until

from aios_jupyter.errors import AccessError, AllocationError, RunError
from aios_jupyter.runs.handle import RunHandle
from aios_jupyter.session import Session, connect

# It takes longer to save its checkpoint than a run that is stopped may take.
WORK = """
import pathlib, time
path = pathlib.Path(PATH)
path.with_suffix(".up").write_text("up")
try:
    time.sleep(600)
finally:
    time.sleep(7)
    path.write_text("saved")
"""


@pytest.fixture(scope="module")
def owner(cluster: None) -> Iterator[Session]:
    with connect(label="owner") as session:
        yield session


@pytest.fixture(scope="module")
def bundles(owner: Session, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    for name, role in {"alice": "user", "bob": "user", "victor": "viewer"}.items():
        owner.user_add(name, role, root / name)
    owner.quota("vision", gpus=2, members=["alice"])
    owner.quota("speech", gpus=2, borrow=1, user_leases=2, members=["bob"])
    return {name: root / name for name in ("alice", "bob", "victor")}


@pytest.fixture
def alice(bundles: dict[str, Path]) -> Iterator[Session]:
    with session_of(bundles["alice"], "alice.ipynb") as session:
        yield session


@pytest.fixture
def bob(bundles: dict[str, Path]) -> Iterator[Session]:
    with session_of(bundles["bob"], "bob.ipynb") as session:
        yield session


def aios(*words: str, fails: bool = False) -> str:
    """What the command line answers, as the cluster's owner."""
    command = [sys.executable, "-c", "from aios_jupyter.commands import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def work(session: Session, path: Path, **options: object) -> RunHandle:
    source = WORK.replace("PATH", repr(str(path)))
    handle = session.start(source, cell=True, **options)  # type: ignore[arg-type]
    until(path.with_suffix(".up").exists, "the run is up", timeout=60)
    return handle


def test_a_quota_is_taken_back_from_who_borrowed_it(
    owner: Session, alice: Session, bob: Session, tmp_path: Path
) -> None:
    own = alice.alloc(gpus=2)
    lent = alice.alloc(gpus=2, preemptible=True)
    again: list[str] = []
    alice.client.listen(lambda topic, body: topic == "lease.again" and again.append(body.id))
    handle = work(alice, tmp_path / "checkpoint", lease=lent.id, gpus=1)
    rows = {row["queue"]: row for row in alice.quota() if row["pool"] == "accelerator"}
    assert (rows["vision"]["used"], rows["vision"]["borrowed"]) == (4, 2)

    taken = bob.alloc(gpus=2, wait="60s")
    # Its processes were gone before, and had the time to save what they had.
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert {slot.device for slot in taken.slots} == {slot.device for slot in lent.slots}
    list(handle.events())
    with pytest.raises(RunError, match=r"preempted by request .* of bob.*waits again"):
        handle.wait()
    assert alice.runs()[0]["state"] == "stopped"
    (row,) = alice.queue()
    assert (row["id"], row["queue"], row["preempted"]) == (lent.request, "vision", True)
    assert row["reason"] == "Resources"
    assert [held.id for held in alice.leases()] == [own.id]
    with pytest.raises(AllocationError, match="no lease again"):
        alice.again(lent, wait=0.1)
    assert ("preempted", "alice") in [(r["what"], r["who"]) for r in owner.audit(50)]

    bob.release(taken.id)
    followed = alice.again(lent, wait="20s")
    assert (followed.request, followed.preemptible) == (lent.request, True)
    assert followed.id != lent.id
    until(lambda: again == [followed.id], "the session is told of the lease that follows")
    assert alice.train("print('on')", cell=True, lease=followed.id, gpus=1).id


def test_a_cell_that_was_preempted_says_what_to_do(
    alice: Session, bob: Session, tmp_path: Path
) -> None:
    handle = work(alice, tmp_path / "cell", gpus=3, preemptible=True)
    assert bob.alloc(gpus=2, wait="60s").slots
    list(handle.events())
    with pytest.raises(RunError, match=r"preempted by .*; run it again to wait for devices anew"):
        handle.wait()
    assert alice.queue() == []


GOES_ON = """
import pathlib, time
import torch
from aios_jupyter import train
model = train.prepare(torch.nn.Linear(1, 1))
state = {"model": model, "seen": 0}
first = train.restore(state)
for step in range(first, 1000):
    state["seen"] += 1
    if first:
        break
    time.sleep(0.02)
    if train.should_stop():
        train.checkpoint(state, step + 1)
        break
    if step == 3:
        # From the first question on, a stop is left to the code.
        pathlib.Path(PATH).with_suffix(".up").touch()
result = (first, state["seen"])
"""


@pytest.mark.parametrize("own", [True, False], ids=["a lease of its own", "the session's lease"])
def test_a_run_that_was_preempted_goes_on_when_it_has_devices_again(
    alice: Session, bob: Session, tmp_path: Path, own: bool
) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "begun"
    options: dict[str, object] = {"preemptible": True, "gpus": 3}
    if not own:
        options = {"lease": alice.alloc(gpus=3, preemptible=True).id}

    def train() -> object:
        code = GOES_ON.replace("PATH", repr(str(path)))
        return alice.train(code, cell=True, max_restarts=1, pull=["result"], **options).pulled

    with ThreadPoolExecutor(1) as background:
        done = background.submit(train)
        until(path.with_suffix(".up").exists, "it has begun", 60)
        taken = bob.alloc(gpus=2, wait="60s")
        until(lambda: alice.queue(), "it waits for devices")
        bob.release(taken.id)
        first, seen = done.result(60)["result"]  # type: ignore[index]
    assert first > 0
    assert seen == first + 1
    assert [row["state"] for row in alice.runs()[:2]] == ["succeeded", "stopped"]
    for lease in alice.leases():
        alice.release(lease.id)
    until(lambda: len(free(alice)) == 4, "the devices are free")


def test_what_is_beyond_a_quota_waits_for_it_and_says_so(bob: Session, alice: Session) -> None:
    with pytest.raises(AllocationError, match="at most 3"):
        bob.alloc(gpus=4)
    bob.alloc(gpus=1)
    bob.alloc(gpus=1)
    with pytest.raises(AllocationError, match=r"Quota\(user\)"):
        bob.alloc(gpus=1, wait=1.5)
    assert len(free(alice)) == 2
    with pytest.raises(AccessError, match="not a member of queue vision"):
        bob.alloc(gpus=1, queue="vision")


def test_users_and_viewers_read_quotas_and_only_admins_change_them(
    alice: Session, bundles: dict[str, Path], owner: Session
) -> None:
    with session_of(bundles["victor"]) as viewer:
        assert {row["queue"] for row in viewer.quota()} == {"default", "vision", "speech"}
        with pytest.raises(AccessError):
            viewer.quota("mine", gpus=4)
    for attempt in (
        lambda: alice.quota("vision", gpus=4),
        lambda: alice.quota("vision", members=["alice", "bob"]),
        lambda: alice.quota("speech", remove=True),
    ):
        with pytest.raises(AccessError):
            attempt()
    started = time.time() - 60
    refused = [r for r in owner.audit(50) if r["what"] == "refused" and r["time"] > started]
    assert {"quota.set", "quota.remove"} <= {record["detail"]["op"] for record in refused}
    owner.quota("extra", gpus=1, borrow=0)
    assert owner.quota("extra", borrow=-1)[-2]["borrow"] is None
    changed = aios("quota", "set", "extra", "--weight", "2.5", "--json")
    assert [row["weight"] for row in json.loads(changed) if row["queue"] == "extra"] == [2.5, 2.5]
    assert "is not a weight" in aios("quota", "set", "extra", "--weight", "0", fails=True)
    assert owner.quota("extra", user_leases=3)[-1]["weight"] == 2.5
    assert "extra" not in {row["queue"] for row in owner.quota("extra", remove=True)}
