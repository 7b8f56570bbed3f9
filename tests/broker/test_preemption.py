"""Preemption: whose lease is taken, for whom, when not, and what becomes of the request."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import HOUR, Cluster, give, run_on, teams

from aios_jupyter.broker import attained
from aios_jupyter.broker import events as ev
from aios_jupyter.broker.victims import Victim, enough, fewest
from aios_jupyter.schema import LeaseState, RequestState, RunState, Scope

Frees = st.lists(st.integers(0, 8), max_size=8)


def lease_of(cluster: Cluster, request: str) -> str:
    return cluster.state.requests[request].lease


# --- priority


def test_a_higher_priority_takes_what_is_preemptible_and_it_waits_again() -> None:
    cluster = Cluster("priority")
    low = cluster.ask(8, preemptible=True)
    cluster.now = 100.0
    later = cluster.ask(8)
    high = cluster.ask(4, priority=1, admin=True)
    assert high in cluster.started
    found = cluster.state.requests[low]
    assert found.state is RequestState.QUEUED
    assert (found.requeued, found.ran, found.attained) == (100.0, 100.0, 800.0)
    assert cluster.queue() == [low, later], "as old as it was"
    cluster.release(high)
    assert lease_of(cluster, low) == "L3"
    assert cluster.state.leases["L3"].ran == 100.0


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        ({"preemptible": False}, {"priority": 1}),
        ({"preemptible": True, "priority": 1}, {"priority": 1}),
        ({"preemptible": True}, {}),
    ],
)
def test_nothing_else_is_taken(held: dict[str, int], asked: dict[str, int]) -> None:
    cluster = Cluster("priority")
    first = cluster.ask(8, admin=True, **held)
    waiting = cluster.ask(1, admin=True, **asked)
    assert cluster.queue() == [waiting]
    assert cluster.state.leases[lease_of(cluster, first)].state is LeaseState.ACTIVE


def test_under_fifo_nobody_takes_anything() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8, preemptible=True)
    waiting = cluster.ask(1, priority=5, admin=True)
    assert cluster.queue() == [waiting]


def test_nothing_is_taken_where_it_would_not_suffice() -> None:
    cluster = Cluster("priority")
    cluster.ask(5)
    low = cluster.ask(3, preemptible=True)
    high = cluster.ask(4, priority=1, admin=True)
    assert cluster.queue() == [high]
    assert cluster.state.leases[lease_of(cluster, low)].state is LeaseState.ACTIVE


def test_the_fewest_are_taken_and_of_those_the_newest() -> None:
    cluster = Cluster("priority")
    whole = cluster.ask(4, preemptible=True)
    ones = [cluster.ask(1, preemptible=True) for _ in range(4)]
    high = cluster.ask(4, priority=1, admin=True)
    assert high in cluster.started
    assert cluster.queue() == [whole], "one lease rather than four"
    cluster.ask(1, priority=1, admin=True)
    assert cluster.queue() == [whole, ones[3]], "the newest"


def test_who_is_preempted_stays_behind_who_took_its_devices() -> None:
    """However long it had waited: else it would have them back at once, and lose them again."""
    cluster = Cluster("priority")
    first = cluster.ask(8)
    low = cluster.ask(8, preemptible=True)
    cluster.now = 3 * HOUR
    cluster.release(first)
    assert low in cluster.started
    cluster.now = 3 * HOUR + 60.0
    high = cluster.ask(8, priority=1, admin=True)
    assert lease_of(cluster, high)
    later = cluster.ask(8)
    assert cluster.queue() == [low, later], "but before who came after it"
    cluster.release(high)
    assert lease_of(cluster, low)


def test_the_lowest_priority_is_taken_first() -> None:
    cluster = Cluster("priority")
    low = cluster.ask(4, preemptible=True, priority=-2)
    cluster.ask(4, preemptible=True, priority=-1)
    cluster.ask(1)
    assert cluster.queue() == [low]


@given(frees=Frees, missing=st.integers(1, 20))
def test_fewest_is_the_least_number_that_suffices(frees: list[int], missing: int) -> None:
    chosen = fewest(frees, missing)
    if sum(frees) < missing:
        assert chosen is None
        return
    assert chosen is not None
    assert sum(frees[at] for at in chosen) >= missing
    fewer = sorted(frees, reverse=True)[: len(chosen) - 1]
    assert sum(fewer) < missing


@given(frees=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=8),
       missing=st.integers(1, 20))  # fmt: skip
def test_nobody_is_taken_without_whom_the_others_would_do(
    frees: list[tuple[int, int]], missing: int
) -> None:
    victims = [
        Victim(str(at), standing, n, "") for at, (standing, n) in enumerate(sorted(frees)[::-1])
    ]
    taken = enough(iter(victims), missing)
    total = sum(victim.frees for victim in taken)
    assert bool(taken) == (sum(n for _, n in frees) >= missing)
    for victim in taken:
        assert total >= missing
        assert total - victim.frees < missing


# --- processes come first


def test_devices_are_granted_when_the_processes_are_gone_and_the_request_waits_then() -> None:
    cluster = Cluster("priority")
    low = cluster.ask(8, preemptible=True)
    run = run_on(cluster, low)
    actions = cluster.state.handle(
        ev.Submitted(
            request=cluster.state.requests[low].__replace__(id="high", count=8, priority=1),
            admin=True,
        ),
        cluster.now,
    )
    (end,) = (action for action in actions if isinstance(action, ev.EndLease))
    assert end.grace == 30.0
    assert "preempted by request high of ana" in end.reason
    assert cluster.state.requests[low].state is RequestState.GRANTED
    assert cluster.state.leases["L1"].state is LeaseState.ENDING
    assert cluster.state.runs[run.id].state is RunState.STOPPING
    assert cluster.queue() == ["high"]
    cluster.do(ev.RanksGone(node="g", lease="L1"))
    assert "high" in cluster.started
    assert cluster.queue() == [low]
    assert cluster.state.runs[run.id].state is RunState.STOPPED
    assert "preempted" in cluster.state.runs[run.id].reason


def test_who_is_preempted_is_as_old_as_it_was_though_the_clock_jumped_back_meanwhile() -> None:
    cluster = Cluster("priority")
    cluster.now = 100.0
    low = cluster.ask(8, preemptible=True)
    run_on(cluster, low)
    later = cluster.ask(8)
    high = cluster.ask(8, priority=1, admin=True)
    cluster.now = 50.0
    cluster.do(ev.Tick())
    cluster.do(ev.RanksGone(node="g", lease="L1"))
    assert high in cluster.started
    assert cluster.queue() == [low, later]


def test_no_more_is_taken_while_what_was_taken_ends() -> None:
    cluster = Cluster("priority")
    for _ in range(4):
        run_on(cluster, cluster.ask(2, preemptible=True))
    high = cluster.ask(2, priority=1, admin=True)
    for _ in range(3):
        cluster.wait(1.0)
        cluster.do(ev.Tick())
        cluster.ask(1)
    ending = [x.id for x in cluster.state.leases.values() if x.state is LeaseState.ENDING]
    assert ending == ["L4"]
    cluster.do(ev.RanksGone(node="g", lease="L4"))
    assert high in cluster.started


@pytest.mark.parametrize("scope", [Scope.CELL, Scope.DETACHED])
def test_a_lease_that_is_its_runs_ends_with_them_and_says_what_to_do(scope: Scope) -> None:
    cluster = Cluster("priority")
    low = cluster.ask(8, preemptible=True, scope=scope)
    run = run_on(cluster, low)
    cluster.ask(8, priority=1, admin=True)
    cluster.do(ev.RanksGone(node="g", lease="L1"))
    assert cluster.state.requests[low].state is RequestState.ENDED
    assert cluster.state.runs[run.id].state is RunState.STOPPED
    assert cluster.state.runs[run.id].reason.endswith("run it again to wait for devices anew")


@pytest.mark.parametrize("how", ["cancel", "release", "close"])
def test_what_its_owner_ends_meanwhile_does_not_come_back(how: str) -> None:
    cluster = Cluster("priority")
    low = cluster.ask(8, user="bob", preemptible=True)
    run_on(cluster, low)
    cluster.ask(8, priority=1, admin=True)
    event = {
        "cancel": ev.Cancelled(request=low, by="bob"),
        "release": ev.Released(lease="L1", by="bob"),
        "close": ev.SessionClosed(session="bob"),
    }[how]
    cluster.do(event)
    cluster.do(ev.RanksGone(node="g", lease="L1"))
    assert cluster.state.requests[low].state is RequestState.ENDED
    assert cluster.state.requests[low].reason
    assert cluster.queue() == []


def test_a_crash_in_between_loses_nothing() -> None:
    cluster = Cluster("fifo")
    cluster.choose("priority")
    low = cluster.ask(8, preemptible=True)
    run_on(cluster, low)
    later = cluster.ask(1)
    high = cluster.ask(8, priority=1, admin=True)
    cluster.restart()
    cluster.do(ev.SessionOpened(owner=cluster.state.sessions["ana"]))
    node = cluster.state.nodes["g"]
    actions = cluster.state.handle(ev.NodeJoined(node=node, held=("L1",)), cluster.now)
    assert [a.grace for a in actions if isinstance(a, ev.EndLease)] == [30.0]
    cluster.do(ev.RanksGone(node="g", lease="L1"))
    assert high in cluster.started
    assert cluster.queue() == [low, later]


def test_a_preempted_lease_says_nothing_of_how_long_such_work_lasts() -> None:
    cluster = Cluster("priority")
    low = cluster.ask(8, preemptible=True)
    cluster.now = 100.0
    high = cluster.ask(8, priority=1, admin=True)
    assert not any(kind == "history" for kind, _ in cluster.records)
    cluster.release(high, after=10.0)
    cluster.release(low, after=50.0)
    assert cluster.records["history", "ana\x1f\x1f8"].lengths == (10.0, 150.0)


# --- a queue takes its quota back


def test_a_queue_takes_its_quota_back_from_those_that_borrow() -> None:
    cluster = teams()
    mine = [cluster.ask(2, user="ana", preemptible=True) for _ in range(4)]
    own = cluster.ask(2, user="bob")
    assert own in cluster.started
    assert cluster.queue() == [mine[3]], "the newest"
    again = cluster.ask(1, user="bob")
    assert again in cluster.started
    assert cluster.queue() == [mine[2], mine[3]]


def test_it_takes_neither_what_is_within_a_quota_nor_what_is_not_preemptible() -> None:
    cluster = teams()
    cluster.ask(4, user="ana", preemptible=True)
    cluster.ask(4, user="eve")
    own = cluster.ask(3, user="bob")
    assert cluster.queue() == [own]
    assert cluster.state.reason(own) == "Resources"


def test_who_borrows_takes_nothing_back() -> None:
    cluster = teams()
    cluster.ask(3, user="bob")
    cluster.ask(5, user="ana", preemptible=True)
    more = cluster.ask(1, user="bob")
    assert cluster.queue() == [more]


def test_priority_does_not_reach_into_anothers_quota() -> None:
    cluster = teams("priority")
    cluster.ask(4, user="ana", preemptible=True)
    cluster.ask(3, user="bob")
    cluster.ask(1, user="eve")
    high = cluster.ask(1, user="bob", priority=9, admin=True)
    assert cluster.queue() == [high]


# --- las and gittins


def test_who_had_less_goes_before_who_had_more() -> None:
    cluster = Cluster("las")
    long = cluster.ask(8, preemptible=True)
    cluster.wait(HOUR)
    new = cluster.ask(8, preemptible=True)
    assert new in cluster.started
    assert cluster.queue() == [long]
    assert cluster.state.requests[long].attained == 8 * HOUR


def test_a_lease_runs_for_a_while_before_it_is_taken() -> None:
    cluster = Cluster("las")
    long = cluster.ask(8, preemptible=True)
    cluster.wait(59.0)
    new = cluster.ask(1, preemptible=True)
    assert cluster.queue() == [new]
    cluster.wait(2.0)
    assert cluster.queue() == [long]


def test_those_that_had_about_as_much_do_not_take_turns() -> None:
    cluster = Cluster("las")
    for _ in range(2):
        cluster.ask(8, preemptible=True)
    cluster.wait(8 * HOUR)
    taken = [key for key in cluster.records if key[0] == "counter"]
    assert taken
    assert cluster.state._fence <= 2 + 2 * len(attained.EDGES)


def test_what_is_not_preemptible_is_never_taken() -> None:
    cluster = Cluster("las")
    cluster.ask(8)
    cluster.wait(9 * HOUR)
    new = cluster.ask(1, preemptible=True)
    assert cluster.queue() == [new]


def test_whoever_waits_for_too_long_is_first_and_stays_for_a_while() -> None:
    cluster = Cluster("las")
    cluster.choose("las", aging=2 * HOUR)
    long = cluster.ask(8, preemptible=True)
    cluster.wait(HOUR)
    chance = random.Random(1)
    while cluster.now < 6 * HOUR:
        request = cluster.ask(8, preemptible=True, user="bob")
        cluster.wait(chance.uniform(100.0, 300.0))
        if cluster.state.requests[request].state is RequestState.GRANTED:
            cluster.release(request)
    assert cluster.state.requests[long].attained < cluster.state.requests[long].ran * 8


def test_gittins_goes_by_how_long_such_work_lasted() -> None:
    """Who is nearly done by what is known of them goes before who is new and takes long."""
    cluster = Cluster("gittins")
    for _ in range(12):
        cluster.release(cluster.ask(8, user="ana"), after=HOUR)
        cluster.release(cluster.ask(8, user="bob"), after=60.0)
    slow = cluster.ask(8, user="ana", preemptible=True)
    cluster.wait(300.0)
    waiting = cluster.ask(8, user="ana", preemptible=True)
    quick = cluster.ask(8, user="bob", preemptible=True)
    assert quick in cluster.started
    assert cluster.queue()[-1] in (slow, waiting)


def test_gittins_without_history_is_las() -> None:
    values = [attained.gittins((), attained.bottom(level)) for level in range(15)]
    assert values == sorted(values, reverse=True)


@given(services=st.lists(st.floats(1.0, 1e6), min_size=1, max_size=30),
       had=st.floats(0.0, 1e6))  # fmt: skip
def test_the_index_is_the_best_that_any_quantum_gives(services: list[float], had: float) -> None:
    left = [service - had for service in services if service > had]
    if not left:
        return
    tries = [
        sum(one <= quantum for one in left) / sum(min(one, quantum) for one in left)
        for quantum in left
    ]
    assert math.isclose(attained.gittins(services, had), max(tries), rel_tol=1e-9)


def test_a_change_of_policy_counts_from_that_moment() -> None:
    cluster = Cluster("fifo")
    long = cluster.ask(8, preemptible=True)
    cluster.wait(HOUR)
    new = cluster.ask(8, preemptible=True)
    assert cluster.queue() == [new]
    cluster.choose("las")
    assert cluster.queue() == [long]


def test_las_keeps_to_the_quotas() -> None:
    cluster = teams("las", borrow=0)
    give(cluster, "b", 3, "bob", borrow=0)
    held = cluster.ask(4, user="ana", preemptible=True)
    cluster.ask(3, user="bob", preemptible=True)
    cluster.ask(1, user="eve", preemptible=True)
    cluster.wait(HOUR)
    new = cluster.ask(2, user="bob", preemptible=True)
    assert cluster.state.leases[lease_of(cluster, held)].state is LeaseState.ACTIVE
    assert cluster.state.requests[new].state is RequestState.QUEUED
