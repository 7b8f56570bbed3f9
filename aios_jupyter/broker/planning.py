"""Who starts next: the policy's order, and EASY backfill behind the first that has to wait.

The first request of a line that does not fit gets a reservation: the time at which the ends of
leases leave it enough devices. Whoever is behind it starts before only where that delays it by
nothing: over by that time, or on devices that it can spare. Where no end is known there is no such
time, and only devices that the first cannot use are granted past it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import AccessError
from ..schema import DEFAULT_QUEUE, Lease, Request, RequestState, Slot
from . import events as ev
from .calendar import LENT
from .demand import Demand, demand_of
from .events import replace
from .fleet import Fleet
from .policy import POLICIES, Policy, Pool, policy_named
from .reserving import Reservation, Reserving
from .stock import Stock
from .waiting import Queue, Shape

# Name under which the policy is kept in the journal.
POLICY = "policy"
SIGNATURE = "signature"


class Planning(Reserving):
    """The reservations with the order of its requests.

    Parameters
    ----------
    policy
        Name of the policy to begin with; an admin's choice in the journal goes before it.
    """

    def __init__(self, policy: str) -> None:
        super().__init__()
        self._settings: dict[str, ev.Choice] = {}
        self._tables |= {"setting": self._settings}
        self._queue = self._queue_by(policy_named(policy))
        # The last attempt of each line that found no place; the same again would not either.
        self._in_vain: dict[Pool, tuple[Any, ...]] = {}

    # --- read side

    @property
    def policy(self) -> Policy:
        """What orders the queue."""
        return self._queue.policy

    @property
    def plan_version(self) -> tuple[int, ...]:
        """Another one whenever who starts next, and when, may have changed."""
        versions = self.fleet.version, self._ends_version, self._quotas.version
        return *versions, *self._queue.version.values()

    def reservation(self, pool: Pool) -> Reservation | None:
        """What is kept for the first request of a line; None when nobody waits."""
        head = self._queue.head(pool)
        return None if head is None else self._reservation(pool, self.requests[head])

    def first_at(self, request: str) -> float | None:
        """When a request that waits will have waited so long that it goes first; None: never."""
        return self._age_deadline(request)

    # --- who starts next

    def _next(self, pool: Pool) -> tuple[Request, tuple[Slot, ...]] | None:
        """Who starts now, and on which devices; None: nobody of that line can."""
        head = self._queue.head(pool)
        came = self._queue.came(pool)
        if head is None:
            return None
        attempt = (head, self.fleet.version, self._ends_version, self._quotas.version)
        before = self._in_vain.get(pool)
        request = self.requests[head]
        if before == attempt:
            # Who could not start then cannot now: time alone only makes it later.
            found = self._backfill(pool, request, came)
        elif (free := self.fleet.free(pool)) or self.fleet.shared(pool):
            slots = self._place(pool, request)
            if slots is not None:
                return request, slots
            found = self._backfill(pool, request, self._queue.candidates(pool, free))
        else:
            found = None
        if found is None:
            self._in_vain[pool] = attempt
        else:
            self._in_vain.pop(pool, None)
        return found

    def _backfill(
        self, pool: Pool, head: Request, candidates: Iterable[str]
    ) -> tuple[Request, tuple[Slot, ...]] | None:
        # What one user may not have for some time, another may not either.
        refused: set[Shape] = set()
        for id in candidates:
            shape = self._queue.shape(id)
            if id == head.id or shape in refused or self._queue.held(id) is not None:
                continue
            refused.add(shape)
            request = self.requests[id]
            slots = self._place(pool, request)
            if slots is None:
                continue
            if self._delays_nobody(pool, head, id, slots):
                return request, slots
            if shape.demand.least < len(slots):
                fewer = max(shape.demand.least, self._reservation(pool, head).spare)
                slots = self._place(pool, replace(request, count=fewer))
                if slots is not None and self._delays_nobody(pool, head, id, slots):
                    return request, slots
        return None

    def _place(self, pool: Pool, request: Request) -> tuple[Slot, ...] | None:
        """Devices on which a request could start now; None when there are not enough."""
        return self._beside_bookings(request).pick(pool, self._demand(request))

    def _demand(self, request: Request) -> Demand:
        """What a request can be given: no more than quotas leave to it."""
        demand = demand_of(request)
        if demand.least < demand.most and request.id in self._queue:
            most = min(demand.most, self._queue.allowed(request.id))
            demand = demand._replace(most=max(demand.least, int(most)))
        return demand

    def _beside_bookings(self, request: Request) -> Fleet | Stock:
        """What a request can have now: all that is free but for what is promised to others."""
        kept = self._kept_from(request)
        if not kept:
            return self.fleet
        stock = self.fleet.branch()
        self._set_aside(stock, kept)
        return stock

    def _kept_from(self, request: Request) -> dict[str, str]:
        """Devices that a request cannot have now for a reservation, which is named."""
        if not self._calendar:
            return {}
        kept: dict[str, str] = {}
        for device, booking in self._calendar.kept(self._now, request.time):
            kept.setdefault(device, booking)
        return kept

    def _kept_for(self, pool: Pool, request: Request) -> str:
        """The reservation without which a request that would fit could start; "": there is none."""
        kept = self._kept_from(request)
        if not kept or self._place(pool, request):
            return ""
        demand = demand_of(request)
        stock = self.fleet.branch()
        most = stock.free(pool, demand.each)
        for device, booking in kept.items():
            self._set_aside(stock, (device,))
            if stock.free(pool, demand.each) < most:
                return booking
        return ""

    def _delays_nobody(
        self, pool: Pool, head: Request, request: str, slots: tuple[Slot, ...]
    ) -> bool:
        reservation = self._reservation(pool, head)
        length = self.length_behind(head.id, self.requests[request])
        if length is not None and self._now + length <= reservation.when:
            return True
        demand = self._queue.shape(head.id).demand
        if reservation.then is None or reservation.when == -math.inf:
            kept = self._kept_from(head).keys() | self._too_short_for(head, reservation.at)
            slots = tuple(slot for slot in slots if slot.device not in kept)
            return self.fleet.suiting(slots, demand.each) <= reservation.spare
        then = reservation.then.branch()
        then.take(slots)
        return then.fits(pool, demand)

    def _too_short_for(self, head: Request, at: float) -> set[str]:
        """Devices that are lent for too short a time for a request that starts at `at`."""
        kept = self._calendar.kept(max(at, self._now), head.time)
        return {device for device, by in kept if by.startswith(LENT)}

    # --- the ends of leases

    def _put(self, kind: str, id: str, record: ev.Record) -> None:
        if isinstance(record, Lease):
            if id not in self.leases:
                self._charge(record, +1)
            super()._put(kind, id, record)
            self._note_end(record)
        else:
            super()._put(kind, id, record)

    def _drop(self, kind: str, id: str) -> None:
        if kind == "lease":
            lease = self.leases[id]
            self._forget_end(id)
            self._learn(lease)
            super()._drop(kind, id)
            self._charge(lease, -1)
        else:
            super()._drop(kind, id)

    # --- what admins choose

    def _policy_changed(self, event: ev.PolicyChanged) -> None:
        policy = policy_named(event.name, event.aging)
        if not event.admin:
            raise AccessError(f"{event.by} may not change the policy; ask an admin.")
        if policy == self.policy:
            return
        self._put("setting", POLICY, ev.Choice(value=policy.name, number=event.aging))
        self._audit(
            "policy changed",
            event.by,
            policy=policy.name,
            aging=policy.aging,
            before=self.policy.name,
        )
        self._reorder(policy)

    def _signature_demanded(self, event: ev.SignatureDemanded) -> None:
        if not event.admin:
            raise AccessError(f"{event.by} may not say which models are used; ask an admin.")
        if event.required == self.signature_required:
            return
        if event.required:
            self._put("setting", SIGNATURE, ev.Choice(value="required"))
        else:
            self._drop("setting", SIGNATURE)
        self._audit("signature demanded", event.by, required=event.required)

    @property
    def signature_required(self) -> bool:
        """Whether only models that somebody known has signed are used."""
        return SIGNATURE in self._settings

    def _order_by(self, policy: Policy) -> None:
        """Put all that wait in the order of a policy."""
        before, self._queue = self._queue, self._queue_by(policy)
        for id in before:
            self._queue.add(self.requests[id], before.pool(id), before.arrival(id))
        self._in_vain.clear()
        self._reserved.clear()

    def _reorder(self, policy: Policy) -> None:
        """The same after an admin's choice, while time goes on."""
        self._order_by(policy)
        for id in self._queue:
            self._deadlines.arm("age", id)
        # Who has waited for longer than the policy lets anybody wait is first at once.
        self._deadlines.fire(self._now)

    def _queue_by(self, policy: Policy) -> Queue:
        return Queue(policy, self._key(policy), self._quotas, self._scoring, self._turns.step)

    def _key(self, policy: Policy) -> Callable[[Request], float]:
        """What gives a request's place under a policy."""
        return policy.key

    # --- age

    def _age_deadline(self, request: str) -> float | None:
        aging = self._queue.policy.aging
        if aging is None or request not in self._queue or self._queue.aged(request):
            return None
        found = self.requests[request]
        since = found.submitted if found.requeued is None else found.requeued
        return since - found.waited + aging

    def _aged(self, request: str) -> None:
        self._queue.promote(request)

    def _look(self, pool: str) -> None:
        """What was kept for the first of a line was kept too early: nothing has been in vain."""
        del self._looks[pool]
        self._in_vain.pop(Pool(pool), None)

    # --- from the journal

    def _load_plans(self) -> None:
        """After the records were read: what is kept beside them."""
        choice = self._settings.get(POLICY)
        if choice and choice.value in POLICIES:
            self._queue = self._queue_by(policy_named(choice.value, choice.number))
        for id, known in list(self.requests.items()):
            if known.state is RequestState.QUEUED and not known.queue:  # from before there were any
                self._put("request", id, replace(known, queue=DEFAULT_QUEUE))
        for request in self.requests.values():
            if request.state is RequestState.QUEUED:
                pool = self.fleet.pool_for(request.want, demand_of(request))
                # One that no pool can grant any more is ended by the review that follows.
                self._enqueue(request, pool or Pool.CPU)
            elif request.state is RequestState.GRANTED and request.preemptible:
                self._arrived[request.id] = self._next_arrival()
        for lease in self.leases.values():
            self._load_held(lease)
            self._note_end(lease)
