"""`--profile`: torch's profiler over a few optimizer steps. Imports torch.

It begins when the first steps are over, whose one-time work says nothing about the others, and ends
by itself. A trace for chrome://tracing or Perfetto is kept in the run's directory; the table of what
took longest is printed when the rank ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

WAIT = 3
WARM_UP = 2
STEPS = 10
ROWS = 12
LONGEST_NAME = 46


def file_of(rank: int) -> str:
    """The name of the trace in the run's directory."""
    return f"profile-{rank}.json"


class Profiler:
    """Profiles `STEPS` steps of this rank; called after each step.

    Before the first step and after the last nothing is done, so that all other steps take as long
    as ever.
    """

    def __init__(self, rank: int, directory: Path) -> None:
        self._rank = rank
        self._path = directory / file_of(rank)
        self._profile: Any = None
        self._seen = 0
        self._over = False
        self._table = ""

    def step(self) -> None:
        """After an optimizer step."""
        if self._over:
            return
        self._seen += 1
        if self._seen == WAIT:
            self._begin()
        elif self._profile is not None:
            self._profile.step()
            if self._seen == WAIT + WARM_UP + STEPS:
                self._end()

    def finish(self) -> None:
        """The code has ended: print the table."""
        if not self._over and self._profile is not None and self._seen > WAIT + WARM_UP:
            self._end()
        self._over = True
        if not self._table:
            least = WAIT + WARM_UP + 1
            self._table = (
                f"Nothing was profiled on rank {self._rank}: it made {self._seen} optimizer steps, "
                f"and the first {least - 1} are warm-up."
            )
        print(self._table, file=sys.stdout, flush=True)  # noqa: T201

    def _begin(self) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1),
        )
        self._profile.start()

    def _end(self) -> None:
        self._over = True
        profile, self._profile = self._profile, None
        profile.stop()
        steps = self._seen - WAIT - WARM_UP
        self._table = table(profile.key_averages(), self._rank, steps)
        try:
            profile.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as error:
            self._table += f"\nThe trace could not be kept: {error}."
        else:
            self._path.chmod(0o600)


def table(averages: Any, rank: int, steps: int) -> str:
    """What took longest, by a device's own time where there is any, else by the CPU's."""
    rows = [row for row in averages if not row.key.startswith("ProfilerStep")]
    cpu = sum(row.self_cpu_time_total for row in rows)
    device = sum(_device(row) for row in rows)
    rows.sort(key=_device if device else lambda row: row.self_cpu_time_total, reverse=True)
    lines = [
        f"--- profile of rank {rank}, {steps} steps ---",
        f"{'operation':<{LONGEST_NAME}} {'calls':>7} {'CPU ms':>9} {'%':>5} {'GPU ms':>9} {'%':>5}",
    ]
    for row in rows[:ROWS]:
        name = row.key if len(row.key) <= LONGEST_NAME else f"{row.key[: LONGEST_NAME - 1]}…"
        own = row.self_cpu_time_total
        lines.append(
            f"{name:<{LONGEST_NAME}} {row.count:>7} {own / 1000:>9.2f} {_share(own, cpu):>5} "
            f"{_device(row) / 1000:>9.2f} {_share(_device(row), device):>5}"
        )
    return "\n".join(lines)


def _device(row: Any) -> float:
    """Microseconds on the device itself; older releases call it CUDA's."""
    return float(getattr(row, "self_device_time_total", getattr(row, "self_cuda_time_total", 0.0)))


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
