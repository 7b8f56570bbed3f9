"""GPUs that are only simulated, on purpose, to try things without one."""

from __future__ import annotations

from ..schema import Device, DeviceKind

MEMORY = 16 * 2**30
NAME = "Simulated GPU"


def devices(node: str, count: int) -> tuple[Device, ...]:
    """`count` simulated GPUs of 16 GiB; their use is that of the processes put on them."""
    return tuple(
        Device(
            id=f"sim-{node}-{index}",
            kind=DeviceKind.SIMULATED,
            name=NAME,
            index=index,
            memory=MEMORY,
        )
        for index in range(count)
    )
