"""Cards, tables and runs as static HTML with JupyterLab's theme variables.

Pure: strings in, strings out. Every text is escaped. Front ends that drop the style sheet show
plain headings, tables and details, which stay readable.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from ..commands.feed import Feed
from ..commands.views import Card, Table, cell, number
from ..units import format_duration

# Of so many ranks each is told.
MOST_RANKS = 8
STYLE = """<style>
.aios{font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.5;
color:var(--jp-ui-font-color1,inherit);max-width:56rem}
.aios-card{border:1px solid var(--jp-border-color2,#ccc);border-radius:4px;padding:8px 12px;
margin:2px 0;background:var(--jp-layout-color1,transparent)}
.aios-head{display:flex;gap:8px;align-items:baseline;flex-wrap:wrap}
.aios-head b{font-weight:600}
.aios-badge{font-size:11px;padding:0 7px;border-radius:8px;white-space:nowrap;
background:var(--jp-layout-color3,#ddd);color:var(--jp-ui-font-color1,inherit)}
.aios-badge.good{background:var(--jp-success-color2,#388e3c);color:#fff}
.aios-badge.busy{background:var(--jp-brand-color1,#1976d2);color:#fff}
.aios-badge.bad{background:var(--jp-error-color1,#d32f2f);color:#fff}
.aios-dim{color:var(--jp-ui-font-color2,#666)}
.aios.aios table{border-collapse:collapse;margin:4px 0;font-size:12px;table-layout:auto}
.aios.aios tr:nth-child(n),.aios.aios tr:nth-child(n):hover{background:none}
.aios.aios th,.aios.aios td{text-align:left;padding:2px 14px 2px 0;border:0;vertical-align:top;
background:none;color:inherit;white-space:nowrap;max-width:none}
.aios.aios td.wrap{white-space:normal;overflow-wrap:anywhere}
.aios.aios th{font-weight:500;color:var(--jp-ui-font-color2,#666)}
.aios.aios .right{text-align:right;font-variant-numeric:tabular-nums}
.aios.aios .aios-list thead th{border-bottom:1px solid var(--jp-border-color2,#ccc)}
.aios-meter{display:inline-block;width:48px;height:6px;border-radius:3px;margin-right:6px;
background:var(--jp-layout-color3,#ddd);overflow:hidden;vertical-align:middle}
.aios-meter>span,.aios-bar>span{display:block;height:100%;background:var(--jp-brand-color1,#1976d2)}
.aios-bar{height:6px;border-radius:3px;background:var(--jp-layout-color3,#ddd);overflow:hidden;
margin:6px 0 4px}
.aios-bar.good>span{background:var(--jp-success-color1,#388e3c)}
.aios-bar.bad>span{background:var(--jp-error-color1,#d32f2f)}
.aios-metrics{display:flex;gap:18px;flex-wrap:wrap;align-items:flex-end}
.aios-metric{line-height:1.3}
.aios-metric .value{font-size:15px;font-variant-numeric:tabular-nums}
.aios-curves{display:flex;flex-wrap:wrap;gap:10px 18px}
.aios-curve{margin:0}
.aios-curve svg{display:block;color:var(--jp-ui-font-color2,#666)}
.aios-curve .aios-line{color:var(--jp-brand-color1,#1976d2)}
.aios pre.aios-log{font-family:var(--jp-code-font-family,monospace);font-size:12px;margin:4px 0 0;
padding:6px 8px;max-height:16em;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--jp-layout-color2,#f5f5f5);color:var(--jp-content-font-color1,inherit)}
.aios-scroll{display:flex;flex-direction:column-reverse;max-height:16em;overflow:auto}
.aios-scroll>pre.aios-log{max-height:none;overflow:visible}
.aios summary{cursor:pointer;color:var(--jp-ui-font-color2,#666);font-size:12px}
.aios-card .aios-try{display:none;width:auto}
.aios img{display:block;max-width:100%;margin-top:6px;image-rendering:pixelated}
</style>"""

# Of a curve's picture, in pixels: its size, and what the numbers beside and below it take.
WIDE, HIGH, LEFT, LOW = 280, 110, 52, 20

_TONES = {
    "active": "good",
    "ready": "good",
    "up": "good",
    "succeeded": "good",
    "running": "busy",
    "starting": "busy",
    "restarting": "busy",
    "waiting": "busy",
    "failed": "bad",
}


def page(*parts: str) -> str:
    """Parts within one root element, with the style sheet: an output that stands by itself."""
    return f"{STYLE}{part(*parts)}"


def part(*parts: str) -> str:
    """Parts within one root element, for an output that has the style sheet already."""
    return f'<div class="aios">{"".join(parts)}</div>'


def framed(*parts: str) -> str:
    """Parts within one card's frame."""
    return f'<div class="aios-card">{"".join(parts)}</div>'


def head(title: str, badge: str = "", extra: str = "") -> str:
    """A card's first line: its name, its state, and something dimmed."""
    parts = [f"<b>{_text(title)}</b>"]
    if badge:
        parts.append(f'<span class="aios-badge {_TONES.get(badge, "")}">{_text(badge)}</span>')
    if extra:
        parts.append(f'<span class="aios-dim">{_text(extra)}</span>')
    return f'<div class="aios-head">{" ".join(parts)}</div>'


def card(view: Card) -> str:
    """A card's inside, without its frame."""
    rows = "".join(
        f'<tr><th>{_text(label)}</th><td class="wrap">{_text(value)}</td></tr>'
        for label, value in view.fields
        if value
    )
    parts = [head(view.title, view.badge), f"<table>{rows}</table>" if rows else ""]
    if view.image:
        encoded = base64.b64encode(view.image).decode("ascii")
        name = _text(f"preview of {view.title}")
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{encoded}">')
    if view.note:
        parts.append(note(view.note))
    return "".join(parts)


def trial(run: str) -> str:
    """A button for JupyterLab's extension, which shows it and opens a form to try an endpoint."""
    kind = "aios-try jupyter-widgets jupyter-button widget-button"
    return f'<button type="button" class="{kind}" data-run="{_text(run)}">Try it</button>'


def note(text: str) -> str:
    """A dimmed sentence below a card's content."""
    return f'<div class="aios-dim">{_text(text)}</div>'


def table(view: Table) -> str:
    """A table, or its sentence when it has no rows."""
    if not view.rows:
        return f'<div class="aios-dim">{_text(view.empty)}</div>'
    titles = "".join(
        f'<th class="right">{_text(c.title)}</th>' if c.right else f"<th>{_text(c.title)}</th>"
        for c in view.columns
    )
    body = []
    for row in view.rows:
        cells = []
        for column in view.columns:
            share = row.get(column.meter) if column.meter else None
            mark = f'<span class="aios-meter">{_fill(share)}</span>' if share is not None else ""
            kind = ' class="right"' if column.right else ""
            cells.append(f"<td{kind}>{mark}{_text(cell(row, column))}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<b>{_text(view.title)}</b>" if view.title else ""
    return (
        f'{title}<table class="aios-list"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def run_head(feed: Feed, now: float) -> str:
    """Name, state, ranks and time of a run, and why it ended."""
    ranks = f"{feed.world_size} rank" + ("s" if feed.world_size != 1 else "")
    about = " · ".join(
        part for part in (feed.name, ranks, format_duration(feed.seconds(now))) if part
    )
    reason = f'<div class="aios-dim">{_text(feed.reason)}</div>' if feed.reason else ""
    return head(f"run {feed.run}", feed.state, about) + reason


def run_progress(feed: Feed) -> str:
    """A bar and what it counts; nothing before the first report."""
    text = feed.progress_text()
    if not text:
        return ""
    tone = {"succeeded": "good", "failed": "bad"}.get(feed.state, "")
    share = None if feed.fraction is None else 100 * feed.fraction
    bar = f'<div class="aios-bar {tone}">{_fill(share)}</div>' if share is not None else ""
    return f'{bar}<div class="aios-dim">{_text(text)}</div>'


def run_metrics(feed: Feed) -> str:
    """The last value of each metric; their curves are an output of their own (`curves.py`)."""
    parts = [
        f'<div class="aios-metric"><div class="aios-dim">{_text(name)}</div>'
        f'<div class="value">{_text(number(value))}</div></div>'
        for name, value in feed.metrics.items()
    ]
    return f'<div class="aios-metrics">{"".join(parts)}</div>' if parts else ""


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Metrics by name, each its steps and values, as pictures beside each other."""
    parts = [
        f'<figure class="aios-curve"><figcaption>{_text(name)} '
        f"<b>{_text(number(points[-1]))}</b></figcaption>{curve(steps, points)}</figure>"
        for name, (steps, points) in series.items()
    ]
    return f'<div class="aios-curves">{"".join(parts)}</div>'


def run_usage(feed: Feed) -> str:
    """How busy each rank's device is, and its memory; of many ranks the mean and the sum."""
    texts = feed.ranks_text()
    if len(texts) > MOST_RANKS:
        texts = [f"{len(texts)} ranks: {feed.usage_text()}"]
    return f'<div class="aios-dim">{_text(" · ".join(texts))}</div>' if texts else ""


def log(lines: Sequence[str]) -> str:
    """The end of a log."""
    if not lines:
        return '<pre class="aios-log aios-dim">no output yet</pre>'
    return f'<pre class="aios-log">{_text(chr(10).join(lines))}</pre>'


def scrolled(inside: str) -> str:
    """A box that shows its end first, and again after each drawing."""
    return f'<div class="aios-scroll">{inside}</div>'


def run_static(feed: Feed, now: float, curves: str = "", lines: int = 200) -> str:
    """A run as a saved notebook keeps it: every rank's last lines within `details`."""
    parts = [run_head(feed, now), run_progress(feed), run_metrics(feed), run_usage(feed), curves]
    for rank in sorted(feed.logs):
        tail = feed.tail(rank, lines)
        if tail:
            parts.append(f"<details><summary>rank {rank}'s output</summary>{log(tail)}</details>")
    return page(framed(*parts))


def curve(steps: Sequence[float], points: Sequence[float]) -> str:
    """The course of a metric as an SVG with its range; values that are not finite are left out."""
    finite = [(x, y) for x, y in zip(steps, points, strict=True) if y - y == 0]
    if len(finite) < 2:
        return ""
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    first, last = finite[0][0], finite[-1][0]
    across, up = (last - first) or 1.0, (high - low) or 1.0
    inner, tall = WIDE - LEFT - 4, HIGH - LOW - 8
    path = " ".join(
        f"{LEFT + (x - first) / across * inner:.1f},{6 + (high - y) / up * tall:.1f}"
        for x, y in finite
    )
    said = f"from {number(finite[0][1])} to {number(finite[-1][1])}"
    labels = (
        (LEFT - 6, 10, "end", high),
        (LEFT - 6, HIGH - LOW, "end", low),
        (LEFT, HIGH - 4, "start", first),
        (WIDE - 4, HIGH - 4, "end", last),
    )
    texts = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{_text(number(value))}</text>'
        for x, y, anchor, value in labels
    )
    return (
        f'<svg width="{WIDE}" height="{HIGH}" role="img" aria-label="{_text(said)}" '
        f'font-size="10" fill="currentColor">{texts}<path d="M{LEFT} 4V{HIGH - LOW + 2}H{WIDE - 4}" '
        f'fill="none" stroke="currentColor" stroke-opacity=".3"/><polyline points="{path}" '
        f'class="aios-line" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def _fill(percent: float | None) -> str:
    return f'<span style="width:{max(0.0, min(100.0, percent or 0.0)):.1f}%"></span>'


def _text(text: object) -> str:
    return html.escape(str(text))
