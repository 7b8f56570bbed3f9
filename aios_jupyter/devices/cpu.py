"""CPU slots: how many cores and how much memory this process may really use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ..schema import Device, DeviceKind
from .given import given

LEAST_SLOTS = 2
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def devices(node: str) -> tuple[Device, ...]:
    """One slot for each usable core, at least two so that a gang can be tried anywhere.

    In a job of a batch system as many as it has cores. A slot's memory is its share of the usable
    memory; it is not enforced.
    """
    count = usable_cores() if given() else max(LEAST_SLOTS, usable_cores())
    share = usable_memory() // count
    return tuple(
        Device(
            id=f"cpu-{node}-{index}",
            kind=DeviceKind.CPU,
            name="CPU slot",
            index=index,
            memory=share,
        )
        for index in range(count)
    )


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Cores by affinity, by the cgroup's quota (rounded up) and by the job's, whichever is least."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [
        quota
        for version, directory in _cgroup_directories("cpu", cgroups, own)
        if (quota := _cpu_quota(version, directory)) is not None
    ]
    part = given()
    job = [part.cores] if part else []
    return max(1, min([cores, *job, *(math.ceil(quota) for quota in quotas)]))


def usable_memory(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Memory of the machine, the cgroup's limit or the job's, whichever is least; bytes, 0 if unknown."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 0
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for version, directory in _cgroup_directories("memory", cgroups, own):
        text = _read(directory / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit():
            limits.append(int(text))
    part = given()
    return min([*limits, *([part.memory] if part and part.memory else [])])


def _cpu_quota(version: int, directory: Path) -> float | None:
    if version == 2:
        quota, _, period = _read(directory / "cpu.max").partition(" ")
    else:
        quota = _read(directory / "cpu.cfs_quota_us")
        period = _read(directory / "cpu.cfs_period_us")
    # "max" and -1 mean no quota.
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)


def _cgroup_directories(controller: str, cgroups: Path, own: Path) -> Iterator[tuple[int, Path]]:
    """The directories whose limits bind this process, with the cgroup version of each.

    Each ancestor's limit binds too. In a container the path that the kernel names is often not
    mounted, and the limits are those of the mount's root.
    """
    for line in _read(own).splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            version, root = 2, cgroups
        elif controller in controllers.split(","):
            version, root = 1, cgroups / controller
        else:
            continue
        directory = root / path.lstrip("/")
        while directory != root and root in directory.parents:
            yield version, directory
            directory = directory.parent
        yield version, root


def _read(path: Path) -> str:
    """A small kernel file's text, or "" where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
