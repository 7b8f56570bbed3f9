"""The curves of a run: live where JupyterLab has our extension, else a picture.

While the run lives they are an output of their own: numbers for the extension's renderer, an SVG for
every other front end, and a line of text. When it has ended, picture and text are part of its card,
in which the extension goes on drawing from the numbers; nothing else is left of that output. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..commands.feed import Feed
from ..commands.views import number
from ..course import Course, finite
from . import html

MIME = "application/vnd.aios.curves+json"


def drawable(feed: Feed) -> dict[str, Course]:
    """Metrics with more than one value."""
    return {name: course for name, course in feed.series.items() if len(course.points) > 1}


def place(feed: Feed, inside: str = "") -> str:
    """Where in a card the extension draws the curves of its run, in place of what is `inside`."""
    return f'<div class="aios-place" data-run="{escape(feed.run)}">{inside}</div>'


def picture(feed: Feed) -> str:
    """The curves as SVG; "" where there are none."""
    curves = drawable(feed)
    return html.curves({n: (_steps(s), s.points) for n, s in curves.items()}) if curves else ""


def lines(feed: Feed) -> list[str]:
    """The curves as text, a line each."""
    return [_line(name, course.points) for name, course in drawable(feed).items()]


def bundle(feed: Feed, *, ended: bool = False) -> dict[str, Any]:
    """What is displayed, by MIME type; with `ended` the card has picture and text."""
    return {
        MIME: {
            "version": 1,
            "run": feed.run,
            "curves": [
                {"name": name, "x": _steps(course), "y": [finite(y) for y in course.points]}
                for name, course in drawable(feed).items()
            ],
        },
        "text/html": "" if ended else html.page(picture(feed)),
        "text/plain": "" if ended else "\n".join(lines(feed)),
    }


def _steps(course: Course) -> list[int]:
    # A feed numbers the values that come without a step.
    return [step for step in course.steps if step is not None]


def _line(name: str, points: Sequence[float]) -> str:
    finite = [point for point in points if point - point == 0] or [float("nan")]
    return (
        f"{name}: {number(points[0])} → {number(points[-1])} "
        f"(least {number(min(finite))}, most {number(max(finite))})"
    )
