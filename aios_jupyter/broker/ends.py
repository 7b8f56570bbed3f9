"""When leases end, as far as that is known: by their time, or probably, as leases like them did.

A lease without a time is expected to last as long as those before it, and the longer it has lasted
already, the later is its end. As probable ends only rise, they stand in the order in which they were
last worked out, and each is worked out anew when it comes to be the next: nothing here looks at all
leases.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from .policy import Pool
from .sortedlist import SortedList

# An end, and whose it is.
End = tuple[float, str]


class Ends:
    """The ends of leases, by pool.

    Parameters
    ----------
    likely
        When a lease will probably end, by how long it has lasted now.
    """

    def __init__(self, likely: Callable[[str], float]) -> None:
        self._likely = likely
        self._given: dict[Pool, SortedList[End]] = {pool: SortedList() for pool in Pool}
        self._probable: dict[Pool, SortedList[End]] = {pool: SortedList() for pool in Pool}
        self._noted: dict[str, tuple[SortedList[End], float]] = {}

    def note(self, lease: str, pool: Pool, end: float) -> None:
        """A lease ends by that time."""
        self._note(lease, self._given[pool], end)

    def guess(self, lease: str, pool: Pool, now: float) -> None:
        """A lease has no time, but there were others like it; when it ends is worked out once asked."""
        self._note(lease, self._probable[pool], now)

    def forget(self, lease: str) -> None:
        """A lease has ended, or nobody knows when it will."""
        if noted := self._noted.pop(lease, None):
            line, end = noted
            line.remove((end, lease))

    def given(self, *pools: Pool) -> Iterator[End]:
        """The ends of leases with a time, in order."""
        return heapq.merge(*(self._given[pool] for pool in pools))

    def expected(self, *pools: Pool) -> Iterator[End]:
        """The probable ends among them; nothing is to be noted or forgotten until it is done."""
        lines = ((self._given[pool], self._rising(self._probable[pool])) for pool in pools)
        return heapq.merge(*(line for both in lines for line in both))

    def _note(self, lease: str, line: SortedList[End], end: float) -> None:
        self.forget(lease)
        line.add((end, lease))
        self._noted[lease] = (line, end)

    def _rising(self, line: SortedList[End]) -> Iterator[End]:
        entry = line.first()
        while entry is not None:
            end, lease = entry
            later = self._likely(lease)
            if later > end:
                self._note(lease, line, later)
            else:
                yield entry
            entry = line.after(entry)
