"""When those who wait will start: the line is played forward by the planner's own rules.

Pure, and on a picture of the state rather than the state: what is free, when that which is held
will be free, and who waits in which order. Nobody who comes later is foreseen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import NamedTuple

from ..schema import Slot
from .demand import Demand
from .policy import Pool
from .stock import Stock


class Held(NamedTuple):
    """Devices that are given back at `end` (None: nobody knows when).

    `kept` is that end as the planner takes it, which goes by times given and, under a policy that
    predicts, by what is likely.
    """

    end: float | None
    kept: float | None
    slots: tuple[Slot, ...]


class Waiting(NamedTuple):
    """A request: how long it will last (None: nobody knows), and how long it may."""

    id: str
    demand: Demand
    length: float | None
    limit: float | None


class _Kept(NamedTuple):
    """From when on the first that does not fit could start, and what is free then."""

    when: float
    then: Stock


def starts(
    now: float, pool: Pool, stock: Stock, held: Iterable[Held], waiting: Iterable[Waiting]
) -> dict[str, float]:
    """When each request starts, in seconds since the epoch; those who never do are left out.

    Parameters
    ----------
    now
        The time at which the play begins.
    pool
        Whose line it is.
    stock
        What is free, a branch.
    held
        What leases hold.
    waiting
        The line, in order.
    """
    play = _Play(now, pool, stock, held)
    line = list(waiting)
    found: dict[str, float] = {}
    while line:
        for request in play.startable(line):
            found[request.id] = play.now
            line.remove(request)
        if not play.advance():
            break
    return found


class _Play:
    def __init__(self, now: float, pool: Pool, stock: Stock, held: Iterable[Held]) -> None:
        self.now = now
        self._pool = pool
        self._stock = stock
        self._number = 0
        self._ends: list[tuple[float, int, Held]] = []
        for one in held:
            self._hold(one)

    def startable(self, line: list[Waiting]) -> list[Waiting]:
        """Who starts now; they are taken to have started."""
        started = []
        head: Waiting | None = None
        kept: _Kept | None = None
        for request in line:
            slots = self._stock.pick(self._pool, request.demand)
            if slots is None:
                head = head or request
                continue
            if head is not None:
                kept = kept or self._reserve(head.demand)
                slots = self._beside(head.demand, kept, request, slots)
            if slots is not None:
                self._start(request, slots)
                started.append(request)
                kept = None
        return started

    def advance(self) -> bool:
        """On to the next end of a lease; False when there is none."""
        if not self._ends or self._ends[0][0] == math.inf:
            return False
        self.now = max(self.now, self._ends[0][0])
        while self._ends and self._ends[0][0] <= self.now:
            self._stock.give(heapq.heappop(self._ends)[2].slots)
        return True

    def _reserve(self, head: Demand) -> _Kept:
        then = self._stock.branch()
        when = -math.inf
        for kept, _, slots in sorted(
            (max(one.kept, self.now), number, one.slots)
            for _, number, one in self._ends
            if one.kept is not None
        ):
            if when > -math.inf and kept > when:
                break
            then.give(slots)
            if when == -math.inf and then.fits(self._pool, head):
                when = kept
        return _Kept(when, then)

    def _beside(
        self, head: Demand, kept: _Kept, request: Waiting, slots: tuple[Slot, ...]
    ) -> tuple[Slot, ...] | None:
        """What of these a request can have that starts before the first; None: it has to wait."""
        if request.limit is not None and self.now + request.limit <= kept.when:
            return slots
        for count in dict.fromkeys((len(slots), request.demand.least)):
            part = self._stock.pick(self._pool, request.demand._replace(most=count)) or slots
            if kept.when == -math.inf:
                if not self._stock.suiting(part, head.each):
                    return part
                continue
            then = kept.then.branch()
            then.take(part)
            if then.fits(self._pool, head):
                return part
        return None

    def _start(self, request: Waiting, slots: tuple[Slot, ...]) -> None:
        self._stock.take(slots)
        end = None if request.length is None else self.now + request.length
        kept = None if request.limit is None else self.now + request.limit
        self._hold(Held(end, kept, slots))

    def _hold(self, held: Held) -> None:
        self._number += 1
        end = math.inf if held.end is None else held.end
        heapq.heappush(self._ends, (end, self._number, held))
