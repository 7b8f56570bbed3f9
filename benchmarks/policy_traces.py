"""What each policy does for waiting, on a public trace and on a synthetic mix.

Jobs are replayed through the broker's own core (`State.handle`), with its clock simulated: 15,000
jobs of the Philly trace on 512 GPUs, and two mixes of 6,000 jobs on 64 GPUs at a load of 0.92:
`synthetic`, of users with habits of their own, and `gavel`, as in the simulations of Gavel
(Narayanan et al., OSDI 2020, §7.1), where lengths have nothing to do with users. `synthetic` is
drawn eight times, as by how much anything can gain there is between 2.8 and 6.1 by chance alone;
its figures are over all of them. Nothing says how long a job will take: `sjf` predicts it from the
leases that have ended before. `…+time` are the same with exact times given, as `--time` would, and
`sjf+known` knows how the lengths of each user of `synthetic` are spread, which is all that a
prediction can learn. Compared are mean, 95th percentile and maximum of the wait and of the
completion time (from submission to end) with strict FIFO, where nobody overtakes anybody, and with
a bound that no scheduler can beat.

The bound is the larger of two relaxations: the cluster as one machine that is as fast as all of its
GPUs and serves the shortest remaining work first, preempting for nothing; and no wait at all. By how
much anything can gain depends on the jobs: 3.96 on the Philly slice, 4.17 on `synthetic`, 1.81 on
`gavel`, whose jobs are long beside their waits. `…_of_bound` is which part of that a policy reaches.

Under `las` and `gittins` every job is preemptible, and does 60 s of its work again after each
preemption. A wait is all of the completion time in which a job made no headway.

The aging of three and a half days, and that a prediction is the geometric mean of the last 300
lengths, were chosen on the Philly trace: `sjf` gains 2.89 to 3.05 there with agings of 2.5 to 4
days. The levels of `las` and `gittins` were not: with first edges from 100 to 3,600 device-seconds
and factors from 2 to 10 between them `las` gains 3.68 to 3.73.

Under `sjf` the leases in the way are expected to last as those like them did
(`history.outlasting`), so that others go past the first while it waits. Without that it gains 3.01
on Philly, 2.90 on `synthetic` and 1.27 on `gavel`; with it 3.03, 3.00 and 1.33, and 4.26 for 4.02
on the next 32 draws of `synthetic`, which nothing was chosen by. No better predictions would add to
that: `sjf+known` gains 2.99. Under the other policies a lease without a time gives no reservation,
and `…+time` shows what backfill adds.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import math
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from report import report

from aios_jupyter.broker import events as ev
from aios_jupyter.broker import history
from aios_jupyter.broker.state import State
from aios_jupyter.schema import Device, DeviceKind, Lease, Node, Owner, Request, Want

DATA = Path(__file__).parent / "data" / "philly-slice.csv"
SLICE, LEARNED = 15_000, 3_000
MIXED, MIX_GPUS, LOAD = 6_000, 64, 0.92
SEEDS = range(1, 9)
GPUS_PER_NODE = 8
STRICT = "strict fifo"
DEFAULT = "sjf"
SUSPENDS = ("las", "gittins")
POLICIES = ("fifo", "fifo+time", "sjf", "sjf+known", "sjf+time", "priority", "fair", *SUSPENDS)
# What a job does again after each preemption (s): its last checkpoint was that long ago.
RESUME = 60.0
# No job of the synthetic mix takes longer (s).
LONGEST = 2 * 86400.0


@dataclass(frozen=True)
class Job:
    """One job: when it is submitted, for how long it runs (s), on how many GPUs, and whose it is."""

    submitted: float
    length: float
    gpus: int
    user: str


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


@dataclass(frozen=True)
class Figures:
    """What became of a trace under a policy, in seconds; `wall` is what the replay took."""

    trace: str
    policy: str
    waits: tuple[float, ...]
    completions: tuple[float, ...]
    wall: float
    preemptions: int = 0


def philly(limit: int) -> Trace:
    """The slice of the Philly trace."""
    with DATA.open() as file:
        jobs = [
            Job(
                datetime.fromisoformat(row["timestamp"]).timestamp(),
                max(1.0, float(row["duration"])),
                int(row["num_gpus"]),
                row["cluster"],
            )
            for row in csv.DictReader(file)
        ]
    return Trace(
        "philly", 512, tuple(jobs[-SLICE:][:limit]), tuple(jobs[-SLICE - LEARNED : -SLICE])
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


class Knowing(State):
    """The core of a broker that knows how its users' lengths are spread, and need not learn it."""

    def __init__(self, policy: str, habits: dict[str, Habit]) -> None:
        super().__init__(policy=policy)
        usual = statistics.NormalDist()
        shares = [(number + 0.5) / history.KEPT for number in range(history.KEPT)]
        for user, habit in habits.items():
            lengths = tuple(habit.length(usual.inv_cdf(share)) for share in shares)
            kind = history.kinds_of(_request("", user, habit.gpus))[0]
            self._history[kind] = ev.Lasted(lengths=lengths, errors=(), usual=habit.length(0.0))

    def _learn(self, lease: Lease) -> None:
        pass


class Replay:
    """The broker's core, agents and users, on one simulated clock."""

    def __init__(self, trace: Trace, policy: str, given: str) -> None:
        known = trace.habits if given == "known" else None
        self.state = Knowing(policy, known) if known else State(policy=policy)
        self.times = given == "time"
        self.now = 0.0
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.running: list[tuple[float, int, str, str]] = []
        self.jobs: dict[str, Job] = {}
        # What is left to do of each job, and when its lease was granted; how often one was taken.
        self.left: dict[str, float] = {}
        self.since: dict[str, float] = {}
        self.preempted = 0
        for node in range(trace.gpus // GPUS_PER_NODE):
            self.do(ev.NodeJoined(node=_node(f"n{node}")))
        for user in sorted({job.user for job in (*trace.jobs, *trace.learned)}):
            self.do(ev.SessionOpened(owner=Owner(id=user, user=user)))

    def do(self, event: ev.Event) -> None:
        """Tell the core, and carry out the grants that follow."""
        for action in self.state.handle(event, self.now):
            if isinstance(action, ev.Granted):
                id, lease = action.request.id, action.lease
                self.started.setdefault(id, self.now)
                self.since[lease.id] = self.now
                heapq.heappush(self.running, (self.now + self.left[id], lease.fence, lease.id, id))
            elif isinstance(action, ev.LeaseEnded):
                ran = self.now - self.since.pop(action.lease.id)
                if action.lease.preempted:
                    self.left[action.lease.request] += RESUME - ran
                    self.preempted += 1

    def submit(self, id: str, job: Job) -> None:
        """A job's user asks for its GPUs."""
        self.jobs[id] = job
        self.left[id] = job.length
        time = job.length if self.times else None
        suspends = self.state.policy.suspends
        request = _request(id, job.user, job.gpus, time=time, preemptible=suspends)
        self.do(ev.Submitted(request=request))

    def finish(self) -> None:
        """The job whose end is next ends and gives its GPUs back."""
        self.now, _, lease, id = heapq.heappop(self.running)
        self.ended[id] = self.now
        self.do(ev.Released(lease=lease, by=self.jobs[id].user))

    def advance(self, until: float) -> None:
        """All that happens up to a time: ends of jobs first, then the core's own deadlines."""
        while True:
            while self.running and self.running[0][2] not in self.since:
                heapq.heappop(self.running)
            end = self.running[0][0] if self.running else math.inf
            due = self.state.next_deadline() or math.inf
            if min(end, due) > until or end == due == math.inf:
                return
            if end <= due:
                self.finish()
            else:
                self.now = due
                self.do(ev.Tick())

    def run(self, trace: Trace) -> None:
        """Learn from the older jobs, one at a time on the empty cluster; then replay."""
        span = sum(job.length for job in trace.learned)
        self.now = trace.jobs[0].submitted - span - 1.0
        for number, job in enumerate(trace.learned):
            self.submit(f"l{number}", job)
            self.finish()
        for number, job in enumerate(trace.jobs):
            self.advance(job.submitted)
            self.now = job.submitted
            self.submit(f"j{number}", job)
        self.advance(math.inf)


def _request(id: str, user: str, gpus: int, **wish: Any) -> Request:
    return Request(id=id, session=user, user=user, want=Want.GPU, count=gpus, **wish)


def _node(name: str) -> Node:
    devices = tuple(
        Device(id=f"{name}-{i}", kind=DeviceKind.GPU, name="GPU", index=i, memory=16 * 10**9)
        for i in range(GPUS_PER_NODE)
    )
    return Node(id=name, host=name, address=f"{name}:1", pid=1, devices=devices)


def replay(trace: Trace, policy: str) -> Figures:
    """Replay a trace under a policy; `…+time` and `…+known` say what is known."""
    start = time.perf_counter()
    name, _, given = policy.partition("+")
    one = Replay(trace, name, given)
    one.run(trace)
    jobs = {f"j{number}": job for number, job in enumerate(trace.jobs)}
    return Figures(
        trace.name,
        policy,
        tuple(one.ended[id] - job.submitted - job.length for id, job in jobs.items()),
        tuple(one.ended[id] - job.submitted for id, job in jobs.items()),
        time.perf_counter() - start,
        one.preempted,
    )


def strict_fifo(trace: Trace) -> Figures:
    """First come, first served, and nobody overtakes anybody."""
    free, now = trace.gpus, 0.0
    running: list[tuple[float, int]] = []
    waits, completions = [], []
    for job in trace.jobs:
        now = max(now, job.submitted)
        while running and (running[0][0] <= now or free < job.gpus):
            end, gpus = heapq.heappop(running)
            now, free = max(now, end), free + gpus
        free -= job.gpus
        heapq.heappush(running, (now + job.length, job.gpus))
        waits.append(now - job.submitted)
        completions.append(now + job.length - job.submitted)
    return Figures(trace.name, STRICT, tuple(waits), tuple(completions), 0.0)


def lower_bound(trace: Trace) -> float:
    """No mean completion time is below this."""
    waiting: list[tuple[float, float]] = []
    now = total = 0.0
    arrivals = [(job.submitted, job.length * job.gpus / trace.gpus) for job in trace.jobs]
    for (submitted, work), until in zip(
        arrivals, [*(when for when, _ in arrivals[1:]), math.inf], strict=True
    ):
        now = max(now, submitted)
        heapq.heappush(waiting, (work, submitted))
        while waiting and now < until:
            left, since = heapq.heappop(waiting)
            if now + left <= until:
                now += left
                total += now - since
            else:
                heapq.heappush(waiting, (left - (until - now), since))
                now = until
    relaxed = total / len(trace.jobs)
    return max(relaxed, statistics.fmean(job.length for job in trace.jobs))


def longest(figures: Figures, base: Figures) -> float:
    """The longest wait over the base's; of few jobs nobody may have waited at all."""
    return max(figures.waits) / max(1.0, *base.waits)


def show(figures: Figures, base: Figures) -> None:
    """One line of the table."""
    gain = statistics.fmean(base.completions) / statistics.fmean(figures.completions)
    cells = [f"{figures.policy:12} {gain:6.2f} {longest(figures, base):7.2f} "]
    for values in (figures.waits, figures.completions):
        numbers = (statistics.fmean(values), history.quantile(values, 0.95), max(values))
        cells.append("".join(f"{number / 3600:9.2f}" for number in numbers))
    print(" ".join(cells), f"{figures.wall:8.1f} {figures.preemptions:8}")


def together(found: Sequence[Figures]) -> Figures:
    """What became of several traces of the same kind under one policy."""
    waits = tuple(wait for one in found for wait in one.waits)
    completions = tuple(time for one in found for time in one.completions)
    wall, preemptions = sum(one.wall for one in found), sum(one.preemptions for one in found)
    return Figures(found[0].trace, found[0].policy, waits, completions, wall, preemptions)


def compare(traces: Sequence[Trace], found: Iterable[Figures]) -> dict[str, float]:
    """Print the table of traces of one kind; returns their figures for the report."""
    by_policy: dict[str, list[Figures]] = {}
    for one in found:
        by_policy.setdefault(one.policy, []).append(one)
    trace, base, figures = traces[0], together([strict_fifo(trace) for trace in traces]), {}
    bound = statistics.fmean(lower_bound(trace) for trace in traces)
    print(f"\n{trace.name}: {len(base.waits)} jobs on {trace.gpus} GPUs; hours")
    print(
        "                gain max wait     wait mean, p95, max       completion mean, p95, max  took s  preempted"
    )
    show(base, base)
    mean = statistics.fmean(base.completions)
    for one in map(together, by_policy.values()):
        show(one, base)
        name = f"{trace.name}_{one.policy.replace('+', '_')}"
        figures[f"{name}_jct_gain"] = mean / statistics.fmean(one.completions)
        figures[f"{name}_max_wait_ratio"] = longest(one, base)
        figures[f"{name}_of_bound"] = bound / statistics.fmean(one.completions)
    figures[f"{trace.name}_bound_jct_gain"] = mean / bound
    print(f"{'bound':12} {mean / bound:6.2f} {'':26} {'':9}{bound / 3600:9.2f}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=SLICE, help="replay so many of each trace")
    parser.add_argument("--policies", nargs="+", default=POLICIES, metavar="NAME")
    chosen = parser.parse_args()
    kinds = (
        [philly(chosen.jobs)],
        [synthetic(chosen.jobs, seed) for seed in SEEDS],
        [gavel(chosen.jobs)],
    )
    todo = [
        (trace, policy)
        for kind in kinds
        for trace in kind
        for policy in chosen.policies
        if trace.habits or not policy.endswith("+known")
    ]
    with get_context("spawn").Pool(2) as pool:
        found = pool.starmap(replay, todo, chunksize=1)
    figures: dict[str, float] = {}
    for kind in kinds:
        figures |= compare(kind, [one for one in found if one.trace == kind[0].name])
    if f"philly_{DEFAULT}_jct_gain" in figures:
        figures = {
            "mean_jct_gain": figures[f"philly_{DEFAULT}_jct_gain"],
            "max_wait_ratio": figures[f"philly_{DEFAULT}_max_wait_ratio"],
            **figures,
        }
    for name in SUSPENDS:
        if f"philly_{name}_jct_gain" in figures:
            figures[f"{name}_jct_gain"] = figures[f"philly_{name}_jct_gain"]
    report("policy_traces", figures, {STRICT: "simulated"})


if __name__ == "__main__":
    main()
