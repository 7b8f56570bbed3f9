"""What is noted of requests and leases, and forecasts held against what happened."""

from __future__ import annotations

import pytest
from simulated import HOUR, Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.broker import measures
from aios_jupyter.broker.capacity import observed
from aios_jupyter.broker.measures import accuracy
from aios_jupyter.broker.outlook import Outlook
from aios_jupyter.broker.policy import Pool
from aios_jupyter.schema import Want

ACCELERATOR = Pool.ACCELERATOR


def outlook(cluster: Cluster) -> Outlook:
    return Outlook(cluster.state, cluster.do)


def test_requests_and_leases_are_counted_in_their_pool_and_hour() -> None:
    cluster = Cluster("fifo")
    first = cluster.ask(2)
    cluster.release(first, after=600.0)
    cluster.wait(HOUR)
    second = cluster.ask(8)
    third = cluster.ask(1)
    cluster.release(second, after=300.0)
    cluster.ask(1, want=Want.CPU)
    early, late = cluster.state.hours(ACCELERATOR)
    assert (early.requests, early.devices, early.started, early.leases) == (1, 2, 1, 1)
    assert (early.seconds, early.device_seconds, early.gang_seconds) == (600.0, 1200.0, 2400.0)
    assert (late.requests, late.started, late.waited, late.leases) == (2, 2, 300.0, 1)
    assert cluster.started[third] == cluster.now
    (slots,) = cluster.state.hours(Pool.CPU)
    assert (slots.requests, slots.started) == (1, 1)


def test_only_a_week_is_kept() -> None:
    cluster = Cluster("fifo")
    for _ in range(measures.WINDOW + 10):
        cluster.release(cluster.ask(1), after=1.0)
        cluster.wait(HOUR)
    assert len(cluster.state.hours(ACCELERATOR)) <= measures.WINDOW
    assert sum(kind == "hour" for kind, _ in cluster.records) <= measures.WINDOW
    seen = observed(cluster.state.hours(ACCELERATOR), cluster.now)
    assert seen.load is not None
    assert seen.load.rate * HOUR == pytest.approx(1.0, rel=0.02)
    cluster.wait((measures.WINDOW + 1) * HOUR)
    cluster.do(ev.Tick())
    assert cluster.state.hours(ACCELERATOR) == [], "what is older says nothing"


def test_a_first_forecast_is_held_against_the_start() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8, time=HOUR)
    look, waiting = outlook(cluster), cluster.ask(1)
    assert look.etas(cluster.now) == {waiting: HOUR}
    told = cluster.state.foretold(waiting)
    assert told is not None
    assert (told.made, told.eta, told.earliest, told.latest) == (0.0, HOUR, HOUR, HOUR)
    cluster.now = 600.0
    cluster.do(ev.Released(lease="L1", by="ana"))
    assert cluster.state.foretold(waiting) is None
    (hit,) = cluster.state.hits(ACCELERATOR).hits
    assert (hit.ahead, hit.error, hit.inside) == (HOUR, 600.0 - HOUR, False)


def test_the_first_forecast_counts_not_the_last() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8, time=HOUR)
    look, waiting = outlook(cluster), cluster.ask(1)
    look.etas(cluster.now)
    cluster.do(ev.Extended(lease="L1", time=2 * HOUR, by="ana"))
    assert look.explain(waiting, cluster.now)["eta"] == 2 * HOUR
    cluster.wait(2 * HOUR)
    assert [hit.error for hit in cluster.state.hits(ACCELERATOR).hits] == [HOUR]


def test_a_forecast_that_comes_true_is_inside_and_explain_says_so() -> None:
    cluster = Cluster("fifo")
    look = outlook(cluster)
    for _ in range(measures.ENOUGH):
        cluster.ask(8, time=100.0, user="bob")
        cluster.ask(8, time=50.0)
        look.etas(cluster.now)
        cluster.wait(151.0)
    cluster.ask(8, time=100.0)
    told = look.explain(cluster.ask(8), cluster.now)
    assert told["accuracy"] == {
        "count": measures.ENOUGH, "off": 0.0, "late": 0.0, "ahead": 100.0, "inside": 1.0
    }  # fmt: skip
    assert look.explain(cluster.ask(1, user="eve"), cluster.now)["accuracy"] == told["accuracy"], (
        "who has none is told of all"
    )


def test_requests_like_this_one_come_before_all_requests() -> None:
    cluster = Cluster("fifo")
    look = outlook(cluster)
    for number in range(measures.ENOUGH):
        # Each time somebody of whom nothing is known yet: nothing says that they end early.
        held = cluster.ask(8, user=f"new{number}", time=100.0)
        waiting = cluster.ask(8, user="bob", time=10.0)
        look.etas(cluster.now)
        cluster.release(held, after=40.0)
        assert cluster.started[waiting] == cluster.now
        cluster.wait(10.0)
    for _ in range(measures.ENOUGH + 1):
        cluster.ask(8, time=100.0)
        cluster.ask(8, user="eve", time=10.0)
        look.etas(cluster.now)
        cluster.wait(110.0)
    cluster.ask(8, time=100.0)
    bob = look.explain(cluster.ask(8, user="bob"), cluster.now)["accuracy"]
    eve = look.explain(cluster.ask(8, user="eve"), cluster.now)["accuracy"]
    assert (bob["late"], bob["inside"]) == (-60.0, 0.0)
    assert (eve["late"], eve["inside"]) == (0.0, 1.0)
    assert accuracy(cluster.state.hits(ACCELERATOR))["count"] == 2 * measures.ENOUGH + 1


def test_what_was_told_before_a_crash_is_held_against_what_happens_after_it() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8, time=HOUR)
    waiting = cluster.ask(1)
    outlook(cluster).etas(cluster.now)
    cluster.do(ev.Tick())
    before = cluster.state.hours(ACCELERATOR)
    assert before[0].requests == 2
    cluster.restart()
    assert cluster.state.foretold(waiting) is not None
    assert cluster.state.hours(ACCELERATOR) == before
    for name in ("g", "c"):
        cluster.do(ev.NodeJoined(node=cluster.records["node", name]))
    cluster.do(ev.SessionOpened(owner=cluster.records["session", "ana"]))
    cluster.wait(HOUR)
    assert [hit.inside for hit in cluster.state.hits(ACCELERATOR).hits] == [True]
    cluster.restart()
    assert len(cluster.state.hits(ACCELERATOR).hits) == 1


def test_a_request_that_never_starts_is_no_score() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8, time=HOUR)
    waiting = cluster.ask(1)
    outlook(cluster).etas(cluster.now)
    cluster.do(ev.Cancelled(request=waiting, by="ana"))
    assert cluster.state.foretold(waiting) is None
    assert accuracy(cluster.state.hits(ACCELERATOR)) is None


def test_a_forecast_for_what_does_not_wait_is_not_kept() -> None:
    cluster = Cluster("fifo")
    granted = cluster.ask(1)
    before = dict(cluster.records)
    for request in (granted, "nobody"):
        cluster.do(ev.ForecastTold(request=request, eta=1.0, earliest=1.0))
    assert cluster.records == before


def test_a_clock_that_jumps_back_makes_forecasts_of_before_it_void() -> None:
    cluster = Cluster("fifo")
    cluster.wait(HOUR)
    cluster.ask(8, time=HOUR)
    waiting = cluster.ask(1)
    outlook(cluster).etas(cluster.now)
    cluster.now = 10.0
    cluster.do(ev.Tick())
    assert cluster.state.foretold(waiting) is None


def test_scores_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "SCORED", 3)
    monkeypatch.setattr(measures, "KINDS", 4)
    cluster = Cluster("fifo", gpus=1)
    look = outlook(cluster)
    for number in range(8):
        cluster.ask(1, time=10.0)
        cluster.ask(1, time=10.0, user=f"user{number}")
        look.etas(cluster.now)
        cluster.wait(20.0)
    assert len(cluster.state.hits(ACCELERATOR).hits) == 3
    assert sum(kind == "hits" for kind, _ in cluster.records) == 4
