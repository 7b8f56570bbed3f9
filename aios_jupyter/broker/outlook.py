"""What a request that waits is told: its place, why it waits, and when it will probably start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import NotFoundError
from ..schema import Lease, LeaseState, Request, RequestState, Slot
from . import events as ev
from . import history
from .demand import demand_of
from .forecast import Held, Waiting, starts
from .measures import accuracy
from .policy import Pool
from .reasons import why
from .state import State
from .views import places, queue_row

# How many of a line are foreseen for the views; `explain` foresees as many as come before.
FORESEEN = 50
# A forecast that nothing has changed is made anew after so many seconds.
STALE = 10.0
# So many seconds those who wait may be shown a place that has changed since: all of them ask.
PLACES_KEPT = 0.2
# Fewer lengths or errors say nothing of how they are spread.
FEW = 3
# By what factor leases last shorter and longer than predicted, where no errors are known yet.
LIKELY = 0.5
UNSURE = {0.1: 0.25, LIKELY: 1.0, 0.9: 4.0}


class Outlook:
    """Forecasts of a state, made again only when something has changed.

    Parameters
    ----------
    tell
        Called with the first forecast of each request, which is held against its start later on.
    """

    def __init__(self, state: State, tell: Callable[[ev.ForecastTold], None] | None = None) -> None:
        self._state = state
        self._tell = tell
        self._made: tuple[Any, ...] = ()
        self._at = 0.0
        self._etas: dict[str, float] = {}
        self._placed: tuple[Any, ...] = ()
        self._placed_at = -math.inf
        self._places: dict[str, tuple[int, int]] = {}

    def etas(self, now: float) -> dict[str, float]:
        """When the first of each line will start, whole seconds since the epoch."""
        state = self._state.plan_version
        if state != self._made or not 0 <= now - self._at < STALE:
            self._made, self._at = state, now
            self._etas = {
                id: float(round(when))
                for pool in Pool
                for id, when in foresee(self._state, pool, now, FORESEEN).items()
            }
            self._note(self._etas, now)
        return self._etas

    def _note(self, etas: Iterable[str], now: float) -> None:
        """Keep the first forecast of those who had none yet."""
        anew = {id for id in etas if self._state.foretold(id) is None}
        if not anew or self._tell is None:
            return
        for pool in {self._state.pool(id) for id in anew}:
            for id, span in spans(self._state, pool, now, FORESEEN).items():
                if id in anew:
                    self._tell(_told(id, span))

    def row(self, request: str, now: float) -> dict[str, Any] | None:
        """One request's row of the queue, None when it no longer waits."""
        found = self._state.requests.get(request)
        if found is None or found.state is not RequestState.QUEUED:
            return None
        version, age = self._state.plan_version, now - self._placed_at
        kept = STALE if version == self._placed else PLACES_KEPT
        if request not in self._places or not 0 <= age < kept:
            self._placed, self._placed_at = version, now
            self._places = places(self._state)
        etas = self.etas(now)
        return queue_row(self._state, found, *self._places[request], etas.get(request))

    def explain(self, request: str, now: float) -> dict[str, Any]:
        """All there is to say about a request.

        Raises
        ------
        NotFoundError
            There is none with that id.
        """
        state = self._state
        found = state.requests.get(request)
        if found is None:
            raise NotFoundError(
                f"There is no request {request!r}; 'aios queue' lists those that wait."
            )
        errors = state.errors(found)
        row: dict[str, Any] = {
            "id": found.id,
            "user": found.user,
            "label": found.label,
            "want": found.want.value,
            "count": found.count,
            "least": found.least or found.count,
            "memory": found.memory,
            "share": found.share,
            "model": found.model,
            "placement": found.placement.value,
            "node": found.node,
            "cpus": found.cpus,
            "host_memory": found.host_memory,
            "time": found.time,
            "priority": found.priority,
            "queue": found.queue,
            "preemptible": found.preemptible,
            "ran": found.ran,
            "state": found.state.value,
            "lease": found.lease,
            "submitted": found.submitted,
            "reason": state.reason(request),
            "policy": state.policy.name,
            "predicted": found.predicted,
            "error": history.quantile(errors, 0.5) if errors else None,
        }
        return row | (self._waiting(found, now) if found.state is RequestState.QUEUED else {})

    def _waiting(self, request: Request, now: float) -> dict[str, Any]:
        state = self._state
        pool = state.pool(request.id)
        line = [other.id for other in state.queue(pool)]
        place = line.index(request.id) + 1
        span = spans(state, pool, now, place).get(request.id)
        eta, earliest, latest = span or (None, None, None)
        row = {
            "position": place,
            "waiting": len(line),
            "eta": eta,
            "earliest": earliest,
            "latest": latest,
            "first_at": state.first_at(request.id),
            "why": why(state, request, state.reason(request.id), place),
            "accuracy": accuracy(state.hits(pool, request)),
        }
        if span and self._tell:
            self._tell(_told(request.id, span))
        return row


def spans(
    state: State, pool: Pool, now: float, first: int
) -> dict[str, tuple[float, float, float | None]]:
    """When the first so many of a line start: probably, at the earliest and at the latest.

    Those of which the first is not known are left out; None: nobody knows how late it may be.
    """
    early, likely, late = (foresee(state, pool, now, first, share) for share in UNSURE)
    found = {}
    for id, eta in likely.items():
        known = [when for when in (early.get(id), eta, late.get(id)) if when is not None]
        found[id] = (eta, min(known), max(known) if id in late else None)
    return found


def _told(request: str, span: tuple[float, float, float | None]) -> ev.ForecastTold:
    eta, earliest, latest = span
    return ev.ForecastTold(request=request, eta=eta, earliest=earliest, latest=latest)


def foresee(
    state: State, pool: Pool, now: float, first: int, share: float = LIKELY
) -> dict[str, float]:
    """When the first so many of a line start, if leases last as `share` of those before did."""
    # Nobody can tell when a quota will allow more.
    line = [request for request in state.queue(pool)[:first] if not state.held(request.id)]
    if not line:
        return {}
    # Who is the first now; that another may be later, and of age, is not foreseen.
    head, fleet = line[0].id, state.fleet
    held = [
        Held(*_until(state, slots, _end(state, lease, now, share), kept), slots)
        for lease in state.leases.values()
        for kept in (state.end_before(head, lease, now),)
        for slots in (((slot,) for slot in lease.slots) if state.bookings else (lease.slots,))
        if fleet.special() or fleet.pool_of_slot(lease.slots[0]) is pool
    ]
    stock = fleet.branch()
    for slot, until in state.reserved_slots():
        # Who waits is promised no device that is reserved before that is over.
        if stock.has(slot):
            stock.take((slot,))
            held.append(Held(until, until, (slot,)))
    waiting = [
        Waiting(r.id, demand_of(r), _length(state, r, 0.0, share), state.length_behind(head, r))
        for r in line
    ]
    return starts(now, pool, stock, held, waiting)


def _until(
    state: State, slots: tuple[Slot, ...], end: float | None, kept: float | None
) -> tuple[float | None, float | None]:
    """When who waits may have what a lease has: never before the reservations of it are over."""
    reserved = state.reserved_until(slots[0])
    if reserved is None or end is None or kept is None:
        return end, kept
    return max(end, reserved), max(kept, reserved)


def _end(state: State, lease: Lease, now: float, share: float) -> float | None:
    if lease.state is LeaseState.ENDING:
        return now
    limit = None if lease.expires is None else lease.expires - lease.granted
    request = state.requests[lease.request].__replace__(time=limit)
    length = _length(state, request, now - lease.granted, share)
    return None if length is None else max(now, lease.granted + length)


def _length(state: State, request: Request, elapsed: float, share: float) -> float | None:
    """How long a lease lasts, but never longer than it may; None: nobody knows.

    It is as predicted, which is doubled for one that has lasted longer; its range is then that of
    those like it that did. By their median too, forecasts would be late as often as early, but
    farther off: most who wait for such a lease start soon.
    """
    if not request.predicted:
        return request.time
    over = share != LIKELY and elapsed > request.predicted
    longer = tuple(length for length in state.lengths(request) if length > elapsed) if over else ()
    errors = state.errors(request)
    if len(longer) >= FEW:
        length = history.quantile(longer, share)
    elif len(errors) >= FEW:
        length = request.predicted * history.quantile(errors, share)
    else:
        length = request.predicted * UNSURE[share]
    length = max(length, 1.0)
    while length <= elapsed:
        length *= 2
    return length if request.time is None else min(length, request.time)
