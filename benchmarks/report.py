"""The one JSON line that ends each benchmark's output."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path


def report(
    benchmark: str, figures: Mapping[str, float], against: Mapping[str, str] | Iterable[str]
) -> None:
    """Print the benchmark's JSON line; nothing may be printed after it.

    Parameters
    ----------
    benchmark
        The benchmark's name: its file's name without `.py`.
    figures
        Name to number; a name that ends in a unit is in that unit, others are ratios.
    against
        Peer to version; or the peers' distribution names, whose installed versions are looked up.
    """
    if not isinstance(against, Mapping):
        against = {name: importlib.metadata.version(name) for name in against}
    line = {
        "benchmark": benchmark,
        "figures": {name: float(f"{value:.6g}") for name, value in figures.items()},
        "against": dict(against),
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


def machine() -> dict[str, str | int | float]:
    """What the benchmark ran on: processor, usable cores, memory (GiB), system, Python."""
    return {
        "cpu": _cpu_model(),
        "cpus": _usable_cpus(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
