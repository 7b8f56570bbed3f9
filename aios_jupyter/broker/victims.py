"""Which leases are taken away so that another request can start. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from ..schema import Lease
from .policy import Pool
from .sortedlist import SortedList

_Item = tuple[float, int, str]
# Of leases that are equally far behind so many are looked at for the best choice, where the first
# of them would do.
CONSIDERED = 32


class Victim(NamedTuple):
    """A lease that may be taken: how far behind it is, what it would free, and why it is taken."""

    lease: str
    standing: float
    frees: int
    why: str


class Victims:
    """Leases that may be preempted, by pool and queue; the worst come first, then the newest.

    Attributes
    ----------
    version
        Rises with every change.
    """

    def __init__(self) -> None:
        self.version = 0
        self._lines: dict[tuple[Pool, str], SortedList[_Item]] = {}
        self._places: dict[str, tuple[Pool, str, _Item]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, lease: Lease, pool: Pool, standing: float) -> None:
        """A lease may be preempted; who has the higher standing is worse."""
        item = (-standing, -lease.fence, lease.id)
        self._lines.setdefault((pool, lease.queue), SortedList()).add(item)
        self._places[lease.id] = (pool, lease.queue, item)
        self.version += 1

    def remove(self, lease: str) -> None:
        """A lease may not, or no longer."""
        place = self._places.pop(lease, None)
        if place:
            pool, queue, item = place
            line = self._lines[pool, queue]
            line.remove(item)
            if not line:
                del self._lines[pool, queue]
            self.version += 1

    def queues(self, pool: Pool) -> list[str]:
        """Queues with such leases."""
        return [queue for other, queue in self._lines if other is pool]

    def line(self, pool: Pool, queue: str) -> Iterator[tuple[float, str]]:
        """Standing and id of a queue's leases, the worst first."""
        for standing, _, lease in self._lines.get((pool, queue), ()):
            yield -standing, lease


def enough(victims: Iterable[Victim], missing: int) -> list[Victim]:
    """Whom to take so that enough is freed; nobody where all of them do not.

    Those that are furthest behind are taken first, of those that are equally far the fewest, and
    nobody without whom the others would do.
    """
    taken: list[Victim] = []
    for _, equals in groupby(victims, lambda victim: victim.standing):
        left = missing - sum(victim.frees for victim in taken)
        tier: list[Victim] = []
        total = 0
        for victim in equals:
            tier.append(victim)
            total += victim.frees
            if total >= left and len(tier) >= CONSIDERED:
                break
        if total < left:
            taken += tier
            continue
        taken += [tier[at] for at in fewest([victim.frees for victim in tier], left) or ()]
        spare = sum(victim.frees for victim in taken) - missing
        for victim in reversed(taken):
            if victim.frees <= spare:
                taken.remove(victim)
                spare -= victim.frees
        return taken
    return []


def fewest(frees: Sequence[int], missing: int) -> list[int] | None:
    """Which to take so that enough is freed.

    Parameters
    ----------
    frees
        What each of them would free, in the order in which they are best taken.
    missing
        What is needed.

    Returns
    -------
    list of int
        Indices of the fewest that free enough, of those the first in order; None when all of them
        do not.
    """
    if sum(frees) < missing:
        return None
    left, number, total = missing, 0, 0
    for free in sorted(frees, reverse=True):
        if total >= missing:
            break
        total += free
        number += 1
    chosen: list[int] = []
    for at, free in enumerate(frees):
        if left <= 0:
            break
        others = sum(heapq.nlargest(number - 1, frees[at + 1 :]))
        if free and free + others >= left:
            chosen.append(at)
            left -= free
            number -= 1
    return chosen
