"""What a run has said so far: pure bookkeeping over its events, drawn by shells and widgets."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..course import Course
from ..units import format_duration, format_size
from .views import LARGEST, number

LOG_LINES = 400
POINTS = 240

ENDS = {"succeeded", "failed", "stopped"}


@dataclass
class Log:
    """The last lines of one rank. `partial` is a line whose end has not come yet."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    partial: str = ""
    dropped: int = 0

    def add(self, text: str) -> None:
        r"""Take output as it was written; a line after `\r` replaces the one before (tqdm)."""
        *whole, self.partial = (self.partial + text).split("\n")
        for line in whole:
            if len(self.lines) == LOG_LINES:
                self.dropped += 1
            self.lines.append(_overwritten(line))

    def tail(self, count: int) -> list[str]:
        """The last `count` lines, the unfinished one included."""
        lines = [*self.lines, _overwritten(self.partial)] if self.partial else list(self.lines)
        return lines[-count:]


def _overwritten(line: str) -> str:
    return line.rstrip("\r").rsplit("\r", 1)[-1]


class Feed:
    """The state of one run, built from its events.

    Attributes
    ----------
    state
        `running` until `end` is called.
    logs
        By rank.
    progress
        `done`, `total`, `unit`, `label` of the last report.
    metrics
        The last value of each metric, in the order in which they first came.
    series
        Their courses; where the code gives no steps these are the numbers of the values.
    error
        The event of the first rank that failed, or None.
    usage
        By rank: how busy its device is (percent) and how much memory it uses (bytes), None where
        that cannot be measured.
    restarts
        How often it was started again after a failure.
    data
        Datasets that it has read, as `name@version`.
    """

    def __init__(self, run: str, name: str, world_size: int, started: float) -> None:
        self.run = run
        self.name = name
        self.world_size = world_size
        self.started = started
        self.state = "running"
        self.ended: float | None = None
        self.reason = ""
        self.logs: dict[int, Log] = {}
        self.progress: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.series: dict[str, Course] = {}
        self.usage: dict[int, tuple[float | None, int | None]] = {}
        self.error: dict[str, Any] | None = None
        self.exits: dict[int, dict[str, Any]] = {}
        self.restarts = 0
        self.data: dict[str, None] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event; kinds that a newer version may send are passed over."""
        rank = int(event.get("rank") or 0)
        match event.get("type"):
            case "log":
                self.logs.setdefault(rank, Log()).add(str(event.get("text", "")))
            case "progress" if rank == 0:
                self.progress = {key: event.get(key) for key in ("done", "total", "unit", "label")}
            case "metrics" if rank == 0:
                for name, value in event.get("values", {}).items():
                    self.metrics[name] = float(value)
                    course = self.series.setdefault(name, Course(POINTS))
                    step = event.get("step")
                    course.add(float(value), course.seen + 1 if step is None else step)
            case "error":
                self.error = self.error or dict(event)
            case "exit":
                self.exits[rank] = dict(event)
            case "usage":
                self.usage[rank] = (event.get("utilization"), event.get("memory"))
            case "data":
                self.data[str(event["ref"])] = None
            case "restart":
                restarts = int(event.get("restarts", event["attempt"]))
                self.restarts, self.error = max(self.restarts, restarts), None
                for course in self.series.values():
                    course.restart()
                self.world_size = int(event.get("world_size") or self.world_size)
                self.exits.clear()
                self.usage.clear()

    def end(self, state: str, now: float, reason: str = "") -> None:
        """The run has ended."""
        self.state, self.reason, self.ended = state, reason, now

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return self.state not in ENDS

    @property
    def fraction(self) -> float | None:
        """How much is done, 0 to 1; None when the run has not said."""
        total = float(self.progress.get("total") or 0.0)
        return min(1.0, float(self.progress.get("done") or 0.0) / total) if total > 0 else None

    def seconds(self, now: float) -> float:
        """How long it has taken, or took."""
        return max(0.0, (self.ended if self.ended is not None else now) - self.started)

    def tail(self, rank: int, count: int) -> list[str]:
        """The last lines of a rank."""
        return self.logs[rank].tail(count) if rank in self.logs else []

    def progress_text(self) -> str:
        """`epoch 2: 120/500 steps`, or "" before the first report."""
        if not self.progress:
            return ""
        done, total = self.progress.get("done") or 0, self.progress.get("total") or 0
        counted = f"{_counted(done)}/{_counted(total)}" if total else _counted(done)
        parts = (counted, str(self.progress.get("unit") or ""))
        text = " ".join(part for part in parts if part)
        label = self.progress.get("label")
        return f"{label}: {text}" if label else text

    def metrics_text(self) -> str:
        """`loss 0.031, accuracy 0.97`."""
        return ", ".join(f"{name} {number(value)}" for name, value in self.metrics.items())

    def usage_text(self) -> str:
        """`93% busy, 2.4 GiB`: the mean and the sum over the ranks; "" before the first sample."""
        busy = [use for use, _ in self.usage.values() if use is not None]
        memory = [held for _, held in self.usage.values() if held is not None]
        parts = [f"{sum(busy) / len(busy):.0f}% busy"] if busy else []
        return ", ".join([*parts, format_size(sum(memory))] if memory else parts)

    def ranks_text(self) -> list[str]:
        """`rank 1: 93% busy, 1.2 GiB` of each rank that was sampled."""
        found = []
        for rank, (busy, memory) in sorted(self.usage.items()):
            parts = [f"{busy:.0f}% busy"] if busy is not None else []
            parts += [format_size(memory)] if memory is not None else []
            found.append(f"rank {rank}: {', '.join(parts)}")
        return found

    def summary(self, now: float) -> str:
        """One line that says what this run is and how far it is."""
        where = f"{self.world_size} rank" + ("s" if self.world_size != 1 else "")
        parts = [f"{self.run} {self.state}", where, format_duration(self.seconds(now))]
        if self.restarts:
            parts.append(f"{self.restarts} restarts" if self.restarts > 1 else "1 restart")
        if self.data:
            parts.append(f"reads {', '.join(self.data)}")
        usage = self.usage_text() if self.live else ""
        parts += [text for text in (self.progress_text(), self.metrics_text(), usage) if text]
        return " · ".join(parts)

    def text(self, now: float, lines: int = 30) -> str:
        """The summary and the end of rank 0's log."""
        return "\n".join([self.summary(now), *self.tail(0, lines)])


def _counted(value: float) -> str:
    """How many there are: of bytes there may be more than `number` writes out."""
    return f"{value:,}" if isinstance(value, int) and value >= LARGEST else number(value)
