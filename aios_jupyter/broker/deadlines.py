"""What is due, and when: one heap for every kind of deadline."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

When = Callable[[str], float | None]
Act = Callable[[str], None]


class Deadlines:
    """Deadlines that move are armed again; entries that no longer hold are passed over.

    Parameters
    ----------
    kinds
        For each kind of deadline: when it is due for the thing with that id now (None: not at
        all), and what to do then.
    """

    def __init__(self, kinds: Mapping[str, tuple[When, Act]]) -> None:
        self._kinds = dict(kinds)
        self._heap: list[tuple[float, str, str]] = []

    def add(self, kind: str, when: When, act: Act) -> None:
        """One kind of deadline more."""
        self._kinds[kind] = (when, act)

    def arm(self, kind: str, id: str) -> None:
        """The deadline of a thing has been set or moved."""
        when = self._kinds[kind][0](id)
        if when is not None:
            heapq.heappush(self._heap, (when, kind, id))

    def fire(self, now: float) -> None:
        """Act on all that is due."""
        while self._heap and self._heap[0][0] <= now:
            holds = self._holds()
            _, kind, id = heapq.heappop(self._heap)
            if holds:
                self._kinds[kind][1](id)

    def next(self) -> float | None:
        """When the next deadline is, or None."""
        while self._heap and not self._holds():
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _holds(self) -> bool:
        when, kind, id = self._heap[0]
        return self._kinds[kind][0](id) == when
