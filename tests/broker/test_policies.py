"""The policies: who goes first, who may go past whom, and how long anybody can be kept waiting."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import HOUR, Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.journal import Journal
from aios_jupyter.broker.policy import AGING, POLICIES, PRIORITY_WORTH, Pool
from aios_jupyter.broker.shares import HALF_LIFE
from aios_jupyter.broker.sortedlist import SortedList
from aios_jupyter.broker.state import State
from aios_jupyter.errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError
from aios_jupyter.schema import RequestState, Want


def test_first_come_first_served() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8)
    waiting = [cluster.ask(n) for n in (3, 1, 2)]
    assert cluster.queue() == waiting


def test_smallest_area_goes_first_by_the_time_given() -> None:
    cluster = Cluster("sjf")
    cluster.ask(8)
    long, wide, short = (
        cluster.ask(1, time=10 * HOUR),
        cluster.ask(6, time=HOUR),
        cluster.ask(2, time=HOUR),
    )
    assert cluster.queue() == [short, wide, long]


def test_smallest_area_goes_first_by_what_the_users_leases_lasted() -> None:
    cluster = Cluster("sjf")
    for length in (100.0, 90.0, 5000.0):
        cluster.release(cluster.ask(user="bob"), after=length)
    for _ in range(3):
        cluster.release(cluster.ask(user="ana"), after=2000.0)
    cluster.ask(8)
    slow, quick = cluster.ask(user="ana"), cluster.ask(user="bob")
    assert cluster.queue() == [quick, slow]
    usual = (100.0 * 90.0 * 5000.0) ** (1 / 3)
    assert cluster.state.requests[quick].predicted == pytest.approx(usual, rel=0.01)
    assert cluster.state.requests[slow].predicted == pytest.approx(2000.0)
    new = cluster.ask(user="eve")
    assert cluster.state.requests[new].predicted is None


def test_a_prediction_goes_by_the_name_first_and_its_error_is_kept() -> None:
    cluster = Cluster("sjf")
    for _ in range(3):
        cluster.release(cluster.ask(label="train"), after=900.0)
        cluster.release(cluster.ask(label="look"), after=30.0)
    named, other = cluster.ask(label="train"), cluster.ask(label="new")
    lease = cluster.state.leases[cluster.state.requests[named].lease]
    assert lease.predicted == pytest.approx(900.0)
    assert cluster.state.requests[other].predicted == pytest.approx(
        (900.0**3 * 30.0**3) ** (1 / 6), rel=0.03
    )
    cluster.release(named, after=1800.0)
    assert cluster.records["history", "ana\x1ftrain\x1f1"].errors[-1] == pytest.approx(2.0)


def test_priority_goes_first_and_an_hours_wait_is_worth_one() -> None:
    cluster = Cluster("priority")
    cluster.ask(8)
    low = cluster.ask(priority=-1)
    cluster.now += PRIORITY_WORTH / 2
    usual = cluster.ask()
    high = cluster.ask(priority=2, admin=True)
    assert cluster.queue() == [high, usual, low]
    cluster.now += PRIORITY_WORTH
    assert cluster.queue() == [high, usual, low]
    late = cluster.ask()
    assert cluster.queue() == [high, usual, low, late]


def test_only_an_admin_gives_a_priority_above_the_usual() -> None:
    cluster = Cluster("priority")
    with pytest.raises(AccessError, match="may not ask with priority 1"):
        cluster.ask(priority=1)
    assert cluster.ask(priority=1, admin=True) in cluster.started


def test_a_request_that_waits_may_be_given_another_priority() -> None:
    cluster = Cluster("fifo")
    cluster.choose("priority")
    cluster.ask(8)
    first, second = cluster.ask(), cluster.ask()
    cluster.do(ev.Reprioritized(request=first, priority=-1, by="ana"))
    assert cluster.queue() == [second, first]
    cluster.do(ev.Reprioritized(request=first, priority=0, by="ana"))
    assert cluster.queue() == [first, second], "its owner may take that back"
    cluster.do(ev.Reprioritized(request=second, priority=3, by="root", admin=True))
    assert cluster.queue() == [second, first]
    cluster.restart()
    assert cluster.queue() == [second, first]
    audits = [audit for audit in cluster.audits if audit.what == "priority changed"]
    assert [(audit.who, audit.detail["request"]) for audit in audits] == [("root", second)]


def test_a_priority_that_rises_may_preempt() -> None:
    cluster = Cluster("priority")
    low = cluster.ask(8, preemptible=True)
    waiting = cluster.ask(8)
    cluster.do(ev.Tick())
    assert cluster.queue() == [waiting]
    cluster.do(ev.Reprioritized(request=waiting, priority=1, by="root", admin=True))
    assert cluster.queue() == [low] or waiting in cluster.started
    assert cluster.state.requests[low].state is RequestState.QUEUED


def test_a_priority_that_is_not_ones_to_give_changes_nothing() -> None:
    cluster = Cluster("priority")
    granted, waiting = cluster.ask(8), cluster.ask()
    before = list(cluster.state.records())
    for error, says, event in (
        (AccessError, "priority 1", ev.Reprioritized(request=waiting, priority=1, by="ana")),
        (AccessError, "belongs to ana", ev.Reprioritized(request=waiting, priority=-1, by="eve")),
        (ConflictError, "waits no more", ev.Reprioritized(request=granted, priority=-1, by="ana")),
        (NotFoundError, "no request", ev.Reprioritized(request="x", priority=0, by="ana")),
        (
            UsageError,
            "not a priority",
            ev.Reprioritized(request=waiting, priority=-(10**9), by="ana"),
        ),
    ):
        with pytest.raises(error, match=says):
            cluster.do(event)
    assert list(cluster.state.records()) == before


def test_users_take_turns_and_the_one_who_had_less_goes_first() -> None:
    cluster = Cluster("fair")
    cluster.release(cluster.ask(8, user="bob"), after=HOUR)
    held = [cluster.ask(4, user="eve"), cluster.ask(4, user="eve")]
    first = [cluster.ask(user="bob") for _ in range(2)]
    second = [cluster.ask(user="ana") for _ in range(2)]
    assert cluster.queue()[0] == second[0]
    cluster.release(held[0])
    assert set(second + first) <= cluster.started.keys()
    order = [id for id in cluster.started if id in second + first]
    assert order == [second[0], first[0], second[1], first[1]]


def test_use_is_forgotten_by_halves_and_weights_count() -> None:
    cluster = Cluster("fair")
    cluster.release(cluster.ask(8, user="bob"), after=HOUR)
    before = cluster.state._scoring()("default", "bob")[1]
    assert before == pytest.approx(math.log(2) * HOUR / HALF_LIFE, rel=0.03)
    cluster.wait(HALF_LIFE)
    cluster.do(ev.Tick())
    assert cluster.state._scoring()("default", "bob")[1] == pytest.approx(before / 2, rel=0.01)
    cluster.do(ev.WeightChanged(user="bob", weight=2.0, by="root", admin=True))
    assert cluster.state._scoring()("default", "bob")[1] == pytest.approx(before / 4, rel=0.01)


def test_the_dominant_resource_counts() -> None:
    """Both CPU slots are a larger part of the cluster than three of eight GPUs."""
    cluster = Cluster("fair", gpus=8, slots=2)
    cluster.ask(2, user="bob", want=Want.CPU)
    cluster.ask(3, user="ana")
    cluster.ask(5, user="eve")
    bobs, anas = cluster.ask(user="bob"), cluster.ask(user="ana")
    assert cluster.queue() == [anas, bobs]


# --- backfill


def test_who_is_done_in_time_goes_past_the_first_and_who_is_not_waits() -> None:
    cluster = Cluster("fifo")
    cluster.ask(6, time=HOUR)
    first = cluster.ask(8)
    endless, long, short = cluster.ask(1), cluster.ask(1, time=2 * HOUR), cluster.ask(2, time=HOUR)
    assert cluster.queue() == [first, endless, long]
    assert short in cluster.started
    reservation = cluster.state.reservation(Pool.ACCELERATOR)
    assert reservation is not None
    assert (reservation.request, reservation.when, reservation.spare) == (first, HOUR, 0)


def test_devices_that_the_first_can_spare_are_granted_past_it() -> None:
    cluster = Cluster("fifo")
    cluster.ask(6, time=HOUR)
    first, endless, more = cluster.ask(7), cluster.ask(1), cluster.ask(1)
    assert cluster.queue() == [first, more]
    assert endless in cluster.started
    assert cluster.state.reason(more) == f"Reservation(for {first})"


def test_a_lease_without_an_end_gives_no_time_and_nobody_goes_past() -> None:
    cluster = Cluster("fifo")
    cluster.ask(6)
    first, short = cluster.ask(8), cluster.ask(1, time=1.0)
    assert cluster.queue() == [first, short]
    cluster.do(ev.Extended(lease="L1", time=HOUR, by="ana"))
    assert cluster.queue() == [first]


Jobs = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 300), st.integers(1, 8)), min_size=2, max_size=40
)


@given(jobs=Jobs, policy=st.sampled_from(["fifo", "priority", "sjf"]))
@settings(max_examples=150, deadline=None)
def test_backfill_never_delays_the_first_when_times_are_exact(
    jobs: list[tuple[int, int, int]], policy: str
) -> None:
    """Promise 6: as long as a request is the first, the time at which it can start never moves."""
    cluster = Cluster(policy)
    promised: tuple[str, float] = ("", math.inf)
    for submitted, length, count in sorted(jobs):
        cluster.wait(max(0.0, submitted - cluster.now))
        cluster.ask(count, time=float(length))
        reservation = cluster.state.reservation(Pool.ACCELERATOR)
        # Under sjf a smaller one may come and be the first instead.
        if reservation is None or policy == "sjf":
            continue
        if reservation.request == promised[0]:
            assert reservation.when <= promised[1]
        promised = (reservation.request, reservation.when)
    cluster.wait(1e6)
    assert len(cluster.started) == len(jobs), "everybody starts in the end"
    if promised[0]:
        assert cluster.started[promised[0]] <= promised[1]


@pytest.mark.parametrize("policy", ["sjf", "fair"])
def test_nobody_waits_for_much_longer_than_the_aging(policy: str) -> None:
    """Promise 6: what always loses is first once it has waited for so long."""
    cluster = Cluster(policy)
    cluster.choose(policy, aging=HOUR)
    cluster.release(cluster.ask(8, user="ana"), after=600.0)
    cluster.now = 0.0
    cluster.ask(8, time=600.0, user="bob")
    large = cluster.ask(8, time=5 * HOUR, user="ana")
    cluster.do(ev.WeightChanged(user="ana", weight=0.001, by="root", admin=True))
    small = random.Random(1)
    while large not in cluster.started:
        assert cluster.now < 2 * HOUR
        cluster.ask(small.randint(1, 4), time=small.uniform(60.0, 600.0), user="bob")
        cluster.wait(20.0)
    assert HOUR <= cluster.started[large] <= HOUR + 600.0 + 20.0


def test_waiting_makes_up_for_any_priority() -> None:
    cluster = Cluster("priority")
    cluster.ask(8, time=600.0)
    low = cluster.ask(8, priority=-2)
    while low not in cluster.started:
        assert cluster.now < 6 * PRIORITY_WORTH
        cluster.ask(8, time=600.0)
        cluster.wait(300.0)
    ahead = [cluster.state.requests[id].submitted for id in cluster.started]
    assert max(ahead) <= 2 * PRIORITY_WORTH, "nobody who came later than that went first"


# --- changing it


def test_a_change_of_policy_reorders_those_who_wait_and_survives_a_restart() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8)
    large, small = cluster.ask(4, time=HOUR), cluster.ask(1, time=HOUR)
    cluster.choose("sjf", aging=2 * HOUR)
    assert cluster.queue() == [small, large]
    cluster.restart()
    assert (cluster.state.policy.name, cluster.state.policy.aging) == ("sjf", 2 * HOUR)
    assert cluster.queue() == [small, large]
    cluster.wait(3 * HOUR)
    assert cluster.queue() == []  # the session did not come back


def test_who_has_waited_too_long_for_the_new_policy_is_first_at_once() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8)
    large = cluster.ask(4, time=HOUR)
    cluster.wait(AGING + 1.0)
    small = cluster.ask(1, time=HOUR)
    cluster.choose("sjf")
    assert cluster.queue() == [large, small]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (ev.PolicyChanged(name="sjf", by="ana"), AccessError),
        (ev.PolicyChanged(name="best", by="root", admin=True), UsageError),
        (ev.PolicyChanged(name="sjf", aging=-1.0, by="root", admin=True), UsageError),
        (ev.PolicyChanged(name="fifo", aging=5.0, by="root", admin=True), UsageError),
        (ev.WeightChanged(user="ana", weight=2.0, by="ana"), AccessError),
        (ev.WeightChanged(user="ana", weight=math.nan, by="root", admin=True), UsageError),
    ],
)
def test_a_bad_choice_is_refused_and_changes_nothing(
    event: ev.Event, error: type[AiosError]
) -> None:
    cluster = Cluster("fifo")
    cluster.ask(8)
    before = dict(cluster.records)
    with pytest.raises(error):
        cluster.do(event)
    assert (dict(cluster.records), cluster.state.policy.name) == (before, "fifo")


def test_an_unknown_policy_to_begin_with_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one of fifo, sjf, priority, fair"):
        State(policy="best")


def test_the_journal_keeps_policy_history_and_use(tmp_path: Any) -> None:
    cluster = Cluster("fifo")
    cluster.choose("fair", aging=HOUR)
    cluster.release(cluster.ask(2, label="train"), after=60.0)
    journal = Journal(tmp_path / "j.sqlite")
    puts = [ev.Put(kind=kind, id=id, record=r) for (kind, id), r in cluster.records.items()]
    journal.apply(puts, 0.0)
    journal.commit()
    assert {(kind, id): r for kind, id, r in journal.load()} == cluster.records
    kinds = {kind for kind, _ in cluster.records}
    assert {"setting", "history", "usage"} <= kinds
    journal.close()


# --- the list underneath


@pytest.mark.parametrize("seed", range(5))
def test_a_sorted_list_is_sorted_whatever_comes_and_goes(seed: int) -> None:
    chance = random.Random(seed)
    found: SortedList[tuple[int]] = SortedList()
    kept: set[int] = set()
    for value in chance.sample(range(10_000), 3000):
        found.add((value,))
        kept.add(value)
        if chance.random() < 0.3:
            gone = chance.choice(sorted(kept))
            found.remove((gone,))
            kept.remove(gone)
    order = sorted(kept)
    assert [value for (value,) in found] == order
    assert len(found) == len(order)
    if order:
        assert found.first() == (order[0],)
        assert found.index((order[-1],)) == len(order) - 1


def test_every_policy_says_what_it_does() -> None:
    assert all(policy.about and policy.name == name for name, policy in POLICIES.items())
