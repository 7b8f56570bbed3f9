"""`node add|join|ls|leave|revoke`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..units import format_size
from .base import VerbGroup, accounts_option, as_json, echo_json
from .host import Host
from .views import Card, Column, Table

NODE_COLUMNS = (
    Column("id", "node"),
    Column("state", "state"),
    Column("host", "machine"),
    Column("address", "address"),
    Column("devices", "devices", right=True),
    Column("free", "free", right=True),
    Column("cpus", "cpus", right=True),
    Column("memory", "memory", right=True),
)


@click.group(cls=VerbGroup)
def node() -> None:
    """Add machines to a cluster.

    'node add' where the cluster was started, 'node join' on the machine that joins. The cluster has
    to listen at an address that it reaches: 'aios up --host ADDRESS'.
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

    Its agent stays until 'node leave', or until the cluster is stopped.
    """
    from ..session import join_node

    facts = join_node(bundle, host=address, simulate_gpus=simulate_gpus, accounts=accounts or "")
    fields = (("address", facts["address"]),)
    return host.show(Card(f"node {facts['node']}", badge="joined", fields=fields), facts)


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
    shown = [{**row, "memory": format_size(row["memory"])} for row in rows]
    return Table(NODE_COLUMNS, shown, empty="The cluster has no nodes.")


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
