"""Whose turn it is under `fair`: queues share the cluster, and users what their queue has.

Both by dominant-resource shares of a decayed use (`shares.py`) over weights: a queue's is in its
quota, a user's in their record. Without quotas there is one queue, and users alone take turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .policy import Pool
from .quotas import Quotas
from .shares import Shares

# Shares change by use as time passes, slowly: they are worked out anew after so many seconds.
SCORED_FOR = 1.0
# Gives a queue's share, then its user's.
Score = Callable[[str, str], tuple[float, float]]


class Turns:
    """What queues and users have had, and their shares by that.

    What queues have is counted only where there are quotas.

    Parameters
    ----------
    capacity
        How many devices of a pool the cluster has.

    Attributes
    ----------
    queues, users
        What each holds and has held.
    """

    def __init__(self, quotas: Quotas, capacity: Callable[[Pool], int]) -> None:
        self.queues = Shares()
        self.users = Shares()
        self._quotas = quotas
        self._capacity = capacity
        # Shares, and when and for which cluster they were worked out.
        self._scores: tuple[dict[str, float], dict[str, float]] = {}, {}
        self._scored: tuple[float, dict[Pool, int]] = (-math.inf, {})

    def changed(self, queue: str, user: str) -> None:
        """What they hold, or a weight of theirs, has changed."""
        queues, users = self._scores
        queues.pop(queue, None)
        users.pop(user, None)

    def scoring(self, now: float) -> Score:
        """What gives shares now; the queue's is 0 where there are no quotas."""
        capacity = {p: self._capacity(p) for p in Pool}
        queues, users = self._scores
        if capacity != self._scored[1] or not 0 <= now - self._scored[0] < SCORED_FOR:
            self._scored = (now, capacity)
            queues.clear()
            users.clear()

        def score(queue: str, user: str) -> tuple[float, float]:
            if user not in users:
                users[user] = self.users.score(user, now, capacity)
            if not self._quotas.records:
                return 0.0, users[user]
            if queue not in queues:
                had = self.queues.score(queue, now, capacity)
                queues[queue] = had / self._quotas.quota(queue).weight
            return queues[queue], users[user]

        return score

    def step(self, queue: str, user: str, pool: Pool) -> tuple[float, float]:
        """By how much one more device of that pool raises those shares, at most."""
        one = 1 / max(1, self._capacity(pool))
        of_user = one / self.users.weight(user)
        if not self._quotas.records:
            return 0.0, of_user
        return one / self._quotas.quota(queue).weight, of_user
