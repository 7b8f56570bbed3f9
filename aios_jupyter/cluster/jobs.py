"""Slurm jobs that are nodes of the embedded cluster: asking for them, what becomes of them, their end.

    jobs/ID/job.json     what was asked for, and how it is
    jobs/ID/0, 1, …      the bundle of each node, removed when the job is over
    jobs/ID.log, ID-0.log, …  what the job and each node say

in the cluster's state directory, which all machines have to see. Whoever asks writes these files; the
broker's process looks after them (`watch.py`).
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ..config import private, settings
from ..errors import ClusterError, NotFoundError
from . import embedded, joined, nodes, reach, slurm
from .processes import read, write

# A job may wait for weeks before its machines join; what it joins with is revoked at its end.
CERTIFICATE_DAYS = 365.0
# For so long what became of a job is shown (s).
REMEMBERED = 3600.0
_WHOSE = "Slurm's machines"


@dataclass(frozen=True)
class Asked:
    """A job that was handed in, and how it is.

    Attributes
    ----------
    id, name
        Slurm's number of it, and the name that tells it from every other.
    nodes
        Names of the nodes that it is.
    gpus, cpus
        What each of them will have; `simulated` says of which kind the GPUs are.
    setting
        Variables by which Slurm's commands are found where it was asked, for whoever looks after it.
    state
        `waiting`, `running` or `over`.
    note
        How it is, in a sentence.
    ended
        When it was found to be over.
    """

    id: str
    name: str
    nodes: tuple[str, ...]
    gpus: int
    cpus: int
    simulated: bool
    submitted: float
    setting: dict[str, str] = field(default_factory=dict)
    state: str = "waiting"
    note: str = ""
    start: float | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether it is."""
        return self.state == "over"

    @property
    def forgotten(self) -> bool:
        """Whether what became of it is shown no more."""
        return self.ended is not None and time.time() - self.ended > REMEMBERED


def start(
    wish: slurm.Wish, *, taken: frozenset[str] = frozenset(), simulate_gpus: int = 0
) -> Asked:
    """Hand a job in whose tasks join as nodes, and make their bundles.

    Parameters
    ----------
    taken
        Names of the nodes that the cluster has.
    simulate_gpus
        Simulated ones that each offers.

    Raises
    ------
    AllocationError
        Slurm refuses it.
    ClusterError
        There is no Slurm here, or its machines do not reach this cluster.
    """
    wish.check()
    reach.check(embedded.ensure(start=False)["address"], slurm.machines(wish.partition), _WHOSE)
    name = f"aios-{settings().cluster}-{secrets.token_hex(4)}"
    jobs = directory()
    id = slurm.submit(wish, name, jobs, simulate_gpus)
    asked = Asked(
        id=id,
        name=name,
        nodes=tuple(f"slurm-{id}-{task}" for task in range(wish.nodes)),
        gpus=simulate_gpus or wish.gpus // wish.nodes,
        cpus=wish.cpus,
        simulated=simulate_gpus > 0,
        submitted=time.time(),
        setting=slurm.setting(),
        note=f"Slurm job {id} was handed in.",
    )
    try:
        private(jobs / id)
        _write(asked)
        for task, node in enumerate(asked.nodes):
            to = jobs / id / str(task)
            nodes.add(node, to, taken=taken, data=True, days=CERTIFICATE_DAYS)
    except BaseException:
        slurm.cancel(id, name)
        put_away(asked)
        _remove(asked)
        raise
    return seen(asked, slurm.queue([id]).get(id))


def own_address(partition: str = "") -> str:
    """The address of this machine on the way to those of a partition."""
    return reach.own_address(slurm.machines(partition), _WHOSE)


def seen(asked: Asked, job: slurm.Job | None) -> Asked:
    """How a job is by what Slurm says; None: that it knows of none."""
    if asked.over:
        return asked
    now = time.time()
    if job is None:
        if now - asked.submitted < slurm.SETTLING:
            return asked
        job = slurm.Job(asked.id, asked.name, "COMPLETED")
    note = job.sentence(now)
    if job.state == "FAILED" and (last := _last_words(asked.id)):
        note = f"{note.rstrip('.')}: {last} (its logs are {directory()}/{asked.id}*.log)"
    state = "over" if job.over else "running" if job.runs else "waiting"
    return replace(asked, state=state, note=note, start=job.start, ended=now if job.over else None)


def _last_words(id: str) -> str:
    """The last line of the first of a job's logs that has one, those of its nodes first."""
    for log in [*sorted(directory().glob(f"{id}-*.log")), directory() / f"{id}.log"]:
        with contextlib.suppress(FileNotFoundError):
            lines = log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].strip()
    return ""


def look() -> list[Asked]:
    """Every job that was asked for, as Slurm says it is now; one that is over is put away.

    Raises
    ------
    ClusterError
        Slurm does not answer.
    """
    known = list(rows())
    told: dict[str, slurm.Job] = {}
    going = [asked for asked in known if not asked.over]
    for _, alike in groupby(going, key=lambda asked: asked.setting):
        first, *others = alike
        told |= slurm.queue([asked.id for asked in (first, *others)], first.setting)
    found = []
    for asked in known:
        job = told.get(asked.id)
        # The number of another job, in a Slurm that has begun to count anew.
        now = seen(asked, job if job and job.name == asked.name else None)
        if now.over and not asked.over:
            put_away(now)
        elif now != asked:
            _write(now)
        if now.forgotten:
            _remove(now)
        found.append(now)
    return found


def _remove(asked: Asked) -> None:
    shutil.rmtree(directory() / asked.id, ignore_errors=True)
    for log in directory().glob(f"{asked.id}-*.log"):
        log.unlink(missing_ok=True)
    (directory() / f"{asked.id}.log").unlink(missing_ok=True)


def put_away(asked: Asked) -> None:
    """A job is over: its nodes have no access any more, and what let them in is removed."""
    with contextlib.suppress(NotFoundError):
        nodes.revoke(*asked.nodes)
    for task, node in enumerate(asked.nodes):
        shutil.rmtree(directory() / asked.id / str(task), ignore_errors=True)
        joined.forget(node)
    _write(asked)


def stop(asked: Asked) -> Asked:
    """End a job: its nodes have Slurm's grace, and are put away when Slurm says that it is over."""
    slurm.cancel(asked.id, asked.name, asked.setting)
    stopping = replace(asked, note=f"Slurm job {asked.id} is being stopped.")
    _write(stopping)
    return seen(stopping, slurm.queue([asked.id], asked.setting).get(asked.id))


def stop_all() -> list[str]:
    """End every job that this cluster has asked for, as it ends itself.

    The next one is told of them once, so that it knows that their nodes are gone. Returns a sentence
    for each job that may go on.
    """
    failed = []
    for asked in rows():
        try:
            if not asked.over:
                slurm.cancel(asked.id, asked.name, asked.setting)
        except ClusterError as error:
            failed.append(f"{error} Job {asked.id} may go on; end it with 'scancel {asked.id}'.")
        note = f"Slurm job {asked.id} was ended with the cluster."
        put_away(replace(asked, state="over", note=note, ended=0.0))
    return failed


def find(name: str) -> Asked | None:
    """The job of that number, or with a node of that name, that is not over."""
    for asked in rows():
        if not asked.over and name in (asked.id, f"slurm-{asked.id}", *asked.nodes):
            return asked
    return None


def rows() -> Iterator[Asked]:
    """Every job that was asked for, the oldest first."""
    found = [read(path) for path in directory().glob("*/job.json")]
    for row in sorted(filter(None, found), key=lambda row: row["submitted"]):
        yield _asked(row)


def changed() -> float:
    """When somebody has last asked for a job, or has stopped one; 0 when there is none."""
    latest = 0.0
    for path in directory().glob("*/job.json"):
        with contextlib.suppress(FileNotFoundError):
            latest = max(latest, path.stat().st_mtime)
    return latest


def directory() -> Path:
    """Where jobs' files are."""
    return private(embedded.Paths.current().state / "jobs")


def _asked(row: dict[str, Any]) -> Asked:
    known = {field.name for field in fields(Asked)}
    kept = {name: value for name, value in row.items() if name in known}
    return Asked(**{**kept, "nodes": tuple(row["nodes"])})


def _write(asked: Asked) -> None:
    path = directory() / asked.id / "job.json"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write(path, asdict(asked))
