"""What is kept for the first request of a line: devices from the time at which it can start.

That time is when the ends of leases leave it enough. A lease without a time gives no end but under
a policy that predicts, which expects it to last as those like it did. Such ends are wrong at times,
and whoever they let past the first may then delay it: they count until it has aged.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from ..schema import Lease, LeaseState, Placement, Request, Slot
from . import history
from .accounts import Accounts
from .calendar import Calendar
from .deadlines import Deadlines
from .demand import Demand
from .ends import End, Ends
from .policy import POOLS, Pool
from .stock import Stock

# At how many times it is tried whether reservations leave the first of a line enough.
AROUND = 50


class Reservation(NamedTuple):
    """What is kept for the first request of a line.

    Attributes
    ----------
    request
        Its id.
    when
        The time at which it can start, seconds since the epoch; -inf when no end is known.
    spare
        How many devices that would suit it are left over then.
    then
        What can be granted then, where to count devices is not enough.
    at
        When it could start were nothing promised to others and no machine only lent, where there is
        no other time.
    """

    request: str
    when: float
    spare: int
    then: Stock | None = None
    at: float = -math.inf


class Reserving(Accounts):
    """The accounts with the ends of leases."""

    def __init__(self) -> None:
        super().__init__()
        self._deadlines: Deadlines
        self._calendar = Calendar()
        self._tables |= {"booking": self._calendar.bookings}
        self._ends = Ends(lambda lease: self._likely_end(self.leases[lease], self._now))
        self._ends_version = 0
        # What is known of the leases like one that has no time.
        self._longer: dict[str, history.Longer] = {}
        self._reserved: dict[Pool, tuple[tuple[Any, ...], Reservation]] = {}
        # When what is kept for the first of a line, by pool, will have proved to be kept too early.
        self._looks: dict[str, float] = {}

    def guesses(self, head: str) -> bool:
        """Whether predictions say who may go past a request that is the first of its line."""
        return self._queue.policy.predicts and not self._queue.aged(head)

    def end_before(self, head: str, lease: Lease, now: float) -> float | None:
        """When a lease ends, as far as that counts for the first of a line; None: nobody knows."""
        if lease.state is LeaseState.ENDING:
            return now
        if lease.expires is None and lease.predicted and self.guesses(head):
            return self._likely_end(lease, now)
        return lease.expires

    def length_behind(self, head: str, request: Request) -> float | None:
        """For how long a request wants its devices, as far as that counts for the first of a line.

        Where predictions count, the first of those with one shape is the one that is over soonest.
        """
        return request.predicted if request.time is None and self.guesses(head) else request.time

    # --- reservations

    def _reservation(self, pool: Pool, head: Request) -> Reservation:
        """What is kept for the first request of a line, which does not fit now."""
        demand = self._queue.shape(head.id).demand
        countable, guessed = self._countable(pool, demand), self.guesses(head.id)
        state = (head.id, self.fleet.version, self._ends_version, countable, guessed)
        known = self._reserved.get(pool)
        if known and known[0] == state and known[1].when > self._now:
            return known[1]
        if self._calendar:
            reservation = self._reserve_around(pool, head, demand)
        else:
            reserve = self._reserve_by_count if countable else self._reserve_by_trial
            reservation = reserve(pool, head.id, demand)
        self._reserved[pool] = (state, reservation)
        if guessed and reservation.when > self._now:
            self._look_again(pool, reservation.when)
        return reservation

    def _countable(self, pool: Pool, demand: Demand) -> bool:
        """Whether all that is asked for and held are whole devices, so that to count is enough."""
        special = self.fleet.special() or self._queue.special(pool)
        return not special and demand.placement is not Placement.NODE

    def _reserve_by_count(self, pool: Pool, head: str, demand: Demand) -> Reservation:
        missing = demand.least - self.fleet.free(pool, demand.each)
        when = -math.inf
        for end, id in self._ends_before(head, pool):
            if missing <= 0 and end > when:
                break
            missing -= self.fleet.suiting(self.leases[id].slots, demand.each)
            if missing <= 0:
                when = max(end, self._now)
        return Reservation(head, when, max(0, -missing))

    def _reserve_by_trial(self, pool: Pool, head: str, demand: Demand) -> Reservation:
        """The same by giving back one lease after the other, where some are of parts of devices."""
        then = self.fleet.branch()
        when = -math.inf
        for end, id in self._ends_before(head, *POOLS):
            if when > -math.inf and end > when:
                break
            then.give(self.leases[id].slots)
            if when == -math.inf and then.fits(pool, demand):
                when = max(end, self._now)
        return Reservation(head, when, 0, then)

    def _reserve_around(self, pool: Pool, head: Request, demand: Demand) -> Reservation:
        """The same where devices are promised to others from some time on.

        After `AROUND` times at which they would do but for that, it is as if none were known.
        """
        length = math.inf if head.time is None else head.time
        then, tries, at = self.fleet.branch(), 0, -math.inf
        for when, leases in self._openings(head.id):
            for lease in leases:
                then.give(self.leases[lease].slots)
            if not then.fits(pool, demand):
                continue
            at = max(at, when) if tries == 0 else at
            beside = then.branch()
            self._set_aside(beside, self._calendar.within(when, when + length))
            if beside.fits(pool, demand):
                return Reservation(head.id, when, 0, beside)
            if (tries := tries + 1) == AROUND:
                break
        return Reservation(head.id, -math.inf, 0, at=at)

    def _openings(self, head: str) -> Iterator[tuple[float, list[str]]]:
        """When devices come free, by leases that end then or reservations that do (`[]`)."""
        leases = ((max(end, self._now), id) for end, id in self._ends_before(head, *POOLS))
        bookings = ((end, "") for end in self._calendar.ends() if end > self._now)
        for when, group in groupby(heapq.merge(leases, bookings), key=itemgetter(0)):
            yield when, [id for _, id in group if id]

    def _look_again(self, pool: Pool, when: float) -> None:
        """Should the first of a line not have started by then, others may go past it after all."""
        if when < self._looks.get(pool.value, math.inf):
            self._looks[pool.value] = when
            self._deadlines.arm("look", pool.value)

    def _set_aside(self, stock: Stock, devices: Iterable[str]) -> None:
        """In a branch: nothing of these devices is to be had."""
        for device in devices:
            slot = self.fleet.slot(device) if device in self.fleet else None
            # The core of a CPU slot that is held is with its lease, and not to be taken again.
            if slot and (not slot.cpus or stock.has(slot)):
                stock.take((slot,))

    def _lent_until(self, slots: Iterable[Slot]) -> float | None:
        """When the first of the machines of devices goes; None: all stay."""
        ends = (self._calendar.lent_until(slot.device) for slot in slots)
        return min((end for end in ends if end is not None), default=None)

    # --- the ends of leases

    def _ends_before(self, head: str, *pools: Pool) -> Iterator[End]:
        """When leases end, in order, as far as that counts for a request that is the first."""
        return (self._ends.expected if self.guesses(head) else self._ends.given)(*pools)

    def _likely_end(self, lease: Lease, now: float) -> float:
        ran = lease.ran + max(0.0, now - lease.granted)
        longer = self._longer.get(lease.id)
        if longer is None or longer.least <= ran:
            longer = self._longer[lease.id] = history.longer(self._history, lease, ran)
        lasts = history.outlasting(longer, lease.predicted or 0.0, ran)
        return lease.granted - lease.ran + lasts

    def _note_end(self, lease: Lease) -> None:
        self._forget_end(lease.id)
        end = self._now if lease.state is LeaseState.ENDING else lease.expires
        pool = self.fleet.pool_of_slot(lease.slots[0])
        if end is not None:
            self._ends.note(lease.id, pool, end)
        elif lease.predicted:
            self._ends.guess(lease.id, pool, self._now)
        self._ends_version += 1

    def _forget_end(self, lease: str) -> None:
        self._ends.forget(lease)
        self._longer.pop(lease, None)
