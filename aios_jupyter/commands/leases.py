"""`alloc`, `release`, `extend`, `leases`, `queue`, `explain`, `cancel`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotFoundError, UsageError
from ..schema import DEFAULT_QUEUE, Placement
from ..units import format_duration, format_size, parse_count
from .base import COUNT, DURATION, SIZE, as_json, echo_json, labelled
from .cluster import kind_name
from .forecasts import accuracy_text
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
    Column("notice", "notice"),
)
QUEUE_COLUMNS = (
    Column("position", "#", right=True),
    Column("id", "request"),
    Column("user", "user"),
    Column("label", "name"),
    Column("want", "wants"),
    Column("queue", "queue"),
    Column("waited", "waiting", right=True),
    Column("eta", "starts in", right=True),
    Column("reason", "because"),
)

KINDS = {"gpu": "GPU", "device": "device", "cpu": "CPU slot"}

devices_wanted = click.option(
    "--devices",
    type=COUNT,
    metavar="N[:M]",
    help="N accelerators, or CPU slots where the cluster has none; N:M takes up to M.",
)
gpus_wanted = click.option(
    "--gpus", type=COUNT, metavar="N[:M]", help="N GPUs, and nothing else will do; N:M up to M."
)
cpus_wanted = click.option(
    "--cpus", type=COUNT, metavar="N[:M]", help="N CPU slots; N:M takes up to M."
)

from_queue = click.option(
    "--queue", default="", metavar="NAME", help="Whose quota it takes from; see 'quota'."
)
may_be_preempted = click.option(
    "--preemptible",
    is_flag=True,
    help="Others may take it: SIGTERM, time for a checkpoint, and it waits again.",
)


@click.command()
@devices_wanted
@gpus_wanted
@cpus_wanted
@click.option("--gpu-memory", type=SIZE, metavar="SIZE", help="Memory of each GPU, like 8GB.")
@click.option("--gpu-model", default="", metavar="NAME", help="Part of each GPU's name, like a100.")
@click.option("--share", is_flag=True, help="That much of each GPU's memory; others get the rest.")
@click.option(
    "--placement",
    type=click.Choice([placement.value for placement in Placement]),
    default=Placement.PACK.value,
    help="On few nodes (pack, the default), on many (spread), or all on one (node).",
)
@click.option(
    "--cpus-per-device",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Cores of its node that come with each.",
)
@click.option(
    "--memory-per-device",
    type=SIZE,
    metavar="SIZE",
    help="Memory of its node that comes with each.",
)
@click.option("--time", "time_", type=DURATION, metavar="TIME", help="The lease ends after this.")
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
    devices: int | str | None,
    gpus: int | str | None,
    cpus: int | str | None,
    gpu_memory: int | None,
    gpu_model: str,
    share: bool,
    placement: str,
    cpus_per_device: int | None,
    memory_per_device: int | None,
    time_: float | None,
    wait: float | None,
    nonblock: bool,
    reservation: str | None,
    priority: int,
    queue: str,
    preemptible: bool,
    name: str,
) -> Any:
    """Lease devices, waiting until they are free.

    One of --devices, --gpus and --cpus says how many; 2:4 takes as many as are free of 2 to 4. With
    --share a lease has --gpu-memory of each GPU, and others may have the rest of it. Ctrl-C while waiting leaves the queue. In a
    shell the lease ends with the shell, in a notebook with its kernel, or with 'release'.
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
            memory=gpu_memory,
            model=gpu_model,
            share=share,
            placement=placement,
            cpus_per_device=cpus_per_device or 0,
            memory_per_device=memory_per_device,
            time=time_,
            wait=wait,
            nonblock=nonblock,
            label=name,
            priority=priority,
            queue=queue,
            preemptible=preemptible,
            reservation=reservation,
            on_wait=on_wait,
        )
    return host.lease(session, lease, lease_card(lease, time.time()))


def wanted(devices: int | str | None, gpus: int | str | None, cpus: int | str | None) -> str:
    """How many of what was asked for, in words; exactly one of the three is given."""
    given = [
        count_text(*parse_count(count), noun)
        for count, noun in ((devices, "device"), (gpus, "GPU"), (cpus, "CPU slot"))
        if count is not None
    ]
    if len(given) != 1:
        raise UsageError("Say how many of what: one of --devices N, --gpus N and --cpus N.")
    return given[0]


def count_text(least: int, most: int, noun: str) -> str:
    """`1 GPU`, `2 to 4 GPUs`."""
    return plural(most, noun) if least == most else f"{least} to {plural(most, noun)}"


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


@click.command()
@as_json
@click.pass_obj
def queue(host: Host, json_: bool) -> Any:
    """List waiting requests in their order."""
    session = host.session(start=False)
    rows = session.queue()
    if json_:
        return echo_json(rows)
    accuracy = session.forecast_accuracy() if rows else None
    return host.show(queue_table(rows, time.time(), accuracy), rows)


def queue_table(
    rows: Sequence[dict[str, Any]], now: float, accuracy: dict[str, Any] | None = None
) -> Table:
    """Requests, one a line, and how good such forecasts have been."""
    shown = [
        {
            **row,
            "want": wish_text(row),
            "queue": row.get("queue", DEFAULT_QUEUE),
            "waited": format_duration(max(0.0, now - row["submitted"])),
            "eta": about(row.get("eta"), now),
        }
        for row in rows
    ]
    title = f"forecasts so far: {accuracy_text(accuracy)}" if accuracy else ""
    return Table(QUEUE_COLUMNS, shown, empty="Nobody waits.", title=title)


def wish_text(row: Mapping[str, Any]) -> str:
    """What a request asks for: `2 to 4 GPUs, 'a100', 8 GB shared, on one node`."""
    parts = [count_text(row.get("least") or row["count"], row["count"], KINDS[row["want"]])]
    if row.get("model"):
        parts.append(f"'{row['model']}'")
    if row.get("memory"):
        parts.append(format_size(row["memory"]) + (" shared" if row["share"] else " or more"))
    if row.get("cpus"):
        parts.append(f"{row['cpus']} CPUs each")
    if row.get("host_memory"):
        parts.append(f"{format_size(row['host_memory'])} of host memory each")
    parts += {"spread": ["spread out"], "node": ["on one node"]}.get(row.get("placement", ""), [])
    return ", ".join(parts)


def about(when: float | None, now: float) -> str:
    """How long until a forecast time, `?` when there is none."""
    return "?" if when is None else f"~{format_duration(max(0.0, when - now))}"


@click.command("explain")
@click.argument("request")
@as_json
@click.pass_obj
def explain_request(host: Host, request: str, json_: bool) -> Any:
    """Say why REQUEST waits, and when it will probably start."""
    found = host.session(start=False).explain(request)
    if json_:
        return echo_json(found)
    return host.show(explain_card(found, time.time()), found)


def explain_card(found: dict[str, Any], now: float) -> Card:
    """Position, reason and forecast of a request."""
    title, what = f"request {found['id']}", wish_text(found)
    if found["state"] != "queued":
        fields = (("wanted", what), ("lease", found["lease"]), ("because", found["reason"]))
        return Card(title, badge=found["state"], fields=fields)
    starts = "not known: leases before it have no end that is known"
    if found["eta"] is not None:
        latest = "?" if found["latest"] is None else about(found["latest"], now)
        starts = f"{about(found['eta'], now)} ({about(found['earliest'], now)} to {latest})"
    predicted = ""
    if found["predicted"]:
        predicted = f"{format_duration(found['predicted'])}, as earlier leases did"
        if found["error"]:
            predicted += f"; they last {found['error']:.2g} times as predicted"
    first = ""
    if found["first_at"] is not None:
        first = f"in {format_duration(max(0.0, found['first_at'] - now))} at the latest"
    return Card(
        title,
        badge=found["reason"],
        fields=(
            ("wants", what),
            ("position", f"{found['position']} of {found['waiting']}"),
            ("starts in", starts),
            ("forecasts", accuracy_text(found.get("accuracy"))),
            ("first in line", first),
            ("may last", format_duration(found["time"]) if found["time"] else ""),
            ("will last", predicted),
            ("queue", found["queue"]),
            ("has run", f"{format_duration(found['ran'])}, preempted" if found["ran"] else ""),
            ("policy", found["policy"]),
        ),
        note=found["why"],
    )


@click.command()
@click.argument("request")
@click.pass_obj
def cancel(host: Host, request: str) -> None:
    """Take REQUEST out of the queue, or a reservation back."""
    session = host.session(start=False)
    known = {row["id"] for row in (*session.queue(), *session.reservations())}
    if request not in known:
        raise NotFoundError(
            f"No request '{request}' waits; 'queue' lists those that do, and 'reservations' those."
        )
    session.cancel(request)
    host.show(Card("cancelled", fields=(("request", request),)))
