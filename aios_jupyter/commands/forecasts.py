"""`forecast`."""

from __future__ import annotations

from typing import Any

import click

from ..units import format_duration
from .base import DURATION, as_json, echo_json
from .charts import Bar, Bars, Panel
from .host import Host
from .views import Card, Column, Table, number, plural

COLUMNS = (
    Column("now", ""),
    Column("devices", "devices", right=True),
    Column("mean", "mean wait", right=True),
    Column("p95", "95% wait under", right=True),
    Column("delayed", "have to wait", right=True),
    Column("busy", "in use", right=True, meter="meter"),
)
NOUNS = {"accelerator": "accelerator", "cpu": "CPU slot"}
QUANTILES = {"mean": "the mean wait", "p95": "95% of the waits"}
GROWS = "grows for ever"


@click.command()
@click.option(
    "--target-wait", type=DURATION, default="5m", show_default=True, help="The wait to stay under."
)
@click.option(
    "--quantile",
    type=click.Choice(["mean", "p95"]),
    default="mean",
    show_default=True,
    help="Which wait.",
)
@click.option("--cpus", is_flag=True, help="CPU slots, also where there are accelerators.")
@click.option("--arrivals", type=float, metavar="PER_HOUR", help="If so many requests came.")
@click.option("--length", type=DURATION, metavar="TIME", help="If leases lasted so long.")
@click.option(
    "--devices", type=click.IntRange(1, 100_000), metavar="N", help="If there were so many devices."
)
@as_json
@click.pass_obj
def forecast(
    host: Host,
    target_wait: float,
    quantile: str,
    cpus: bool,
    arrivals: float | None,
    length: float | None,
    devices: int | None,
    json_: bool,
) -> Any:
    """Say how many devices would keep waits short.

    By the arrivals and the lengths of the last week (M/M/c, Erlang C), or those that --arrivals and
    --length give.
    """
    found = host.session(start=False).forecast(
        target_wait,
        quantile=quantile,
        cpus=cpus,
        arrivals=arrivals,
        length=length,
        devices=devices,
    )
    if json_:
        return echo_json(found)
    return host.show(forecast_panel(found), found)


def forecast_panel(found: dict[str, Any]) -> Panel:
    """The answer, the waits with other numbers of devices, and a chart of them."""
    noun, now, seen = NOUNS[found["pool"]], found["now"], found["observed"]
    target = format_duration(found["target"])
    what = f"{QUANTILES[found['quantile']]} under {target}"
    needed = "more devices than any cluster has"
    if found["needed"] is not None:
        needed = f"{plural(found['needed'], noun)} hold {what}"
    busiest = found["needed_busiest"]
    load = (
        f"{number(found['arrivals'], 3)} requests an hour, each {format_duration(found['length'])} on "
        f"{number(found['gang'], 3)}: {number(found['offered'], 3)} in use on average"
    )
    card = Card(
        f"forecast for {plural(found['devices'], noun)}",
        badge=f"under {target}" if now["holds"] else f"over {target}",
        fields=(
            ("needed", needed),
            ("busiest hour", "" if busiest is None else plural(busiest, noun)),
            ("load", load),
            ("mean wait", f"{_wait(now['mean'])} by the model{_waited(seen['waited'])}"),
            ("forecasts", accuracy_text(found["accuracy"])),
        ),
        note=found["note"],
    )
    rows = [
        {
            "now": "*" if row["devices"] == found["devices"] else "",
            "devices": row["devices"],
            "mean": _wait(row["mean"]),
            "p95": _wait(row["p95"]),
            "delayed": f"{row['delayed']:.0%}",
            "busy": f"{row['busy']:.0%}",
            "meter": 100 * row["busy"],
        }
        for row in found["rows"]
    ]
    bars = [
        Bar(
            str(row["devices"]),
            row[found["quantile"]],
            _wait(row[found["quantile"]]),
            marked=row["devices"] == found["devices"],
            good=row["holds"],
        )
        for row in found["rows"]
    ]
    title = {"mean": "mean wait by devices", "p95": "95% wait under, by devices"}
    return Panel(
        (
            card,
            Table(COLUMNS, rows, empty="", title="* as it is"),
            Bars(title[found["quantile"]], bars, found["target"], target),
        )
    )


def accuracy_text(accuracy: dict[str, Any] | None) -> str:
    """`off by 40 s (median of 24), 83% within their range`; "" where nothing is known."""
    if not accuracy:
        return ""
    return (
        f"off by {format_duration(accuracy['off'])} (median of {accuracy['count']}), "
        f"{accuracy['inside']:.0%} within their range"
    )


def _wait(seconds: float | None) -> str:
    return GROWS if seconds is None else format_duration(seconds)


def _waited(seconds: float | None) -> str:
    return "" if seconds is None else f", {format_duration(seconds)} seen"
