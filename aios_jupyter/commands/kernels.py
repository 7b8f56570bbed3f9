"""`kernel add|ls|rm`."""

from __future__ import annotations

from typing import Any

import click

from .base import DURATION, SIZE, VerbGroup, as_json, echo_json
from .host import Host
from .leases import cpus_wanted, devices_wanted, from_queue, gpus_wanted
from .views import Card, Column, Table

KERNEL_COLUMNS = (
    Column("name", "kernel"),
    Column("display_name", "shown as"),
    Column("asks", "asks for"),
    Column("path", "in"),
)


@click.group(cls=VerbGroup)
def kernel() -> None:
    """Make kernels that have devices from their first moment."""


@kernel.command("add")
@devices_wanted
@gpus_wanted
@cpus_wanted
@click.option("--gpu-memory", type=SIZE, metavar="SIZE", help="Memory of each GPU, like 8GB.")
@click.option("--gpu-model", default="", metavar="NAME", help="Part of each GPU's name, like a100.")
@click.option("--time", "time_", type=DURATION, metavar="TIME", help="The lease ends after this.")
@click.option(
    "--max-wait", type=DURATION, metavar="TIME", help="Give a start up after so long in the queue."
)
@from_queue
@click.option("--name", default="", metavar="NAME", help="What -k and --kernel call it.")
@click.option("--display-name", default="", metavar="TEXT", help="What the launcher shows.")
@click.option("--replace", is_flag=True, help="Take the place of a kernel of that name.")
@click.pass_obj
def add(
    host: Host,
    devices: int | str | None,
    gpus: int | str | None,
    cpus: int | str | None,
    gpu_memory: int | None,
    gpu_model: str,
    time_: float | None,
    max_wait: float | None,
    queue: str,
    name: str,
    display_name: str,
    replace: bool,
) -> Any:
    """Add a kernel that leases devices before it starts.

    Choose it for a notebook, or run one with papermill -k NAME. It waits in the queue until the
    devices are free, keeps them when it is restarted, and gives them back when it ends.
    """
    from ..kernel import specs

    row = specs.add(
        gpus=gpus,
        devices=devices,
        cpus=cpus,
        gpu_memory=gpu_memory,
        gpu_model=gpu_model,
        time=time_,
        max_wait=max_wait,
        queue=queue,
        name=name,
        display_name=display_name,
        replace=replace,
    )
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
