"""Who is next, on which nodes, and what is refused. Pure, and without memory of its own but the
queue.

The order is first come, first served among requests for the same kind of device: a request that
waits holds back those behind it, so that a large one is not overtaken for ever, but one for
accelerators never holds back one for CPU slots.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from enum import StrEnum

from ..errors import AiosError, AllocationError, UsageError
from ..schema import Want


class Pool(StrEnum):
    """Devices that stand in for one another, and so have one line of requests."""

    ACCELERATOR = "accelerator"
    CPU = "cpu"


class Queue:
    """Requests that wait, in one line for each pool; every operation is at most O(log n).

    Requests that have left are taken out of the heaps when they come to the front.
    """

    def __init__(self) -> None:
        self._lines: dict[Pool, list[tuple[int, str]]] = {pool: [] for pool in Pool}
        self._waiting: dict[str, tuple[Pool, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: str, pool: Pool, arrival: int) -> None:
        """Put a request in a line at the place that its arrival gives it."""
        self._waiting[request] = (pool, arrival)
        heapq.heappush(self._lines[pool], (arrival, request))

    def move(self, request: str, pool: Pool) -> None:
        """Put a request that waits in another line, where it is as old as it was."""
        before, arrival = self._waiting[request]
        if before is not pool:
            self.add(request, pool, arrival)

    def remove(self, request: str) -> None:
        """Take a request out."""
        self._waiting.pop(request, None)

    def head(self, pool: Pool) -> str | None:
        """The request that is next in a pool's line."""
        line = self._lines[pool]
        while line:
            arrival, request = line[0]
            if self._waiting.get(request) == (pool, arrival):
                return request
            heapq.heappop(line)
        return None

    def pool(self, request: str) -> Pool:
        """The line in which a request waits."""
        return self._waiting[request][0]

    def ordered(self) -> list[str]:
        """All requests that wait, oldest first."""
        return sorted(self._waiting, key=lambda request: self._waiting[request][1])


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
