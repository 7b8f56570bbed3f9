"""How long requests wait on a given number of devices, by queueing theory. Pure: numbers alone.

`Queue` is M/M/c, an open queue: Poisson arrivals, exponential service times, c servers (A. K.
Erlang, *Solution of some problems in the theory of probabilities*, 1917; L. Kleinrock, *Queueing
Systems*, vol. 1, 1975, §3.5). `machine_repair` is M/M/c//N, a closed one: a finite number of users
who think between one request and the next (Kleinrock §3.8).

A request for several devices is one customer at a server of as many devices. Where requests differ,
the server is taken to have the mean size of a gang, weighted with the device-seconds that gangs of
that size take, and the number of servers is a real one (D. L. Jagerman, *Some properties of the
Erlang loss function*, 1974). That is exact for gangs of one size and an approximation for a mix: it
keeps the offered load and the size of the steps in which devices become free, and leaves out that a
large gang has to collect its devices while smaller ones go past it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .events import Hour

# More than these are not looked at: the recursion takes a step for each.
MOST_DEVICES = 100_000
# The share of requests that wait for no longer than `p95`.
P95 = 0.95
# What fewer leases, or a shorter time (s), say of rates is a guess.
ENOUGH_LEASES = 20
ENOUGH_TIME = 3600.0
HOUR = 3600.0


@dataclass(frozen=True)
class Load:
    """What is asked of the devices of a pool.

    Attributes
    ----------
    rate
        Requests a second.
    seconds
        Mean length of a lease.
    gang
        Mean number of devices of a request, weighted as the module says.
    offered
        Devices in use on average when nobody waits: device-seconds asked for in a second.
    """

    rate: float
    seconds: float
    gang: float
    offered: float

    def __post_init__(self) -> None:
        for name in ("rate", "seconds", "gang", "offered"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{value:g} is not a {name} to forecast with; give one above 0.")
        if self.gang < 1:
            raise UsageError(f"{self.gang:g} is not a number of devices; give at least 1.")


@dataclass(frozen=True)
class Wait:
    """What M/M/c says of so many devices; times in seconds, inf where the queue grows for ever.

    `busy` is the share of the time in which a device is in use, `delayed` that of the requests that
    have to wait at all.
    """

    devices: int
    busy: float
    delayed: float
    mean: float
    p95: float

    def of(self, quantile: str) -> float:
        """The `mean` or the `p95` wait."""
        return self.p95 if quantile == "p95" else self.mean


def load_of(rate: float, seconds: float, gang: float = 1.0) -> Load:
    """A load of requests that are alike.

    Raises
    ------
    UsageError
        One of them is not a number above zero.
    """
    return Load(rate, seconds, gang, rate * seconds * gang)


def erlang_b(servers: float, offered: float) -> float:
    """The share of customers that find all servers busy, where nobody waits.

    Parameters
    ----------
    servers
        Any number from 0 on, also between two whole ones.
    offered
        Mean number of servers that the customers would keep busy.
    """
    whole = math.floor(servers)
    part = servers - whole
    blocked = 1.0 if part == 0 else _erlang_b_below_one(part, offered)
    # The classic recursion, from below: it never leaves [0, 1], whatever the number of servers.
    for step in range(1, whole + 1):
        blocked = offered * blocked / (part + step + offered * blocked)
    return blocked


def _erlang_b_below_one(servers: float, offered: float) -> float:
    """1/B = a ∫ e^(-at) (1+t)^c dt = e^a a^(-c) Γ(1+c, a), for 0 < c < 1 (Jagerman 1974)."""
    shape = 1 + servers
    if offered > shape + 1:
        # Γ(s, x) = e^(-x) x^s / (x+1-s- 1(1-s)/(x+3-s- …)): Lentz's method.
        b = offered + 1 - shape
        c, d = math.inf, 1 / b
        fraction = d
        for i in range(1, 200):
            a = -i * (i - shape)
            b += 2
            d = 1 / (a * d + b)
            c = b + (0.0 if math.isinf(c) else a / c)
            fraction *= c * d
            if abs(c * d - 1) < 1e-15:
                break
        return 1 / (offered * fraction)
    # The lower gamma function: e^(-x) x^s times the sum of x^n / (s (s+1) … (s+n)).
    term = total = 1 / shape
    for n in range(1, 200):
        term *= offered / (shape + n)
        total += term
        if term < total * 1e-16:
            break
    whole = math.gamma(shape) * math.exp(offered) * math.pow(offered, -servers)
    return 1 / (whole - offered * total)


def erlang_c(servers: float, offered: float) -> float:
    """The share of customers that have to wait; 1 where there are not enough servers."""
    if offered >= servers:
        return 1.0
    blocked = erlang_b(servers, offered)
    return servers * blocked / (servers - offered * (1 - blocked))


def wait(load: Load, devices: int) -> Wait:
    """What the wait for devices is with so many of them."""
    if not 0 < devices <= MOST_DEVICES:
        raise UsageError(
            f"{devices} is not a number of devices to forecast with; give 1 to {MOST_DEVICES:,}."
        )
    servers, offered = devices / load.gang, load.offered / load.gang
    if servers < 1 or offered >= servers:
        return Wait(devices, min(1.0, load.offered / devices), 1.0, math.inf, math.inf)
    delayed = erlang_c(servers, offered)
    # Who waits at all waits exponentially long.
    scale = offered / load.rate / (servers - offered)
    tail = math.log(delayed / (1 - P95)) if delayed > 0 else 0.0
    return Wait(devices, load.offered / devices, delayed, delayed * scale, max(0.0, tail * scale))


def needed(load: Load, target: float, quantile: str = "mean") -> int | None:
    """The fewest devices with which the wait is at most `target` seconds; None: too many to say.

    Raises
    ------
    UsageError
        The target is not above zero, or the quantile neither `mean` nor `p95`.
    """
    if not (math.isfinite(target) and target > 0):
        raise UsageError(f"{target:g} seconds is not a wait to aim at; give one above 0.")
    if quantile not in ("mean", "p95"):
        raise UsageError(f"There is no quantile {quantile!r}; choose mean or p95.")
    least = max(load.offered, load.gang)
    if least >= MOST_DEVICES or wait(load, MOST_DEVICES).of(quantile) > target:
        return None
    below = max(0, math.ceil(least) - 1)
    above = below + 1
    while wait(load, above).of(quantile) > target:
        above, below = min(MOST_DEVICES, 2 * above - math.floor(load.offered) + 1), above
    while above - below > 1:
        middle = (below + above) // 2
        if wait(load, middle).of(quantile) <= target:
            above = middle
        else:
            below = middle
    return above


@dataclass(frozen=True)
class Observed:
    """What was seen of a pool lately.

    Attributes
    ----------
    span
        Seconds since the first request of the last week.
    requests, leases
        How many came, and how many leases ended.
    waited
        Mean seconds from request to lease of those that started; None when none has.
    load
        The mean of the whole time; None until a lease has ended.
    busiest
        The load at the rate of the hour with the most requests; None where the time is too short.
    """

    span: float
    requests: int
    leases: int
    waited: float | None
    load: Load | None
    busiest: Load | None

    @property
    def enough(self) -> bool:
        """Whether this is more than a guess."""
        return self.leases >= ENOUGH_LEASES and self.span >= ENOUGH_TIME


def observed(hours: Sequence[Hour], now: float) -> Observed:
    """What the hours of a pool, the oldest first, say of the load on it."""
    started = sum(hour.started for hour in hours)
    requests, leases = (sum(getattr(h, name) for h in hours) for name in ("requests", "leases"))
    span = max(1.0, now - hours[0].first) if hours else 0.0
    seconds, used, squared = (
        sum(getattr(hour, name) for hour in hours)
        for name in ("seconds", "device_seconds", "gang_seconds")
    )
    load = busiest = None
    if leases and requests and seconds > 0:
        load = _load(requests / span, seconds / leases, used / leases, squared / used)
        if span >= 2 * HOUR:
            most = max(hour.requests for hour in hours) / HOUR
            busiest = _load(most, seconds / leases, used / leases, squared / used)
    waited = sum(hour.waited for hour in hours) / started if started else None
    return Observed(span, requests, leases, waited, load, busiest)


def _load(rate: float, seconds: float, used: float, gang: float) -> Load:
    return Load(rate, seconds, max(1.0, gang), rate * used)


def around(load: Load, devices: int, aim: int | None) -> list[Wait]:
    """The waits with about as many devices as there are, and as it takes (`aim`).

    Of numbers with which the queue grows for ever only the largest is given, and today's.
    """
    step = max(1, round(devices / 20))
    counts = {devices + step * i for i in range(-3, 4)}
    if aim is not None:
        counts |= {aim + i for i in range(-2, 3)}
    found = [wait(load, count) for count in sorted(counts) if 1 <= count <= MOST_DEVICES]
    growing = [one.devices for one in found if math.isinf(one.mean)]
    left_out = set(growing[:-1]) - {devices}
    return [one for one in found if one.devices not in left_out]


@dataclass(frozen=True)
class Repair:
    """What M/M/c//N says: mean `wait` (s), share of the requests that wait `longer` than was asked,
    and the share of the time in which a device is `busy`.
    """

    wait: float
    longer: float
    busy: float


def machine_repair(
    users: int, devices: int, service: float, thinking: float, than: float = 1.0
) -> Repair:
    """Users who think, ask for a device, use it, and think again.

    Parameters
    ----------
    users, devices
        How many.
    service, thinking
        Mean seconds of a device's use and of the pause before the next request.
    than
        Seconds, for `Repair.longer`.

    Raises
    ------
    UsageError
        One of them is not above zero.
    """
    for value in (users, devices, service, thinking):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{value:g} is not a number to forecast with; give one above 0.")
    shares = _present(users, devices, service / thinking)
    served = sum(min(n, devices) * share for n, share in enumerate(shares))
    queued = sum(max(0, n - devices) * share for n, share in enumerate(shares))
    rate = served / service
    # A user who asks sees what the others alone would make of it (Sevcik and Mitrani, 1981).
    seen = _present(users - 1, devices, service / thinking)
    longer = sum(
        share * _erlang_tail(n - devices + 1, devices * than / service)
        for n, share in enumerate(seen)
        if n >= devices
    )
    return Repair(queued / rate, longer, served / devices)


def _present(users: int, devices: int, ratio: float) -> list[float]:
    """The share of the time in which so many users use a device or wait for one."""
    logs = [0.0]
    for n in range(1, users + 1):
        logs.append(logs[-1] + math.log((users - n + 1) * ratio / min(n, devices)))
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _erlang_tail(stages: int, mean: float) -> float:
    """P(Poisson(mean) < stages): so many ends have not yet come."""
    term = total = math.exp(-mean)
    for k in range(1, stages):
        term *= mean / k
        total += term
    return min(1.0, total)
