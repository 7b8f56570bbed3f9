"""The curves of a run as one output: live where JupyterLab has our extension, else a picture.

The bundle has the numbers for the extension's renderer, an SVG for every other front end, and a
line of text; a saved notebook keeps all three. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..commands.feed import Feed, Series
from ..commands.views import number
from . import html

MIME = "application/vnd.aios.curves+json"


def drawable(feed: Feed) -> dict[str, Series]:
    """Metrics with more than one value."""
    return {name: series for name, series in feed.series.items() if len(series.points) > 1}


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
                {"name": name, "x": series.steps, "y": [_json(y) for y in series.points]}
                for name, series in curves.items()
            ],
        },
        "text/html": html.page(html.curves({n: (s.steps, s.points) for n, s in curves.items()})),
        "text/plain": "\n".join(_line(name, series.points) for name, series in curves.items()),
    }


def _line(name: str, points: Sequence[float]) -> str:
    finite = [point for point in points if point - point == 0] or [float("nan")]
    return (
        f"{name}: {number(points[0])} → {number(points[-1])} "
        f"(least {number(min(finite))}, most {number(max(finite))})"
    )


def _json(value: float) -> float | None:
    """JSON has no word for a value that is not finite."""
    return value if value - value == 0 else None
