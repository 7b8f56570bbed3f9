"""When those who wait will start: the line is played forward by the planner's own rules.

Pure, and on a picture of the state rather than the state: free devices, when those that are held
will be free, and who waits in which order. Nobody who comes later is foreseen.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import NamedTuple


class Held(NamedTuple):
    """Devices, by their memory, that are free again at `end` (None: nobody knows when).

    `kept` is that end as the planner takes it, which goes by times given alone.
    """

    end: float | None
    kept: float | None
    memories: tuple[int, ...]


class Waiting(NamedTuple):
    """A request: how long it will last (None: nobody knows), and how long it may."""

    id: str
    devices: int
    memory: int
    length: float | None
    limit: float | None


def starts(
    now: float, free: Iterable[int], held: Iterable[Held], waiting: Iterable[Waiting]
) -> dict[str, float]:
    """When each request starts, in seconds since the epoch; those who never do are left out.

    Parameters
    ----------
    now
        The time at which the play begins.
    free
        Memory of each free device.
    held
        What leases hold.
    waiting
        The line, in order.
    """
    play = _Play(now, sorted(free), held)
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
    def __init__(self, now: float, free: list[int], held: Iterable[Held]) -> None:
        self.now = now
        self._free = free
        self._number = 0
        self._ends: list[tuple[float, int, Held]] = []
        for one in held:
            self._hold(one)

    def startable(self, line: list[Waiting]) -> list[Waiting]:
        """Who starts now; they are taken to have started."""
        started = []
        head: Waiting | None = None
        for request in line:
            if self._fitting(request.memory) < request.devices:
                head = head or request
            elif head is None or self._delays_nobody(head, request):
                self._start(request)
                started.append(request)
        return started

    def advance(self) -> bool:
        """On to the next end of a lease; False when there is none."""
        if not self._ends or self._ends[0][0] == math.inf:
            return False
        self.now = max(self.now, self._ends[0][0])
        while self._ends and self._ends[0][0] <= self.now:
            for memory in heapq.heappop(self._ends)[2].memories:
                insort(self._free, memory)
        return True

    def _delays_nobody(self, head: Waiting, request: Waiting) -> bool:
        taken = self._free[bisect_left(self._free, request.memory) :][: request.devices]
        suiting = sum(memory >= head.memory for memory in taken)
        if not suiting:
            return True
        missing = head.devices - self._fitting(head.memory)
        when = -math.inf
        for kept, memories in sorted(
            (max(one.kept, self.now), one.memories)
            for _, _, one in self._ends
            if one.kept is not None
        ):
            if missing <= 0 and kept > when:
                break
            missing -= sum(memory >= head.memory for memory in memories)
            if missing <= 0:
                when = kept
        in_time = request.limit is not None and self.now + request.limit <= when
        return in_time or suiting <= max(0, -missing)

    def _start(self, request: Waiting) -> None:
        at = bisect_left(self._free, request.memory)
        taken = tuple(self._free[at : at + request.devices])
        del self._free[at : at + request.devices]
        end = None if request.length is None else self.now + request.length
        kept = None if request.limit is None else self.now + request.limit
        self._hold(Held(end, kept, taken))

    def _hold(self, held: Held) -> None:
        self._number += 1
        end = math.inf if held.end is None else held.end
        heapq.heappush(self._ends, (end, self._number, held))

    def _fitting(self, memory: int) -> int:
        return len(self._free) - bisect_left(self._free, memory)
