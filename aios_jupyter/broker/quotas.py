"""Who may have how much: queues with quotas, in Kueue's words. Pure.

A queue's nominal quota is what it can count on; what others leave of theirs it may borrow, up to its
borrowing limit. All queues are one cohort. The queue `default` is there always: unless an admin has
said otherwise its nominal quota is what the cluster has beyond the others', and it may borrow all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import AccessError, AiosError, AllocationError, NotFoundError, UsageError
from ..schema import DEFAULT_QUEUE, Lease, Request
from .events import Quota
from .policy import Pool

LONGEST_NAME = 64
_PUNCTUATION = set("._-")
MOST = 10**6
_NONE = Quota()


class Room(NamedTuple):
    """How many more devices of a pool may be taken: of what is guaranteed, and with borrowed ones.

    `whose` names the limit behind `allowed`.
    """

    within: float
    allowed: float
    whose: str


UNLIMITED = Room(math.inf, math.inf, "")


class _Held:
    """Devices by pool, and leases."""

    def __init__(self) -> None:
        self.devices = dict.fromkeys(Pool, 0)
        self.leases = 0


class Quotas:
    """What each queue may use, and what it uses.

    Parameters
    ----------
    capacity
        How many devices of a pool the cluster has.

    What leases hold is counted only where there are quotas.

    Attributes
    ----------
    records
        By queue, for the journal.
    version
        Rises when somebody may have more or less than before.
    """

    def __init__(self, capacity: Callable[[Pool], int]) -> None:
        self._capacity = capacity
        self.records: dict[str, Quota] = {}
        self.version = 0
        # By queue and user, and for all of a queue's users under "".
        self._held: dict[tuple[str, str], _Held] = {}

    def change(self, lease: Lease, pool: Pool, sign: int) -> None:
        """A lease holds devices from now on (+1), or does not any more (-1)."""
        if not self.records:
            return
        self.version += 1
        for key in ((lease.queue, ""), (lease.queue, lease.user)):
            held = self._held.setdefault(key, _Held())
            held.devices[pool] += sign * len(lease.slots)
            held.leases += sign
            if not held.leases:
                del self._held[key]

    def count(self, leases: Iterable[tuple[Lease, Pool]]) -> None:
        """After a change of what is allowed: what is held, and of which pool, anew."""
        self.version += 1
        self._held.clear()
        for lease, pool in leases:
            self.change(lease, pool, +1)

    # --- questions

    def names(self) -> list[str]:
        """Every queue, `default` first."""
        return [DEFAULT_QUEUE, *(name for name in self.records if name != DEFAULT_QUEUE)]

    def quota(self, queue: str) -> Quota:
        """What an admin has said of a queue."""
        return self.records.get(queue, _NONE)

    def used(self, queue: str, pool: Pool) -> int:
        """Devices that its leases hold."""
        held = self._held.get((queue, ""))
        return held.devices[pool] if held else 0

    def nominal(self, queue: str, pool: Pool) -> float:
        """Devices that a queue can count on."""
        given = self.quota(queue).nominal.get(pool)
        if given is not None:
            return given
        if queue != DEFAULT_QUEUE:
            return math.inf
        others = [
            n for quota in self.records.values() if (n := quota.nominal.get(pool)) is not None
        ]
        return max(0, self._capacity(pool) - sum(others)) if others else math.inf

    def most(self, queue: str, pool: Pool) -> float:
        """Devices that a queue may use with all that it may borrow."""
        quota = self.quota(queue)
        nominal = quota.nominal.get(pool)
        return math.inf if nominal is None or quota.borrow is None else nominal + quota.borrow

    def borrowed(self, queue: str, pool: Pool) -> int:
        """How many devices over its nominal quota a queue uses."""
        return int(max(0, self.used(queue, pool) - self.nominal(queue, pool)))

    def per_user(self, queue: str) -> bool:
        """Whether what one user may have there is limited."""
        quota = self.quota(queue)
        return quota.user_devices is not None or quota.user_leases is not None

    def room(self, queue: str, user: str, pool: Pool) -> Room:
        """What a user's next request may take; the user does not matter where `per_user` is not."""
        if not self.records:
            return UNLIMITED
        quota, used = self.quota(queue), self.used(queue, pool)
        allowed, whose = self.most(queue, pool) - used, f"queue {queue}"
        if self.per_user(queue):
            held = self._held.get((queue, user)) or _Held()
            own = math.inf
            if quota.user_devices is not None:
                own = quota.user_devices - held.devices[pool]
            if quota.user_leases is not None and held.leases >= quota.user_leases:
                own = 0
            if own < allowed:
                allowed, whose = own, "user"
        return Room(min(self.nominal(queue, pool) - used, allowed), allowed, whose)

    def queues_of(self, user: str) -> list[str]:
        """The queues that a user may ask in, their default first."""
        found = [name for name, quota in self.records.items() if user in quota.members]
        return found or [DEFAULT_QUEUE]

    # --- what is refused

    def queue_for(self, request: Request) -> str:
        """The queue in which a request is to wait.

        Raises
        ------
        NotFoundError
            There is none of that name.
        AccessError
            The user is not a member.
        """
        own = self.queues_of(request.user)
        if request.queue in own:
            return request.queue
        if not request.queue:
            return own[0]
        if request.queue not in self.names():
            raise NotFoundError(
                f"There is no queue {request.queue[:64]!r}; 'aios quota' lists them."
            )
        raise AccessError(
            f"{request.user} is not a member of queue {request.queue}; ask in {' or '.join(own)}, "
            "or have an admin add you with 'aios quota set'."
        )

    def refusal(self, queue: str, pool: Pool, count: int) -> AiosError | None:
        """Why a queue's quota could never allow so many devices, or None."""
        user_devices = self.quota(queue).user_devices
        own = math.inf if user_devices is None else user_devices
        most = self.most(queue, pool)
        if count <= min(own, most):
            return None
        kind = "CPU slots" if pool is Pool.CPU else "accelerators"
        if own < most:
            return AllocationError(
                f"{count} {kind} are more than one user may hold in queue {queue}: ask for at most "
                f"{own}."
            )
        if not most:
            return AllocationError(
                f"Queue {queue} has a quota of no {kind}; ask in another queue, or have an admin "
                "change it."
            )
        return AllocationError(
            f"{count} {kind} can never be granted in queue {queue}: its quota allows at most "
            f"{most}, with what it may borrow."
        )


def check(name: str, quota: Quota) -> None:
    """Refuse a name or a quota that makes no sense.

    Raises
    ------
    UsageError
        It does not.
    """
    letters = name.translate(dict.fromkeys(map(ord, _PUNCTUATION)))
    plain = letters.isascii() and letters.isalnum() and name[:1] not in _PUNCTUATION
    if not plain or len(name) > LONGEST_NAME:
        raise UsageError(
            f"{name[:64]!r} is not a queue's name; use up to 64 letters, digits, '.', '-' and '_'."
        )
    if not quota.nominal.keys() <= set(Pool):
        raise UsageError("A quota is for accelerators and CPU slots alone.")
    for what, number, least in (
        *(("A nominal quota", n, 0) for n in quota.nominal.values()),
        ("A borrowing limit", quota.borrow, 0),
        ("A user's limit on devices", quota.user_devices, 1),
        ("A user's limit on leases", quota.user_leases, 1),
    ):
        if number is not None and not least <= number <= MOST:
            raise UsageError(f"{what} is between {least} and {MOST:,}, not {number}.")
    if not (math.isfinite(quota.weight) and 0 < quota.weight <= MOST):
        raise UsageError(f"{quota.weight:g} is not a weight; give a number above zero.")
    if quota.borrow is not None and not quota.nominal:
        raise UsageError(
            "A queue without a nominal quota has no limit that it could borrow over; give one with "
            "--gpus or --cpus."
        )
    for member in quota.members:
        if not 0 < len(member) <= LONGEST_NAME:
            raise UsageError(f"{member[:64]!r} is not a user's name.")
