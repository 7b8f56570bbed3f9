"""`reserve` and `reservations`; `cancel` takes one back, `alloc --reservation` takes it up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from ..units import format_duration
from .base import COUNT, DURATION, SIZE, as_json, echo_json, labelled
from .host import Host
from .views import Card, Column, Table, plural
from .wishes import KINDS, devices_wanted, gpus_wanted, wanted

COLUMNS = (
    Column("id", "reservation"),
    Column("user", "user"),
    Column("label", "name"),
    Column("want", "devices"),
    Column("start", "from"),
    Column("end", "until"),
    Column("state", "state"),
)


@click.command()
@devices_wanted
@gpus_wanted
@click.option("--cpus", type=COUNT, metavar="N", help="N CPU slots.")
@click.option("--gpu-memory", type=SIZE, metavar="SIZE", help="Memory of each GPU, like 8GB.")
@click.option("--at", required=True, metavar="WHEN", help="22:00, 2026-03-01T08:30 or +30m.")
@click.option("--time", "time_", type=DURATION, required=True, metavar="TIME", help="How long.")
@click.option("--label", default="", metavar="TEXT", help="The same as --name.")
@labelled
@click.pass_obj
def reserve(
    host: Host,
    devices: int | str | None,
    gpus: int | str | None,
    cpus: int | str | None,
    gpu_memory: int | None,
    at: str,
    time_: float,
    label: str,
    name: str,
) -> Any:
    """Have devices kept for you from a time to come.

    At that time they are leased to you: to this kernel or shell while it is open, else to whichever
    takes them up with 'alloc --reservation ID'. 'cancel ID' takes a reservation back.
    """
    wanted(devices, gpus, cpus)
    row = host.session(start=True).reserve(
        gpus=gpus,
        devices=devices,
        cpus=cpus,
        memory=gpu_memory,
        at=at,
        time=time_,
        label=name or label,
    )
    return host.show(reservation_card(row, time.time()), row)


@click.command()
@as_json
@click.pass_obj
def reservations(host: Host, json_: bool) -> Any:
    """List who has reserved what, and for when."""
    rows = host.session(start=False).reservations()
    if json_:
        return echo_json(rows)
    return host.show(reservation_table(rows, time.time()), rows)


def reservation_card(row: dict[str, Any], now: float) -> Card:
    """What is reserved, and how it is had."""
    length = format_duration(row["end"] - row["start"])
    return Card(
        f"reservation {row['id']}",
        badge=_state(row, now),
        fields=(
            ("devices", plural(row["count"], KINDS[row["want"]])),
            ("time", f"{when(row['start'], now)} until {when(row['end'], now)} ({length})"),
            ("name", row["label"]),
        ),
        note=f"It is leased to you then; from another kernel or shell: alloc --reservation {row['id']}",
    )


def reservation_table(rows: Sequence[dict[str, Any]], now: float) -> Table:
    """Reservations, one a line."""
    shown = [
        {
            **row,
            "want": plural(row["count"], KINDS[row["want"]]),
            "start": when(row["start"], now),
            "end": when(row["end"], now),
            "state": _state(row, now),
        }
        for row in rows
    ]
    return Table(COLUMNS, shown, empty="Nothing is reserved.")


def when(at: float, now: float) -> str:
    """The time of day, with the date when that is not today."""
    then, today = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def _state(row: dict[str, Any], now: float) -> str:
    if row["lease"]:
        return f"leased as {row['lease']}"
    left = row["start"] - now
    return f"in {format_duration(left)}" if left > 0 else "waits for its devices"
