"""What a batch system has given this process of its machine, where one has started it.

Slurm says so in the environment of a job's processes. Where an administrator has not walled jobs off
from each other that is all that keeps a node from offering what is somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..schema import Device

_MB = 2**20


@dataclass(frozen=True)
class Given:
    """A job's part of a machine.

    Attributes
    ----------
    gpus
        By index or UUID, as in `CUDA_VISIBLE_DEVICES`; none where the job has asked for none.
    cores
        How many of its cores.
    memory
        How much of its memory, bytes; 0 where the job may use all of it.
    """

    gpus: tuple[str, ...]
    cores: int
    memory: int

    def has(self, device: Device) -> bool:
        """Whether a GPU is the job's."""
        return any(
            int(gpu) == device.index if gpu.isdigit() else device.id.startswith(gpu)
            for gpu in self.gpus
        )


def given(environment: Mapping[str, str] | None = None) -> Given | None:
    """What a job has of this machine; None where this process is of none."""
    known = os.environ if environment is None else environment
    # The first is there in the shell of `salloc` too, which is on the machine it was typed on.
    if not (known.get("SLURM_JOB_ID") and known.get("SLURMD_NODENAME")):
        return None
    gpus = tuple(gpu.strip() for gpu in known.get("CUDA_VISIBLE_DEVICES", "").split(","))
    cores = max(1, _number(known.get("SLURM_CPUS_ON_NODE")))
    memory = _number(known.get("SLURM_MEM_PER_NODE"))
    memory = memory or cores * _number(known.get("SLURM_MEM_PER_CPU"))
    return Given(tuple(filter(_names_one, gpus)), cores, memory * _MB)


def _names_one(gpu: str) -> bool:
    return gpu.isdigit() or gpu.startswith(("GPU-", "MIG-"))


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
