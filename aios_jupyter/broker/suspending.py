"""Runs on a lease of their own that go on when it is taken from them, as soon as they have another.

When the preemptible lease of a detached run is taken, its ranks have the grace for a checkpoint; the
run then waits without a lease, and its request waits again, whether its session is still there or
not. The nodes keep its code and what was pushed. With the next lease of the request the next attempt
begins, on whatever nodes that is: those that have not had the run get it from those that have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..schema import Booking, Lease, Request, Run, RunState, Scope, Slot
from . import events as ev
from . import gang
from .events import replace
from .growing import Growing
from .ledger import discard


class Suspending(Growing):
    """The rules of leasing, with runs that wait for another lease."""

    def __init__(self, *parameters: Any, **more: Any) -> None:
        # Runs that wait, by the request for whose lease they do.
        self._suspended: dict[str, dict[str, None]] = {}
        super().__init__(*parameters, **more)

    # --- without devices

    def _goes_on(self, lease: Lease) -> bool:
        runs = [self.runs[id] for id in self._live.get(lease.id, ())]
        restartable = all(run.max_restarts and run.state is not RunState.STOPPING for run in runs)
        return lease.scope is Scope.DETACHED and bool(runs) and restartable

    def _leave(self, run: Run, lease: Lease) -> None:
        if not lease.resumes or run.state is not RunState.RESTARTING or gang.done(run):
            super()._leave(run, lease)
            return
        discard(self._live, lease.id, run.id)
        self._suspended.setdefault(lease.request, {})[run.id] = None
        self._put("run", run.id, gang.suspended(run, lease.request))
        self._audit("run suspended", run.user, run=run.id, request=lease.request)

    def _requeue(self, request: Request) -> None:
        if request.scope is Scope.DETACHED and request.id not in self._suspended:
            self._end_request(request, "its run has ended")
        else:
            super()._requeue(request)

    def _awaited(self, request: Request) -> bool:
        return request.id in self._suspended

    def _keeps_runs(self, lease: str) -> bool:
        waiting = (id for ids in self._suspended.values() for id in ids)
        return any(self.runs[id].lease == lease for id in waiting)

    # --- with devices again

    def _grant_to(
        self, request: Request, slots: tuple[Slot, ...], booking: Booking | None = None
    ) -> Lease:
        lease = super()._grant_to(request, slots, booking)
        waiting = self._suspended.pop(request.id, {})
        if waiting:
            lease = replace(lease, used=True)
            self._put("lease", lease.id, lease)
        for id in waiting:
            self._live.setdefault(lease.id, {})[id] = None
            self._start_again(gang.resumed(self.runs[id], lease.id), lease)
        return lease

    # --- the end while it waits

    def _proceed(self, run: Run, *, told: bool) -> None:
        if run.awaits:
            self._end_queued(self.requests[run.awaits], run.reason)
        else:
            super()._proceed(run, told=told)

    def _end_request(self, request: Request, reason: str) -> Request:
        request = super()._end_request(request, reason)
        for id in self._suspended.pop(request.id, ()):
            self._end_run(replace(gang.told_to_stop(self.runs[id], reason), awaits=""))
        return request

    # --- from the journal

    def _load(self, records: Iterable[tuple[str, str, ev.Record]]) -> None:
        super()._load(records)
        for run in self.runs.values():
            if run.awaits and gang.live(run):
                self._suspended.setdefault(run.awaits, {})[run.id] = None
