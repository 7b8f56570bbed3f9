"""`node add|join|start|stop|ls|leave|revoke`, and what `up --on` asks for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..units import format_duration, format_size
from .base import DURATION, SIZE, VerbGroup, accounts_option, as_json, echo_json
from .host import Host
from .views import Card, Column, Table, plural

NODE_COLUMNS = (
    Column("id", "node"),
    Column("state", "state"),
    Column("host", "machine"),
    Column("address", "address"),
    Column("devices", "devices", right=True),
    Column("free", "free", right=True),
    Column("cpus", "cpus", right=True),
    Column("memory", "memory", right=True),
    Column("note", "note"),
)
# What is asked of Slurm or ssh: the flags of 'node start', and of 'up' with --on.
_ASKED = (
    click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Slurm: machines (1)."),
    click.option(
        "--gpus",
        type=click.IntRange(min=0),
        metavar="N",
        help="Slurm: GPUs of all of them together, the same number on each.",
    ),
    click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="Slurm: cores of each."),
    click.option("--memory", type=SIZE, metavar="SIZE", help="Slurm: memory of each."),
    click.option("--time", type=DURATION, metavar="TIME", help="Slurm: for how long."),
    click.option("--partition", metavar="NAME", help="As for sbatch."),
    click.option("--account", metavar="NAME", help="As for sbatch."),
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="TEXT",
        help="One more option of sbatch, like --option=--qos=high; may be repeated.",
    ),
    click.option("--python", metavar="PATH", help="ssh: the Python there that has AIOS."),
)


def asked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of a verb that asks for machines."""
    for option in reversed(_ASKED):
        function = option(function)
    return function


@click.group(cls=VerbGroup)
def node() -> None:
    """Add machines to a cluster.

    'node add' where the cluster was started, 'node join' on the machine that joins; 'node start' does
    both on machines of Slurm or that ssh reaches. The cluster has to listen at an address that it reaches: 'aios up --host ADDRESS'.
    """


@node.command("add")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the bundle goes (default: aios-node-NAME here).",
)
@click.option("--data", is_flag=True, help="It does data tasks, too, and sees the same files.")
@click.option("--days", type=float, default=3650.0, metavar="N", help="How long it is valid.")
@click.pass_obj
def add(host: Host, name: str, output: Path | None, data: bool, days: float) -> Any:
    """Let a machine join as the node NAME.

    Writes a bundle of files to bring there. Everybody's code may run on it, and its account sees that code: take machines that you trust.
    """
    row = host.session(start=True).node_add(name, output, data=data, days=days)
    fields = (
        ("until", time.strftime("%Y-%m-%d", time.localtime(row["expires"]))),
        ("bundle", row["bundle"]),
        ("on that machine", "aios node join BUNDLE"),
    )
    return host.show(Card(f"node {name}", badge="added", fields=fields), row)


@node.command("join")
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
@click.option("--host", "address", default="", metavar="ADDRESS", help="This machine's address.")
@click.option(
    "--simulate-gpus", type=click.IntRange(min=0), default=0, metavar="N", help="Offer N of them."
)
@accounts_option
@click.pass_obj
def join(host: Host, bundle: Path, address: str, simulate_gpus: int, accounts: str | None) -> Any:
    """Make this machine a node of the cluster of BUNDLE.

    Its agent stays until 'node leave', or until the cluster is stopped. With - as BUNDLE it comes as
    standard input, which is how 'node start --on ssh:…' brings it.
    """
    from ..session import join_node, join_node_by

    rest: dict[str, Any] = {
        "host": address,
        "simulate_gpus": simulate_gpus,
        "accounts": accounts or "",
    }
    if str(bundle) == "-":
        facts = join_node_by(sys.stdin.read(), **rest)
    else:
        facts = join_node(bundle, **rest)
    fields = (("address", facts["address"]),)
    return host.show(Card(f"node {facts['node']}", badge="joined", fields=fields), facts)


@node.command("start")
@click.option(
    "--on", required=True, metavar="slurm|ssh:HOSTS", help="Where the machines come from."
)
@asked
@click.option(
    "--simulate-gpus",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Each offers N of them, where it has no real ones.",
)
@click.pass_obj
def start(host: Host, /, on: str, simulate_gpus: int, **flags: Any) -> Any:
    """Have machines of Slurm, or those that ssh reaches, join.

    Of Slurm it is one job, each of whose machines is a node; 'node ls' shows why it waits and when it
    will probably start. No lease is granted that would outlast it. ssh:gpu1,ana@gpu2 are machines that
    ssh reaches without a password; each offers all that it has. Both end with 'node stop', and with
    the cluster.
    """
    wish = {name: value for name, value in flags.items() if value}
    row = host.session(start=True).node_start(on, simulate_gpus=simulate_gpus, **wish)
    return host.show(start_card(row), row)


def start_card(row: dict[str, Any]) -> Card:
    """Machines that were asked for."""
    if not row["id"]:
        return Card(", ".join(row["nodes"]), badge="joined")
    kind = "simulated GPU" if row["simulated"] else "GPU"
    each = [plural(row["gpus"], kind)] if row["gpus"] else []
    each += [plural(row["cpus"], "core")] if row["cpus"] else []
    fields = (
        ("nodes", ", ".join(row["nodes"])),
        ("each with", " and ".join(each)),
        ("now", row["note"]),
        ("to end it", f"aios node stop slurm-{row['id']}"),
    )
    return Card(f"Slurm job {row['id']}", badge=row["state"], fields=fields)


@node.command("stop")
@click.argument("name")
@click.pass_obj
def stop(host: Host, name: str) -> Any:
    """End what 'node start' has started.

    NAME is a node's or a job's (slurm-12, or 12). Of a job all nodes end, after the grace that Slurm
    gives; what runs there ends too.
    """
    row = host.session(start=False).node_stop(name)
    title = f"Slurm job {row['id']}" if row["id"] else f"node {name}"
    return host.show(Card(title, badge="stopped", note=row["note"]), row)


@node.command("ls")
@as_json
@click.pass_obj
def ls(host: Host, json_: bool) -> Any:
    """List the cluster's nodes."""
    rows = host.session(start=False).node_list()
    if json_:
        return echo_json(rows)
    return host.show(node_table(rows), rows)


def node_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Nodes, one a line."""
    shown = [
        {
            **row,
            "memory": format_size(row["memory"]) if row["memory"] else None,
            "note": row.get("note") or _until(row),
        }
        for row in rows
    ]
    return Table(NODE_COLUMNS, shown, empty="The cluster has no nodes.")


def _until(row: dict[str, Any]) -> str:
    left = (row.get("until") or 0.0) - time.time()
    return f"leased for {format_duration(left)} more" if left > 0 else ""


@node.command("leave")
@click.argument("name", required=False, default="")
@click.pass_obj
def leave(host: Host, name: str) -> Any:
    """End the node NAME on this machine, with its runs.

    Without NAME it is the only one.
    """
    from ..session import leave_node

    facts = leave_node(name)
    return host.show(Card(f"node {facts['node']}", badge="left"), facts)


@node.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(host: Host, name: str) -> Any:
    """Take the access of the node NAME away.

    Its agent ends, and what runs there with it.
    """
    row = host.session(start=True).node_revoke(name)
    return host.show(Card(f"node {name}", badge="revoked"), row)
