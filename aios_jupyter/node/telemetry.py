"""How busy each device of this machine is, and which processes are on it.

GPUs are asked through NVML. CPU slots, simulated GPUs and kinds that NVML does not know show the
use of the process trees that run on them, measured between two samples; only Linux tells that
without a library, elsewhere it is None.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..config import IS_LINUX
from ..devices.nvml import Nvml, open_nvml
from ..schema import Device, DeviceKind, Process, Usage

_NVIDIA = frozenset({DeviceKind.GPU, DeviceKind.MIG})


class Sampler:
    """Samples the devices of a node. Not thread-safe; close it when done.

    Parameters
    ----------
    devices
        The node's devices.
    pids_of
        Gives the pids of the ranks on a device, by its id; their descendants count as well.
    """

    def __init__(self, devices: Sequence[Device], pids_of: Callable[[str], Iterable[int]]) -> None:
        self._devices = tuple(devices)
        self._pids_of = pids_of
        self._nvml: Nvml | None = None
        if any(device.kind in _NVIDIA for device in devices):
            self._nvml = open_nvml()
        self._before: dict[int, ProcessInfo] = {}
        self._before_at: float | None = None

    def sample(self) -> list[Usage]:
        """One `Usage` for each device, in order.

        Utilization of a CPU slot or simulated GPU is in percent of one core, 100 at most; it is
        None in the first sample with processes, since it takes two.
        """
        roots = {
            device.id: tuple(self._pids_of(device.id))
            for device in self._devices
            if self._nvml is None or device.kind not in _NVIDIA
        }
        # Reading all of /proc costs milliseconds: not on an idle node without GPUs.
        table = processes() if self._nvml is not None or any(roots.values()) else {}
        now = _uptime()
        usages = [self._usage(device, roots, table, now) for device in self._devices]
        self._before, self._before_at = table, now
        return usages

    def close(self) -> None:
        """Shut NVML down."""
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def _usage(
        self,
        device: Device,
        roots: Mapping[str, Sequence[int]],
        table: Mapping[int, ProcessInfo],
        now: float,
    ) -> Usage:
        if self._nvml is not None and device.kind in _NVIDIA:
            usage, found = self._nvml.usage(device)
            listed = tuple(_process(pid, memory, table) for pid, memory in found)
            return msgspec.structs.replace(usage, processes=listed)
        if not IS_LINUX:
            return Usage(device=device.id)
        members = [table[pid] for pid in descendants(roots[device.id], table)]
        return Usage(
            device=device.id,
            utilization=self._utilization(members, now),
            memory_used=sum(member.memory for member in members),
            processes=tuple(_process(member.pid, member.memory, table) for member in members),
        )

    def _utilization(self, members: Sequence[ProcessInfo], now: float) -> float | None:
        if not members:
            return 0.0
        if self._before_at is None or now <= self._before_at:
            return None
        hertz = os.sysconf("SC_CLK_TCK")
        ticks = 0
        for member in members:
            earlier = self._before.get(member.pid)
            if earlier is not None and earlier.start == member.start:
                ticks += member.ticks - earlier.ticks
            elif member.start >= self._before_at * hertz:
                # It started since the last sample, and so has used all its time since then.
                ticks += member.ticks
        return min(100.0, 100.0 * ticks / hertz / (now - self._before_at))


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A running process: CPU time and start time in clock ticks, resident memory in bytes."""

    pid: int
    parent: int
    name: str
    ticks: int
    start: int
    memory: int


def processes() -> dict[int, ProcessInfo]:
    """Every live process that this one may see, by pid; empty where there is no /proc."""
    if not IS_LINUX:
        return {}
    page = os.sysconf("SC_PAGE_SIZE")
    table = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        # A process may end at any moment between the listing and the reading.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            info = _parse_stat((directory / "stat").read_text(), page)
            if info is not None:
                table[info.pid] = info
    return table


def descendants(roots: Iterable[int], table: Mapping[int, ProcessInfo]) -> list[int]:
    """Those of `roots` that live, with all their descendants, in rising order of pid."""
    members = {pid for pid in roots if pid in table}
    if not members:
        return []
    children: dict[int, list[int]] = {}
    for info in table.values():
        children.setdefault(info.parent, []).append(info.pid)
    waiting = list(members)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in members:
                members.add(child)
                waiting.append(child)
    return sorted(members)


def outside(usage: Usage, ours: set[int]) -> tuple[Process, ...]:
    """The processes on a device that are not ours.

    Parameters
    ----------
    usage
        A sample of the device.
    ours
        Pids of our ranks and zygotes; what descends from one of them is ours too.
    """
    strangers = [process for process in usage.processes if process.pid not in ours]
    if not strangers:
        return ()
    family = set(descendants(ours, processes()))
    return tuple(process for process in strangers if process.pid not in family)


def _parse_stat(text: str, page: int) -> ProcessInfo | None:
    """proc(5): a pid, a name in brackets that may itself hold brackets, then numbers."""
    opened, closed = text.index("("), text.rindex(")")
    fields = text[closed + 2 :].split()
    if fields[0] in "ZX":
        return None
    return ProcessInfo(
        pid=int(text[:opened]),
        parent=int(fields[1]),
        name=text[opened + 1 : closed],
        ticks=int(fields[11]) + int(fields[12]),
        start=int(fields[19]),
        memory=int(fields[21]) * page,
    )


def _process(pid: int, memory: int, table: Mapping[int, ProcessInfo]) -> Process:
    info = table.get(pid)
    return Process(
        pid=pid, memory=memory, name="" if info is None else info.name, user=_user_of(pid)
    )


def _uptime() -> float:
    """Seconds on the clock that start times of processes are told in, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if IS_LINUX else time.monotonic()


def _user_of(pid: int) -> str:
    """Login name of a process's owner, its number where it has no name, "" where unknown."""
    try:
        number = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return ""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
