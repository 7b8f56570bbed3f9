"""What users and queues have had, and what is learned from leases that have ended."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import AccessError, UsageError
from ..schema import Lease, Request
from . import events as ev
from . import history
from .events import replace
from .ledger import Ledger
from .policy import Pool
from .quotas import Quotas
from .shares import Shares

# Shares change by use as time passes, slowly: they are worked out anew after so many seconds.
SCORED_FOR = 1.0


class Accounts(Ledger):
    """The ledger with what is counted of its leases."""

    def __init__(self) -> None:
        super().__init__()
        self._history: dict[str, ev.Lasted] = {}
        self._shares = Shares()
        self._quotas = Quotas(self.fleet.capacity)
        # Users' shares, and when and for which cluster they were worked out.
        self._scores: dict[str, float] = {}
        self._scored: tuple[float, dict[Pool, int]] = (-math.inf, {})
        self._tables |= {
            "history": self._history,
            "usage": self._shares.used,
            "quota": self._quotas.records,
        }

    def errors(self, request: Request) -> tuple[float, ...]:
        """By what factor leases like this one have lasted longer than was predicted."""
        return history.errors_of(self._history, request)

    def weights(self) -> dict[str, float]:
        """Users whose part under `fair` is another than 1."""
        used = self._shares.used.items()
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
        self._put("usage", lease.user, self._shares.settle(lease.user, self._now))
        pool = self.fleet.pool_of_slot(lease.slots[0])
        self._shares.change(lease.user, pool, sign * len(lease.slots))
        self._quotas.change(lease, pool, sign)
        self._scores.pop(lease.user, None)

    def _scoring(self) -> Callable[[str], float]:
        """What gives a user's share now."""
        capacity = {p: self.fleet.capacity(p) for p in Pool}
        if capacity != self._scored[1] or not 0 <= self._now - self._scored[0] < SCORED_FOR:
            self._scored = (self._now, capacity)
            self._scores.clear()
        scores = self._scores

        def score(user: str) -> float:
            if user not in scores:
                scores[user] = self._shares.score(user, self._now, capacity)
            return scores[user]

        return score

    def _step(self, user: str, pool: Pool) -> float:
        """By how much one more device of that pool raises a user's share, at most."""
        return 1 / max(1, self.fleet.capacity(pool)) / self._shares.weight(user)

    def _weight_changed(self, event: ev.WeightChanged) -> None:
        if not event.admin:
            raise AccessError(f"{event.by} may not change weights; ask an admin.")
        if not (math.isfinite(event.weight) and event.weight > 0):
            raise UsageError(f"{event.weight} is not a weight; give a number above zero.")
        record = self._shares.settle(event.user, self._now)
        self._put("usage", event.user, replace(record, weight=event.weight))
        self._scores.pop(event.user, None)
        self._audit("weight changed", event.by, user=event.user, weight=event.weight)
