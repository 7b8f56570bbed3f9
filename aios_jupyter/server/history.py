"""What was before a page was loaded: the last minutes of each device, the course of each run.

Pure bookkeeping over the events of the stream. Those tell changes alone: a value holds until the
next one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..course import Course, finite

WINDOW = 120.0
# A page draws two minutes in a hundred pixels: more points than this are not seen.
EVERY = 2.0
POINTS = 240

Row = dict[str, Any]


@dataclass
class Track:
    """A device's changes, at most one in `EVERY` seconds: times, utilization and memory (percent)."""

    changes: deque[tuple[float, float | None, float | None]] = field(
        default_factory=lambda: deque(maxlen=int(WINDOW / EVERY) + 1)
    )

    def add(self, time: float, utilization: float | None, memory: float | None) -> None:
        """Take a sample; one that comes soon after another takes its place."""
        if len(self.changes) > 1 and self.changes[-1][0] - self.changes[-2][0] < EVERY:
            self.changes.pop()
        self.changes.append((time, utilization, memory))

    def row(self) -> Row:
        """As columns."""
        time, utilization, memory = zip(*self.changes, strict=True)
        return {"time": time, "utilization": utilization, "memory": memory}


class History:
    """The past of all devices and runs in view."""

    def __init__(self) -> None:
        self._devices: dict[str, Track] = {}
        self._runs: dict[str, dict[str, Course]] = {}
        self._metrics: dict[str, dict[str, float]] = {}

    def take(self, event: Row) -> None:
        """Take an event of the stream in."""
        whole = event.get("snapshot")
        told = whole or event.get("delta")
        if told is None:
            self._devices, self._runs, self._metrics = {}, {}, {}
            return
        if whole:
            self._forget(whole)
        for key, row in told.get("devices", {}).items():
            if row is None:
                self._devices.pop(key, None)
            else:
                self._device(key, row, event["time"])
        for key, row in told.get("runs", {}).items():
            if row is None:
                self._runs.pop(key, None)
                self._metrics.pop(key, None)
            else:
                self._run(key, row, event["time"])

    def view(self) -> Row:
        """All of it, for a page that has just been loaded."""
        return {
            "devices": {key: track.row() for key, track in self._devices.items()},
            "runs": {
                run: {
                    name: {"x": course.times, "y": list(map(finite, course.points))}
                    for name, course in courses.items()
                }
                for run, courses in self._runs.items()
            },
        }

    def _device(self, key: str, row: Row, time: float) -> None:
        # What a broker of another version leaves out is not drawn.
        utilization, used, whole = (row.get(k) for k in ("utilization", "memory_used", "memory"))
        if utilization is None and used is None:
            return
        memory = None if used is None or not whole else round(100 * used / whole, 1)
        self._devices.setdefault(key, Track()).add(round(time, 1), utilization, memory)

    def _run(self, key: str, row: Row, time: float) -> None:
        metrics = row.get("metrics") or {}
        if metrics == self._metrics.get(key, {}):
            return
        self._metrics[key] = metrics
        courses = self._runs.setdefault(key, {})
        for name, value in metrics.items():
            since = round(time - row.get("started", time), 2)
            courses.setdefault(name, Course(POINTS)).add(value, time=since)

    def _forget(self, snapshot: Row) -> None:
        for key in self._devices.keys() - snapshot["devices"].keys():
            del self._devices[key]
        for key in self._runs.keys() - snapshot["runs"].keys():
            del self._runs[key]
            self._metrics.pop(key, None)
