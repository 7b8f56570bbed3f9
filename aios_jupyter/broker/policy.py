"""Who is next. Pure, and without memory of its own.

A policy only orders requests; `waiting.py` keeps them in that order, and `planning.py` decides who
starts: the first that waits, and whoever behind it delays it by nothing (EASY backfill). A request
for accelerators never holds back one for CPU slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from ..errors import UsageError
from ..schema import Request
from .attained import level

# How long a lease is taken to last of which nothing is known.
UNKNOWN_TIME = 3600.0
# Seconds of waiting that make up for one step of priority.
PRIORITY_WORTH = 3600.0
# Seconds of waiting after which a request goes first, unless an admin chose another time.
AGING = 3.5 * 86400.0


class Pool(StrEnum):
    """Devices that stand in for one another, and so have one line of requests."""

    ACCELERATOR = "accelerator"
    CPU = "cpu"


# To go through all of them: an enum makes an iterator in Python each time.
POOLS = tuple(Pool)


@dataclass(frozen=True)
class Policy:
    """How requests are ordered.

    Attributes
    ----------
    name, about
        What it is called, and what it does in a few words.
    key
        A request's place; less is earlier, and equal ones keep the order of their arrival.
    by_user
        Users take turns by their shares, and `key` orders what one user asks for.
    preempts, suspends
        Who goes first may take devices from preemptible leases of those who go later; by the
        service that each has had, so that work which lasts is suspended for work that is new.
    predicts
        Where no time is given, predictions say who may go past the first that waits, as long as
        that has not aged.
    aging
        Seconds after which a request is served before all younger ones, in order of arrival;
        None where the order itself bounds every wait.
    """

    name: str
    about: str
    key: Callable[[Request], float]
    by_user: bool = False
    preempts: bool = False
    suspends: bool = False
    predicts: bool = False
    aging: float | None = None


def _arrival(_: Request) -> float:
    return 0.0


def _attained(request: Request) -> float:
    return level(request.attained)


def _area(request: Request) -> float:
    """Device-seconds that a request is expected to take."""
    return request.count * (request.time or request.predicted or UNKNOWN_TIME)


def _aged_priority(request: Request) -> float:
    """Waiting makes up for a lower priority at a fixed rate, so that the order never changes.

    A request that waits again is as old as it was, but stays behind the one that took its devices:
    before it, it would be granted at once what it was to give way with, and so on for ever.
    """
    key = request.submitted - request.priority * PRIORITY_WORTH
    return key if request.behind is None else max(key, math.nextafter(request.behind, math.inf))


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("fifo", "first come, first served", _arrival),
        Policy(
            "sjf",
            "smallest first: devices times the time given, or predicted from earlier leases",
            _area,
            predicts=True,
            aging=AGING,
        ),
        Policy(
            "priority",
            "highest --priority first, an hour's wait worth one; it may preempt",
            _aged_priority,
            preempts=True,
        ),
        Policy(
            "fair",
            "least recent use of the dominant resource first, by queue and then by user",
            _arrival,
            by_user=True,
            aging=AGING,
        ),
        Policy(
            "las",
            "least attained service (devices times seconds) first; it preempts what is preemptible",
            _attained,
            preempts=True,
            suspends=True,
            aging=AGING,
        ),
        Policy(
            "gittins",
            "likeliest to end soon first, by what it has had and earlier leases lasted; it preempts",
            _attained,
            preempts=True,
            suspends=True,
            aging=AGING,
        ),
    )
}


def policy_named(name: str, aging: float | None = None) -> Policy:
    """The policy with that name, with another aging than its own where one is given.

    Raises
    ------
    UsageError
        There is no such policy, it has no aging, or that is not a length of time.
    """
    if name not in POLICIES:
        raise UsageError(f"There is no policy {name!r}; choose one of {', '.join(POLICIES)}.")
    policy = POLICIES[name]
    if aging is None:
        return policy
    if policy.aging is None:
        raise UsageError(f"The policy {name} has no aging: its order bounds every wait by itself.")
    if not (math.isfinite(aging) and aging > 0):
        raise UsageError(f"{aging} seconds is not a length of time; give a number above zero.")
    return replace(policy, aging=aging)
