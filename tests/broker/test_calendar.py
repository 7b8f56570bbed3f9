"""Reservations: what is promised, to whom, and that it is kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
from simulated import HOUR, Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.journal import Journal
from aios_jupyter.broker.outlook import Outlook, foresee
from aios_jupyter.broker.policy import Pool
from aios_jupyter.errors import (
    AccessError,
    AiosError,
    AllocationError,
    ConflictError,
    NotFoundError,
    UsageError,
)
from aios_jupyter.schema import Booking, Lease, Owner, Process, Scope, Want


def reserve(
    cluster: Cluster,
    count: int = 4,
    at: float = HOUR,
    time: float = HOUR,
    user: str = "ana",
    admin: bool = True,
    **wish: Any,
) -> str:
    """Reserve from a time on; returns the reservation's id."""
    if user not in cluster.state.sessions:
        cluster.do(ev.SessionOpened(owner=Owner(id=user, user=user)))
    cluster.count += 1
    wish.setdefault("want", Want.GPU)
    booking = Booking(
        id=f"b{cluster.count}", session=user, user=user, count=count, start=at, time=time, **wish
    )
    cluster.do(ev.Booked(booking=booking, admin=admin))
    return booking.id


def lease_of(cluster: Cluster, booking: str) -> Lease:
    return cluster.state.leases[cluster.state.lease_of(booking)]


def test_a_reservation_is_leased_to_its_user_at_its_time() -> None:
    cluster = Cluster("fifo")
    booking = reserve(cluster, 4, label="night")
    cluster.wait(HOUR - 1)
    assert not cluster.state.lease_of(booking)
    cluster.wait(1)
    lease = lease_of(cluster, booking)
    assert (len(lease.slots), lease.user, lease.session, lease.label) == (4, "ana", "ana", "night")
    assert (lease.granted, lease.expires, lease.scope) == (HOUR, 2 * HOUR, Scope.RESERVED)
    assert booking not in cluster.state.bookings
    cluster.wait(HOUR)
    assert not cluster.state.leases


def test_what_could_still_run_then_is_not_granted_what_is_reserved() -> None:
    cluster = Cluster("fifo")
    booking = reserve(cluster, 4)
    endless, more = cluster.ask(4), cluster.ask(1)
    short = cluster.ask(4, time=HOUR)
    assert {endless, short} <= cluster.started.keys()
    assert more not in cluster.started
    late = cluster.ask(1, time=HOUR + 1)
    cluster.wait(1800)
    cluster.release(short)
    assert cluster.queue() == [more, late]
    assert cluster.state.reason(more) == f"Reservation(for {booking})"
    why = Outlook(cluster.state).explain(more, cluster.now)["why"]
    assert "ana has reserved" in why
    assert booking in why
    assert cluster.ask(1, time=1800.0) in cluster.started


def test_without_enough_free_the_reason_is_the_devices() -> None:
    cluster = Cluster("fifo")
    reserve(cluster, 4)
    cluster.ask(4)
    cluster.ask(3, time=100.0)
    assert cluster.state.reason(cluster.ask(4)) == "Resources"


def test_who_waits_starts_once_the_reservation_is_over() -> None:
    cluster = Cluster("fifo")
    booking = reserve(cluster, 8, time=60.0)
    waiting = cluster.ask(8)
    assert foresee(cluster.state, Pool.ACCELERATOR, 0.0, 5) == {waiting: HOUR + 60.0}
    assert cluster.state.reservation(Pool.ACCELERATOR).when == HOUR + 60.0
    cluster.wait(HOUR)
    assert lease_of(cluster, booking)
    cluster.wait(60.0)
    assert cluster.started[waiting] == HOUR + 60.0


def test_a_reservation_is_made_only_of_what_is_free_by_then() -> None:
    cluster = Cluster("fifo")
    cluster.ask(3)
    held = cluster.ask(5, time=2 * HOUR)
    with pytest.raises(
        AllocationError, match=r"Only 0 of 4 can be promised .* hold 3 .* 1 h later"
    ):
        reserve(cluster, 4)
    booking = reserve(cluster, 4, at=2 * HOUR)
    cluster.wait(2 * HOUR)
    assert len(lease_of(cluster, booking).slots) == 4
    assert cluster.state.requests[held].reason == "its time is over"


def test_reservations_do_not_overlap_and_the_answer_names_what_is_left() -> None:
    cluster = Cluster("fifo")
    reserve(cluster, 6)
    with pytest.raises(AllocationError, match=r"Only 2 of 4 .*: reserve 2, or begin 30 min later"):
        reserve(cluster, 4, at=1.5 * HOUR, user="bob")
    second = reserve(cluster, 2, at=1.5 * HOUR, user="bob")
    third = reserve(cluster, 6, at=2 * HOUR, user="bob")
    cluster.wait(2 * HOUR)
    assert lease_of(cluster, second).expires == 2.5 * HOUR
    assert len(lease_of(cluster, third).slots) == 6


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"at": 0.0}, UsageError, "past"),
        ({"at": -5.0}, UsageError, "past"),
        ({"at": math.nan}, UsageError, "past"),
        ({"at": 1e10}, UsageError, "year ahead"),
        ({"time": 0.0}, UsageError, "not a length of time"),
        ({"time": math.inf}, UsageError, "not a length of time"),
        ({"time": 1e9}, UsageError, "up to a year"),
        ({"count": 0}, UsageError, "not a number of devices"),
        ({"count": 9}, AllocationError, "at most 8"),
        ({"memory": 5}, AllocationError, "the largest has"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    wrong: dict[str, Any], error: type[AiosError], words: str
) -> None:
    cluster = Cluster("fifo")
    cluster.ask(1)
    with pytest.raises(error, match=words):
        reserve(cluster, **wrong)
    assert not cluster.state.bookings
    assert cluster.state.next_deadline() is None


def test_a_user_reserves_up_to_a_limit_and_an_admin_without() -> None:
    cluster = Cluster("fifo")
    first = reserve(cluster, 8, time=6 * HOUR, admin=False)
    with pytest.raises(AllocationError, match=r"64 device-hours at a time, of which 16 are left"):
        reserve(cluster, 8, at=9 * HOUR, time=3 * HOUR, admin=False)
    reserve(cluster, 8, at=9 * HOUR, time=3 * HOUR)
    cluster.do(ev.Cancelled(request=first, by="ana"))
    reserve(cluster, 8, at=1.0, time=HOUR, admin=False)


def test_only_its_user_or_an_admin_takes_it_back_and_the_devices_are_free_again() -> None:
    cluster = Cluster("fifo")
    booking, waiting = reserve(cluster, 8), cluster.ask(8, user="bob")
    with pytest.raises(AccessError, match="belongs to ana"):
        cluster.do(ev.Cancelled(request=booking, by="bob"))
    cluster.do(ev.Cancelled(request=booking, by="root", admin=True))
    assert waiting in cluster.started
    with pytest.raises(NotFoundError):
        cluster.do(ev.Cancelled(request=booking, by="ana"))


def test_cancelling_one_that_has_begun_ends_its_lease() -> None:
    cluster = Cluster("fifo")
    booking = reserve(cluster)
    cluster.wait(HOUR)
    cluster.do(ev.Cancelled(request=booking, by="ana"))
    assert not cluster.state.leases
    assert not cluster.state.lease_of(booking)


def test_any_session_of_its_user_takes_it_up_and_nobody_elses() -> None:
    cluster = Cluster("fifo")
    booking = reserve(cluster)
    cluster.do(ev.SessionClosed(session="ana"))
    cluster.wait(HOUR)
    lease = lease_of(cluster, booking)
    assert lease.session == "", "held for whichever comes"
    for id, user in (("late", "ana"), ("eve", "eve")):
        cluster.do(ev.SessionOpened(owner=Owner(id=id, user=user)))
    with pytest.raises(AccessError, match="belongs to ana"):
        cluster.do(ev.Claimed(booking=booking, session="eve", by="eve"))
    cluster.do(ev.Claimed(booking=booking, session="late", by="ana"))
    assert lease_of(cluster, booking).session == "late"
    cluster.do(ev.SessionClosed(session="late"))
    assert lease_of(cluster, booking).expires == 2 * HOUR, "it is theirs for its time"
    with pytest.raises(NotFoundError, match="aios reservations"):
        cluster.do(ev.Claimed(booking="b99", session="eve", by="eve"))


def test_one_claimed_before_its_time_goes_to_that_session() -> None:
    cluster = Cluster("fifo")
    booking = reserve(cluster)
    cluster.do(ev.SessionOpened(owner=Owner(id="second", user="ana")))
    cluster.do(ev.Claimed(booking=booking, session="second", by="ana"))
    cluster.wait(HOUR)
    assert lease_of(cluster, booking).session == "second"


def test_a_lease_is_extended_only_as_far_as_its_devices_are_not_reserved() -> None:
    cluster = Cluster("fifo")
    held = cluster.ask(6, time=HOUR)
    lease = cluster.state.requests[held].lease
    booking = reserve(cluster, 6)
    with pytest.raises(ConflictError, match=f"1 h more at most.*{booking}"):
        cluster.do(ev.Extended(lease=lease, time=2 * HOUR, by="ana"))
    with pytest.raises(ConflictError):
        cluster.do(ev.Extended(lease=lease, time=None, by="ana", admin=True))
    assert cluster.state.leases[lease].expires == HOUR
    cluster.wait(600)
    cluster.do(ev.Extended(lease=lease, time=3000, by="ana"))
    cluster.wait(3000)
    assert lease_of(cluster, booking)


def test_a_reservation_gets_other_devices_where_a_lease_is_extended_or_a_device_is_lost() -> None:
    cluster = Cluster("fifo")
    held = cluster.ask(2, time=HOUR)
    lease = cluster.state.requests[held].lease
    booking = reserve(cluster, 6)
    mine = {slot.device for slot in cluster.state.leases[lease].slots}
    assert mine & set(cluster.state.bookings[booking].devices)
    cluster.do(ev.Extended(lease=lease, time=None, by="ana"))
    assert not mine & set(cluster.state.bookings[booking].devices)
    cluster.wait(HOUR - 1)
    last = reserve(cluster, 1, at=2 * HOUR + 1, want=Want.CPU)
    (slot,) = cluster.state.bookings[last].devices
    other = next(iter({"c0", "c1"} - {slot}))
    cluster.do(ev.OutsideReported(node="c", outside={slot: (Process(pid=7),)}))
    cluster.wait(HOUR + 2)
    assert [s.device for s in lease_of(cluster, last).slots] == [other]


def test_one_whose_devices_cannot_be_had_starts_late_or_says_that_it_did_not() -> None:
    cluster = Cluster("fifo")
    late, never = reserve(cluster, 1), reserve(cluster, 8, at=3 * HOUR)
    outside = {f"g{i}": (Process(pid=i),) for i in range(8)}
    cluster.do(ev.OutsideReported(node="g", outside=outside))
    cluster.wait(HOUR + 600)
    assert late in cluster.state.bookings
    waiting = cluster.ask(1)
    cluster.do(ev.OutsideReported(node="g", outside=dict(list(outside.items())[1:])))
    assert lease_of(cluster, late).expires == 2 * HOUR
    assert waiting not in cluster.started, "what was promised goes first"
    cluster.wait(4 * HOUR)
    assert never not in cluster.state.bookings
    assert not cluster.state.lease_of(never)


def test_a_retry_is_the_same_reservation_and_somebody_elses_id_is_refused() -> None:
    cluster = Cluster("fifo")
    booking = cluster.state.bookings[reserve(cluster)]
    again = booking.__replace__(start=5.0)
    cluster.do(ev.Booked(booking=again))
    assert cluster.state.bookings == {booking.id: booking}
    cluster.do(ev.SessionOpened(owner=Owner(id="bob", user="bob")))
    with pytest.raises(AccessError):
        cluster.do(ev.Booked(booking=again.__replace__(user="bob", session="bob")))
    with pytest.raises(AccessError):
        cluster.do(ev.Booked(booking=again.__replace__(id="new", user="bob")))
    with pytest.raises(ConflictError, match="use a new one"):
        cluster.state.handle(
            ev.Booked(booking=again.__replace__(id=cluster.ask(1), start=HOUR)), cluster.now
        )


def test_reservations_come_back_from_the_journal(tmp_path: Any) -> None:
    cluster = Cluster("fifo")
    running, coming = reserve(cluster, 2), reserve(cluster, 2, at=3 * HOUR, time=HOUR)
    missed = reserve(cluster, 1, at=1.5 * HOUR, time=60.0)
    cluster.wait(HOUR)
    journal = Journal(tmp_path / "journal.sqlite")
    puts = [ev.Put(kind=k, id=id, record=r) for (k, id), r in cluster.records.items()]
    journal.apply(puts, cluster.now)
    journal.commit()
    nodes = list(cluster.state.nodes.values())
    cluster.records = {(kind, id): record for kind, id, record in journal.load()}
    journal.close()
    cluster.now = 1.75 * HOUR
    cluster.restart()
    assert set(cluster.state.bookings) == {coming}, f"{missed} was over before it could start"
    assert lease_of(cluster, running).expires == 2 * HOUR
    for node in nodes:
        cluster.do(ev.NodeJoined(node=node))
    blocked = cluster.ask(7)
    assert cluster.state.reason(blocked) == "Resources"
    cluster.wait(2 * HOUR)
    assert len(lease_of(cluster, coming).slots) == 2


def test_the_clock_may_jump_over_a_reservation_or_back_before_it() -> None:
    cluster = Cluster("fifo")
    booking, over = reserve(cluster, 2), reserve(cluster, 2, at=1.5 * HOUR, time=60.0)
    cluster.now = 1.75 * HOUR
    cluster.do(ev.Tick())
    assert lease_of(cluster, booking).expires == 2 * HOUR
    assert over not in cluster.state.bookings
    later = reserve(cluster, 8, at=5 * HOUR)
    cluster.now = HOUR
    cluster.do(ev.Tick())
    assert later in cluster.state.bookings
    assert cluster.ask(1) not in cluster.started
    cluster.wait(4 * HOUR)
    assert len(lease_of(cluster, later).slots) == 8


def test_backfill_goes_past_who_waits_for_a_reservation_without_delaying_them() -> None:
    cluster = Cluster("fifo")
    reserve(cluster, 4)
    head = cluster.ask(8)
    quick, slow = cluster.ask(2, time=HOUR), cluster.ask(2, time=3 * HOUR)
    assert quick in cluster.started
    assert slow not in cluster.started
    cluster.wait(2 * HOUR)
    assert cluster.started[head] == 2 * HOUR


def test_nobody_gets_a_lease_that_outlives_its_session_without_a_reservation() -> None:
    cluster = Cluster("fifo")
    with pytest.raises(UsageError, match="comes from a reservation"):
        cluster.ask(1, scope=Scope.RESERVED)


def test_what_is_promised_to_others_is_not_spare_for_who_goes_past_the_first() -> None:
    cluster = Cluster("fifo")
    reserve(cluster, 4, at=1.5 * HOUR)
    cluster.ask(2, time=2 * HOUR)
    head = cluster.ask(4, time=3 * HOUR)
    endless, in_time = cluster.ask(1), cluster.ask(1, time=2 * HOUR)
    assert cluster.queue() == [head, endless]
    assert in_time in cluster.started
    cluster.wait(2 * HOUR)
    assert cluster.started[head] == 2 * HOUR


# --- how long a lease may last


def test_a_lease_lasts_no_longer_than_an_admin_allows_extensions_included() -> None:
    cluster = Cluster("fifo")
    limit = ev.LimitChanged(name="max-time", seconds=HOUR, by="ana")
    with pytest.raises(AccessError, match="ask an admin"):
        cluster.do(limit)
    cluster.do(limit.__replace__(by="root", admin=True))
    with pytest.raises(UsageError, match="1 h at most"):
        cluster.ask(1, time=HOUR + 1)
    lease = cluster.state.requests[cluster.ask(1)].lease
    assert cluster.state.leases[lease].expires == HOUR
    cluster.wait(600.0)
    cluster.do(ev.Extended(lease=lease, time=3000.0, by="ana"))
    for time in (3001.0, None):
        with pytest.raises(ConflictError, match="50 min more at most"):
            cluster.do(ev.Extended(lease=lease, time=time, by="ana"))
    cluster.do(ev.Extended(lease=lease, time=None, by="root", admin=True))
    with pytest.raises(UsageError):
        reserve(cluster, 1, at=HOUR, time=2 * HOUR, admin=False)
    cluster.do(limit.__replace__(by="root", admin=True, seconds=None))
    assert cluster.ask(1, time=9 * HOUR) in cluster.started


# --- warnings


def notices(cluster: Cluster) -> list[str]:
    """What sessions were told."""
    return [action.text for action in cluster.told if isinstance(action, ev.Notice)]


def test_a_lease_is_warned_before_its_end_and_again_after_it_was_extended() -> None:
    cluster = Cluster("fifo")
    lease = cluster.state.requests[cluster.ask(1, time=HOUR)].lease
    cluster.wait(HOUR - 301)
    assert not notices(cluster)
    cluster.wait(1)
    assert notices(cluster) == [
        f"Lease {lease} ends in 5 min; 'extend {lease} TIME' keeps it longer."
    ]
    assert cluster.state.leases[lease].warned
    cluster.do(ev.Extended(lease=lease, time=HOUR, by="ana"))
    assert not cluster.state.leases[lease].warned
    cluster.wait(HOUR - 300)
    assert len(notices(cluster)) == 2
    cluster.restart()
    assert cluster.state.leases[lease].warned, "once, also through a crash"
    cluster.wait(299)
    assert len(notices(cluster)) == 2


def test_a_short_lease_is_warned_when_a_tenth_is_left() -> None:
    cluster = Cluster("fifo")
    cluster.ask(1, time=100.0)
    cluster.wait(89.0)
    assert not notices(cluster)
    cluster.wait(1.0)
    assert len(notices(cluster)) == 1
