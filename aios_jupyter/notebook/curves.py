"""The curves of a run as one output: live where JupyterLab has our extension, else a picture.

The bundle has the numbers for the extension's renderer, an SVG for every other front end, and a
line of text; a saved notebook keeps all three. Pure.
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


def place(feed: Feed) -> str:
    """Where in a live card the extension draws the curves of its run: an empty element."""
    return f'<div class="aios-place" data-run="{escape(feed.run)}"></div>'


def bundle(feed: Feed) -> dict[str, Any]:
    """What is displayed, by MIME type."""
    curves = drawable(feed)
    return {
        MIME: {
            "version": 1,
            "run": feed.run,
            "curves": [
                {"name": name, "x": _steps(course), "y": [finite(y) for y in course.points]}
                for name, course in curves.items()
            ],
        },
        "text/html": html.page(html.curves({n: (_steps(s), s.points) for n, s in curves.items()})),
        "text/plain": "\n".join(_line(name, course.points) for name, course in curves.items()),
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
