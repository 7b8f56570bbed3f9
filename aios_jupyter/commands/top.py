"""`top`: devices, runs and queue as they are now, kept true until you leave."""

from __future__ import annotations

import time
from typing import Any

import click

from ..errors import UsageError
from .base import DURATION
from .cluster import cluster_card, device_row
from .host import Host
from .runs import run_table
from .views import Column, Table, plural
from .waiting import queue_table

LEAST = 0.2
_FIRST = (
    Column("device", "device"),
    Column("node", "node"),
    Column("use", "use", right=True, meter="utilization"),
    Column("memory", "memory", right=True, meter="memory_percent"),
)
_MEASURED = (Column("temperature", "temp", right=True), Column("power", "power", right=True))
_LAST = (Column("held", "held by"),)


@click.command()
@click.option(
    "--every", type=DURATION, default=1.0, metavar="TIME", help="Look again after TIME (1s)."
)
@click.option("--once", is_flag=True, help="Print it once and end.")
@click.pass_obj
def top(host: Host, every: float, once: bool) -> Any:
    """Watch devices, runs and queue.

    In a terminal until you press q; into a pipe it goes once. In a notebook it is a card that stays
    true while you run other cells.
    """
    if every < LEAST:
        raise UsageError(f"--every {every:g}s is too often; give {LEAST:g}s or more.")
    session = host.session(start=False)
    if not once:
        return host.watch(session, overview, every)
    for table in overview(session.status(), time.time()):
        host.show(table)
    return None


def overview(snapshot: dict[str, Any], now: float) -> list[Table]:
    """Devices, the runs that go on, and who waits.

    Parameters
    ----------
    snapshot
        What `Session.status` gives.
    now
        Seconds since the epoch.
    """
    devices = [_row(device) for device in snapshot["devices"].values()]
    measured = tuple(c for c in _MEASURED if any(row[c.key] is not None for row in devices))
    columns = (*_FIRST, *measured, *_LAST)
    running = [row for row in snapshot["runs"].values() if row["ended"] is None]
    waiting = sorted(snapshot["queue"].values(), key=lambda row: row["position"])
    return [
        Table(
            columns, devices, empty="The cluster has no devices.", title=_headline(snapshot, now)
        ),
        *([run_table(running, now, plural(len(running), "run"))] if running else []),
        *([_waiting(waiting, now)] if waiting else []),
    ]


def _headline(snapshot: dict[str, Any], now: float) -> str:
    card = cluster_card(snapshot, now)
    said = dict(card.fields)
    nodes = plural(len(snapshot["nodes"]), "node") + said["nodes"].lstrip("0123456789")
    parts = (f"{card.title} [{card.badge}]", nodes, said["devices"], f"up {said['up for']}")
    return " · ".join(parts)


def _waiting(rows: list[dict[str, Any]], now: float) -> Table:
    table = queue_table(rows, now)
    return Table(table.columns, table.rows, table.empty, f"{plural(len(rows), 'request')} waiting")


def _row(device: dict[str, Any]) -> dict[str, Any]:
    temperature, power, limit = (device.get(k) for k in ("temperature", "power", "power_limit"))
    most = f" of {limit:.0f}" if limit else ""
    return {
        **device_row(device),
        "temperature": None if temperature is None else f"{temperature:.0f} °C",
        "power": None if power is None else f"{power:.0f}{most} W",
    }
