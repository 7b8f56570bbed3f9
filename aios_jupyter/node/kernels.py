"""Kernels that were started with devices and are still on one when its lease ends.

Nobody can take a GPU from a process: one that has something there is ended, before the device is
granted to others. A kernel that holds its devices for its ranks alone goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..broker.messages import Grant
from ..process import alive, process_start
from ..schema import Usage
from .telemetry import descendants, processes

log = logging.getLogger("aios.node")

LOOK_INTERVAL = 0.1


async def vacate(
    grant: Grant,
    node: str,
    machine: str,
    sample: Callable[[], Awaitable[list[Usage]]],
    grace: float,
) -> None:
    """End the kernel of a lease that is over when it or what it has started is on a device of it.

    Parameters
    ----------
    node, machine
        This one, and what its machine is called; kernels and devices elsewhere are others' business.
    sample
        Who is on which device now.
    grace
        Seconds between SIGTERM and SIGKILL.
    """
    owner = grant.owner
    if owner is None or not owner.kernel or owner.host != machine:
        return
    devices = {slot.device for slot in grant.lease.slots if slot.node == node}
    if not (alive(owner.pid, owner.pid_start) and _is_of(owner.pid, grant.lease.id)):
        return
    usage = await sample()
    family = set(descendants([owner.pid], processes()))
    there = {
        process.pid
        for device in usage
        if device.device in devices
        for process in device.processes
        if process.pid in family
    }
    if not there:
        return
    log.info("kernel %d of lease %s is on its devices: ending it", owner.pid, grant.lease.id)
    left = {pid: process_start(pid) for pid in there | {owner.pid}}
    _signal(left, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace):
            while _living(left):  # noqa: ASYNC110  # processes, not an event
                await asyncio.sleep(LOOK_INTERVAL)
    _signal(left, signal.SIGKILL)
    while _living(left):  # noqa: ASYNC110  # the kernel's memory is free only then
        await asyncio.sleep(LOOK_INTERVAL)


def _is_of(pid: int, lease: str) -> bool:
    """Whether a process was started with that lease: its owner's word is not enough to end it."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        # It is gone, or of another account, or this system does not tell.
        return False
    return f"AIOS_LEASE={lease}".encode() in environment.split(b"\0")


def _living(pids: dict[int, int]) -> bool:
    return any(alive(pid, start) for pid, start in pids.items())


def _signal(pids: dict[int, int], number: int) -> None:
    for pid, start in pids.items():
        if alive(pid, start):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
