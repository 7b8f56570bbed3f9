"""Runs that start again: the next attempts of this node's runs, and runs taken over from other nodes.

The broker orders them. Rank 0's node opens a port first (`node.met`), then all begin. A node on which
the run has not been gets its code and pushed values from one that has them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..broker import messages as msg
from ..config import settings
from ..errors import AccessError, AiosError
from ..runs.events import EventLog, last_number
from ..runs.messages import StartRun
from ..runs.spec import Rendezvous, ranks_on
from .hosted import Hosted
from .hosting import Hosting
from .member import Before
from .memory import PAYLOAD_FILE
from .output import Outputs
from .ranks import bind_port

log = logging.getLogger("aios.node")

# Asks the agent at an address for a run of a lease; its pushed values go into the file.
Fetch = Callable[[str, msg.RunAgain, Any], Awaitable[StartRun]]


class HostedRuns(Hosting):
    """All runs of this node.

    Attributes
    ----------
    fetch
        Gets a run from another node.
    """

    fetch: Fetch | None = None

    def __init__(self, *parameters: Any, **more: Any) -> None:
        super().__init__(*parameters, **more)
        self._taking_over: set[str] = set()

    def repeat(self) -> None:
        """Say again how the ranks of resting runs ended: the broker's answer may have been lost."""
        for hosted in self._runs.values():
            if hosted.resting and not hosted.ended.is_set():
                self._report_exits(hosted)

    async def again(self, again: msg.RunAgain) -> None:
        """Start the next attempt of a run; without a port, open one and tell.

        The broker knows how ranks ended before their last processes are gone: then this waits.
        """
        run = again.run
        hosted = self._runs.get(run.id)
        if hosted is None or hosted.ended.is_set():
            hosted = await self._take_over(again)
        if hosted is None or run.attempt <= hosted.attempt:
            return
        if hosted.run.lease != run.lease:
            (hosted.directory / "run.json").write_text(json.dumps(self._facts(run)))
        hosted.run, hosted.token = run, ""
        hosted.called = again
        if not hosted.resting:
            return
        if again.port:
            await self._begin_again(hosted, again)
        else:
            self._meet(hosted, again)

    async def _rested(self, hosted: Hosted) -> None:
        if hosted.called:
            await self.again(hosted.called)

    def _meet(self, hosted: Hosted, again: msg.RunAgain) -> None:
        if hosted.listener is None:
            hosted.listener, _ = bind_port(self.host)
        port = hosted.listener.getsockname()[1]
        run = again.run
        met = msg.RunMet(run=run.id, attempt=run.attempt, address=self.host, port=port)
        self._report("node.met", met, True)

    async def _begin_again(self, hosted: Hosted, again: msg.RunAgain) -> None:
        assert hosted.order is not None
        hosted.called = None
        before = hosted.order
        ranks = ranks_on(self.node, again.slots)
        order = before.__replace__(
            spec=before.spec.__replace__(world_size=len(again.slots), lease=again.run.lease),
            ranks=ranks,
            rendezvous=Rendezvous(
                address=again.address, port=again.port, attempt=again.run.attempt
            ),
        )
        hosted.order = order
        hosted.ranks = tuple(rank.rank for rank in ranks)
        hosted.devices = {rank.rank: rank.device for rank in ranks}
        last = max(hosted.gang.last_event if hosted.gang else 0, last_number(hosted.directory))
        restarts = 0 if again.moved else again.run.attempt - again.run.uncounted
        try:
            hosted.account = self.accounts.of(hosted.run.user)
            await self._begin(
                hosted, order, Before(last, again.reason, before.spec.world_size, restarts)
            )
        except (OSError, AccessError) as error:
            self._never_started(hosted, f"its ranks could not be started again: {error}")

    def over(self, run: str) -> None:
        """The broker says that a run has ended: there is no next attempt."""
        hosted = self._runs.get(run)
        if hosted and hosted.resting:
            self._close(hosted)
            self._spawn(self._notify(hosted))

    # --- between two leases

    async def end_lease(
        self, lease: str, reason: str, grace: float | None = None, *, keep: bool = False
    ) -> None:
        """End every run of a lease and confirm it; with `keep` they rest, to go on under another."""
        runs = [hosted for hosted in self._runs.values() if hosted.run.lease == lease]
        ends = (
            self.leave(hosted, reason, grace)
            if keep and hosted.gang
            else self.stop(hosted.run.id, reason, grace=grace)
            for hosted in runs
        )
        await asyncio.gather(*ends)

    async def leave(self, hosted: Hosted, reason: str, grace: float | None) -> None:
        """End the ranks of a run whose lease ends, and keep what they were started with."""
        assert hosted.gang is not None
        hosted.called = None
        await hosted.gang.stop(settings().stop_grace if grace is None else grace)
        async with hosted.changed:
            await hosted.changed.wait_for(lambda: hosted.resting or hosted.ended.is_set())
        if hosted.resting:
            # The end of that lease is no longer that of this run.
            hosted.run = hosted.run.__replace__(lease="")
            self._note(hosted, f"--- {reason} ---\n")

    def _note(self, hosted: Hosted, text: str, event: dict[str, Any] | None = None) -> None:
        """Add something to the log of a run that rests, where rank 0 was, and tell followers."""
        last = last_number(hosted.directory)
        outputs = Outputs(
            EventLog(hosted.directory), lambda events: self._heard(hosted, events), last
        )
        if 0 in hosted.ranks:
            outputs.text(0, "stderr", text)
        if event is not None:
            outputs.event(0, {"time": time.time(), **event})
        outputs.close()

    def moved(self, moved: msg.RunMoved) -> None:
        """A run that rests here is on other nodes now: they may get it, and followers look for them."""
        hosted = self._runs.get(moved.run.id)
        if hosted is None or not hosted.resting:
            return
        hosted.run, hosted.token = moved.run, moved.token
        where = ", ".join(moved.run.nodes)
        self._note(hosted, f"--- it goes on at {where} ---\n", {"type": "moved"})

    # --- runs of other nodes

    async def _take_over(self, again: msg.RunAgain) -> Hosted | None:
        """Get a run's code and values from one of its other nodes."""
        run = again.run
        ranks = tuple(rank.rank for rank in ranks_on(self.node, again.slots))
        if run.id in self._taking_over or not ranks:
            return None
        self._taking_over.add(run.id)
        try:
            hosted = self._place_for(again, ranks)
            if hosted is None:
                return None
            order = await self._from_others(again, hosted)
            if order is None:
                reason = f"node {self.node} found its code on no other node"
                self._refuse(run, ranks, reason, run.attempt, final=True)
                return None
            hosted.order = order
            hosted.values.take(order)
            hosted.attempt, hosted.resting = run.attempt - 1, True
            self._runs[run.id] = hosted
            return hosted
        finally:
            self._taking_over.discard(run.id)
            async with self._announcement:
                self._announcement.notify_all()

    async def _here(self, run: str) -> None:
        async with self._announcement:
            await self._announcement.wait_for(lambda: run not in self._taking_over)

    def _place_for(self, again: msg.RunAgain, ranks: tuple[int, ...]) -> Hosted | None:
        run = again.run
        directory = self.directory / run.id
        facts = self._facts(run)
        if directory.exists():
            # This node may have had the run before; a stranger's files are never taken over.
            path = directory / "run.json"
            known = json.loads(path.read_text()) if path.is_file() else {}
            if known.get("user") != run.user:
                self._refuse(
                    run, ranks, f"node {self.node} has files of a run {run.id}", run.attempt
                )
                return None
        else:
            directory.mkdir(mode=0o700)
        (directory / "run.json").write_text(json.dumps(facts))
        return Hosted(run, ranks, directory)

    async def _from_others(self, again: msg.RunAgain, hosted: Hosted) -> StartRun | None:
        assert self.fetch is not None
        others = [slot.address for slot in again.slots if slot.node != self.node]
        for address in dict.fromkeys((*again.sources, *others)):
            try:
                return await self.fetch(address, again, hosted.directory / PAYLOAD_FILE)
            except AiosError as error:
                log.info("run %s is not to be had at %s: %s", again.run.id, address, error)
        return None
