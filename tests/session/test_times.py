"""Times on a live cluster with four simulated GPUs: warnings, graces, reservations, idle leases."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import free, pid_of, private_directories, until

from aios_jupyter.broker.messages import ById
from aios_jupyter.cluster import embedded
from aios_jupyter.config import settings
from aios_jupyter.errors import (
    AccessError,
    AllocationError,
    ConflictError,
    NotFoundError,
    RunError,
    UsageError,
)
from aios_jupyter.session import Session, connect

TIMES = {
    "AIOS_END_GRACE": "20",
    "AIOS_STOP_GRACE": "0.5",
    "AIOS_IDLE_GRACE": "3",
    "AIOS_RESERVE_LIMIT": "0.1",
}
# Says that it was told to end, and takes longer for that than the usual grace.
SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(2)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster with short graces; gives the bundle of a plain user, bob."""
    root = tmp_path_factory.mktemp("times")
    with pytest.MonkeyPatch.context() as patch, private_directories(root):
        for name, value in TIMES.items():
            patch.setenv(name, value)
        settings.cache_clear()
        embedded.ensure(simulate_gpus=4)
        with connect() as owner:
            owner.user_add("bob", "user", root / "bob")
            owner.user_add("vic", "viewer", root / "vic")
        yield root


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with connect(label="test") as opened:
        yield opened
        for row in opened.reservations():
            opened.cancel(row["id"])
    with connect() as after:
        until(lambda: len(free(after)) == 4, "what the test took is free again")


def of(bundle: Path, name: str) -> Session:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_BUNDLE", str(bundle / name))
        settings.cache_clear()
        try:
            return connect(label=name)
        finally:
            settings.cache_clear()


def test_a_lease_is_warned_then_ended_with_a_grace_in_which_its_ranks_may_save(
    session: Session,
) -> None:
    told: list[str] = []
    session.on_notice = told.append
    lease = session.alloc(gpus=1, time=8)
    handle = session.start(SAVES, cell=True, lease=lease.id)
    until(lambda: told, "it is warned")
    assert told[0].startswith(f"Lease {lease.id} ends in ")
    assert session.status()["leases"][lease.id]["warned"] is True
    said = "".join(e["text"] for e in handle.events() if e["type"] == "log")
    assert said.split() == ["ready", "saved"]
    with pytest.raises(RunError, match="its time is over"):
        handle.wait()


def test_an_extension_takes_the_warning_back(session: Session) -> None:
    told: list[str] = []
    session.on_notice = told.append
    lease = session.alloc(gpus=1, time=5)
    until(lambda: told, "it is warned")
    assert session.extend(lease.id, "1h").warned is False
    assert session.leases()[0].warned is False


def test_a_reservation_begins_by_itself_and_is_kept_from_others(
    session: Session, bundle: Path
) -> None:
    told: list[str] = []
    session.on_notice = told.append
    row = session.reserve(gpus=3, at="+4s", time="1m", label="soon")
    assert session.reservations() == [row]
    with of(bundle, "bob") as bob:
        assert bob.reservations() == [row]
        with pytest.raises(AllocationError, match=r"Reservation\(for b-"):
            bob.alloc(gpus=2, wait=1)
        assert len(bob.alloc(gpus=3, time=1).slots) == 3
        with pytest.raises(AccessError, match="belongs to"):
            bob.cancel(row["id"])
        with pytest.raises(AccessError, match="not to you"):
            bob.alloc(reservation=row["id"])
        with pytest.raises(AllocationError, match="1 of 2 can be promised"):
            bob.reserve(gpus=2, at="+10s", time=5)
    refusals = [r for r in session.audit() if r["what"] == "refused" and r["who"] == "bob"]
    assert {"cancel", "claim"} <= {r["detail"]["op"] for r in refusals}
    lease = session.alloc(reservation=row["id"])
    assert (len(lease.slots), lease.label, lease.booking) == (3, "soon", row["id"])
    assert session.reservations()[0]["lease"] == lease.id
    until(lambda: any("has begun" in text for text in told), "its user is told")
    session.cancel(row["id"])
    assert session.reservations() == []


def test_a_reservation_outlives_the_session_that_made_it(session: Session) -> None:
    with connect(label="first") as first:
        row = first.reserve(gpus=1, at="+2s", time="1m")
        with pytest.raises(AllocationError, match="starts in"):
            first.alloc(reservation=row["id"], nonblock=True)
    until(lambda: session.reservations()[0]["lease"], "it begins")
    lease = session.alloc(reservation=row["id"])
    handle = session.start("print('here')", cell=True)
    assert handle.run["lease"] == lease.id
    handle.wait()
    assert [held.id for held in session.leases()] == [lease.id], "it goes on after its run"
    session.release()
    with pytest.raises((ConflictError, NotFoundError), match=r"is ending|no reservation"):
        session.alloc(reservation=row["id"])


def test_users_reserve_up_to_their_limit_and_viewers_not_at_all(
    session: Session, bundle: Path
) -> None:
    with of(bundle, "bob") as bob:
        with pytest.raises(AllocationError, match=r"0\.1 device-hours"):
            bob.reserve(gpus=4, at="+1h", time="10m")
        bob.cancel(bob.reserve(gpus=4, at="+1h", time="1m")["id"])
        with pytest.raises(UsageError, match="past"):
            bob.reserve(gpus=1, at=5.0, time="1m")
        with pytest.raises(AllocationError, match="at most 4"):
            bob.reserve(gpus=5, at="+1h", time="1s")
        with pytest.raises(AccessError, match="ask an admin"):
            bob.policy(idle="1m")
    with of(bundle, "vic") as vic, pytest.raises(AccessError):
        vic.reserve(gpus=1, at="+1h", time="1m")


def test_reservations_survive_a_crash_of_the_broker(session: Session) -> None:
    row = session.reserve(gpus=2, at="+1h", time="1m")
    os.kill(pid_of("broker"), signal.SIGKILL)
    until(lambda: session.reservations() == [row], "it is there again", timeout=40)
    session.cancel(row["id"])


def test_an_idle_lease_is_warned_and_reclaimed_and_one_that_computes_is_not(
    session: Session,
) -> None:
    told: list[str] = []
    session.on_notice = told.append
    assert session.policy(idle=3)["idle"] == {"": 3.0}
    try:
        busy = session.alloc(gpus=1)
        session.start("while True: pass", cell=True, lease=busy.id)
        hung = session.alloc(gpus=1)
        run = session.start("import time; time.sleep(600)", cell=True, lease=hung.id)
        until(lambda: any(hung.id in text for text in told), "it is warned", timeout=40)
        (text,) = [text for text in told if hung.id in text]
        assert f"though its run {run.id} has not ended" in text
        row = session.status()["leases"][hung.id]
        assert row["idle_ends"] > row["idle_since"] > 0
        until(lambda: hung.id not in session.status()["leases"], "it is reclaimed", timeout=40)
        ended = [r for r in session.audit() if r["what"] == "lease ended"]
        reasons = {r["detail"]["lease"]: r["detail"]["reason"] for r in ended}
        assert reasons[hung.id].startswith("idle for ")
        assert busy.id in session.status()["leases"]
        assert not any(busy.id in text for text in told)
    finally:
        assert session.policy(idle="off")["idle"] == {}


def test_a_lease_without_a_run_is_idle_from_its_grant(session: Session) -> None:
    session.policy(idle=1)
    try:
        lease = session.alloc(gpus=1)
        until(lambda: lease.id not in session.status()["leases"], "it is reclaimed")
        with pytest.raises(NotFoundError):
            session._call("lease.get", ById(id=lease.id))
    finally:
        session.policy(idle="off")


def test_a_lease_lasts_no_longer_than_an_admin_lets_it(session: Session, bundle: Path) -> None:
    assert session.policy(max_time="1m")["max_time"] == 60.0
    try:
        with of(bundle, "bob") as bob:
            with pytest.raises(UsageError, match="1 min at most"):
                bob.alloc(gpus=1, time="2m")
            lease = bob.alloc(gpus=1)
            assert lease.expires is not None
            assert lease.expires - time.time() < 61
    finally:
        assert session.policy(max_time="off")["max_time"] is None
