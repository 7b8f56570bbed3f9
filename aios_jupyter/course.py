"""A metric's values over a run in bounded memory, for cards, charts and the sidebar. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Course:
    """What a metric was, in the order in which it came: when there is more, every second is dropped.

    Attributes
    ----------
    most
        Points that are kept at most.
    points, steps, times
        Values, with the step and the time of each where they are told.
    seen
        How many there were.
    """

    most: int
    points: list[float] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    stride: int = 1
    seen: int = 0
    again: bool = False

    def restart(self) -> None:
        """The run goes on from a checkpoint: what it repeats takes the place of what was."""
        self.again = True

    def add(self, value: float, step: int | None = None, time: float = 0.0) -> None:
        """Take one more value."""
        if self.again and step is not None:
            self._go_back(step)
        self.again = False
        if self.seen % self.stride == 0:
            self.points.append(value)
            self.steps.append(step)
            self.times.append(time)
            if len(self.points) > self.most:
                del self.points[1::2], self.steps[1::2], self.times[1::2]
                self.stride *= 2
        self.seen += 1

    def _go_back(self, step: int) -> None:
        while self.steps and (last := self.steps[-1]) is not None and last >= step:
            del self.points[-1], self.steps[-1], self.times[-1]


def finite(value: float) -> float | None:
    """A value as JSON has it, which knows none that is not finite."""
    return value if value - value == 0 else None
