"""A request for devices, made of what a user asks for."""

from __future__ import annotations

import secrets
from typing import Any

from ..errors import UsageError
from ..schema import Placement, Request, Scope, Want
from ..units import MOST_DEVICES, format_duration, parse_count, parse_duration, parse_size

FOREVER = 10 * 365 * 86400.0
NOUNS = {Want.GPU: "GPU", Want.DEVICE: "device", Want.CPU: "CPU slot"}


def request_for(
    *,
    gpus: int | str | None = None,
    devices: int | str | None = None,
    cpus: int | str | None = None,
    memory: str | int | None = None,
    model: str = "",
    share: bool = False,
    placement: str = "pack",
    cpus_per_device: int = 0,
    memory_per_device: str | int | None = None,
    time: str | float | None = None,
    label: str = "",
    scope: Scope = Scope.SESSION,
    priority: int = 0,
    queue: str = "",
    preemptible: bool = False,
    idle: str | float | None = None,
) -> Request:
    """A new request; the parameters are those of `Session.alloc`.

    Besides, `idle` is after how long without computing the lease is warned, and then ended.

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
        placement=_placement(placement),
        cpus=_per_device(cpus_per_device),
        host_memory=0 if memory_per_device is None else parse_size(memory_per_device),
        time=None if time is None else parse_duration(time),
        label=label,
        scope=scope,
        priority=priority,
        queue=queue,
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


def _placement(text: str) -> Placement:
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
