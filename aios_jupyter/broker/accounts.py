"""What users and queues have had, and what is learned from leases that have ended."""

from __future__ import annotations

import math

from ..errors import AccessError, UsageError
from ..schema import Lease, Request
from . import events as ev
from . import history
from .events import replace
from .ledger import Ledger
from .quotas import Quotas
from .turns import Score, Turns


class Accounts(Ledger):
    """The ledger with what is counted of its leases."""

    def __init__(self) -> None:
        super().__init__()
        self._history: dict[str, ev.Lasted] = {}
        self._quotas = Quotas(self.fleet.capacity)
        self._turns = Turns(self._quotas, self.fleet.capacity)
        self._tables |= {
            "history": self._history,
            "usage": self._turns.users.used,
            "queue-usage": self._turns.queues.used,
            "quota": self._quotas.records,
        }

    def errors(self, request: Request) -> tuple[float, ...]:
        """By what factor leases like this one have lasted longer than was predicted."""
        return history.errors_of(self._history, request)

    def lengths(self, request: Request) -> tuple[float, ...]:
        """How long leases like this one have lasted."""
        return history.lengths_like(self._history, request)

    def weights(self) -> dict[str, float]:
        """Users whose part under `fair` is another than 1."""
        used = self._turns.users.used.items()
        return {user: record.weight for user, record in used if record.weight != 1.0}

    # --- what is learned from leases

    def _learn(self, lease: Lease) -> None:
        """A lease has ended: the next one like it may last as long."""
        if lease.preempted:
            return  # it says nothing of how long the work takes
        length = lease.ran + max(0.0, self._now - lease.granted)
        for kind in history.kinds_of(lease):
            record = history.lasted(self._history.pop(kind, None), length, lease.predicted)
            self._put("history", kind, record)
        while len(self._history) > history.KINDS:
            self._drop("history", next(iter(self._history)))

    def _charge(self, lease: Lease, sign: int) -> None:
        pool, change = self.fleet.pool_of_slot(lease.slots[0]), sign * len(lease.slots)
        users, queues = self._turns.users, self._turns.queues
        self._put("usage", lease.user, users.settle(lease.user, self._now))
        users.change(lease.user, pool, change)
        if self._quotas.records:
            self._put("queue-usage", lease.queue, queues.settle(lease.queue, self._now))
            queues.change(lease.queue, pool, change)
        self._quotas.change(lease, pool, sign)
        self._turns.changed(lease.queue, lease.user)

    def _count_held(self) -> None:
        """After a change of quotas: what is held in each queue, anew."""
        held = [(lease, self.fleet.pool_of_slot(lease.slots[0])) for lease in self.leases.values()]
        self._quotas.count(held)
        queues = self._turns.queues
        if not self._quotas.records:
            for queue in list(queues.used):
                self._drop("queue-usage", queue)
            queues.held.clear()
            return
        for queue in {**queues.used, **{lease.queue: None for lease, _ in held}}:
            self._put("queue-usage", queue, queues.settle(queue, self._now))
            self._turns.changed(queue, "")
        queues.held.clear()
        for lease, pool in held:
            queues.change(lease.queue, pool, len(lease.slots))

    def _load_held(self, lease: Lease) -> None:
        """A lease that the journal had: it holds what it holds."""
        pool = self.fleet.pool_of_slot(lease.slots[0])
        self._turns.users.change(lease.user, pool, len(lease.slots))
        if self._quotas.records:
            self._turns.queues.change(lease.queue, pool, len(lease.slots))
        self._quotas.change(lease, pool, +1)

    def _scoring(self) -> Score:
        """What gives a queue's and a user's share now."""
        return self._turns.scoring(self._now)

    def _weight_changed(self, event: ev.WeightChanged) -> None:
        if not event.admin:
            raise AccessError(f"{event.by} may not change weights; ask an admin.")
        if not (math.isfinite(event.weight) and event.weight > 0):
            raise UsageError(f"{event.weight} is not a weight; give a number above zero.")
        record = self._turns.users.settle(event.user, self._now)
        self._put("usage", event.user, replace(record, weight=event.weight))
        self._turns.changed("", event.user)
        self._audit("weight changed", event.by, user=event.user, weight=event.weight)
