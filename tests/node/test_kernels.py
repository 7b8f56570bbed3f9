"""Which processes are ended with a kernel's lease, and which never."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aios_jupyter.broker.messages import Grant
from aios_jupyter.config import IS_LINUX
from aios_jupyter.node.kernels import vacate
from aios_jupyter.process import process_start
from aios_jupyter.schema import DeviceKind, Lease, Owner, Process, Slot, Usage

pytestmark = pytest.mark.skipif(not IS_LINUX, reason="only /proc tells what a process is")

DEAF = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(600)"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that SIGTERM does not end, with a lease in its environment."""
    made = []

    def run(lease: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", DEAF],
            env={**os.environ, "AIOS_LEASE": lease},
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield run
    for process in made:
        process.kill()
        process.communicate()


def end_lease(pid: int, on: str = "GPU-a", **owner: Any) -> None:
    """L7 on GPU-a ends, while that process is on a device."""
    slot = Slot(node="n", device="GPU-a", kind=DeviceKind.GPU, index=0, address="a:1")
    lease = Lease(id="L7", request="q", session="s", user="u", slots=(slot,), fence=7, granted=0.0)
    about: dict[str, Any] = {"pid": pid, "pid_start": process_start(pid), "kernel": True, **owner}
    whose = Owner(id="s", user="u", **{"host": "box", **about})

    async def sample() -> list[Usage]:
        return [Usage(device=on, processes=(Process(pid=pid),))]

    asyncio.run(vacate(Grant(lease=lease, token="t", owner=whose), "n", "box", sample, 0.2))


def test_a_kernel_on_its_device_is_gone_when_its_lease_is(start: Start) -> None:
    kernel = start("L7")
    end_lease(kernel.pid)
    assert kernel.wait(20) == -9


@pytest.mark.parametrize(
    ("lease", "changed"),
    [
        ("L7", {"on": "GPU-b"}),
        ("L7", {"kernel": False}),
        ("L7", {"host": "elsewhere"}),
        ("L7", {"pid_start": 1}),
        ("L77", {}),
    ],
)
def test_no_other_process_is_ended_whatever_its_owner_says(
    start: Start, lease: str, changed: dict[str, Any]
) -> None:
    process = start(lease)
    end_lease(process.pid, **changed)
    assert process.poll() is None
