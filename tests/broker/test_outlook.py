"""What who waits is told: place, reason and time; and that the forecast plays by the rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import HOUR, Cluster, teams

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.demand import Demand, Each
from aios_jupyter.broker.forecast import Held, Waiting, starts
from aios_jupyter.broker.outlook import Outlook, foresee
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.stock import Stock
from aios_jupyter.broker.views import snapshot
from aios_jupyter.errors import NotFoundError
from aios_jupyter.schema import Device, DeviceKind, Node, Process, Request, Slot, Want


def explain(cluster: Cluster, request: str) -> dict[str, Any]:
    return Outlook(cluster.state).explain(request, cluster.now)


def play(
    memories: list[int],
    held: list[tuple[float | None, int]],
    line: list[tuple[str, int, int, float | None]],
) -> dict[str, float]:
    """`starts` on one node, with leases of the next so many devices, and requests for others."""
    devices = tuple(
        Device(id=f"g{i}", kind=DeviceKind.GPU, name="", index=i, memory=memory)
        for i, memory in enumerate(memories)
    )
    stock = Stock()
    stock.put_node(Node(id="n", host="n", address="n:1", pid=1, devices=devices), 0, 0)
    slots = [
        Slot(node="n", device=device.id, kind=device.kind, index=device.index, address="n:1")
        for device in devices
    ]
    leases, taken = [], 0
    for end, count in held:
        leases.append(Held(end, end, tuple(slots[taken : taken + count])))
        taken += count
    for number, device in enumerate(devices):
        stock.put("n", device, usable=True, held=math.inf if number < taken else 0.0)
    waiting = [
        Waiting(id, Demand(count, count, Each(memory)), length, length)
        for id, count, memory, length in line
    ]
    return starts(0.0, Pool.ACCELERATOR, stock.branch(), leases, waiting)


def test_who_waits_starts_as_leases_end() -> None:
    held = [(10.0, 2), (20.0, 1), (None, 1)]
    line = [("a", 2, 0, 5.0), ("b", 3, 0, None), ("c", 4, 0, 1.0), ("never", 5, 0, 1.0)]
    assert play([1, 1, 1, 1], held, line) == {"a": 10.0, "b": 20.0}


def test_the_smallest_device_that_will_do_is_taken_and_backfill_counts() -> None:
    line = [("large", 1, 80, 5.0), ("small", 1, 0, None), ("other", 1, 0, 3.0)]
    assert play([80, 16], [(10.0, 1)], line) == {"small": 0.0, "large": 10.0, "other": 15.0}


def test_explain_gives_place_reason_and_time() -> None:
    cluster = Cluster("fifo")
    cluster.ask(6, time=HOUR)
    first, behind, last = cluster.ask(8, time=HOUR), cluster.ask(1), cluster.ask(8)
    told = {id: explain(cluster, id) for id in (first, behind, last)}
    assert [told[id]["position"] for id in told] == [1, 2, 3]
    assert [told[id]["eta"] for id in told] == [HOUR, 2 * HOUR, None]
    assert told[first]["reason"] == "Resources"
    assert told[first]["why"] == "It is next; 2 of the 8 it needs are free."
    assert told[behind]["reason"] == f"Reservation(for {first})"
    assert f"kept for {first}" in told[behind]["why"]
    assert told[last]["reason"] == "Priority"
    assert told[last]["why"] == "2 requests are before it by the policy 'fifo'."
    assert told[first]["earliest"] == told[first]["latest"] == HOUR


def test_nobody_knows_when_while_a_lease_without_an_end_is_in_the_way() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8)
    assert explain(cluster, cluster.ask(1))["eta"] is None


def test_a_prediction_gives_a_time_with_a_range() -> None:
    cluster = Cluster("sjf")
    for length in (100.0, 100.0, 100.0, 50.0, 200.0, 100.0):
        cluster.release(cluster.ask(8), after=length)
    cluster.ask(8)
    start, waiting = cluster.now, cluster.ask(8)
    told = explain(cluster, waiting)
    assert told["eta"] == pytest.approx(start + 100.0, abs=0.5)
    assert start < told["earliest"] < told["eta"] < told["latest"]
    assert told["error"] == pytest.approx(1.0)
    cluster.wait(150.0)
    assert explain(cluster, waiting)["eta"] == pytest.approx(start + 200.0, abs=1.0), (
        "it has lasted longer"
    )


def test_of_a_lease_that_outlasts_its_prediction_the_range_is_that_of_those_that_did() -> None:
    cluster = Cluster("sjf")
    for length in (400.0, 100.0, 500.0, 100.0, 100.0, 600.0, 100.0):
        cluster.release(cluster.ask(8), after=length)
    cluster.ask(8)
    start, waiting = cluster.now, cluster.ask(8)
    cluster.wait(1.0)
    told = explain(cluster, waiting)
    assert told["earliest"] < told["eta"] < start + 100.0
    cluster.wait(210.0)
    told = explain(cluster, waiting)
    assert start + 360.0 < told["earliest"] <= told["eta"] < start + 420.0, "400 s are near"
    assert told["latest"] == start + 580.0
    cluster.wait(500.0)
    told = explain(cluster, waiting)
    assert cluster.now < told["earliest"] <= told["eta"] < told["latest"], "longer than any did"


def test_a_node_that_is_down_and_a_process_outside_are_named() -> None:
    cluster = Cluster("fifo")
    cluster.ask(1)
    outside = {"g7": (Process(pid=77),)}
    cluster.do(ev.OutsideReported(node="g", outside=outside))
    waiting = cluster.ask(8)
    told = explain(cluster, waiting)
    assert told["reason"] == "DeviceHeldOutsideAnyLease(77)"
    assert told["why"].startswith("Process 77")
    cluster.do(ev.NodeLost(node="g"))
    assert explain(cluster, waiting)["reason"] == "NodeDown"
    assert "down" in explain(cluster, waiting)["why"]


def test_what_does_not_wait_is_explained_too_and_what_is_not_there_is_said() -> None:
    cluster = Cluster("fifo")
    granted = cluster.ask(1)
    assert (explain(cluster, granted)["state"], explain(cluster, granted)["lease"]) == (
        "granted",
        "L1",
    )
    with pytest.raises(NotFoundError, match="no request 'x'"):
        explain(cluster, "x")


def test_a_forecast_is_made_again_when_something_has_changed() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8, time=HOUR)
    outlook, waiting = Outlook(cluster.state), cluster.ask(1)
    assert outlook.etas(cluster.now) == {waiting: HOUR}
    cluster.do(ev.Extended(lease="L1", time=2 * HOUR, by="ana"))
    assert outlook.etas(cluster.now) == {waiting: 2 * HOUR}


Jobs = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 8)), min_size=1, max_size=25)


@given(jobs=Jobs)
@settings(max_examples=150, deadline=None)
def test_when_times_are_exact_and_nobody_comes_the_forecast_comes_true(
    jobs: list[tuple[int, int]],
) -> None:
    cluster = Cluster("fifo")
    for length, count in jobs:
        cluster.ask(count, time=float(length))
    forecast = foresee(cluster.state, Pool.ACCELERATOR, 0.0, len(jobs))
    waiting = cluster.queue()
    cluster.wait(1e6)
    assert forecast == {id: cluster.started[id] for id in waiting}


def test_every_view_gives_the_same_reason_in_a_word_and_in_a_sentence() -> None:
    cluster = teams("sjf", borrow=0)
    cluster.ask(6, user="eve", time=HOUR)
    held = [cluster.ask(4, user="ana"), cluster.ask(3, user="bob"), cluster.ask(1, user="ana")]
    large, small = cluster.ask(8, user="eve"), cluster.ask(2, user="eva", want=Want.CPU)
    beyond = cluster.ask(2, user="eva", want=Want.CPU)
    outlook, now = Outlook(cluster.state), cluster.now
    rows = snapshot(cluster.state, {}, {}, outlook.etas(now))["queue"]
    assert {large, beyond} <= rows.keys()
    assert small not in rows
    seen = {(row["reason"].partition("(")[0]) for row in rows.values()}
    assert len(seen) >= 2, seen
    for id, row in rows.items():
        told = outlook.explain(id, now)
        assert (row["reason"], row["why"]) == (told["reason"], told["why"])
        assert row == outlook.row(id, now)
    assert outlook.row(held[0], now) == rows.get(held[0])
    assert outlook.row("none", now) is None


def test_many_who_wait_and_ask_for_their_place_do_not_each_sort_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster("fifo")
    held = cluster.ask(8)
    waiting = [cluster.ask() for _ in range(200)]
    outlook, sorts = Outlook(cluster.state), 0
    line = cluster.state.queue

    def counted(*pools: Pool) -> list[Request]:
        nonlocal sorts
        sorts += not pools
        return line(*pools)

    monkeypatch.setattr(cluster.state, "queue", counted)
    places = [row["position"] for id in waiting if (row := outlook.row(id, cluster.now))]
    assert places == list(range(1, 201))
    assert sorts == 1
    cluster.release(held)
    assert outlook.row(waiting[0], cluster.now) is None
    cluster.wait(1.0)
    row = outlook.row(waiting[8], cluster.now)
    assert row
    assert row["position"] == 1
    assert sorts == 2


def test_who_was_preempted_is_told_when_they_go_first_by_all_that_they_have_waited() -> None:
    cluster = Cluster("las")
    cluster.choose("las", aging=24 * HOUR)
    taken = cluster.ask(8, preemptible=True)
    cluster.wait(HOUR)
    cluster.ask(8, user="bob")
    cluster.wait(31.0)
    assert cluster.queue() == [taken]
    first_at = explain(cluster, taken)["first_at"]
    assert first_at == cluster.state.next_deadline() == pytest.approx(25 * HOUR, abs=60)
