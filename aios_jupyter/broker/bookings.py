"""Reservations: devices that are promised from a time on, and then granted without being asked.

What could still run at that time is not granted on them, and a lease on them is extended only as
far as they go. A reservation is accepted where enough devices are sure to be free by then: those
that nobody holds, and those of leases that end in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..errors import AccessError, AllocationError, ConflictError, NotFoundError, UsageError
from ..schema import Booking, Lease, LeaseState, Request, Scope, Slot
from ..units import format_duration
from . import events as ev
from .calendar import LENT
from .checks import check_active, check_owner
from .demand import Demand, demand_of
from .events import replace
from .leasing import Leasing
from .ledger import discard
from .policy import Pool
from .stock import Stock

# Reservations are made for at most this long (s), and begin at most this far ahead.
FARTHEST = 366 * 86400.0
# How many times are tried before an answer names none at which a reservation would be possible.
TRIES = 50


class Bookings(Leasing):
    """Leasing with reservations.

    Parameters
    ----------
    reserve_limit
        Device-seconds that a user who is no admin may have reserved at a time.
    """

    def __init__(
        self,
        owner_grace: float,
        node_grace: float,
        unused_grace: float,
        node_memory: float,
        policy: str,
        reserve_limit: float,
    ) -> None:
        super().__init__(owner_grace, node_grace, unused_grace, node_memory, policy)
        self.reserve_limit = reserve_limit
        # A reservation starts in `_grant`; its deadline has the broker awake then.
        self._deadlines.add("booking", self._booking_start, lambda _: None)
        self._deadlines.add("booking-over", self._booking_end, self._never_started)
        # The last attempt to start a reservation that found too few devices.
        self._short: dict[str, tuple[int, int]] = {}
        self._lease_of: dict[str, str] = {}

    # --- read side

    @property
    def bookings(self) -> dict[str, Booking]:
        """Reservations that have not started."""
        return self._calendar.bookings

    def lease_of(self, booking: str) -> str:
        """The lease of a reservation that has started; "": there is none."""
        return self._lease_of.get(booking, "")

    def reserved_slots(self) -> Iterator[tuple[Slot, float]]:
        """Devices that are reserved, and when the last reservation of each ends."""
        for device in self._calendar.devices():
            until = self._calendar.last_end(device)
            if device in self.fleet and until is not None:
                yield self.fleet.slot(device), until

    def reserved_until(self, slot: Slot) -> float | None:
        """When the last reservation of a device ends; None: it has none."""
        return self._calendar.last_end(slot.device)

    # --- making one

    def _booked(self, event: ev.Booked) -> None:
        booking, now = event.booking, self._now
        known = self.bookings.get(booking.id) or self.leases.get(self._lease_of.get(booking.id, ""))
        if known:
            if known.user != booking.user:
                raise AccessError(
                    f"Reservation {booking.id} belongs to {known.user}; use a new id."
                )
            return
        owner = self.sessions.get(booking.session)
        if owner is None:
            raise ConflictError(f"Session {booking.session} is not open; connect again.")
        if owner.user != booking.user:
            raise AccessError(f"Session {owner.id} belongs to {owner.user}; reserve in your own.")
        _check_window(booking, now)
        if booking.id in self.requests:
            raise ConflictError(f"{booking.id} is the id of a request; use a new one.")
        request = self._within_limits(_request(booking, booking.id, booking.time), event.admin)
        pool = self._pool_or_refuse(request)
        queue = self._quotas.queues_of(booking.user)[0]
        if error := self._quotas.refusal(queue, pool, booking.count):
            raise error
        if not event.admin:
            self._check_share(booking)
        places = self._places(pool, request, booking.start)
        if places is None:
            raise AllocationError(self._why_not(pool, request, booking))
        self._book(replace(booking, pool=pool.value, devices=places))
        self._deadlines.arm("booking", booking.id)
        self._deadlines.arm("booking-over", booking.id)
        self._audit(
            "reserved",
            booking.user,
            booking=booking.id,
            count=booking.count,
            start=booking.start,
            time=booking.time,
        )

    def _within_limits(self, request: Request, admin: bool) -> Request:
        """The request with the limits that admins have set.

        Raises
        ------
        UsageError
            It goes beyond one of them.
        """
        raise NotImplementedError

    def _pool_or_refuse(self, request: Request) -> Pool:
        raise NotImplementedError

    def _check_share(self, booking: Booking) -> None:
        own = [b for b in self.bookings.values() if b.user == booking.user]
        reserved = sum(b.count * b.time for b in own)
        if reserved + booking.count * booking.time > self.reserve_limit:
            left = max(0.0, self.reserve_limit - reserved) / 3600
            raise AllocationError(
                f"{booking.user} may reserve {self.reserve_limit / 3600:g} device-hours at a time, "
                f"of which {left:.3g} are left; reserve fewer devices or less time, or ask an admin."
            )

    def _free_at(self, start: float, end: float, but: str = "") -> Stock:
        """What nobody holds at a time, or was promised until another, as far as is known now.

        `but` is a reservation that is left out of it.
        """
        then = self.fleet.branch()
        for lease in self.leases.values():
            over = self._now if lease.state is LeaseState.ENDING else lease.expires
            if over is not None and over <= start:
                then.give(lease.slots)
        self._set_aside(then, self._calendar.within(start, end, but))
        return then

    def _places(self, pool: Pool, request: Request, start: float) -> tuple[str, ...] | None:
        """Devices for a reservation; None: too few can be promised."""
        then = self._free_at(start, start + (request.time or 0.0))
        slots = then.pick(pool, demand_of(request))
        return None if slots is None else tuple(slot.device for slot in slots)

    def _why_not(self, pool: Pool, request: Request, booking: Booking) -> str:
        each = demand_of(request).each
        found = self._free_at(booking.start, booking.end).free(pool, each)
        endless = sum(
            self.fleet.suiting(lease.slots, each)
            for lease in self.leases.values()
            if lease.state is LeaseState.ACTIVE and lease.expires is None
        )
        why = f"Only {found} of {booking.count} can be promised from then on"
        why += f", as leases without an end hold {endless}" if endless else ""
        when = self._next_time(pool, request, booking.start)
        advice = f"reserve {found}" if found else ""
        if when is not None:
            later = f"begin {format_duration(when - booking.start)} later"
            advice = f"{advice}, or {later}" if advice else later
        if not advice:
            advice = "ask for them with 'alloc', which waits until they are free"
        return f"{why} for {format_duration(booking.time)}: {advice}."

    def _next_time(self, pool: Pool, request: Request, start: float) -> float | None:
        """The first time after that asked for at which a reservation would be possible."""
        ends = {b.end for b in self.bookings.values()}
        ends |= {lease.expires for lease in self.leases.values() if lease.expires is not None}
        for when in sorted(end for end in ends if end > start)[:TRIES]:
            if self._places(pool, request, when) is not None:
                return when
        return None

    def _book(self, booking: Booking) -> None:
        self._put("booking", booking.id, booking)
        self._calendar.put(booking)
        self._ends_version += 1

    def _unbook(self, booking: Booking) -> None:
        self._drop("booking", booking.id)
        self._calendar.forget(booking.id)
        self._short.pop(booking.id, None)
        self._ends_version += 1

    # --- its end

    def _cancel_booking(self, id: str, event: ev.Cancelled) -> bool:
        """Take a reservation back, or end its lease; False: there is none with that id."""
        booking, lease = self.bookings.get(id), self.leases.get(self._lease_of.get(id, ""))
        found = booking or lease
        if found is None:
            return False
        check_owner(f"Reservation {id}", found.user, event)
        if booking:
            self._end_booking(booking, f"cancelled by {event.by}", event.by)
        elif lease:
            self._end(lease, f"cancelled by {event.by}")
        return True

    def _end_booking(self, booking: Booking, reason: str, by: str = "") -> None:
        self._unbook(booking)
        self._audit("reservation ended", booking.user, booking=booking.id, reason=reason)
        if by != booking.user:
            self._tell(booking.session, booking.id, f"Reservation {booking.id} ended: {reason}.")

    def _booking_start(self, id: str) -> float | None:
        booking = self.bookings.get(id)
        return booking.start if booking else None

    def _booking_end(self, id: str) -> float | None:
        booking = self.bookings.get(id)
        return booking.end if booking else None

    def _never_started(self, id: str) -> None:
        self._end_booking(self.bookings[id], "its devices were not to be had in its time")

    # --- its start

    def _grant(self) -> None:
        """Reservations whose time has come go before everybody who waits."""
        for booking in self._calendar.due(self._now):
            if booking.end > self._now:
                self._start(booking)
        super()._grant()

    def _grant_to(
        self, request: Request, slots: tuple[Slot, ...], booking: Booking | None = None
    ) -> Lease:
        lease = super()._grant_to(request, slots, booking)
        if booking:
            self._lease_of[booking.id] = lease.id
        return lease

    def _finish(self, lease: Lease) -> None:
        self._lease_of.pop(lease.booking, None)
        super()._finish(lease)

    def _start(self, booking: Booking) -> None:
        if self._short.get(booking.id) == (self.fleet.version, self._ends_version):
            return
        missing = self._missing(booking)
        if missing:
            booking = self._with_others(booking, missing)
            missing = self._missing(booking)
        if missing:
            self._short[booking.id] = (self.fleet.version, self._ends_version)
            return
        slots = tuple(self.fleet.slot(device) for device in booking.devices)
        self._unbook(booking)
        # A client cannot give a request an id with this sign.
        request = _request(booking, f"{booking.id}@{self._fence + 1}", booking.end - self._now)
        session = self._session_for(booking)
        request = replace(request, session=session, submitted=self._now)
        self._put("request", request.id, request)
        self._open.setdefault(session, {})[request.id] = None
        lease = self._grant_to(request, slots, booking)
        text = f"Reservation {booking.id} has begun; its lease is {lease.id}."
        self._tell(session, booking.id, text)

    def _missing(self, booking: Booking) -> list[str]:
        """Those of its devices that cannot be granted now."""
        stock, missing = self.fleet.branch(), []
        for device in booking.devices:
            if device in self.fleet and stock.has(slot := self.fleet.slot(device)):
                stock.take((slot,))
            else:
                missing.append(device)
        return missing

    def _with_others(self, booking: Booking, missing: list[str]) -> Booking:
        """A reservation with free devices in place of those that it cannot have."""
        stock = self.fleet.branch()
        self._set_aside(stock, self._calendar.within(self._now, booking.end))
        demand = _one(booking)
        devices = list(booking.devices)
        for device in missing:
            if other := stock.pick(Pool(booking.pool), demand):
                stock.take(other)
                devices[devices.index(device)] = other[0].device
        if tuple(devices) != booking.devices:
            booking = replace(booking, devices=tuple(devices))
            self._book(booking)
        return booking

    def _session_for(self, booking: Booking) -> str:
        """The session that reserved, else another of that user's; "": none is open."""
        if booking.session in self.sessions:
            return booking.session
        own = [owner.id for owner in self.sessions.values() if owner.user == booking.user]
        return own[-1] if own else ""

    def _claimed(self, event: ev.Claimed) -> None:
        id, session = event.booking, event.session
        booking, lease = self.bookings.get(id), self.leases.get(self._lease_of.get(id, ""))
        found = booking or lease
        if found is None:
            raise NotFoundError(f"There is no reservation {id!r}; 'aios reservations' lists them.")
        if found.user != event.by:
            raise AccessError(f"Reservation {id} belongs to {found.user}, not to you.")
        if session not in self.sessions:
            raise ConflictError(f"Session {session} is not open; connect again.")
        if lease:
            check_active(lease)
        if found.session == session:
            return
        if booking:
            self._put("booking", id, replace(booking, session=session))
            self._calendar.put(self.bookings[id])
        elif lease:
            self._hand_over(lease, session)

    def _hand_over(self, lease: Lease, session: str) -> None:
        request = self.requests[lease.request]
        discard(self._open, request.session, request.id)
        lease = replace(lease, session=session)
        self._put("lease", lease.id, lease)
        self._put("request", request.id, replace(request, session=session))
        self._open.setdefault(session, {})[request.id] = None
        self._audit("lease claimed", lease.user, lease=lease.id, booking=lease.booking)
        self._out.append(ev.Handed(lease=lease))

    def _displace(self, lease: Lease, until: float) -> None:
        """Give reservations within a lease's new time other devices.

        Raises
        ------
        ConflictError
            There are none.
        """
        moved: dict[str, Booking] = {}
        taken = {slot.device for slot in lease.slots}
        for slot in lease.slots:
            for id in self._calendar.clashes(slot.device, self._now, until):
                if id.startswith(LENT):
                    end = self._calendar.lent_until(slot.device) or self._now
                    left = max(0.0, end - self._now)
                    raise ConflictError(
                        f"Lease {lease.id} can last {format_duration(left)} more at most, as node "
                        f"{slot.node} is only lent until then; extend it by less."
                    )
                booking = moved.get(id, self.bookings[id])
                others = {d for b in moved.values() for d in b.devices}
                other = self._instead(booking, {*taken, *booking.devices, *others})
                if other is None:
                    left = max(0.0, booking.start - self._now)
                    raise ConflictError(
                        f"Lease {lease.id} can last {format_duration(left)} more at most, as its "
                        f"devices are reserved for {booking.user} then ({id}); extend it by less."
                    )
                devices = tuple(other if d == slot.device else d for d in booking.devices)
                moved[id] = replace(booking, devices=devices)
        for booking in moved.values():
            self._book(booking)

    def _instead(self, booking: Booking, but: set[str]) -> str | None:
        """A device that a reservation may have in place of one that it has."""
        then = self._free_at(max(booking.start, self._now), booking.end)
        self._set_aside(then, but)
        found = then.pick(Pool(booking.pool), _one(booking))
        return found[0].device if found else None

    def _tell(self, session: str, about: str, text: str) -> None:
        if session in self.sessions:
            self._out.append(ev.Notice(session=session, about=about, text=text))

    # --- from the journal, and clocks that jump

    def _load_bookings(self) -> None:
        for booking in self.bookings.values():
            self._calendar.put(booking)
        for lease in self.leases.values():
            if lease.booking:
                self._lease_of[lease.booking] = lease.id

    def _clock_back(self) -> None:
        super()._clock_back()
        self._short.clear()

    def _arm_all(self) -> None:
        super()._arm_all()
        for id in self.bookings:
            self._deadlines.arm("booking", id)
            self._deadlines.arm("booking-over", id)


def _request(booking: Booking, id: str, time: float) -> Request:
    """What a reservation comes to when it starts."""
    return Request(
        id=id,
        session=booking.session,
        user=booking.user,
        want=booking.want,
        count=booking.count,
        memory=booking.memory,
        time=time,
        label=booking.label,
        scope=Scope.RESERVED,
    )


def _one(booking: Booking) -> Demand:
    """One device of a reservation."""
    return demand_of(_request(booking, booking.id, booking.time))._replace(most=1, least=1)


def _check_window(booking: Booking, now: float) -> None:
    if not (math.isfinite(booking.time) and 0 < booking.time <= FARTHEST):
        raise UsageError(
            f"{booking.time} seconds is not a length of time that can be reserved; give one above "
            "zero and up to a year."
        )
    if not (math.isfinite(booking.start) and booking.start > now):
        raise UsageError("That time is past; reserve from a time to come, or ask with 'alloc' now.")
    if booking.start > now + FARTHEST:
        raise UsageError("That is over a year ahead; reserve from an earlier time on.")
