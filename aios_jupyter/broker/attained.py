"""How much service work has had so far, and what that says of who goes first. Pure.

Service is two-dimensional: devices times seconds. It is counted in levels, each four times as wide
as the one before, so that two that have had about as much never take turns (Tiresias, NSDI '19).
Under `las` the lower level goes first. Under `gittins` it is the higher index: the greatest chance,
for each device-second that is spent on it, of seeing the work end, by how long such work lasted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

# Lower ends of the levels after the first, in device-seconds.
EDGES = tuple(400.0 * 4.0**step for step in range(14))
# Less than this (device-seconds) before the next level counts as having reached it.
NEARLY = 1.0
# Ends of work of a kind after which its indices are worked out anew.
ANEW = 20


def level(attained: float) -> int:
    """The level of so many device-seconds."""
    return bisect_right(EDGES, attained + NEARLY)


def bottom(level: int) -> float:
    """The least that a level holds."""
    return EDGES[level - 1] if level else 0.0


def until_next(attained: float, devices: int) -> float | None:
    """Seconds for which so many devices stay in their level; None in the last."""
    now = level(attained)
    return None if now == len(EDGES) else (EDGES[now] - attained) / devices


class Indices:
    """Gittins indices of kinds of work in each level.

    A kind's are worked out anew when `ANEW` more of it have ended: if each end moved them a little,
    work with nearly equal ones would take turns.
    """

    def __init__(self) -> None:
        self._ended: dict[str, int] = {}
        self._tables: dict[str, tuple[int, dict[int, float]]] = {}

    def ended(self, kind: str) -> None:
        """Work of that kind has ended."""
        self._ended[kind] = self._ended.get(kind, 0) + 1

    def index(self, kind: str, services: Callable[[], Iterable[float]], level: int) -> float:
        """The index of work of that kind in a level; `services` gives what such work had in all."""
        ended = self._ended.get(kind, 0)
        made, table = self._tables.get(kind, (-ANEW, {}))
        if ended - made >= ANEW:
            table = {}
            self._tables[kind] = (ended, table)
        if level not in table:
            table[level] = gittins(services(), bottom(level))
        return table[level]


def gittins(services: Iterable[float], attained: float) -> float:
    """The Gittins index of work that has had so much.

    Parameters
    ----------
    services
        What such work had in all, in device-seconds.
    attained
        What this one has had.

    Returns
    -------
    float
        Ends to be expected for each device-second. For work that lasts longer than any before it is
        the reciprocal of what it has had, as for lengths with a heavy tail, which is the order of
        `las`.
    """
    left = sorted(service - attained for service in services if service > attained)
    if not left:
        return 1.0 / max(attained, EDGES[0])
    best = total = 0.0
    for done, most in enumerate(left, 1):
        total += most
        best = max(best, done / (total + (len(left) - done) * most))
    return best
