"""Find the devices of this machine."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator

from ..schema import Device
from . import cpu, nvml, simulated
from .given import given

ENTRY_POINTS = "aios_jupyter.devices"

_log = logging.getLogger(__name__)


def devices(node: str, simulate_gpus: int = 0) -> tuple[Device, ...]:
    """What this machine offers, accelerators first and always some CPU slots.

    NVIDIA GPUs (or their MIG slices) where NVML finds any; otherwise `simulate_gpus` simulated
    ones. In a job of a batch system only those that the job was given. Other kinds come from the entry points `aios_jupyter.devices`, each a callable that takes
    the node's name and gives an iterable of `Device`. No hardware is a state and not an error: this
    never raises, and a part that fails is left out with a warning in the log.

    Parameters
    ----------
    node
        Id of this node in the cluster; made part of the ids of devices that have no UUID.
    simulate_gpus
        Number of simulated GPUs on a machine without real ones.
    """
    part = given()
    gpus = tuple(gpu for gpu in nvml.devices() if part is None or part.has(gpu))
    found = (
        *(gpus or simulated.devices(node, simulate_gpus)),
        *_registered(node),
        *cpu.devices(node),
    )
    return tuple({device.id: device for device in found}.values())


def _registered(node: str) -> Iterator[Device]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        # Somebody else's code: whatever it raises must cost its own devices alone.
        try:
            found = tuple(entry.load()(node))
        except Exception:  # noqa: BLE001
            _log.warning(
                "Device plug-in %r failed; its devices are left out.", entry.name, exc_info=True
            )
            continue
        for device in found:
            if isinstance(device, Device):
                yield device
            else:
                _log.warning("Device plug-in %r gave %r, not a Device.", entry.name, device)
