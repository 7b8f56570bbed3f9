"""`alloc`, `release`, `extend`, `leases`, `queue`, `cancel`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotFoundError, UsageError
from ..units import format_duration
from .base import DURATION, SIZE, as_json, echo_json, labelled
from .cluster import kind_name
from .host import Host
from .views import Card, Column, Table, plural

if TYPE_CHECKING:
    from ..schema import Lease

LEASE_COLUMNS = (
    Column("id", "lease"),
    Column("devices", "devices"),
    Column("label", "name"),
    Column("user", "user"),
    Column("left", "time left", right=True),
    Column("state", "state"),
)
QUEUE_COLUMNS = (
    Column("position", "#", right=True),
    Column("id", "request"),
    Column("user", "user"),
    Column("label", "name"),
    Column("want", "wants"),
    Column("waited", "waiting", right=True),
    Column("reason", "because"),
)

devices_wanted = click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    help="N accelerators, or CPU slots where the cluster has none.",
)
gpus_wanted = click.option(
    "--gpus", type=click.IntRange(min=1), metavar="N", help="N GPUs, and nothing else will do."
)


@click.command()
@devices_wanted
@gpus_wanted
@click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="N CPU slots.")
@click.option("--gpu-memory", type=SIZE, metavar="SIZE", help="Memory of each GPU, like 8GB.")
@click.option("--time", "time_", type=DURATION, metavar="TIME", help="The lease ends after this.")
@click.option("--wait", type=DURATION, metavar="TIME", help="Give up after so long in the queue.")
@click.option("--nonblock", is_flag=True, help="Fail at once when it cannot be had now.")
@labelled
@click.pass_obj
def alloc(
    host: Host,
    devices: int | None,
    gpus: int | None,
    cpus: int | None,
    gpu_memory: int | None,
    time_: float | None,
    wait: float | None,
    nonblock: bool,
    name: str,
) -> Any:
    """Lease devices, waiting until they are free.

    One of --devices, --gpus and --cpus says how many. Ctrl-C while waiting leaves the queue. In a
    shell the lease ends with the shell, in a notebook with its kernel, or with 'release'.
    """
    what = _wanted(devices, gpus, cpus)
    if nonblock and wait is not None:
        raise UsageError("--nonblock does not wait, so that --wait says nothing; give one of them.")
    session = host.session(start=True)
    with host.waiting(session, what) as on_wait:
        lease = session.alloc(
            gpus=gpus,
            devices=devices,
            cpus=cpus,
            memory=gpu_memory,
            time=time_,
            wait=wait,
            nonblock=nonblock,
            label=name,
            on_wait=on_wait,
        )
    return host.lease(session, lease, lease_card(lease, time.time()))


def _wanted(devices: int | None, gpus: int | None, cpus: int | None) -> str:
    given = [
        plural(count, noun)
        for count, noun in ((devices, "device"), (gpus, "GPU"), (cpus, "CPU slot"))
        if count is not None
    ]
    if len(given) != 1:
        raise UsageError("Say how many of what: one of --devices N, --gpus N and --cpus N.")
    return given[0]


def lease_card(lease: Lease, now: float) -> Card:
    """What a lease holds and for how long."""
    until = "until it is released"
    if lease.expires is not None:
        until = f"{format_duration(max(0.0, lease.expires - now))} left ({clock(lease.expires)})"
    return Card(
        f"lease {lease.id}",
        badge=str(lease.state.value),
        fields=(
            ("devices", slots_text(lease)),
            ("time", until),
            ("name", lease.label),
        ),
    )


def slots_text(lease: Lease) -> str:
    """`2 simulated GPUs (#0, #1) on node-a`."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for slot in lease.slots:
        kinds.setdefault((slot.kind.value, slot.node), []).append(slot.index)
    parts = [
        f"{plural(len(indices), kind_name(kind))} ({', '.join(f'#{i}' for i in indices)}) on {node}"
        for (kind, node), indices in kinds.items()
    ]
    return "; ".join(parts)


def clock(when: float) -> str:
    """The time of day at which something happens, with the date when that is not today."""
    then, today = time.localtime(when), time.localtime()
    same = then[:3] == today[:3]
    return time.strftime("until %H:%M" if same else "until %Y-%m-%d %H:%M", then)


@click.command()
@click.argument("lease", required=False)
@click.option("--all", "all_", is_flag=True, help="Every lease of this user, from wherever.")
@click.pass_obj
def release(host: Host, lease: str | None, all_: bool) -> Any:
    """Give devices back.

    Without LEASE: every lease that this kernel or shell holds.
    """
    if lease and all_:
        raise UsageError("Give a lease or --all, not both.")
    session = host.session(start=False)
    ended = session.release(lease, everything=all_)
    host.leases_changed()
    return host.show(Card("released", fields=(("leases", ", ".join(ended)),)), ended)


@click.command()
@click.argument("lease")
@click.argument("time_", metavar="TIME", type=DURATION)
@click.pass_obj
def extend(host: Host, lease: str, time_: float) -> Any:
    """Have LEASE end TIME from now."""
    session = host.session(start=False)
    extended = session.extend(lease, time_)
    host.leases_changed()
    return host.show(lease_card(extended, time.time()), extended)


@click.command()
@as_json
@click.pass_obj
def leases(host: Host, json_: bool) -> Any:
    """List your leases."""
    found = host.session(start=False).leases()
    if json_:
        return echo_json(found)
    return host.show(lease_table(found, time.time()), found)


def lease_table(found: Sequence[Lease], now: float) -> Table:
    """Leases, one a line."""
    rows = [
        {
            "id": lease.id,
            "devices": slots_text(lease),
            "label": lease.label,
            "user": lease.user,
            "left": format_duration(max(0.0, lease.expires - now)) if lease.expires else "no limit",
            "state": lease.state.value,
        }
        for lease in found
    ]
    return Table(LEASE_COLUMNS, rows, empty="You hold no leases; take one with: alloc --devices 1")


@click.command()
@as_json
@click.pass_obj
def queue(host: Host, json_: bool) -> Any:
    """List waiting requests in their order."""
    rows = host.session(start=False).queue()
    if json_:
        return echo_json(rows)
    return host.show(queue_table(rows, time.time()), rows)


def queue_table(rows: Sequence[dict[str, Any]], now: float) -> Table:
    """Requests, one a line."""
    kinds = {"gpu": "GPU", "device": "device", "cpu": "CPU slot"}
    shown = [
        {
            **row,
            "want": plural(row["count"], kinds.get(row["want"], row["want"])),
            "waited": format_duration(max(0.0, now - row["submitted"])),
        }
        for row in rows
    ]
    return Table(QUEUE_COLUMNS, shown, empty="Nobody waits.")


@click.command()
@click.argument("request")
@click.pass_obj
def cancel(host: Host, request: str) -> None:
    """Take REQUEST out of the queue."""
    session = host.session(start=False)
    if request not in {row["id"] for row in session.queue()}:
        raise NotFoundError(f"No request '{request}' waits; 'queue' lists those that do.")
    session.cancel(request)
    host.show(Card("cancelled", fields=(("request", request),)))
