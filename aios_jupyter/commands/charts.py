"""Bars, and several views as one, for a shell to print; `notebook/charts.py` draws them.

Pure, as `views.py` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .views import Card, Table

WIDTH = 40
FULL, PARTS = "█", " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes
    ----------
    label, text
        What stands before and after it.
    value
        Its length; None for one that is longer than any.
    marked
        It stands for how things are now.
    good
        Whether it stays under the limit.
    """

    label: str
    value: float | None
    text: str
    marked: bool = False
    good: bool = True


@dataclass(frozen=True)
class Bars:
    """Bars beneath one another, on one scale, with a `limit` drawn across them."""

    title: str
    bars: Sequence[Bar]
    limit: float
    limit_text: str

    @property
    def top(self) -> float:
        """The value of a bar as long as there is room: those beyond it are cut."""
        values = [bar.value for bar in self.bars if bar.value is not None]
        return max(self.limit, min(max(values, default=0.0), 4 * self.limit)) * 1.05

    def text(self) -> str:
        """One line for each bar, a `|` where the limit is."""
        wide = max((len(bar.label) for bar in self.bars), default=0)
        mark = min(WIDTH - 1, round(self.limit / self.top * WIDTH))
        lines = [f"{self.title} (| is {self.limit_text})"]
        for bar in self.bars:
            drawn = list(_drawn(1.0 if bar.value is None else bar.value / self.top))
            drawn[mark] = "|"
            if bar.value is None or bar.value > self.top:
                drawn[-1] = ">"
            now = "*" if bar.marked else " "
            lines.append(f" {now}{bar.label.rjust(wide)} {''.join(drawn)} {bar.text}".rstrip())
        return "\n".join(lines)


def _drawn(share: float) -> str:
    eighths = round(max(0.0, min(1.0, share)) * WIDTH * 8)
    part = PARTS[eighths % 8] if eighths % 8 else ""
    return (FULL * (eighths // 8) + part).ljust(WIDTH)


@dataclass(frozen=True)
class Panel:
    """Several views, one below the other."""

    parts: Sequence[Card | Table | Bars]

    def text(self) -> str:
        """Their texts, with a line between them."""
        return "\n\n".join(part.text() for part in self.parts)
