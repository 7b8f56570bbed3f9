"""tqdm's bars become the run's progress, without a word in the code.

Of several bars the outermost is told, as it says how far the whole is. Code that calls
`train.progress` is believed instead.
"""

from __future__ import annotations

import functools
from typing import Any

from . import events


def attach(bars: Any) -> None:
    """Hear what `tqdm.std.tqdm` draws, which it does ten times a second at most."""
    channel = events.channel()
    if channel is None:
        return
    display = bars.tqdm.display
    told = Told(channel)

    @functools.wraps(display)
    def displayed(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = display(self, *args, **kwargs)
        told(self)
        return result

    bars.tqdm.display = displayed
    close = bars.tqdm.close

    @functools.wraps(close)
    def closed(self: Any) -> Any:
        if told.shows(self):
            told(self)
        result = close(self)
        told.end(self)
        return result

    bars.tqdm.close = closed


class Told:
    """Which bar is the run's, and what it has said."""

    def __init__(self, channel: events.Channel) -> None:
        self._channel = channel
        self._bar = 0
        self._steps = 0

    def __call__(self, bar: Any) -> None:
        """A bar was drawn."""
        channel = self._channel
        if channel.own_progress or getattr(bar, "pos", 0) != 0 or not channel.mine:
            return
        if self._bar != id(bar):
            self._bar, self._steps = id(bar), channel.steps
        channel.counts_steps = False
        unit = str(getattr(bar, "unit", "") or "").strip()
        label = str(getattr(bar, "desc", "") or "").strip().rstrip(":")
        channel.progress(float(bar.n), float(bar.total or 0), "" if unit == "it" else unit, label)

    def shows(self, bar: Any) -> bool:
        """Whether this bar is the run's."""
        return self._bar == id(bar)

    def end(self, bar: Any) -> None:
        """A bar was closed."""
        channel = self._channel
        if not self.shows(bar):
            return
        self._bar = 0
        # One that was closed before any step was made was a download or the like.
        if channel.steps == self._steps:
            channel.counts_steps = not channel.own_progress
