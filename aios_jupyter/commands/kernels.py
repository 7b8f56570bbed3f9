"""`kernel add|ls|rm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .base import DURATION, SIZE, VerbGroup, as_json, echo_json
from .host import Host
from .views import Card, Column, Table
from .wishes import cpus_wanted, devices_wanted, from_queue, gpus_wanted

KERNEL_COLUMNS = (
    Column("name", "kernel"),
    Column("display_name", "shown as"),
    Column("asks", "asks for"),
    Column("path", "in"),
)

# What a kernel or a notebook of a batch asks for, under the names that the Python API has for it.
KERNEL_ASKS = (
    devices_wanted,
    gpus_wanted,
    cpus_wanted,
    click.option("--gpu-memory", type=SIZE, metavar="SIZE", help="Memory of each GPU, like 8GB."),
    click.option("--gpu-model", default="", metavar="NAME", help="Part of its name, like a100."),
    click.option("--time", type=DURATION, metavar="TIME", help="The lease ends after this."),
    click.option(
        "--max-wait", type=DURATION, metavar="TIME", help="Give up after so long in the queue."
    ),
    from_queue,
)


def asks_for_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the flags of `KERNEL_ASKS`."""
    for option in reversed(KERNEL_ASKS):
        function = option(function)
    return function


@click.group(cls=VerbGroup)
def kernel() -> None:
    """Make kernels that have devices from their first moment."""


@kernel.command("add")
@asks_for_devices
@click.option(
    "--idle", type=DURATION, metavar="TIME", help="Give the devices back after so long without use."
)
@click.option("--name", default="", metavar="NAME", help="What -k and --kernel call it.")
@click.option("--display-name", default="", metavar="TEXT", help="What the launcher shows.")
@click.option("--replace", is_flag=True, help="Take the place of a kernel of that name.")
@click.pass_obj
def add(
    host: Host,
    /,
    idle: float | None,
    name: str,
    display_name: str,
    replace: bool,
    **asks: Any,
) -> Any:
    """Add a kernel that leases devices before it starts.

    Choose it for a notebook, or run one with papermill -k NAME. It waits in the queue until the
    devices are free, keeps them when it is restarted, and gives them back when it ends.
    """
    from ..kernel import specs

    row = specs.add(**asks, idle=idle, name=name, display_name=display_name, replace=replace)
    fields = (("shown as", row["display_name"]), ("asks for", row["asks"]), ("in", row["path"]))
    return host.show(Card(f"kernel {row['name']}", badge="added", fields=fields), row)


@kernel.command("ls")
@as_json
@click.pass_obj
def ls(host: Host, json_: bool) -> Any:
    """List the kernels that ask for devices."""
    from ..kernel import specs

    rows = specs.ls()
    if json_:
        return echo_json(rows)
    empty = "No kernel asks for devices; add one with: aios kernel add --devices 1"
    return host.show(Table(KERNEL_COLUMNS, rows, empty=empty), rows)


@kernel.command("rm")
@click.argument("name")
@click.pass_obj
def rm(host: Host, name: str) -> Any:
    """Remove a kernel that was added; running ones go on."""
    from ..kernel import specs

    path = specs.rm(name)
    return host.show(Card(f"kernel {name}", badge="removed", fields=(("was in", path),)), path)
