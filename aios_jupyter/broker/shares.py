"""Who has had how much: dominant-resource shares of a use that is forgotten by halves.

A user's score is the larger of two shares, of accelerators and of CPU slots: what they hold now and
have held on average of late, over what the cluster has, over their weight.
"""

from __future__ import annotations

import math

from .events import Used
from .policy import Pool

HALF_LIFE = 86400.0
_NAMES = tuple((pool, pool.value) for pool in Pool)
_DECAY = math.log(2) / HALF_LIFE


class Shares:
    """What each user holds and has held.

    Attributes
    ----------
    used
        By user, for the journal: device-seconds, decayed up to a time.
    held
        Devices that leases hold now, by user and pool.
    """

    def __init__(self) -> None:
        self.used: dict[str, Used] = {}
        self.held: dict[str, dict[Pool, int]] = {}

    def change(self, user: str, pool: Pool, devices: int) -> None:
        """A user holds so many more devices from now on; `settle` comes before it."""
        held = self.held.setdefault(user, {})
        held[pool] = held.get(pool, 0) + devices
        if not held[pool]:
            del held[pool]
        if not held:
            del self.held[user]

    def settle(self, user: str, now: float) -> Used:
        """The user's record with all that was held up to now."""
        before = self.used.get(user) or Used(time=now)
        since = max(0.0, now - before.time)
        kept = math.exp(-_DECAY * since)
        held = self.held.get(user, {})
        return Used(
            time=now,
            weight=before.weight,
            seconds={
                name: before.seconds.get(name, 0.0) * kept + held.get(pool, 0) * (1 - kept) / _DECAY
                for pool, name in _NAMES
            },
        )

    def score(self, user: str, now: float, capacity: dict[Pool, int]) -> float:
        """The user's share now, as a number of whole clusters, over their weight."""
        record = self.settle(user, now)
        held = self.held.get(user, {})
        return (
            max(
                (held.get(pool, 0) + _DECAY * record.seconds[name]) / max(1, capacity[pool])
                for pool, name in _NAMES
            )
            / record.weight
        )

    def weight(self, user: str) -> float:
        """The user's weight."""
        record = self.used.get(user)
        return record.weight if record else 1.0
