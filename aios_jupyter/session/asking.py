"""A request for devices, made of what a user asks for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypedDict

from ..errors import UsageError
from ..schema import Placement, Request, Scope, Want
from ..units import MOST_DEVICES, format_duration, parse_count, parse_duration, parse_size

FOREVER = 10 * 365 * 86400.0
NOUNS = {Want.GPU: "GPU", Want.DEVICE: "device", Want.CPU: "CPU slot"}


class Asks(TypedDict, total=False):
    """What a notebook of a batch leases before it starts.

    `gpus`, `devices`, `cpus` (one of them), `time` and `queue` are those of `Session.alloc`,
    `gpu_memory` and `gpu_model` its `memory` and `model`. After `max_wait` in the queue the start is
    given up.
    """

    gpus: int | str | None
    devices: int | str | None
    cpus: int | str | None
    gpu_memory: str | int | None
    gpu_model: str
    time: str | float | None
    max_wait: str | float | None
    queue: str


class KernelAsks(Asks, total=False):
    """What a kernel leases; after `idle` without computing it is warned, and then gives it back."""

    idle: str | float | None


COUNTS = ("gpus", "devices", "cpus")
LENGTHS = ("time", "max_wait", "idle")
ASKS, KERNEL_ASKS = tuple(Asks.__annotations__), tuple(KernelAsks.__annotations__)


def settled(asks: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What was asked for, as a file of JSON holds it: without what nobody said, times in seconds.

    Raises
    ------
    TypeError
        It has a name that is not among `names`.
    UsageError
        A time makes no sense.
    """
    unknown = sorted(set(asks) - set(names))
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    said = {name: asks[name] for name in names if asks.get(name) not in {None, ""}}
    said |= {name: parse_duration(said[name]) for name in LENGTHS if name in said}
    return said | ({"gpu_memory": str(said["gpu_memory"])} if "gpu_memory" in said else {})


def request_of(asks: Mapping[str, Any], label: str = "", batch: str = "") -> Request:
    """The request for what a kernel asks for.

    Raises
    ------
    UsageError
        It makes no sense.
    """
    return request_for(
        gpus=asks.get("gpus"),
        devices=asks.get("devices"),
        cpus=asks.get("cpus"),
        memory=asks.get("gpu_memory") or None,
        model=asks.get("gpu_model") or "",
        time=asks.get("time") or None,
        queue=asks.get("queue") or "",
        idle=asks.get("idle") or None,
        label=label,
        batch=batch,
    )


def request_for(
    *,
    gpus: int | str | None = None,
    devices: int | str | None = None,
    cpus: int | str | None = None,
    memory: str | int | None = None,
    model: str = "",
    share: bool = False,
    placement: str = "pack",
    node: str = "",
    cpus_per_device: int = 0,
    memory_per_device: str | int | None = None,
    time: str | float | None = None,
    label: str = "",
    scope: Scope = Scope.SESSION,
    priority: int = 0,
    queue: str = "",
    preemptible: bool = False,
    idle: str | float | None = None,
    batch: str = "",
) -> Request:
    """A new request; the parameters are those of `Session.alloc`.

    Besides, `idle` is after how long without computing the lease is warned, and then ended;
    `batch` is the batch that it is for.

    Raises
    ------
    UsageError
        What is asked for makes no sense.
    """
    want, least, count = wanted(gpus, devices, cpus)
    return Request(
        id=f"q-{secrets.token_hex(4)}",
        session="",
        user="",
        want=want,
        count=count,
        least=least,
        memory=0 if memory is None else parse_size(memory),
        model=model.strip(),
        share=share,
        placement=parse_placement(placement),
        node=node.strip(),
        cpus=_per_device(cpus_per_device),
        host_memory=0 if memory_per_device is None else parse_size(memory_per_device),
        time=None if time is None else parse_duration(time),
        label=label,
        scope=scope,
        priority=priority,
        queue=queue,
        batch=batch,
        preemptible=preemptible,
        idle=None if idle is None else parse_duration(idle),
    )


def wanted(
    gpus: int | str | None, devices: int | str | None, cpus: int | str | None
) -> tuple[Want, int, int]:
    """What is wanted, and how many: the least and the most."""
    given = [
        (want, n)
        for want, n in ((Want.GPU, gpus), (Want.DEVICE, devices), (Want.CPU, cpus))
        if n is not None
    ]
    if len(given) != 1:
        raise UsageError("Say how many devices you want with one of --gpus, --devices and --cpus.")
    want, count = given[0]
    return want, *parse_count(count)


def parse_placement(text: str) -> Placement:
    """Where the devices of a lease are to be, by its name."""
    try:
        return Placement(text)
    except ValueError:
        names = ", ".join(placement.value for placement in Placement)
        raise UsageError(f"'{text}' is not a placement; choose one of {names}.") from None


def _per_device(cpus: int) -> int:
    if not 0 <= cpus <= MOST_DEVICES:
        raise UsageError(f"{cpus} is not a number of CPUs for each device; ask for 1 or more.")
    return cpus


def not_granted(request: Request, limit: float, row: dict[str, Any] | None) -> str:
    """Why a request was given up after `limit` seconds; `row` is its row of the queue."""
    least = f"{request.least} to " if request.least < request.count else ""
    noun = NOUNS[request.want] + ("s" if request.count > 1 else "")
    why = f" ({row['reason']})" if row else ""
    if limit == 0:
        return f"{least}{request.count} {noun} cannot be granted now{why}; leave out --nonblock to wait."
    return (
        f"{least}{request.count} {noun} could not be granted within {format_duration(limit)}{why}; wait "
        "longer, or see 'aios queue'."
    )
