"""What is asked of the broker: the flags that `alloc`, `reserve`, `train` and others share, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ..errors import UsageError
from ..schema import Placement
from ..units import format_size, parse_count
from .base import COUNT, DURATION, SIZE
from .views import plural

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

# Flags that say more of the devices, and by which name `Session.alloc` knows each.
DETAILS = {
    "gpu_memory": "memory",
    "gpu_model": "model",
    "share": "share",
    "placement": "placement",
    "node": "node",
    "cpus_per_device": "cpus_per_device",
    "memory_per_device": "memory_per_device",
    "time_": "time",
}


def in_detail(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of `DETAILS`; `details` makes keywords of them."""
    decorators = (
        click.option(
            "--gpu-memory", type=SIZE, metavar="SIZE", help="Memory of each GPU, like 8GB."
        ),
        click.option("--gpu-model", metavar="NAME", help="Part of each GPU's name, like a100."),
        click.option(
            "--share", is_flag=True, help="That much of each GPU's memory; others get the rest."
        ),
        click.option(
            "--placement",
            type=click.Choice([placement.value for placement in Placement]),
            help="On few nodes (pack, the default), on many (spread), or all on one (node).",
        ),
        click.option("--node", metavar="NAME", help="All on this node; see 'node list'."),
        click.option(
            "--cpus-per-device",
            type=click.IntRange(min=1),
            metavar="N",
            help="Cores of its node that come with each.",
        ),
        click.option(
            "--memory-per-device",
            type=SIZE,
            metavar="SIZE",
            help="Memory of its node that comes with each.",
        ),
        click.option(
            "--time", "time_", type=DURATION, metavar="TIME", help="The lease ends after this."
        ),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def details(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the flags of `in_detail` out of `flags`: those given, as keywords of `Session.alloc`."""
    taken = {keyword: flags.pop(flag) for flag, keyword in DETAILS.items()}
    return {keyword: value for keyword, value in taken.items() if value}


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
    if row.get("node"):
        parts.append(f"on {row['node']}")
    parts += {"spread": ["spread out"], "node": ["on one node"]}.get(row.get("placement", ""), [])
    return ", ".join(parts)
