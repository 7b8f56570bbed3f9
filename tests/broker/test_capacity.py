"""Erlang's formulas against published and independently computed figures."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_jupyter.broker import capacity
from aios_jupyter.broker.capacity import (
    erlang_b,
    erlang_c,
    load_of,
    machine_repair,
    needed,
    observed,
    wait,
)
from aios_jupyter.broker.events import Hour
from aios_jupyter.errors import UsageError


def eight(busy: float) -> capacity.Load:
    """Ten-minute leases that keep so much of eight devices busy."""
    return load_of(8 * busy / 600, 600)


def test_the_waits_of_mm8_are_those_that_were_simulated() -> None:
    assert wait(eight(0.7), 8).mean == pytest.approx(67.7, abs=0.1)
    assert wait(eight(0.9), 8).mean == pytest.approx(526, abs=0.5)
    assert wait(eight(0.7), 8).busy == pytest.approx(0.7)


def test_one_server_is_mm1() -> None:
    one = wait(load_of(0.5 / 60, 60), 1)
    assert (one.delayed, one.mean) == (pytest.approx(0.5), pytest.approx(60))
    # In M/M/1 a wait is over t with probability a e^(-(1-a) t/s).
    assert one.p95 == pytest.approx(120 * math.log(0.5 / 0.05))


def test_erlang_b_is_the_sum_that_erlang_wrote() -> None:
    for servers, offered in ((1, 0.5), (5, 3.0), (8, 7.2), (20, 25.0)):
        terms = [offered**k / math.factorial(k) for k in range(servers + 1)]
        assert erlang_b(servers, offered) == pytest.approx(terms[-1] / sum(terms))


@given(part=st.floats(0.001, 0.999), offered=st.floats(0.001, 3000.0))
def test_between_whole_servers_erlang_b_is_its_integral(part: float, offered: float) -> None:
    # 1/B = ∫ e^(-x) (1 + x/a)^c dx, over x = s/(1-s), by the midpoints of 4,000 pieces
    pieces = 4000
    total = 0.0
    for i in range(pieces):
        s = (i + 0.5) / pieces
        x = s / (1 - s)
        total += math.exp(-x) * (1 + x / offered) ** part / (1 - s) ** 2 / pieces
    assert erlang_b(part, offered) == pytest.approx(1 / total, rel=1e-4)


@given(
    servers=st.floats(0.0, 500.0),
    offered=st.floats(0.001, 600.0),
    more=st.floats(0.01, 5.0),
)
def test_more_servers_never_block_or_delay_more(
    servers: float, offered: float, more: float
) -> None:
    for of in (erlang_b, erlang_c):
        before, after = of(servers, offered), of(servers + more, offered)
        assert 0 <= after <= before + 1e-12 <= 1 + 2e-12


@pytest.mark.parametrize("busy", [0.01, 0.5, 0.99, 0.9999])
def test_ten_thousand_devices_are_no_numerical_trouble(busy: float) -> None:
    found = wait(load_of(10_000 * busy / 60, 60), 10_000)
    assert 0 <= found.delayed <= 1
    assert math.isfinite(found.mean) and found.mean >= 0
    # Halfin and Whitt, 1981: with c = a + β √a, P(wait) → 1 / (1 + β Φ(β)/φ(β)).
    beta = (10_000 - 10_000 * busy) / math.sqrt(10_000 * busy)
    normal = math.exp(-beta * beta / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * math.erfc(-beta / math.sqrt(2))
    expected = 1 / (1 + beta * below / normal) if normal else 0.0
    assert found.delayed == pytest.approx(expected, abs=0.01)


def test_too_few_devices_are_a_queue_that_grows_for_ever() -> None:
    found = wait(load_of(1.0, 8), 8)
    assert (found.mean, found.p95, found.delayed, found.busy) == (math.inf, math.inf, 1.0, 1.0)
    assert wait(load_of(0.001, 8, gang=16), 8).mean == math.inf, "a gang that never fits"


@pytest.mark.parametrize("quantile", ["mean", "p95"])
@pytest.mark.parametrize("gang", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("offered", [0.3, 5.6, 720.0, 9000.0])
def test_needed_is_the_first_number_that_holds_the_target(
    offered: float, gang: float, quantile: str
) -> None:
    load = load_of(offered / 600 / gang, 600, gang)
    aim = needed(load, 30.0, quantile)
    assert aim is not None
    assert wait(load, aim).of(quantile) <= 30.0
    if aim > 1:
        assert wait(load, aim - 1).of(quantile) > 30.0


def test_gangs_of_one_size_are_mmc_of_so_many_gangs() -> None:
    alone, gangs = wait(eight(0.7), 8), wait(load_of(8 * 0.7 / 600, 600, gang=4), 32)
    assert gangs.mean == pytest.approx(alone.mean)
    assert gangs.p95 == pytest.approx(alone.p95)


def test_more_than_can_be_counted_is_said() -> None:
    assert needed(load_of(1e6, 3600), 60) is None


def test_bad_numbers_are_refused_with_a_sentence() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError):
            load_of(bad, 60)
        with pytest.raises(UsageError):
            load_of(1, bad)
        with pytest.raises(UsageError):
            needed(eight(0.5), bad)
    with pytest.raises(UsageError, match="at least 1"):
        load_of(1, 60, gang=0.5)
    for devices in (0, -3, 10**9):
        with pytest.raises(UsageError, match="give 1 to"):
            wait(eight(0.5), devices)
    with pytest.raises(UsageError, match="choose mean or p95"):
        needed(eight(0.5), 60, "p50")
    with pytest.raises(UsageError):
        machine_repair(0, 8, 60, 300)


def test_machine_repair_is_what_a_simulation_gives() -> None:
    """An own event loop, without the broker: 32 users, 8 devices."""
    chance = random.Random(1)
    users, devices, now = 32, 8, 0.0
    using, queue, waits, used = 0, [], [], 0.0
    while len(waits) < 60_000:
        rates = [(users - using - len(queue)) / 300, using / 60]
        step = chance.expovariate(sum(rates))
        now, used = now + step, used + using * step
        if chance.random() * sum(rates) < rates[0]:
            if using < devices:
                using += 1
                waits.append(0.0)
            else:
                queue.append(now)
        elif queue:
            waits.append(now - queue.pop(0))
        else:
            using -= 1
    found = machine_repair(users, devices, 60, 300)
    assert found.wait == pytest.approx(sum(waits) / len(waits), rel=0.1)
    assert found.longer == pytest.approx(sum(w > 1 for w in waits) / len(waits), rel=0.1)
    assert found.busy == pytest.approx(used / now / devices, rel=0.02)


def test_with_as_many_devices_as_users_nobody_waits() -> None:
    found = machine_repair(8, 8, 60, 300)
    assert (found.wait, found.longer) == (0.0, 0.0)
    assert found.busy == pytest.approx(60 / 360)


def hour(at: int, **values: float) -> Hour:
    return Hour(pool="accelerator", first=3600.0 * at, **values)  # type: ignore[arg-type]


def test_the_load_is_what_the_hours_say() -> None:
    hours = [
        hour(0, requests=10, started=10, waited=50.0, leases=8, seconds=4800.0,
             device_seconds=9600.0, gang_seconds=19200.0),
        hour(3, requests=30, started=30, waited=150.0, leases=32, seconds=19200.0,
             device_seconds=38400.0, gang_seconds=76800.0),
    ]  # fmt: skip
    seen = observed(hours, 4 * 3600.0)
    assert (seen.requests, seen.leases, seen.waited) == (40, 40, 5.0)
    assert seen.enough
    assert seen.load is not None and seen.busiest is not None
    assert seen.load.rate * 3600 == pytest.approx(10)
    assert (seen.load.seconds, seen.load.gang) == (600.0, 2.0)
    assert seen.load.offered == pytest.approx(10 / 3600 * 1200)
    assert seen.busiest.rate * 3600 == pytest.approx(30)


def test_little_data_is_no_load_or_a_guess() -> None:
    assert observed([], 0.0).load is None
    assert observed([hour(0, requests=3)], 60.0).load is None
    few = observed([hour(0, requests=3, leases=3, seconds=30.0, device_seconds=30.0,
                         gang_seconds=30.0)], 60.0)  # fmt: skip
    assert few.load is not None and not few.enough and few.busiest is None


def test_the_table_has_today_and_what_it_takes_and_few_hopeless_rows() -> None:
    load = load_of(40 / 3600, 1200)
    aim = needed(load, 120.0, "p95")
    assert aim is not None
    found = capacity.around(load, 8, aim)
    assert [one.devices for one in found if math.isinf(one.mean)] == [8, 11]
    assert {aim - 1, aim, aim + 1} <= {one.devices for one in found}
    assert [one.devices for one in capacity.around(load, 100, None)][:2] == [85, 90]
