"""Slurm, through its own commands: what is asked of `sbatch`, and what `squeue` says.

A job's tasks are nodes of the cluster, one on each machine (`task.py`). What goes to Slurm has no
secret: a task finds its bundle by the job's number, in a directory that both machines see.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..errors import AllocationError, ClusterError, UsageError

# How long before the end of a job's time Slurm tells its tasks, seconds; it may do so a minute earlier.
SIGNAL_BEFORE = 60
_EARLIER = 60
# For so long a job that was just handed in need not be known everywhere (s).
SETTLING = 20.0
# What a job that is handed in from within another would take over from it, what changes what is
# printed, and what is of the kernel that happens to ask.
_OTHERS = re.compile(
    "SLURM_(?!CONF$|CLUSTERS$|JWT$)|SQUEUE_|SINFO_|SCANCEL_|JPY_PARENT_PID$|JPY_SESSION_NAME$|MPLBACKEND$"
)
_HERE: Mapping[str, str] = MappingProxyType({})
# The answer of Slurm's controller to one command (s).
_PATIENCE = 60.0
_FORMAT = "%i|%j|%T|%r|%S|%e"
_NEVER = frozenset({"PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints"})
_WAITING = frozenset({"PENDING", "CONFIGURING"})
_GOING = _WAITING | {
    *("RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
}
_ENDS = {
    "BOOT_FAIL": "could not start on its machines",
    "CANCELLED": "was cancelled",
    "COMPLETED": "has ended",
    "DEADLINE": "could not end by its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "has lost a machine",
    "OUT_OF_MEMORY": "used more memory than it was given",
    "PREEMPTED": "was taken for other jobs",
    "TIMEOUT": "has reached the end of its time",
}


@dataclass(frozen=True)
class Wish:
    """What is asked of Slurm.

    Attributes
    ----------
    nodes
        How many machines.
    gpus
        Of all of them together, the same number on each.
    cpus
        Cores of each machine, 0 for what the partition gives.
    memory
        Bytes of each machine's memory, 0 for what the partition gives.
    time
        Seconds, None for the partition's own limit.
    options
        More options of `sbatch`, as that takes them.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    memory: int = 0
    time: float | None = None
    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises
        ------
        UsageError
            With what to give instead.
        """
        if self.nodes < 1 or min(self.gpus, self.cpus, self.memory) < 0:
            raise UsageError("A Slurm job has one node at least, and no negative numbers.")
        if self.gpus % self.nodes:
            raise UsageError(
                f"{self.gpus} GPUs are not the same number on each of {self.nodes} nodes; ask for "
                f"{self.gpus - self.gpus % self.nodes or self.nodes} or another number of nodes."
            )
        for option in self.options:
            if not option.startswith("-"):
                raise UsageError(f"{option!r} is no option of sbatch; write it like --qos=high.")

    @property
    def signal_before(self) -> int:
        """How long before the end of its time Slurm tells the job's tasks, seconds."""
        return SIGNAL_BEFORE if self.time is None else min(SIGNAL_BEFORE, int(self.time / 8))

    def arguments(self) -> list[str]:
        """Those of `sbatch`."""
        given = [f"--nodes={self.nodes}", "--ntasks-per-node=1"]
        if self.gpus:
            given.append(f"--gres=gpu:{self.gpus // self.nodes}")
        if self.cpus:
            given.append(f"--cpus-per-task={self.cpus}")
        if self.memory:
            given.append(f"--mem={math.ceil(self.memory / 2**20)}M")
        if self.time:
            given.append(f"--time={math.ceil(self.time / 60)}")
        if self.partition:
            given.append(f"--partition={self.partition}")
        if self.account:
            given.append(f"--account={self.account}")
        return [*given, *self.options]


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job. Times are seconds since the epoch, None where it does not know."""

    id: str
    name: str
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None

    @property
    def over(self) -> bool:
        """Whether it runs no more, and never will."""
        return self.state not in _GOING

    @property
    def runs(self) -> bool:
        """Whether its machines are there."""
        return not self.over and self.state not in _WAITING

    def sentence(self, now: float) -> str:
        """How it is, in a sentence."""
        if self.over:
            how = _ENDS.get(self.state, f"is {self.state.lower().replace('_', ' ')}")
            return f"Slurm job {self.id} {how}."
        if self.state == "PENDING" and self.reason in _NEVER:
            return (
                f"Slurm job {self.id} cannot start as it stands ({self.reason}): stop it with "
                f"'aios node stop slurm-{self.id}' and ask for less."
            )
        if self.runs:
            return f"Slurm job {self.id} is {self.state.lower()}."
        reason = "" if self.reason in ("", "None") else f" ({self.reason})"
        text = f"Slurm job {self.id} waits{reason}"
        if self.start and self.start > now:
            text += f"; Slurm expects it to start at {_clock(self.start, now)}"
        return f"{text}."


def script(python: str, jobs: Path, simulate_gpus: int) -> str:
    """The job: a task on each machine, whose end ends no other."""
    task = [python, "-m", "aios_jupyter.cluster.task", str(jobs), str(simulate_gpus)]
    log = f"{str(jobs).replace('%', '%%')}/%j-%t.log"
    step = ["srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=0", "--mpi=none"]
    return f"#!/bin/sh\nexec {shlex.join([*step, f'--output={log}', *task])}\n"


def submit(wish: Wish, name: str, jobs: Path, simulate_gpus: int = 0) -> str:
    """Hand a job in; returns its number.

    Raises
    ------
    AllocationError
        Slurm refuses it; with what Slurm says.
    ClusterError
        There is no Slurm here, or it does not answer.
    """
    command = [
        *("sbatch", "--parsable", f"--job-name={name}", "--no-requeue"),
        *(f"--signal=TERM@{wish.signal_before}", "--chdir=/"),
        f"--output={str(jobs).replace('%', '%%')}/%j.log",
        *wish.arguments(),
    ]
    done = _call(command, script(sys.executable, jobs, simulate_gpus))
    if done.returncode:
        raise AllocationError(f"Slurm refuses the job: {_said(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def setting() -> dict[str, str]:
    """What another process needs to find the Slurm that this one finds."""
    names = ("PATH", "SLURM_CONF", "SLURM_CLUSTERS")
    return {name: os.environ[name] for name in names if name in os.environ}


def queue(ids: Sequence[str], where: Mapping[str, str] = _HERE) -> dict[str, Job]:
    """What Slurm knows of jobs; those that it has forgotten are left out.

    Parameters
    ----------
    where
        The `setting` in which they were handed in.

    Raises
    ------
    ClusterError
        It does not answer.
    """
    if not ids:
        return {}
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}"]
    done = _call([*command, f"--format={_FORMAT}"], where=where)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ClusterError(f"Slurm does not say how its jobs are: {_said(done.stderr)}")
    return {job.id: job for job in parse_queue(done.stdout)}


def parse_queue(text: str) -> list[Job]:
    """Read what `squeue` prints."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == _FORMAT.count("|") + 1:
            id, name, state, reason, start, end = fields
            found.append(Job(id, name, state, reason, _time(start), _time(end)))
    return found


def cancel(id: str, name: str, where: Mapping[str, str] = _HERE) -> None:
    """End a job, where it has that name: a number may come again, a name does not.

    Raises
    ------
    ClusterError
        Slurm does not answer.
    """
    done = _call(["scancel", f"--name={name}", id], where=where)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ClusterError(f"Slurm does not cancel job {id}: {_said(done.stderr)}")


def end_of(id: str) -> float | None:
    """When the time of a job that runs is over, as one of its own tasks asks."""
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if told.isdigit():
        return float(told)
    job = queue([id]).get(id)
    return job.end if job else None


def drains(end: float, now: float, grace: float) -> float:
    """Until when a job's machines are leased: ranks then have their grace before Slurm's signal.

    Of a short time half is left.
    """
    return end - min(SIGNAL_BEFORE + _EARLIER + grace, (end - now) / 2)


def machines(partition: str = "") -> list[str]:
    """Addresses of a partition's machines.

    Raises
    ------
    ClusterError
        There is no Slurm here.
    """
    command = ["sinfo", "--noheader", "--Node", "--format=%o"]
    done = _call([*command, f"--partition={partition}"] if partition else command)
    # Of a partition that there is not, `sbatch` will say so.
    return done.stdout.split() or _call(command).stdout.split()


def _call(
    command: list[str], text: str = "", where: Mapping[str, str] = _HERE
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not _OTHERS.match(name)}
    environment |= where
    try:
        return subprocess.run(
            command,
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(
            f"There is no Slurm here (no {command[0]!r}); ask from a machine on which its jobs are "
            "handed in, such as a login node."
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Slurm did not answer '{command[0]}' within a minute.") from None


def _said(text: str) -> str:
    """What Slurm's commands say of an error, as one sentence."""
    lines = []
    for line in text.splitlines():
        program, colon, rest = line.partition(": ")
        words = rest if colon and program in ("sbatch", "squeue", "scancel") else line
        words = words.removeprefix("error: ").removeprefix("Batch job submission failed: ").strip()
        if words and not words.startswith("Try ") and words not in lines:
            lines.append(words)
    return "; ".join(lines).rstrip(".") + "." if lines else "it gives no reason."


def _clock(when: float, now: float) -> str:
    near = when - now < 12 * 3600
    return time.strftime("%H:%M" if near else "%Y-%m-%d %H:%M", time.localtime(when))


def _time(text: str) -> float | None:
    """Local time, as `squeue` prints it; None for N/A."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
