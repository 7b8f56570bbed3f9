"""Who goes past the first by what is predicted, how far that is believed, and what it may cost."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import HOUR, Cluster, run_on

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.ends import Ends
from aios_jupyter.broker.history import Longer, outlasting
from aios_jupyter.broker.outlook import Outlook
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.reserving import Reservation


def experienced(policy: str = "sjf", **lengths: float) -> Cluster:
    """Eight GPUs, and users of whom three leases of so many devices each are known ("ana4")."""
    cluster = Cluster(policy)
    for who, length in lengths.items():
        for _ in range(3):
            cluster.release(cluster.ask(int(who[-1]), user=who[:-1]), after=length)
    return cluster


def kept(cluster: Cluster) -> Reservation:
    found = cluster.state.reservation(Pool.ACCELERATOR)
    assert found
    return found


def test_who_is_predicted_to_be_done_in_time_goes_past_the_first() -> None:
    cluster = experienced(ana6=HOUR, bob8=10.0, eve1=600.0, eva1=2 * HOUR)
    start = cluster.now
    cluster.ask(6, user="ana")
    first = cluster.ask(8, user="bob")
    long, unknown, short = (
        cluster.ask(1, user="eva"),
        cluster.ask(1, user="new"),
        cluster.ask(1, user="eve"),
    )
    assert cluster.queue() == [first, unknown, long]
    assert short in cluster.started
    assert kept(cluster).request == first
    assert kept(cluster).when == pytest.approx(start + HOUR)
    assert cluster.state.reason(long) == f"Reservation(for {first})"


@pytest.mark.parametrize("policy", ["fifo", "priority", "fair", "las", "gittins"])
def test_other_policies_go_by_times_alone(policy: str) -> None:
    cluster = experienced(policy, ana6=HOUR, bob8=10.0, eve1=600.0)
    cluster.ask(6, user="ana")
    waiting = {cluster.ask(8, user="bob"), cluster.ask(1, user="eve")}
    assert waiting - cluster.started.keys() == waiting or policy == "fair"
    cluster.choose("sjf")
    cluster.choose(policy)
    head = kept(cluster).request
    assert not cluster.state.guesses(head)
    assert kept(cluster).when == -math.inf


def test_a_policy_that_predicts_is_told_of_leases_that_began_under_another() -> None:
    cluster = experienced("fifo", ana6=HOUR, bob8=10.0, eve1=600.0)
    cluster.ask(6, user="ana")
    first, short = cluster.ask(8, user="bob"), cluster.ask(1, user="eve")
    assert cluster.queue() == [first, short]
    cluster.choose("sjf")
    assert cluster.queue() == [first]


def test_of_a_lease_like_which_none_is_known_nobody_expects_an_end() -> None:
    cluster = experienced(bob8=10.0, eve1=200.0)
    cluster.ask(6, user="new")
    first, short = cluster.ask(8, user="bob"), cluster.ask(1, user="eve")
    assert set(cluster.queue()) == {first, short}


def test_a_time_that_is_given_counts_more_than_what_is_predicted() -> None:
    cluster = experienced(ana6=60.0, bob8=10.0, eve1=600.0)
    start = cluster.now
    cluster.ask(6, user="ana", time=HOUR)
    first, long = cluster.ask(8, user="bob"), cluster.ask(1, user="eve", time=2 * HOUR)
    assert kept(cluster).when == start + HOUR
    assert cluster.queue() == [first, long]


def test_a_lease_that_outlasts_its_prediction_is_expected_to_end_later_and_later() -> None:
    cluster = experienced(ana6=600.0, bob8=10.0, eve1=HOUR)
    start = cluster.now
    cluster.ask(6, user="ana")
    first, other = cluster.ask(8, user="bob"), cluster.ask(1, user="eve")
    assert cluster.queue() == [first, other]
    assert kept(cluster).when == pytest.approx(start + 600.0)
    whens = []
    for _ in range(4):
        cluster.wait(650.0)
        whens.append(kept(cluster).when)
        assert whens[-1] > cluster.now
    assert whens == sorted(whens)


def test_when_the_first_has_not_started_in_time_others_go_past_though_nothing_happens() -> None:
    """One lease outlasts all before it, two devices are idle, and nobody comes or goes."""
    cluster = experienced(ana6=600.0, bob8=10.0, eve1=HOUR)
    start = cluster.now
    cluster.ask(6, user="ana")
    first, other = cluster.ask(8, user="bob"), cluster.ask(1, user="eve")
    cluster.wait(2 * HOUR + 600.0)
    assert cluster.queue() == [first]
    assert start + HOUR <= cluster.started[other] <= start + 2 * HOUR + 600.0


def wakes(cluster: Cluster, seconds: float) -> int:
    """How often the clock wakes the broker in that time; never again for what it has done."""
    woken, until = 0, cluster.now + seconds
    while (due := cluster.state.next_deadline()) and due < until:
        assert due > cluster.now
        cluster.now = due
        cluster.do(ev.Tick())
        woken += 1
    return woken


def test_the_clock_wakes_the_broker_a_few_times_and_not_for_ever() -> None:
    cluster = experienced(ana6=600.0, bob8=10.0, eva2=100 * HOUR)
    held = cluster.ask(6, user="ana")
    run_on(cluster, held)
    cluster.ask(8, user="bob"), cluster.ask(2, user="eva")
    assert 0 < wakes(cluster, 24 * HOUR) < 30
    cluster.do(ev.Cancelled(request=held, by="ana"))
    assert wakes(cluster, HOUR) < 3, "its processes are ending, and it says so when they have"


def test_nothing_is_kept_of_leases_that_have_ended() -> None:
    cluster = experienced(ana6=600.0, bob8=10.0)
    for _ in range(3):
        held, waiting = cluster.ask(6, user="ana"), cluster.ask(8, user="bob")
        assert kept(cluster).request == waiting
        cluster.release(held, after=700.0)
        cluster.release(waiting, after=10.0)
    assert not cluster.state._longer
    assert not list(cluster.state._ends.expected(*Pool))


def test_predictions_let_nobody_go_past_one_that_has_aged() -> None:
    cluster = experienced(ana6=10 * HOUR, bob8=10.0, eve1=600.0)
    cluster.choose("sjf", aging=HOUR)
    cluster.ask(6, user="ana")
    first = cluster.ask(8, user="bob")
    early = cluster.ask(1, user="eve")
    assert early in cluster.started
    cluster.wait(HOUR)
    late = cluster.ask(1, user="eve")
    assert cluster.queue() == [first, late]
    cluster.wait(HOUR - 1.0)
    assert late not in cluster.started, "not before it has aged itself"


def test_nobody_waits_for_much_longer_than_the_aging_however_wrong_predictions_are() -> None:
    cluster, chance = experienced(bob8=600.0, eve1=10.0), random.Random(1)
    cluster.choose("sjf", aging=HOUR)
    lengths = {cluster.ask(1, user="eve"): 600.0}
    large, submitted = cluster.ask(8, user="bob"), cluster.now
    while large not in cluster.started:
        assert cluster.now < submitted + HOUR + 0.5 * HOUR + 60.0
        # Said to last 10 s, and lasts up to half an hour.
        lengths[cluster.ask(1, user="eve")] = chance.uniform(300.0, 0.5 * HOUR)
        cluster.wait(30.0)
        for small in [id for id in lengths if id in cluster.started]:
            if cluster.started[small] + lengths[small] <= cluster.now:
                cluster.release(small)
                del lengths[small]
    assert cluster.started[large] > submitted + HOUR


def test_a_restart_changes_nothing_of_what_is_expected() -> None:
    cluster = experienced(ana6=HOUR, bob8=10.0, eva2=2 * HOUR)
    cluster.choose("sjf", aging=24 * HOUR)
    cluster.ask(6, user="ana")
    waiting = [cluster.ask(8, user="bob"), cluster.ask(2, user="eva")]
    cluster.wait(2 * HOUR)
    before = kept(cluster)
    assert cluster.queue() == waiting
    cluster.restart()
    cluster.do(ev.NodeJoined(node=cluster.state.nodes["g"]))
    assert kept(cluster).when == pytest.approx(before.when)
    assert cluster.queue() == waiting


def test_who_will_go_past_the_first_by_a_prediction_is_told_when() -> None:
    cluster = experienced(ana6=HOUR, bob8=10.0, eve2=600.0, eva2=900.0)
    start = cluster.now
    cluster.ask(6, user="ana")
    cluster.ask(2, user="eva")
    first, behind = cluster.ask(8, user="bob"), cluster.ask(2, user="eve")
    told = {id: Outlook(cluster.state).explain(id, cluster.now) for id in (first, behind)}
    assert told[first]["eta"] == pytest.approx(start + HOUR, rel=0.01)
    assert told[behind]["eta"] == pytest.approx(start + 900.0, abs=5.0)


# --- how long it lasts


@given(
    lengths=st.lists(st.floats(0.0, 1e6), max_size=30),
    predicted=st.floats(0.0, 1e6),
    times=st.lists(st.floats(0.0, 1e6), min_size=2, max_size=20),
)
def test_the_longer_it_has_lasted_the_later_is_its_end(
    lengths: list[float], predicted: float, times: list[float]
) -> None:
    ends = []
    for elapsed in sorted(times):
        left = [length for length in lengths if length > elapsed]
        end = outlasting(Longer(len(left), sum(left), 0.0), predicted, elapsed)
        assert end >= elapsed
        ends.append(end)
    assert all(after >= end * (1 - 1e-9) for end, after in pairwise(ends))


def test_it_is_the_mean_of_those_that_lasted_longer_beside_the_prediction() -> None:
    assert outlasting(Longer(3, 3000.0, 900.0), 600.0, 100.0) == (3 * 600.0 + 3000.0) / 6
    assert outlasting(Longer(0, 0.0, math.inf), 600.0, 100.0) == 600.0
    assert outlasting(Longer(0, 0.0, math.inf), 600.0, 500.0) == 1000.0


# --- the ends underneath


@given(
    leases=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=40),
    given_=st.lists(st.integers(0, 300), max_size=10),
    looks=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), max_size=6),
)
def test_ends_that_rise_are_always_in_order(
    leases: list[tuple[int, int]], given_: list[int], looks: list[tuple[int, int]]
) -> None:
    now = 0

    def likely(lease: str) -> float:
        first, pace = leases[int(lease)]
        return float(max(first, pace * now))

    ends, pool, there = Ends(likely), Pool.ACCELERATOR, set(range(len(leases)))
    for number in there:
        ends.guess(str(number), pool, 0.0)
    for number, end in enumerate(given_):
        ends.note(f"g{number}", pool, end)
    known = sorted((end, f"g{number}") for number, end in enumerate(given_))
    assert list(ends.given(pool)) == known
    for later, most in looks:
        now += later
        expected = sorted([*known, *((likely(str(number)), str(number)) for number in there)])
        seen = [end for end, _ in zip(ends.expected(*Pool), range(most), strict=False)]
        assert seen == expected[:most]
        if there:
            ends.forget(str(there.pop()))
