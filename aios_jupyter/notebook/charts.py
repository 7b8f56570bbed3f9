"""Bars and panels as static HTML, in the style of `html.py`. Pure."""

from __future__ import annotations

from html import escape

from ..commands.charts import Bar, Bars, Panel
from ..commands.views import Card, Table
from . import html

ROW, LEFT, WIDE, RIGHT = 20, 64, 320, 120
LETTER = 7  # about as wide as one is
COLORS = {
    True: "var(--jp-success-color2,#388e3c)",
    False: "var(--jp-error-color1,#d32f2f)",
}


def panel(view: Panel) -> str:
    """Each part, within one frame."""
    return html.framed(*(_part(part) for part in view.parts))


def _part(part: Card | Table | Bars) -> str:
    if isinstance(part, Bars):
        return bars(part)
    return html.table(part) if isinstance(part, Table) else html.card(part)


def bars(view: Bars) -> str:
    """Bars as an SVG; the words of each are its label, so that screen readers have them too."""
    height = ROW * len(view.bars) + 6
    left = max(LEFT, LETTER * max((len(bar.label) for bar in view.bars), default=0) + 12)
    at = left + WIDE * min(1.0, view.limit / view.top)
    said = "; ".join(f"{bar.label}: {bar.text}" for bar in view.bars)
    drawn = "".join(_bar(bar, left, 3 + ROW * row, view.top) for row, bar in enumerate(view.bars))
    return (
        f'<div class="aios-dim">{escape(view.title)} (line: {escape(view.limit_text)})</div>'
        f'<svg width="{left + WIDE + RIGHT}" height="{height}" role="img" '
        f'aria-label="{escape(said)}" font-size="12" fill="currentColor">{drawn}'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}" stroke="currentColor" '
        f'stroke-dasharray="4 3"/></svg>'
    )


def _bar(bar: Bar, left: int, y: int, top: float) -> str:
    share = 1.0 if bar.value is None else min(1.0, bar.value / top)
    weight = ' font-weight="600"' if bar.marked else ""
    base = y + ROW - 7
    return (
        f'<text x="{left - 8}" y="{base}" text-anchor="end"{weight}>{escape(bar.label)}</text>'
        f'<rect x="{left}" y="{y}" width="{max(1.0, share * WIDE):.1f}" height="{ROW - 6}" '
        f'fill="{COLORS[bar.good]}"/>'
        f'<text x="{left + WIDE + 8}" y="{base}"{weight}>{escape(bar.text)}</text>'
    )
