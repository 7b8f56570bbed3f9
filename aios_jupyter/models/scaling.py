"""How many replicas an endpoint has: by its load, between two numbers.

The load is the number of requests in hand, on average over the time of a report: what comes in a
second times what each takes. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from ..schema import Struct

IN_HAND = 2.0
"""Requests that a replica has in hand at most, on average, before there is another one."""


class Scale(Struct, frozen=True):
    """The least and the most replicas.

    Attributes
    ----------
    idle
        Seconds: fewer replicas only once fewer have been enough for so long, none once nobody has
        asked for so long.
    """

    least: int
    most: int
    idle: float = 60.0

    @property
    def first(self) -> int:
        """How many there are at the beginning: one at least, which shows that the model opens."""
        return max(1, self.least)


class Scaler:
    """Decides by what the replicas report. Up at once, down late: starting one costs more."""

    def __init__(self, scale: Scale, now: float) -> None:
        self._scale = scale
        self._needed: deque[tuple[float, int]] = deque()
        self._asked = now

    def wanted(self, now: float, running: int, in_hand: Sequence[float], *, waits: bool) -> int:
        """How many replicas there should be.

        Parameters
        ----------
        running
            How many there are.
        in_hand
            Requests in hand of each replica that has reported lately.
        waits
            Somebody waits for an answer and there is no replica.
        """
        scale = self._scale
        load = sum(in_hand)
        if load > 0 or waits:
            self._asked = now
        needed = max(1, math.ceil(load / IN_HAND))
        if scale.least == 0 and now - self._asked >= scale.idle:
            needed = 0
        self._needed.append((now, needed))
        while now - self._needed[0][0] > scale.idle:
            self._needed.popleft()
        if running == 0:
            return max(scale.least, 1 if waits else 0)
        lately = max(count for _, count in self._needed)
        wanted = needed if needed > running or needed == 0 else min(running, lately)
        return max(scale.least, min(scale.most, wanted))
