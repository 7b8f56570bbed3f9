"""Runs that have fewer devices than they may use take more without waiting for a failure.

Where devices stay free for `grow_after`, and nobody waits for them, such a run is told to end its
attempt as one that is preempted is: its ranks have the time for a checkpoint, and the next attempt
begins from there with more of them. Only a run that keeps checkpoints is, and none before it has run
for `grow_interval`: what a restart costs must not come again and again.
"""

from __future__ import annotations

from typing import Any

from ..schema import LeaseState, Run, RunState
from . import events as ev
from . import gang
from .events import replace
from .running import Running


class Growing(Running):
    """The rules of leasing, with runs that grow.

    Parameters
    ----------
    grow_after
        Seconds for which devices must have been free; 0: runs only grow at restarts.
    grow_interval
        Seconds for which each attempt runs before it is ended for more devices.
    """

    def __init__(
        self, *parameters: Any, grow_after: float, grow_interval: float, **more: Any
    ) -> None:
        self.grow_after = grow_after
        self.grow_interval = grow_interval
        # Runs that may change their size; since when there has been room for more of them.
        self._elastic: dict[str, None] = {}
        self._room_since: dict[str, float] = {}
        super().__init__(*parameters, **more)

    def _run_created(self, event: ev.RunCreated) -> None:
        super()._run_created(event)
        self._note_elastic(self.runs[event.run.id])

    def _note_elastic(self, run: Run) -> None:
        if gang.live(run) and run.least < run.most and run.max_restarts:
            self._elastic[run.id] = None

    def _look_for_room(self) -> None:
        """Have runs grow for which there has been room for long enough; once a second."""
        for id in list(self._elastic) if self.grow_after else ():
            run = self.runs.get(id)
            if run is None or not gang.live(run):
                del self._elastic[id]
                self._room_since.pop(id, None)
            elif not self._could_grow(run):
                self._room_since.pop(id, None)
            elif self._now - self._room_since.setdefault(id, self._now) >= self.grow_after:
                del self._room_since[id]
                self._grow(run)

    def _could_grow(self, run: Run) -> bool:
        """Whether it is worth a restart now, and there is room."""
        if run.state is not RunState.RUNNING or gang.CHECKPOINT not in run.detail:
            return False
        lease = self.leases[run.lease]
        ends_soon = lease.expires is not None and lease.expires - self._now < self.grow_interval
        if lease.state is not LeaseState.ACTIVE or ends_soon:
            return False
        if self._now - run.begun < self.grow_interval or self._lost_nodes(run):
            return False
        pool = self.fleet.pool_of_slot(lease.slots[0])
        if not (self.fleet.free(pool) or self.fleet.shared(pool)):
            return False
        return bool(self._more_for(run, lease))

    def _grow(self, run: Run) -> None:
        lease = self.leases[run.lease]
        found = self._more_for(run, lease)
        for slot in found:
            self.fleet.hold(slot, lease.id)
        # Behind the others, as ranks are numbered by the slots until this attempt is over.
        self._changed(lease, replace(lease, slots=(*lease.slots, *found)), "lease grown")
        more = "1 more device is" if len(found) == 1 else f"{len(found)} more devices are"
        run = gang.moved(run, f"{more} free")
        self._put("run", run.id, run)
        self._audit("run grows", run.user, run=run.id, devices=[slot.device for slot in found])
        self._stop_ranks(run, run.nodes)

    def _clock_back(self) -> None:
        super()._clock_back()
        self._room_since.clear()
        for id in self._elastic:
            run = self.runs.get(id)
            if run and run.begun > self._now:
                self._put("run", id, replace(run, begun=self._now))

    def _load_times(self) -> None:
        super()._load_times()
        for run in self.runs.values():
            self._note_elastic(run)
