"""Taking leases away: for whom, which ones, and what becomes of their requests.

Only leases that were asked for as preemptible are taken, and only when that lets the first request
of a line start: under `priority` for one of a higher priority, under `las` and `gittins` for one
that goes first by the service it has had, and under any policy for a queue that takes back what is
guaranteed to it from those that have borrowed it. Beyond its own queue nobody takes what is within
another's nominal quota.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from ..schema import Lease, LeaseState, Request, Scope
from . import attained, history
from . import events as ev
from .demand import Demand, demand_of
from .events import replace
from .policy import Policy, Pool
from .timing import Timing
from .victims import Victim, Victims, enough

# Where to count devices is not enough, so many leases are tried, the best to take first.
TRIED = 64
# Of work of all kinds so many services are remembered, for kinds of which there are none.
SERVICES = 500
# Fewer than so many of a kind say little of the next one's chances.
LIKE = 10
# How much less likely to end soon (twice to the power of it) work must be to give way.
MARGIN = 1.0


class Preempting(Timing):
    """The rules of leasing, with preemption.

    Parameters
    ----------
    min_run
        Seconds for which the policies `las` and `gittins` let a lease run before they take it.
    preempt_grace
        Seconds between SIGTERM and SIGKILL for ranks of a lease that is taken: time for a
        checkpoint.
    """

    def __init__(self, *parameters: Any, min_run: float, preempt_grace: float, **more: Any) -> None:
        self.min_run = min_run
        self.preempt_grace = preempt_grace
        self._victims = Victims()
        # When a lease's standing changes by itself, and leases whose devices are about to be free.
        self._restands: dict[str, float] = {}
        self._ending: dict[Pool, dict[str, None]] = {pool: {} for pool in Pool}
        self._no_room: dict[Pool, tuple[object, ...]] = {}
        self._indices = attained.Indices()
        self._services: deque[float] = deque(maxlen=SERVICES)
        super().__init__(*parameters, **more)
        self._deadlines.add(
            "standing", self._restands.get, lambda lease: self._stand(self.leases[lease])
        )

    # --- whose turn it is

    def _make_room(self, pool: Pool) -> bool:
        head = self._queue.head(pool) if len(self._victims) else None
        if head is None:
            return False
        attempt = (
            head,
            self.fleet.version,
            self._ends_version,
            self._quotas.version,
            self._victims.version,
        )
        if self._no_room.get(pool) == attempt:
            return False
        request = self.requests[head]
        chosen = self._chosen(pool, request)
        # What was granted in this event may be taken in the next.
        if not chosen and not self._just_granted:
            self._no_room[pool] = attempt
        for lease, why in chosen:
            self._preempt(lease, request, why)
        return bool(chosen)

    def _chosen(self, pool: Pool, request: Request) -> list[tuple[Lease, str]]:
        """The fewest leases without which the request could start; none where that is not enough."""
        demand = demand_of(request)
        candidates = (
            found
            for found in self._preemptible(pool, request)
            if found[0].id not in self._just_granted
        )
        if self._calendar or not self._countable(pool, demand):
            return self._chosen_by_trial(pool, request, demand, candidates)
        missing = demand.least - self.fleet.free(pool, demand.each)
        for id in self._ending[pool]:
            missing -= self.fleet.suiting(self.leases[id].slots, demand.each)
        if missing <= 0:
            return []  # what ends already will do
        victims = (
            Victim(lease.id, standing, self.fleet.suiting(lease.slots, demand.each), why)
            for lease, standing, why in candidates
        )
        return [(self.leases[victim.lease], victim.why) for victim in enough(victims, missing)]

    def _chosen_by_trial(
        self,
        pool: Pool,
        request: Request,
        demand: Demand,
        candidates: Iterable[tuple[Lease, float, str]],
    ) -> list[tuple[Lease, str]]:
        """The same by taking one after the other, where to count devices is not enough."""
        ending = [self.leases[id] for ending in self._ending.values() for id in ending]

        def starts(without: Iterable[Lease]) -> bool:
            then = self.fleet.branch()
            for lease in (*ending, *without):
                then.give(lease.slots)
            self._set_aside(then, self._kept_from(request))
            return then.fits(pool, demand)

        if starts(()):
            return []
        taken: list[tuple[Lease, str]] = []
        for lease, _, why in islice(candidates, TRIED):
            if not self.fleet.suiting(lease.slots, demand.each):
                continue
            taken.append((lease, why))
            if starts(one for one, _ in taken):
                break
        else:
            return []
        for one in reversed(taken[:-1]):
            others = [other for other in taken if other is not one]
            if starts(lease for lease, _ in others):
                taken = others
        return taken

    def _preemptible(self, pool: Pool, request: Request) -> Iterator[tuple[Lease, float, str]]:
        """Leases that may be taken for the first of a line, the best to take first.

        With each how far behind it is, and why it is taken.
        """
        policy = self.policy
        if policy.preempts:
            own = self._turn(request)
            for standing, id in self._victims.line(pool, request.queue):
                if standing <= own:
                    break
                lease = self.leases[id]
                # What earlier leases say of it may have changed since it was put in its place.
                if self._standing(policy, lease, self._had(lease)) > own:
                    yield lease, standing, f"which goes first by the policy '{policy.name}'"
        if self._queue.within(request.id):
            others = [
                self._borrowed(pool, queue)
                for queue in self._victims.queues(pool)
                if queue != request.queue
            ]
            for lease in heapq.merge(*others, key=lambda lease: -lease.fence):
                yield lease, -math.inf, f"whose queue {request.queue} takes its quota back"

    def _turn(self, request: Request) -> float:
        """What a lease's standing must be above for this request to take it."""
        if self._queue.aged(request.id):
            return -math.inf
        if not self.policy.suspends:
            return self._standing(self.policy, request, 0.0)
        # By the place that it has in the line: who is preempted for it must not be before it there.
        return self._queue.key(request.id) + (MARGIN if self.policy.name == "gittins" else 0.0)

    def _borrowed(self, pool: Pool, queue: str) -> Iterator[Lease]:
        """Leases by which a queue is over its nominal quota."""
        over = self._quotas.borrowed(queue, pool)
        for id in self._ending[pool]:
            over -= len(self.leases[id].slots) if self.leases[id].queue == queue else 0
        for _, id in self._victims.line(pool, queue):
            if over <= 0:
                return
            yield self.leases[id]
            over -= len(self.leases[id].slots)

    def _preempt(self, lease: Lease, request: Request, why: str) -> None:
        reason = f"preempted by request {request.id} of {request.user}, {why}; "
        if lease.scope is Scope.SESSION:
            reason += f"request {lease.request} waits again for its devices"
        elif self._goes_on(lease):
            reason += f"it goes on when request {lease.request} has devices again"
        else:
            reason += "run it again to wait for devices anew"
        self._audit("preempted", lease.user, lease=lease.id, by=request.id, user=request.user)
        if self.policy.name == "priority":
            taken = self.requests[lease.request]
            behind = self._queue.key(request.id)
            self._put("request", taken.id, replace(taken, behind=behind))
        self._end(lease, reason, grace=self.preempt_grace, preempted=True)

    # --- standing: how far behind work is by the policy

    def _standing(self, policy: Policy, what: Request | Lease, had: float) -> float:
        """The higher, the later its turn; `had` is the service that it has attained."""
        if policy.name == "priority":
            return -what.priority
        if policy.name == "las":
            return attained.level(had)
        if policy.name == "gittins":
            kind, services = self._services_like(what)
            return -math.log2(self._indices.index(kind, services, attained.level(had)))
        return 0.0

    def _key(self, policy: Policy) -> Callable[[Request], float]:
        if not policy.suspends:
            return super()._key(policy)
        return lambda request: self._standing(policy, request, request.attained)

    def _services_like(self, what: Request | Lease) -> tuple[str, Callable[[], Iterable[float]]]:
        """Of what kind it is, and what gives how much of that kind had in all (device-seconds).

        Where too little is known of its own kind, it is any work.
        """
        count = what.count if isinstance(what, Request) else len(what.slots)
        for kind in history.kinds_of(what):
            record = self._history.get(kind)
            if record and len(record.lengths) >= LIKE:
                return kind, partial(_services, record, count)
        return "", lambda: self._services

    def _learn(self, lease: Lease) -> None:
        if not lease.preempted:
            ran = lease.ran + max(0.0, self._now - lease.granted)
            self._services.append(ran * len(lease.slots))
            for kind in ("", *history.kinds_of(lease)):
                self._indices.ended(kind)
        super()._learn(lease)

    def _had(self, lease: Lease) -> float:
        return lease.attained + len(lease.slots) * max(0.0, self._now - lease.granted)

    def _stand(self, lease: Lease) -> None:
        """Bring what is known of a lease's turn in line with the lease, the policy and the time."""
        self._forget_standing(lease.id)
        pool = self.fleet.pool_of_slot(lease.slots[0])
        if lease.state is LeaseState.ENDING:
            self._ending[pool][lease.id] = None
            return
        if not lease.preemptible:
            return
        ripe = lease.granted + self.min_run if self.policy.suspends else self._now
        when: float | None = ripe
        if ripe <= self._now:
            had = self._had(lease)
            self._victims.add(lease, pool, self._standing(self.policy, lease, had))
            left = attained.until_next(had, len(lease.slots)) if self.policy.suspends else None
            when = None if left is None else self._now + left
        if when is not None:
            self._restands[lease.id] = when
            self._deadlines.arm("standing", lease.id)

    def _forget_standing(self, lease: str) -> None:
        self._victims.remove(lease)
        self._restands.pop(lease, None)
        for ending in self._ending.values():
            ending.pop(lease, None)

    # --- with each change of a lease

    def _note_end(self, lease: Lease) -> None:
        super()._note_end(lease)
        if lease.preemptible or lease.state is LeaseState.ENDING:
            self._stand(lease)

    def _forget_end(self, lease: str) -> None:
        super()._forget_end(lease)
        self._forget_standing(lease)

    def _order_by(self, policy: Policy) -> None:
        super()._order_by(policy)
        self._no_room.clear()
        for lease in self.leases.values():
            self._stand(lease)

    def _load_plans(self) -> None:
        for kind, record in self._history.items():
            count = int(kind.rpartition("\x1f")[2])
            self._services.extend(length * count for length in record.lengths)
        super()._load_plans()


def _services(record: ev.Lasted, count: int) -> list[float]:
    return [length * count for length in record.lengths]
