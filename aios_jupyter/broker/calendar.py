"""Devices that are promised ahead of time: which ones, to whom, and from when until when.

A reservation (`schema.Booking`) names the very devices that it will get, as those of Slurm do: then
whoever asks in the meantime is tried against a handful of windows and never against the whole
fleet. Other devices take the place of one that is lost or held for longer.

The devices of a machine that is only lent are promised to nobody from its end on, which is a window
without an end. A lease without a time may run up to there, and is over then.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Iterator

from ..schema import Booking
from .sortedlist import SortedList

Window = tuple[float, float, str]

# What a window is called in which a node is not there any more, before the node's name; reservations
# cannot be called so.
LENT = "@"
# A lease without a time is not begun where it would last for less than this (s).
LEAST = 60.0


class Calendar:
    """Reservations that have not started.

    Attributes
    ----------
    bookings
        By id.
    """

    def __init__(self) -> None:
        self.bookings: dict[str, Booking] = {}
        self._windows: dict[str, list[Window]] = {}
        self._starts: SortedList[tuple[float, str]] = SortedList()
        self._placed: dict[str, Booking] = {}
        self._ends: dict[str, tuple[float, tuple[str, ...]]] = {}

    def __bool__(self) -> bool:
        return bool(self.bookings or self._ends)

    def put(self, booking: Booking) -> None:
        """Take in a reservation, or its new devices; its record is in `bookings` already."""
        self.forget(booking.id)
        self._placed[booking.id] = booking
        self._starts.add((booking.start, booking.id))
        for device in booking.devices:
            window = (booking.start, booking.end, booking.id)
            insort(self._windows.setdefault(device, []), window)

    def forget(self, booking: str) -> None:
        """Nothing is promised to it any longer."""
        known = self._placed.pop(booking, None)
        if known is None:
            return
        self._starts.remove((known.start, booking))
        for device in known.devices:
            self._close(device, (known.start, known.end, booking))

    def _close(self, device: str, window: Window) -> None:
        self._windows[device].remove(window)
        if not self._windows[device]:
            del self._windows[device]

    def lend(self, node: str, devices: Iterable[str], until: float | None) -> None:
        """A node has these devices until a time; None: for good."""
        before = self._ends.pop(node, None)
        for device in before[1] if before else ():
            self._close(device, (before[0] if before else 0.0, math.inf, LENT + node))
        if until is None:
            return
        self._ends[node] = (until, tuple(devices))
        for device in self._ends[node][1]:
            insort(self._windows.setdefault(device, []), (until, math.inf, LENT + node))

    def lent_until(self, device: str) -> float | None:
        """When the machine of a device goes; None: it stays."""
        return next(
            (begins for begins, ends, _ in self._windows.get(device, ()) if ends == math.inf), None
        )

    def due(self, now: float) -> list[Booking]:
        """Reservations whose time has begun, the oldest first."""
        return list(self._until(math.nextafter(now, math.inf)))

    def kept(self, now: float, length: float | None) -> Iterator[tuple[str, str]]:
        """Devices into whose windows a lease would run, each with the reservation or node.

        Parameters
        ----------
        now
            When the lease begins, seconds since the epoch; no window lies before it.
        length
            How long it may last (s); None for no limit.
        """
        end = math.inf if length is None else now + length
        for booking in self._until(end):
            for device in booking.devices:
                yield device, booking.id
        for node, (until, devices) in self._ends.items():
            if until < _matters(now, end):
                for device in devices:
                    yield device, LENT + node

    def within(self, start: float, end: float, but: str = "") -> list[str]:
        """Devices that are promised at any time between two to others than `but`."""
        return [device for device in self._windows if self.clashes(device, start, end, but)]

    def clashes(self, device: str, start: float, end: float, but: str = "") -> list[str]:
        """Reservations other than `but` of a device within a time, and its node where that goes."""
        return [
            id
            for begins, ends, id in self._windows.get(device, ())
            if begins < (_matters(start, end) if ends == math.inf else end)
            and ends > start
            and id != but
        ]

    def last_end(self, device: str) -> float | None:
        """When the last reservation of a device ends; None: it has none."""
        ends = (end for _, end, _ in self._windows.get(device, ()) if end < math.inf)
        return max(ends, default=None)

    def ends(self) -> list[float]:
        """When reservations end, in order."""
        return sorted({booking.end for booking in self.bookings.values()})

    def devices(self) -> Iterator[str]:
        """Every device that is promised to somebody."""
        return iter(self._windows)

    def _until(self, end: float) -> Iterator[Booking]:
        """Reservations that begin before a time, in order."""
        for start, id in self._starts:
            if start >= end:
                return
            yield self.bookings[id]


def _matters(start: float, end: float) -> float:
    """Before when a machine would have to go for it to matter to a lease."""
    return start + LEAST if end == math.inf else end
