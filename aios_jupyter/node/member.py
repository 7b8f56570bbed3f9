"""One rank of a gang: its process, and what is known of its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import NamedTuple, Protocol

from ..devices.cpu import usable_cores
from ..process import process_start
from ..runs.events import ErrorRaised
from ..runs.spec import RankSpec, RunSpec
from ..schema import DeviceKind, RankExit
from . import reaper
from .accounts import Account
from .output import Output
from .verdict import Sign

# glibc's allocator: a training step frees as much as the next one takes, and giving it to the kernel
# in between cost up to a third of the steps a second, by chance of what was freed in which order.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(512 * 1024**2),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
}


class Process(Protocol):
    """A child of this process."""

    pid: int

    def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""


class Before(NamedTuple):
    """What the next attempt of a run tells of the one before it.

    Attributes
    ----------
    last
        The number of its last event.
    reason
        Why there is another, a sentence without its end.
    ranks
        How many it had.
    restarts
        How many failures there have been; 0: this attempt follows none.
    """

    last: int
    reason: str
    ranks: int
    restarts: int

    def sentence(self, now: int, most: int) -> str:
        """What the log says of the next attempt: with `now` ranks, and `most` restarts at most."""
        what = f"restart {self.restarts} of at most {most}" if self.restarts else "goes on"
        if now != self.ranks:
            what += f", with {now} rank{'s' if now > 1 else ''} for {self.ranks}"
        return f"{what}, as {self.reason}"


class RankProcess:
    """A rank's process, and how it ended once it has."""

    def __init__(
        self,
        spec: RankSpec,
        process: Process,
        mark: str,
        run: RunSpec,
        account: Account | None = None,
    ) -> None:
        self.spec = spec
        self.account = account
        self.number = spec.rank
        self.process = process
        self.started = reaper.Started(
            pid=process.pid,
            start=process_start(process.pid),
            run=run.id,
            lease=run.lease,
            rank=spec.rank,
            mark=mark,
        )
        self.output: Output | None = None
        self.lifeline = -1
        self.fault = -1
        self.fault_read = 0
        self.fault_text = ""
        self.looking = asyncio.Lock()
        self.error: ErrorRaised | None = None
        self.code: int | None = None
        self.died = 0.0
        self.killed = False
        self.buried = False
        self.exit: RankExit | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None or self.code not in (None, 0)

    def sign(self) -> Sign:
        """What speaks for this rank having failed first."""
        return Sign(
            rank=self.number,
            time=self.error.time if self.error else self.died,
            code=1 if self.code is None or self.error else self.code,
            error=self.error,
        )

    def signal(self, number: signal.Signals) -> None:
        """Signal the rank alone: what it has started is for it to end."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def kill_group(self) -> None:
        """SIGKILL for the rank's group. Its pid is ours until the process is waited for."""
        if not self.buried:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def threads_for(rank: RankSpec) -> int:
    """Threads for a rank's arithmetic: one for a CPU slot, else its share of the machine."""
    if rank.kind is DeviceKind.CPU:
        return 1
    return max(1, usable_cores() // rank.local_world_size)


def read_fault(fd: int, cell: str, start: int = 0) -> str:
    """What `faulthandler` wrote when the rank died in native code, without our own frames."""
    text = (
        os.pread(fd, 100_000, start).decode(errors="replace").partition("\nExtension modules:")[0]
    )
    ours = tuple(
        f"aios_jupyter/{name}.py" for name in ("runs/rank", "runs/lifeline", "node/zygote")
    )
    ours += ("<frozen runpy>",)
    lines = [line for line in text.splitlines() if not any(part in line for part in ours)]
    text = "\n".join(lines).strip()
    return text.replace(f'"{cell}"', f'"{Path(cell).name}"') if cell else text
