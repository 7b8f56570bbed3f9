"""`monitor`: how an endpoint does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .base import as_json, echo_json
from .charts import Bar, Bars, Panel
from .host import Host
from .views import Card, Column, Table, number

COLUMNS = (
    Column("feature", "feature"),
    Column("psi", "psi", right=True),
    Column("ks", "ks", right=True),
    Column("p", "p", right=True),
    Column("level", "drift"),
)


@click.command()
@click.argument("endpoint", metavar="NAME")
@click.option("--dashboard", metavar="FILE", help="Write a Grafana dashboard for its metrics.")
@as_json
@click.pass_obj
def monitor(host: Host, endpoint: str, dashboard: str | None, json_: bool) -> Any:
    """Show requests, errors, times and drift of an endpoint.

    NAME is an endpoint, or the model that it serves. Drift needs a profile of the training data:
    publish MODEL --name NAME --profile x_train.
    """
    found = host.session(start=False).monitor(endpoint)
    if dashboard is not None:
        from ..models.monitor import dashboard as drawn

        try:
            Path(dashboard).expanduser().write_text(drawn(found["name"]), "utf-8")
        except OSError as error:
            raise UsageError(f"{dashboard} cannot be written: {error.strerror}.") from None
    if json_:
        return echo_json(found)
    return host.show(monitor_panel(found), found)


def monitor_panel(found: dict[str, Any]) -> Panel:
    """A card, the drift of each feature, and how long requests took."""
    seen = found["traffic"]
    wrong = sum(seen.errors.values())
    codes = ", ".join(f"{count} with {code}" for code, count in seen.errors.items())
    versions = ", ".join(f"{count:,} by version {v}" for v, count in seen.versions.items())
    card = Card(
        f"endpoint {found['name']}",
        badge="look" if found["alerts"] else "well",
        fields=(
            ("model", found["model"]),
            ("requests", f"{seen.requests:,}" + (f" ({versions})" if versions else "")),
            ("errors", f"{wrong:,} ({codes})" if wrong else "none"),
            ("time", _times_text(seen)),
            ("shadow", _shadow_text(seen.shadow)),
            ("drift", _drift_text(found)),
            ("alerts", " ".join(found["alerts"])),
        ),
    )
    parts: list[Card | Table | Bars] = [card]
    if found["drift"]:
        rows = [
            {
                "feature": row.feature,
                "psi": f"{row.psi:.3f}",
                "ks": f"{row.ks:.3f}",
                "p": number(row.p),
                "level": row.level,
            }
            for row in found["drift"]
        ]
        parts.append(Table(COLUMNS, rows, empty="", title="now against the training data"))
    if seen.requests:
        parts.append(_times(seen))
    return Panel(parts)


def _shadow_text(answers: dict[str, int]) -> str:
    """How a shadow's answers were, beside those that were given."""
    compared = answers.get("same", 0) + answers.get("different", 0) + answers.get("failed", 0)
    if not compared:
        return ""
    same = f"{answers.get('same', 0) / compared:.1%} of {compared:,} answers the same"
    left = [f"{answers[how]:,} {how}" for how in ("failed", "dropped") if answers.get(how)]
    return ", ".join([same, *left])


def _times_text(seen: Any) -> str:
    times = (("p50", seen.p50_ms), ("p95", seen.p95_ms), ("p99", seen.p99_ms))
    return ", ".join(f"{name} {number(time, 3)}" for name, time in times) + " ms"


def _drift_text(found: dict[str, Any]) -> str:
    if not found["profiled"]:
        return "unknown: it was published without --profile x_train"
    if not found["drift"]:
        return f"unknown yet: {found['samples']} samples seen"
    worst = found["drift"][0]
    return (
        f"{worst.level} (at most {worst.feature}, PSI {worst.psi:.2f}), {found['samples']} samples"
    )


def _times(seen: Any) -> Bars:
    bars, before = [], 0.0
    for border, count in seen.buckets:
        label = "more" if math.isinf(border) else f"{border * 1000:g} ms"
        bars.append(Bar(label, count - before, f"{count - before:,.0f}"))
        before = count
    used = [bar for bar in bars if bar.value]
    most = max(bar.value or 0.0 for bar in used)
    return Bars("requests by time", used, most, "the most")
