"""What who waits is told: place, reason and time; and that the forecast plays by the rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import HOUR, Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.demand import Demand, Each
from aios_jupyter.broker.forecast import Held, Waiting, starts
from aios_jupyter.broker.outlook import Outlook, foresee
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.stock import Stock
from aios_jupyter.errors import NotFoundError
from aios_jupyter.schema import Device, DeviceKind, Node, Process, Slot


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
    assert told["eta"] == pytest.approx(start + 100.0)
    assert start < told["earliest"] < told["eta"] < told["latest"]
    assert told["error"] == pytest.approx(1.0)
    cluster.wait(150.0)
    assert explain(cluster, waiting)["eta"] == pytest.approx(start + 200.0), "it has lasted longer"


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
