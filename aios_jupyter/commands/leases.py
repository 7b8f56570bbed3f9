"""`alloc`, `release`, `extend`, `leases`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..schema import DEFAULT_QUEUE
from ..units import format_duration, format_size
from .base import DURATION, as_json, echo_json, labelled
from .cluster import kind_name
from .host import Host
from .views import Card, Column, Table, plural
from .wishes import (
    cpus_wanted,
    details,
    devices_wanted,
    from_queue,
    gpus_wanted,
    in_detail,
    may_be_preempted,
    wanted,
)

if TYPE_CHECKING:
    from ..schema import Lease

LEASE_COLUMNS = (
    Column("id", "lease"),
    Column("devices", "devices"),
    Column("label", "name"),
    Column("user", "user"),
    Column("left", "time left", right=True),
    Column("state", "state"),
    Column("notice", "notice"),
)


@click.command()
@devices_wanted
@gpus_wanted
@cpus_wanted
@in_detail
@click.option("--wait", type=DURATION, metavar="TIME", help="Give up after so long in the queue.")
@click.option("--nonblock", is_flag=True, help="Fail at once when it cannot be had now.")
@click.option("--reservation", metavar="ID", help="Take up a reservation, once it starts.")
@click.option("--priority", type=int, default=0, help="Below 0 lets others go first.")
@from_queue
@may_be_preempted
@labelled
@click.pass_obj
def alloc(
    host: Host,
    /,
    devices: int | str | None,
    gpus: int | str | None,
    cpus: int | str | None,
    wait: float | None,
    nonblock: bool,
    reservation: str | None,
    priority: int,
    queue: str,
    preemptible: bool,
    name: str,
    **flags: Any,
) -> Any:
    """Lease devices, waiting until they are free.

    One of --devices, --gpus and --cpus says how many; 2:4 takes as many as are free of 2 to 4. With
    --share a lease has --gpu-memory of each GPU, and others may have the rest of it. Ctrl-C while
    waiting leaves the queue. In a shell the lease ends with the shell, in a notebook with its
    kernel, or with 'release'.
    """
    if reservation is None:
        what = wanted(devices, gpus, cpus)
    else:
        what = f"reservation {reservation}"
    if nonblock and wait is not None:
        raise UsageError("--nonblock does not wait, so that --wait says nothing; give one of them.")
    session = host.session(start=True)
    with host.waiting(session, what) as on_wait:
        lease = session.alloc(
            gpus=gpus,
            devices=devices,
            cpus=cpus,
            wait=wait,
            nonblock=nonblock,
            label=name,
            priority=priority,
            queue=queue,
            preemptible=preemptible,
            reservation=reservation,
            on_wait=on_wait,
            **details(flags),
        )
    return host.lease(session, lease, lease_card(lease, time.time()))


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
            ("queue", lease.queue if lease.queue != DEFAULT_QUEUE else ""),
            ("preemptible", "yes: others may take it" if lease.preemptible else ""),
        ),
        note=lease.reason or lease_notice(lease, now),
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
    share = lease.slots[0].share
    return "; ".join(parts) + (f", {format_size(share)} of each" if share else "")


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
            "state": "preempted" if lease.preempted else lease.state.value,
            "notice": lease_notice(lease, now),
        }
        for lease in found
    ]
    columns = LEASE_COLUMNS if any(row["notice"] for row in rows) else LEASE_COLUMNS[:-1]
    return Table(columns, rows, empty="You hold no leases; take one with: alloc --devices 1")


def lease_notice(lease: Lease, now: float) -> str:
    """What its user should know of a lease: that it ends soon, or is idle; "" for nothing."""
    if lease.state.value != "active":
        return ""
    notes = []
    if lease.idle_since is not None and lease.idle_ends is not None:
        idle, left = now - lease.idle_since, max(0.0, lease.idle_ends - now)
        notes.append(f"idle for {format_duration(idle)}, ends in {format_duration(left)}")
    if lease.warned and lease.expires is not None:
        notes.append(f"its time ends in {format_duration(max(0.0, lease.expires - now))}")
    return "; ".join(notes)
