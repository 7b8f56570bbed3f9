"""Who is next, on which nodes, and what is refused. Pure, and without memory of its own.

A policy only orders requests; `waiting.py` keeps them in that order, and `planning.py` decides who
starts: the first that waits, and whoever behind it delays it by nothing (EASY backfill). A request
for accelerators never holds back one for CPU slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ..errors import AiosError, AllocationError, UsageError
from ..schema import Request, Want
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
    aging: float | None = None


def _arrival(_: Request) -> float:
    return 0.0


def _attained(request: Request) -> float:
    return level(request.attained)


def _area(request: Request) -> float:
    """Device-seconds that a request is expected to take."""
    return request.count * (request.time or request.predicted or UNKNOWN_TIME)


def _aged_priority(request: Request) -> float:
    """Waiting makes up for a lower priority at a fixed rate, so that the order never changes."""
    return request.submitted - request.priority * PRIORITY_WORTH


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("fifo", "first come, first served", _arrival),
        Policy(
            "sjf",
            "smallest first: devices times the time given, or predicted from earlier leases",
            _area,
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
            "users with the least recent use of their dominant resource first",
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


def pack(nodes_by_free: Mapping[int, Collection[str]], count: int) -> list[tuple[str, int]]:
    """Choose the fewest nodes for a gang, and leave the largest holes whole.

    Parameters
    ----------
    nodes_by_free
        Nodes by their number of free devices; together they have at least `count`.
    count
        Size of the gang.

    Returns
    -------
    list of (str, int)
        Nodes and how many devices to take on each: the fullest node that can take all of what is
        left, after as many whole nodes as need be.
    """
    chosen: list[tuple[str, int]] = []
    left = count
    for free in sorted(nodes_by_free, reverse=True):
        for node in nodes_by_free[free]:
            if free >= left:
                break
            chosen.append((node, free))
            left -= free
        else:
            continue
        break
    taken = {node for node, _ in chosen}
    for free in sorted(nodes_by_free):
        if free >= left:
            for node in nodes_by_free[free]:
                if node not in taken:
                    return [*chosen, (node, left)]
    raise AssertionError(f"{count} devices are not free")


def refusal(
    want: Want, pool: Pool, count: int, memory: int, capacity: int, largest_memory: int, total: int
) -> AiosError | None:
    """Why a request could never be granted, or None.

    Parameters
    ----------
    want, pool, count, memory
        What is asked for, and the pool that it would be taken from.
    capacity
        Devices of the pool with enough memory, on all known nodes.
    largest_memory
        Of any device of the pool, in bytes.
    total
        Devices of the pool, whatever their memory.
    """
    if count <= 0:
        return UsageError(f"{count} is not a number of devices; ask for at least one.")
    if memory < 0:
        return UsageError(f"{memory} bytes is not an amount of memory; ask for 0 or more.")
    if count <= capacity:
        return None
    if want is Want.GPU and not total:
        return AllocationError(
            "This cluster has no GPU: ask with '--devices N' to take CPU slots where there is no "
            "accelerator, or try GPUs on a cluster started with 'aios up --simulate-gpus N'."
        )
    if not total:
        return AllocationError(
            "The cluster knows of no node with devices yet; look at 'aios status' and ask again "
            "when one has joined."
        )
    one, many = _words(want, pool)
    if not capacity:
        return AllocationError(
            f"No {one} of this cluster has {_size(memory)} of memory: the largest has "
            f"{_size(largest_memory)}, ask for that or less."
        )
    whole = f" with {_size(memory)} of memory or more" if memory else ""
    return AllocationError(
        f"{count} {many}{whole} can never be granted here: ask for at most {capacity}, which is "
        "all that this cluster has."
    )


def _words(want: Want, pool: Pool) -> tuple[str, str]:
    if pool is Pool.CPU:
        return "CPU slot", "CPU slots"
    return ("GPU", "GPUs") if want is Want.GPU else ("device", "devices")


def _size(memory: int) -> str:
    return f"{memory / 1e9:.3g} GB"
