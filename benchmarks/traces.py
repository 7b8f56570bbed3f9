"""Jobs to replay: a public trace, synthetic mixes, and traces of your own.

`read` takes CSV files of three kinds, which it tells apart by their columns:

- Philly's as prepared in the repository `siasosp23/artifacts` (`sia-simulator/traces/philly.csv`,
  of which a slice is in `data/`): timestamp, duration, num_gpus, cluster;
- Alibaba's of 2023 (`alibaba/clusterdata`, `cluster-trace-gpu-v2023/csv/openb_pod_list_*.csv`), where
  a job may have a part of a GPU: num_gpu, gpu_milli, qos, creation_time, deletion_time,
  scheduled_time;
- any other: submitted (seconds, or an ISO time), length (s), gpus, user; `sacct` gives these by
  `--format=Submit,ElapsedRaw,AllocTRES,User` and a line of awk.
"""

from __future__ import annotations

import csv
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

DATA = Path(__file__).parent / "data" / "philly-slice.csv"
SLICE, LEARNED = 15_000, 3_000
MIXED, MIX_GPUS, LOAD = 6_000, 64, 0.92
# No job of the synthetic mix takes longer (s).
LONGEST = 2 * 86400.0

Row = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One job: when it is submitted, for how long it runs (s), on how many GPUs, and whose it is.

    `part` is how much of each GPU it takes.
    """

    submitted: float
    length: float
    gpus: int
    user: str
    part: float = 1.0

    @property
    def size(self) -> float:
        """How many whole GPUs that is."""
        return self.gpus * self.part


@dataclass(frozen=True)
class Habit:
    """What one user asks for: always so many GPUs, for a length around `exp(middle)`."""

    middle: float
    gpus: int

    def length(self, deviation: float) -> float:
        """The length so many standard deviations away from the usual one."""
        return min(math.exp(self.middle + deviation), LONGEST)


@dataclass(frozen=True)
class Trace:
    """Jobs to replay on so many GPUs, and older ones to learn from; what is to be known of users."""

    name: str
    gpus: int
    jobs: tuple[Job, ...]
    learned: tuple[Job, ...]
    habits: dict[str, Habit] | None = None


def philly(limit: int) -> Trace:
    """The slice of the Philly trace."""
    jobs = _jobs(DATA)
    return Trace(
        "philly", 512, tuple(jobs[-SLICE:][:limit]), tuple(jobs[-SLICE - LEARNED : -SLICE])
    )


def read(path: Path, limit: int, gpus: int | None = None) -> Trace:
    """A trace of your own: its last jobs to replay, and up to `LEARNED` before these to learn from.

    Parameters
    ----------
    limit
        Replay no more than so many; a sixth of the jobs is always left to learn from.
    gpus
        On how many GPUs; None: on as many as make the load `LOAD`, and the widest job fit.

    Raises
    ------
    SystemExit
        The file is of no kind that is known, or has no job that takes a GPU.
    """
    jobs = _jobs(path)
    older = min(LEARNED, len(jobs) // 6)
    learned, replayed = jobs[:older], jobs[older:]
    if len(replayed) > limit:
        learned, replayed = jobs[-limit - older : -limit], jobs[-limit:]
    if gpus is None:
        span = max(1.0, replayed[-1].submitted - replayed[0].submitted)
        work = sum(job.length * job.size for job in replayed)
        gpus = math.ceil(work / span / LOAD)
    widest = max(job.gpus for job in jobs)
    return Trace(path.stem, max(gpus, widest), tuple(replayed), tuple(learned))


def _jobs(path: Path) -> list[Job]:
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        kind = next((read for known, read in _KINDS if known <= columns), None)
        if kind is None:
            wanted = "; ".join(", ".join(sorted(known)) for known, _ in _KINDS)
            raise SystemExit(f"{path} has not the columns of a trace that is known: {wanted}.")
        jobs = [job for row in rows if (job := kind(row)) is not None and job.gpus > 0]
    if not jobs:
        raise SystemExit(f"{path} has no job that takes a GPU.")
    return sorted(jobs, key=lambda job: job.submitted)


def _philly_job(row: Row) -> Job:
    submitted = datetime.fromisoformat(row["timestamp"]).timestamp()
    return Job(submitted, _length(row["duration"]), int(row["num_gpus"]), row["cluster"])


def _alibaba_job(row: Row) -> Job | None:
    """Some were never scheduled. Whose they are is not told; what is promised to them is."""
    if not row["scheduled_time"]:
        return None
    length = float(row["deletion_time"]) - float(row["scheduled_time"])
    part = min(1.0, int(row["gpu_milli"]) / 1000) or 1.0
    return Job(float(row["creation_time"]), _length(length), int(row["num_gpu"]), row["qos"], part)


def _own_job(row: Row) -> Job:
    try:
        submitted = float(row["submitted"])
    except ValueError:
        submitted = datetime.fromisoformat(row["submitted"]).timestamp()
    return Job(submitted, _length(row["length"]), int(row["gpus"]), row["user"])


def _length(seconds: str | float) -> float:
    return max(1.0, float(seconds))


_KINDS: tuple[tuple[set[str], Callable[[Row], Job | None]], ...] = (
    ({"timestamp", "duration", "num_gpus", "cluster"}, _philly_job),
    ({"num_gpu", "gpu_milli", "qos", "scheduled_time"}, _alibaba_job),
    ({"submitted", "length", "gpus", "user"}, _own_job),
)


def synthetic(limit: int, seed: int = 7) -> Trace:
    """Random arrivals, lengths over five orders of magnitude, users with habits of their own."""
    chance = random.Random(seed)
    habits = {
        f"user{i}": Habit(
            chance.uniform(4.0, 9.5),
            *chance.choices((1, 2, 4, 8, 16), (60, 15, 12, 10, 3)),
        )
        for i in range(40)
    }
    drawn = []
    for _ in range(MIXED + LEARNED):
        user = chance.choice(list(habits))
        habit = habits[user]
        drawn.append((habit.length(chance.normalvariate()), habit.gpus, user))
    return replace(_arriving("synthetic", chance, drawn, limit), habits=habits)


def gavel(limit: int) -> Trace:
    """The mix of Gavel's simulations: log-uniform lengths of 32 minutes to 167 hours."""
    chance = random.Random(7)
    drawn = []
    for _ in range(MIXED + LEARNED):
        (size,) = chance.choices((1, 2, 4, 8), (70, 10, 15, 5))
        minutes = 10 ** (
            chance.uniform(1.5, 3.0) if chance.random() < 0.8 else chance.uniform(3, 4)
        )
        drawn.append((60 * minutes, size, f"user{chance.randrange(40)}"))
    return _arriving("gavel", chance, drawn, limit)


def _arriving(
    name: str, chance: random.Random, drawn: list[tuple[float, int, str]], limit: int
) -> Trace:
    """Jobs (length, GPUs, user) that come at random times, at such a rate that the load is `LOAD`."""
    rate = MIX_GPUS * LOAD / statistics.fmean(length * size for length, size, _ in drawn)
    now, jobs = 0.0, []
    for length, size, user in drawn:
        now += chance.expovariate(rate)
        jobs.append(Job(now, max(1.0, length), size, user))
    return Trace(name, MIX_GPUS, tuple(jobs[LEARNED:][:limit]), tuple(jobs[:LEARNED]))
