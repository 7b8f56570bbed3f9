"""NVIDIA GPUs and MIG slices through NVML.

NVML is loaded by `open_nvml` and not before; a machine without it is told by None.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from ..schema import Device, DeviceKind, Usage

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def devices() -> tuple[Device, ...]:
    """The GPUs of this machine by UUID; where MIG is on, a GPU's slices instead of the GPU.

    Empty where there is no NVML or no GPU.
    """
    nvml = open_nvml()
    if nvml is None:
        return ()
    with nvml:
        return nvml.devices()


def open_nvml() -> Nvml | None:
    """NVML, initialized, to be closed by the caller; None where it does not load."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        _log.debug("NVML does not load: %s", error)
        return None
    return Nvml(pynvml)


class Nvml:
    """An initialized NVML. A context manager that shuts it down at its end."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Shut NVML down; it counts its users, so that others in this process keep theirs."""
        with contextlib.suppress(self._api.NVMLError):
            self._api.nvmlShutdown()

    def devices(self) -> tuple[Device, ...]:
        """Every GPU that answers, or its MIG slices."""
        found: list[Device] = []
        for position in range(self._ask(self._api.nvmlDeviceGetCount) or 0):
            gpu = self._ask(self._api.nvmlDeviceGetHandleByIndex, position)
            if gpu is None:
                continue
            if self._mig_is_on(gpu):
                parts = [(part, DeviceKind.MIG) for part in self._slices(gpu)]
            else:
                parts = [(gpu, DeviceKind.GPU)]
            for handle, kind in parts:
                device = self._describe(handle, kind, len(found))
                if device is not None:
                    found.append(device)
        return tuple(found)

    def usage(self, device: Device) -> tuple[Usage, tuple[tuple[int, int], ...]]:
        """One sample of a device, and its compute processes as pairs of pid and bytes.

        What the device does not tell (a MIG slice has no utilization, a lost GPU nothing) is None.
        """
        handle = self._ask(self._api.nvmlDeviceGetHandleByUUID, device.id)
        if handle is None:
            return Usage(device=device.id), ()
        api = self._api
        rates = self._ask(api.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(api.nvmlDeviceGetMemoryInfo, handle)
        temperature = self._ask(api.nvmlDeviceGetTemperature, handle, api.NVML_TEMPERATURE_GPU)
        power = self._ask(api.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(api.nvmlDeviceGetEnforcedPowerLimit, handle)
        usage = Usage(
            device=device.id,
            utilization=None if rates is None else float(rates.gpu),
            memory_used=None if memory is None else int(memory.used),
            temperature=None if temperature is None else float(temperature),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
        )
        return usage, self._processes(handle)

    def _processes(self, handle: Any) -> tuple[tuple[int, int], ...]:
        # Those with a compute context alone: a desktop's display server is on the GPU for ever,
        # and must not keep it from being leased.
        found = self._ask(self._api.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        return tuple((process.pid, process.usedGpuMemory or 0) for process in found)

    def _describe(self, handle: Any, kind: DeviceKind, index: int) -> Device | None:
        uuid = self._ask(self._api.nvmlDeviceGetUUID, handle)
        if not uuid:
            return None
        memory = self._ask(self._api.nvmlDeviceGetMemoryInfo, handle)
        return Device(
            id=uuid,
            kind=kind,
            name=self._ask(self._api.nvmlDeviceGetName, handle) or "NVIDIA GPU",
            index=index,
            memory=0 if memory is None else int(memory.total),
        )

    def _mig_is_on(self, gpu: Any) -> bool:
        mode = self._ask(self._api.nvmlDeviceGetMigMode, gpu)
        return mode is not None and mode[0] == self._api.NVML_DEVICE_MIG_ENABLE

    def _slices(self, gpu: Any) -> Iterator[Any]:
        for position in range(self._ask(self._api.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0):
            part = self._ask(self._api.nvmlDeviceGetMigDeviceHandleByIndex, gpu, position)
            if part is not None:
                yield part

    def _ask(self, query: Callable[..., _T], *args: object) -> _T | None:
        """An answer of NVML, or None: not supported here, not permitted, or the GPU is lost."""
        try:
            return query(*args)
        except self._api.NVMLError as error:
            _log.debug("%s: %s", query.__name__, error)
            return None
