"""Runs that start again: the next attempts of this node's runs, and runs taken over from other nodes.

The broker orders them. Rank 0's node opens a port first (`node.met`), then all begin. A node on which
the run has not been gets its code and pushed values from one that has them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..broker import messages as msg
from ..errors import AiosError
from ..runs.events import last_number
from ..runs.messages import StartRun
from ..runs.spec import Rendezvous, ranks_on
from .hosted import Hosted
from .hosting import Hosting
from .memory import PAYLOAD_FILE
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
            spec=before.spec.__replace__(world_size=len(again.slots)),
            ranks=ranks,
            rendezvous=Rendezvous(
                address=again.address, port=again.port, attempt=again.run.attempt
            ),
        )
        hosted.order = order
        hosted.ranks = tuple(rank.rank for rank in ranks)
        hosted.devices = {rank.rank: rank.device for rank in ranks}
        last = hosted.gang.last_event if hosted.gang else last_number(hosted.directory)
        try:
            await self._begin(hosted, order, (last, again.reason, before.spec.world_size))
        except OSError as error:
            self._never_started(hosted, f"its ranks could not be started again: {error}")

    def over(self, run: str) -> None:
        """The broker says that a run has ended: there is no next attempt."""
        hosted = self._runs.get(run)
        if hosted and hosted.resting:
            self._close(hosted)
            self._spawn(self._notify(hosted))

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
                self._refuse(
                    run, ranks, f"node {self.node} found its code on no other node", run.attempt
                )
                return None
            hosted.order = order
            hosted.values.take(order)
            hosted.attempt, hosted.resting = run.attempt - 1, True
            self._runs[run.id] = hosted
            return hosted
        finally:
            self._taking_over.discard(run.id)

    def _place_for(self, again: msg.RunAgain, ranks: tuple[int, ...]) -> Hosted | None:
        run = again.run
        directory = self.directory / run.id
        facts = self._facts(run)
        if directory.exists():
            # This node may have had the run before; a stranger's files are never taken over.
            path = directory / "run.json"
            known = json.loads(path.read_text()) if path.is_file() else {}
            if {key: known.get(key) for key in ("user", "lease")} != {
                "user": run.user,
                "lease": run.lease,
            }:
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
        addresses = {slot.address: None for slot in again.slots if slot.node != self.node}
        for address in addresses:
            try:
                return await self.fetch(address, again, hosted.directory / PAYLOAD_FILE)
            except AiosError as error:
                log.info("run %s is not to be had at %s: %s", again.run.id, address, error)
        return None
