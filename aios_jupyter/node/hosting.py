"""The runs on this machine: from announced, through ranks at work, to a log that can be read.

Each run has a directory with `run.json` (whose it is), the complete logs and the events of its
ranks. A follower is a cursor into the events file and not a copy in memory, so that a slow reader
costs nothing and a kernel that comes back later reads the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from ..broker import messages as msg
from ..config import settings
from ..errors import AccessError, ClusterError, ConflictError, NotFoundError
from ..runs.messages import StartRun
from ..runs.spec import Rendezvous
from ..schema import Origin, Progress, RankExit, Run, RunState, Usage
from .accounts import Accounts
from .hosted import Hosted
from .kept import ID, KeptRuns
from .member import Before, RankProcess
from .memory import Values
from .ranks import EventReader, LocalGang, bind_port
from .zygotes import Zygotes

log = logging.getLogger("aios.node")

ANNOUNCE_TIMEOUT = 10.0
# What an endpoint says of itself, by the names in its run's detail.
DETAIL = ("url", "model", "version", "alerts")
REPORT_INTERVAL = 0.2
USAGE_INTERVAL = 4.5
BATCH_BYTES = 1024 * 1024

Report = Callable[[str, Any, bool], None]


class Hosting(KeptRuns):
    """All runs of this node, with one attempt each; `restarts.HostedRuns` starts them again.

    Parameters
    ----------
    directory
        One subdirectory a run.
    node
        This node's name.
    host
        The address at which ranks of other nodes find rank 0.
    report
        `report(topic, body, durable)` tells the broker.
    zygotes
        Where ranks can be forked from.
    accounts
        Whose account ranks run in.

    Attributes
    ----------
    prepare, begun
        Called with each order before it is carried out, gives back the one to go by; and after.
    """

    prepare: Callable[[Hosted, StartRun], StartRun] | None = None
    begun: Callable[[Hosted, StartRun], None] | None = None

    def __init__(
        self,
        directory: Path,
        node: str,
        host: str,
        report: Report,
        zygotes: Zygotes | None = None,
        accounts: Accounts | None = None,
    ) -> None:
        super().__init__(directory, node, accounts or Accounts())
        self.host = host
        self._report = report
        self._zygotes = zygotes
        self._runs: dict[str, Hosted] = {}
        self._announcement = asyncio.Condition()
        self._tasks: set[asyncio.Task[Any]] = set()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    # --- what the agent asks

    def held(self) -> tuple[str, ...]:
        """Leases for which there are processes here."""
        runs = [hosted for hosted in self._runs.values() if hosted.live and not hosted.resting]
        return tuple({hosted.run.lease for hosted in runs})

    def live(self) -> tuple[str, ...]:
        """Runs that this agent has not seen the end of."""
        return tuple(i for i, hosted in self._runs.items() if not hosted.ended.is_set())

    def pids_of(self, device: str) -> list[int]:
        """Ranks at work on a device. May be called from another thread."""
        return [
            pid
            for hosted in list(self._runs.values())
            if hosted.live and hosted.gang
            for rank, pid in list(hosted.gang.pids.items())
            if hosted.devices.get(rank) == device
        ]

    def pids(self) -> set[int]:
        """All ranks."""
        return {
            pid
            for hosted in self._runs.values()
            if hosted.live and hosted.gang
            for pid in hosted.gang.pids.values()
        }

    def sampled(self, usage: Iterable[Usage]) -> None:
        """The devices were sampled: now and then that is noted among the events of their runs."""
        now = time.monotonic()
        samples = {sample.device: sample for sample in usage}
        for hosted in self._runs.values():
            if not hosted.live or hosted.gang is None or now - hosted.sampled < USAGE_INTERVAL:
                continue
            hosted.sampled = now
            for rank in hosted.gang.at_work:
                sample = samples.get(rank.spec.device)
                if sample is None:
                    continue
                memory = sample.memory_used
                if rank.spec.share:
                    pid = rank.process.pid
                    memory = sum(p.memory for p in sample.processes if p.pid == pid)
                hosted.gang.note_usage(rank.number, sample.utilization, memory)

    async def announced(self, run: Run, ranks: tuple[int, ...]) -> None:
        """The broker knows of this run: these ranks of it may be started here."""
        directory = self.directory / run.id
        try:
            if not ID.fullmatch(run.id):
                raise FileExistsError
            directory.mkdir(mode=0o700)
        except FileExistsError:
            # The files of a run that is long over still belong to whoever it was.
            log.warning("run %r cannot have a directory of that name here", run.id)
            if run.id not in self._runs:
                self._refuse(run, ranks, f"node {self.node} has files of a run {run.id}")
            return
        (directory / "run.json").write_text(json.dumps(self._facts(run)))
        async with self._announcement:
            self._runs[run.id] = Hosted(run, ranks, directory)
            self._announcement.notify_all()

    def _facts(self, run: Run) -> dict[str, str]:
        """What says whose a run is, once it is over, and in whose account it ran."""
        return {
            "user": run.user,
            "lease": run.lease,
            "name": run.name,
            "kind": run.kind.value,
            **self.accounts.facts_of(run.user),
        }

    async def expect(self, run: str) -> Hosted:
        """The run, once the broker has announced it.

        Raises
        ------
        NotFoundError
            It has not, for `ANNOUNCE_TIMEOUT` seconds.
        """
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT), self._announcement:
                await self._announcement.wait_for(lambda: run in self._runs)
        except TimeoutError:
            raise NotFoundError(f"The broker has not announced run {run!r}.") from None
        return self._runs[run]

    async def stop(
        self, run: str, reason: str, attempt: int = 0, grace: float | None = None
    ) -> None:
        """End the ranks of a run: SIGTERM, grace (s), SIGKILL; returns when they are gone.

        Ranks of an `attempt` that had yet to be started are reported as stopped.
        """
        hosted = self._runs.get(run)
        if hosted is None:
            return
        if hosted.gang is None:
            self._never_started(hosted, reason)
        elif hosted.live:
            hosted.order = None
            await hosted.gang.stop(settings().stop_grace if grace is None else grace)
            if hosted.resting:
                hosted.attempt = max(hosted.attempt, attempt)
                self._never_started(hosted, reason)
            await hosted.ended.wait()

    async def end_attempt(self, run: str, attempt: int, grace: float | None = None) -> None:
        """End the ranks of an attempt: one on another node has failed, or there are to be others."""
        hosted = self._runs.get(run)
        if hosted and hosted.gang and hosted.attempt == attempt and hosted.live:
            await hosted.gang.stop(settings().stop_grace if grace is None else grace)

    async def stop_all(self, reason: str, grace: float | None = None) -> None:
        """End every run, which says this of its ranks; `grace` as for `stop`."""
        for hosted in self._runs.values():
            if hosted.live and hosted.gang:
                hosted.gang.told = reason
        await asyncio.gather(*(self.stop(run, reason, grace=grace) for run in list(self._runs)))
        await asyncio.gather(*(hosted.values.settled() for hosted in self._runs.values()))

    # --- what a kernel asks, through the door

    def open(self, hosted: Hosted) -> Rendezvous:
        """Bind the port where the run's ranks will meet; rank 0 inherits it, so it cannot be lost."""
        listener, port = bind_port(self.host)
        hosted.listener = listener
        return Rendezvous(address=self.host, port=port)

    async def start(self, hosted: Hosted, order: StartRun) -> None:
        """Start this node's ranks.

        Raises
        ------
        ConflictError
            They were started already, or the run has been stopped.
        AccessError
            Its owner has no account here.
        """
        if hosted.gang is not None or hosted.ended.is_set():
            raise ConflictError(f"Run {hosted.run.id} was started or stopped before.")
        hosted.devices = {rank.rank: rank.device for rank in order.ranks}
        hosted.order = order
        try:
            hosted.account = self.accounts.of(hosted.run.user)
            hosted.order = order = self.prepare(hosted, order) if self.prepare else order
            hosted.values.take(order)
            await self._begin(hosted, order)
        except AccessError as error:
            self._never_started(hosted, str(error).rstrip("."))
            raise
        except OSError as error:
            self._never_started(hosted, f"its ranks could not be started: {error}")
            raise ConflictError(f"The ranks could not be started: {error}.") from error

    async def _begin(self, hosted: Hosted, order: StartRun, before: Before | None = None) -> None:
        """Start an attempt; `before` is that which it follows."""
        hosted.attempt = order.rendezvous.attempt
        hosted.resting = False
        hosted.gang = LocalGang(
            order.spec,
            order.ranks,
            order.rendezvous,
            hosted.directory,
            hosted.values.pushed,
            on_events=lambda events: self._heard(hosted, events),
            listen_fd=hosted.listener.fileno() if hosted.listener else None,
            zygotes=self._zygotes,
            before=before,
            # Where ranks write nobody else reads.
            pulled=hosted.values.expect_pulled(order, always=hosted.account is not None),
            host=self.host,
            account=hosted.account,
        )
        try:
            await hosted.gang.start()
        finally:
            if not order.spec.max_restarts:
                hosted.values.drop_pushed()
            if hosted.listener:
                hosted.listener.close()
                hosted.listener = None
        if self.begun:
            self.begun(hosted, order)
        report = msg.RunReport(run=hosted.run.id, state=RunState.RUNNING)
        self._report("node.run", report, True)
        self._spawn(self._attend(hosted, hosted.gang))

    async def _attend(self, hosted: Hosted, gang: LocalGang) -> None:
        exits = await gang.wait()
        self._summarize(hosted)
        hosted.exits = tuple(sorted(exits, key=lambda exit: (exit.code == 0, exit.time)))
        # Whether this attempt was the last one is for the broker to say.
        hosted.resting = hosted.order is not None and hosted.order.spec.max_restarts > 0
        self._report_exits(hosted)
        if not hosted.resting:
            hosted.values.close()
            hosted.ended.set()
        await self._notify(hosted)
        if hosted.resting:
            await self._rested(hosted)

    def _report_exits(self, hosted: Hosted) -> None:
        for exit in hosted.exits:
            self._report("node.exit", msg.RankReport(run=hosted.run.id, exit=exit), True)

    async def _rested(self, hosted: Hosted) -> None:
        """All ranks of an attempt are gone that may not be the last one."""

    def _close(self, hosted: Hosted) -> None:
        hosted.ended.set()
        hosted.resting = False
        hosted.values.close()
        if hosted.listener:
            hosted.listener.close()
            hosted.listener = None

    def _never_started(self, hosted: Hosted, reason: str) -> None:
        """A run that was announced and will have no ranks still ends, so that nobody waits."""
        if hosted.ended.is_set():
            return
        self._close(hosted)
        self._refuse(hosted.run, hosted.ranks, reason, hosted.attempt)
        self._spawn(self._notify(hosted))

    def _refuse(
        self,
        run: Run,
        ranks: tuple[int, ...],
        reason: str,
        attempt: int = 0,
        *,
        final: bool = False,
    ) -> None:
        for rank in ranks:
            exit = RankExit(rank=rank, code=-15, time=time.time(), reason=reason, attempt=attempt)
            report = msg.RankReport(run=run.id, exit=exit, final=final)
            self._report("node.exit", report, True)

    # --- events

    def _heard(self, hosted: Hosted, events: list[dict[str, Any]]) -> None:
        for event in events:
            match event["type"]:
                case "progress" if event["rank"] == 0:
                    hosted.summary["progress"] = Progress(
                        done=event["done"],
                        total=event.get("total") or 0.0,
                        unit=event.get("unit") or "",
                        label=event.get("label") or "",
                    )
                case "metrics" if event["rank"] == 0:
                    hosted.summary.setdefault("metrics", {}).update(event["values"])
                case "checkpoint":
                    report = msg.RunReport(run=hosted.run.id, detail={"checkpoint": event["step"]})
                    self._report("node.run", report, True)
                case "data":
                    report = msg.RunReport(run=hosted.run.id, detail={"data": [event["ref"]]})
                    self._report("node.run", report, True)
                case "endpoint" | "alerts":
                    detail = {key: event[key] for key in DETAIL if key in event}
                    report = msg.RunReport(run=hosted.run.id, detail=detail)
                    self._report("node.run", report, True)
                case "exit" if event["code"] != 0:
                    exit = RankExit(
                        rank=event["rank"],
                        code=event["code"],
                        time=event["time"],
                        reason=event.get("reason", ""),
                        traceback=event.get("traceback", ""),
                        attempt=hosted.attempt,
                        origin=Origin(event["origin"]),
                    )
                    self._report("node.exit", msg.RankReport(run=hosted.run.id, exit=exit), True)
        if hosted.summary and not hosted.reporting:
            hosted.reporting = True
            self._spawn(self._summarize_soon(hosted))
        self._spawn(self._notify(hosted))

    async def _summarize_soon(self, hosted: Hosted) -> None:
        await asyncio.sleep(REPORT_INTERVAL)
        self._summarize(hosted)

    def _summarize(self, hosted: Hosted) -> None:
        hosted.reporting = False
        summary, hosted.summary = hosted.summary, {}
        if summary:
            self._report("node.run", msg.RunReport(run=hosted.run.id, **summary), False)

    async def _notify(self, hosted: Hosted) -> None:
        async with hosted.changed:
            hosted.changed.notify_all()

    async def _here(self, run: str) -> None:
        """Wait for a run that is on its way from another node."""

    async def follow(
        self, run: str, seq: int, *, wait: bool
    ) -> AsyncIterator[tuple[list[dict[str, Any]], bool]]:
        """Batches of a run's events after `seq`, the last one marked True.

        Also for runs of an earlier life of this agent, whose events are all on disk.
        """
        await self._here(run)
        hosted = self._runs.get(run)
        reader = EventReader(self.directory / run, after=seq)
        while True:
            over = not wait or hosted is None or hosted.ended.is_set()
            batch = reader.read(BATCH_BYTES)
            if batch:
                yield batch, False
                continue
            if over:
                yield [], True
                return
            assert hosted is not None
            async with hosted.changed:
                if not hosted.ended.is_set() and not reader.more():
                    await hosted.changed.wait()

    def values(self, run: str) -> Values | None:
        """The values of a run of this life of the agent."""
        hosted = self._runs.get(run)
        return hosted.values if hosted else None

    def at_work(self, run: str) -> list[RankProcess]:
        """The ranks of a run that work here now."""
        hosted = self._runs.get(run)
        return hosted.gang.at_work if hosted and hosted.live and hosted.gang else []

    def hosted(self, run: str) -> Hosted:
        """A run of this life of the agent.

        Raises
        ------
        NotFoundError
            There is none of that id.
        """
        if run not in self._runs:
            raise NotFoundError(f"Node {self.node} has no run {run!r}.")
        return self._runs[run]

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            error = task.exception()
            log.error("hosting a run failed", exc_info=error)
            if isinstance(error, ClusterError):
                raise error
