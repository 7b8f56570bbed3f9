"""What ends by the clock: warnings before a lease's end, idle leases, and limits on both.

A lease is warned once before its end, and again after it was extended. One on whose devices nothing
is computed is warned, and ended a grace later unless something is by then.
"""

from __future__ import annotations

import math

from ..errors import AccessError, ConflictError, NotFoundError, UsageError
from ..schema import Booking, Lease, LeaseState, Request, RunKind, Slot
from ..units import format_duration
from . import events as ev
from .bookings import FARTHEST, Bookings
from .checks import check_active, check_owner, check_time
from .events import replace

# A lease is warned when this share of its time is left, where that is shorter than `warn_before`.
WARN_SHARE = 0.1
LIMITS = ("idle", "max-time")
KERNEL_KEEPS = (
    " Then the notebook and its files are kept, and the kernel's variables too, unless it has "
    "something on a GPU: such a kernel is ended. Running a cell keeps the lease."
)
FAR_KERNEL_KEEPS = (
    " Then the notebook and its files are kept; the kernel, which runs where its devices are, is ended "
    "with its variables. Running a cell keeps the lease."
)


class Timing(Bookings):
    """Leasing by the clock.

    Parameters
    ----------
    warn_before
        Seconds before its end at which a lease is warned.
    end_grace
        Seconds between SIGTERM and SIGKILL for ranks of a lease whose time is over.
    idle_grace
        Seconds between the warning of an idle lease and its end.
    """

    def __init__(
        self,
        owner_grace: float,
        node_grace: float,
        unused_grace: float,
        node_memory: float,
        policy: str,
        reserve_limit: float,
        *,
        warn_before: float,
        end_grace: float,
        idle_grace: float,
    ) -> None:
        super().__init__(owner_grace, node_grace, unused_grace, node_memory, policy, reserve_limit)
        self.warn_before = warn_before
        self.end_grace = end_grace
        self.idle_grace = idle_grace
        self._deadlines.add("warning", self._warning, self._warn)
        self._deadlines.add("idle", self._idle_deadline, self._reclaim)

    # --- read side

    @property
    def max_time(self) -> float | None:
        """How long a lease of who is no admin may last, seconds from its grant."""
        choice = self._settings.get("max-time")
        return choice.number if choice else None

    @property
    def idle_limits(self) -> dict[str, float]:
        """After how long (s) an idle lease is warned, by queue; "" for those that have none."""
        return {
            name.partition(":")[2]: choice.number
            for name, choice in self._settings.items()
            if name.startswith("idle:") and choice.number is not None
        }

    # --- limits

    def _limit_changed(self, event: ev.LimitChanged) -> None:
        if not event.admin:
            raise AccessError(f"{event.by} may not change limits; ask an admin.")
        if event.name not in LIMITS or (event.queue and event.name != "idle"):
            raise UsageError(f"There is no limit {event.name!r}; choose {' or '.join(LIMITS)}.")
        seconds = event.seconds
        if seconds is not None and not 0 < seconds <= FARTHEST:
            raise UsageError(f"{seconds} seconds is not a limit; give a time of up to a year.")
        name = f"idle:{event.queue}" if event.name == "idle" else event.name
        before = self._settings.get(name)
        if (before.number if before else None) == seconds:
            return
        if seconds is None:
            self._drop("setting", name)
        else:
            self._put("setting", name, ev.Choice(value=event.name, number=seconds))
        self._audit("limit changed", event.by, name=name, seconds=seconds)
        if seconds is None and event.name == "idle":
            for lease in list(self.leases.values()):
                self._found_busy(ev.FoundBusy(lease=lease.id))

    def _within_limits(self, request: Request, admin: bool) -> Request:
        most = self.max_time
        if most is None or admin:
            return request
        if request.time is None:
            return replace(request, time=most)
        if request.time > most:
            raise UsageError(
                f"A lease lasts {format_duration(most)} at most here; ask with a shorter --time."
            )
        return request

    def _check_extension(self, lease: Lease, expires: float | None, admin: bool) -> None:
        """Refuse an end after which others were promised the devices; they may get others."""
        most = math.inf if admin or self.max_time is None else lease.granted + self.max_time
        if (math.inf if expires is None else expires) > most:
            raise ConflictError(
                f"Lease {lease.id} can last {format_duration(max(0.0, most - self._now))} more at "
                "most; an admin may extend it further."
            )
        self._displace(lease, math.inf if expires is None else expires)

    # --- their ends by hand

    def _released(self, event: ev.Released) -> None:
        self._end(self._lease_for(event), event.reason)

    def _extended(self, event: ev.Extended) -> None:
        lease = self._lease_for(event)
        check_active(lease)
        check_time(event.time)
        lent = self._lent_until(lease.slots)
        expires = lent if event.time is None else self._now + event.time
        self._check_extension(lease, expires, event.admin)
        self._put("lease", lease.id, replace(lease, expires=expires, warned=False))
        self._deadlines.arm("expiry", lease.id)
        self._deadlines.arm("warning", lease.id)
        self._audit("extended", event.by, lease=lease.id, expires=expires)

    def _lease_for(self, event: ev.Released | ev.Extended) -> Lease:
        lease = self.leases.get(event.lease)
        if lease is None:
            raise NotFoundError(
                f"There is no lease {event.lease!r}; 'aios status' lists those there are."
            )
        check_owner(f"Lease {lease.id}", lease.user, event)
        return lease

    # --- warnings

    def _grant_to(
        self, request: Request, slots: tuple[Slot, ...], booking: Booking | None = None
    ) -> Lease:
        lease = super()._grant_to(request, slots, booking)
        self._deadlines.arm("warning", lease.id)
        return lease

    def _warning(self, id: str) -> float | None:
        lease = self.leases.get(id)
        if lease is None or lease.warned or lease.expires is None:
            return None
        if lease.state is not LeaseState.ACTIVE:
            return None
        share = WARN_SHARE * (lease.expires - lease.granted)
        return lease.expires - min(self.warn_before, share)

    def _warn(self, id: str) -> None:
        lease = replace(self.leases[id], warned=True)
        self._put("lease", id, lease)
        left = (lease.expires or self._now) - self._now
        if left > 0:
            text = (
                f"Lease {id} ends in {format_duration(left)}; 'extend {id} TIME' keeps it longer."
            )
            self._tell(lease.session, id, text)

    # --- idle leases

    def _found_idle(self, event: ev.FoundIdle) -> None:
        lease = self.leases.get(event.lease)
        if lease is None or lease.state is not LeaseState.ACTIVE or lease.idle_since is not None:
            return
        since = min(event.since, self._now)
        ends = self._now + self.idle_grace
        lease = replace(lease, idle_since=since, idle_ends=ends)
        self._put("lease", lease.id, lease)
        self._deadlines.arm("idle", lease.id)
        for_ = format_duration(self._now - since)
        self._audit("lease idle", lease.user, lease=lease.id, since=since)
        live = [self.runs[id] for id in self._live.get(lease.id, ())]
        runs = [run.id for run in live if run.kind is not RunKind.KERNEL]
        what = f"Nothing has been computed on lease {lease.id} for {for_}"
        what += f", though its run {runs[0]} has not ended (does it hang?)" if runs else ""
        text = f"{what}: it ends in {format_duration(self.idle_grace)} unless it is used."
        owner = self.sessions.get(lease.session)
        if len(runs) < len(live):
            text += FAR_KERNEL_KEEPS
        elif owner is not None and owner.kernel:
            text += KERNEL_KEEPS
        self._tell(lease.session, lease.id, text)

    def _found_busy(self, event: ev.FoundBusy) -> None:
        lease = self.leases.get(event.lease)
        if lease and lease.state is LeaseState.ACTIVE and lease.idle_since is not None:
            self._put("lease", lease.id, replace(lease, idle_since=None, idle_ends=None))

    def _idle_deadline(self, id: str) -> float | None:
        lease = self.leases.get(id)
        return lease.idle_ends if lease and lease.state is LeaseState.ACTIVE else None

    def _reclaim(self, id: str) -> None:
        lease = self.leases[id]
        since = self._now if lease.idle_since is None else lease.idle_since
        self._end(lease, f"idle for {format_duration(self._now - since)}", grace=self.end_grace)

    # --- from the journal, and clocks that jump

    def _load_times(self) -> None:
        """After the records were read: what is kept beside them."""
        self._load_bookings()
        for lease in list(self.leases.values()):
            if lease.idle_ends is not None:
                # Whether it was used in the meantime nobody saw.
                ends = max(lease.idle_ends, self._now + self.idle_grace)
                self._put("lease", lease.id, replace(lease, idle_ends=ends))

    def _clock_back(self) -> None:
        super()._clock_back()
        for lease in list(self.leases.values()):
            if lease.idle_since is not None and lease.idle_since > self._now:
                ends = self._now + self.idle_grace
                changed = replace(lease, idle_since=self._now, idle_ends=ends)
                self._put("lease", lease.id, changed)
        self._arm_all()

    def _arm_all(self) -> None:
        super()._arm_all()
        for id in self.leases:
            self._deadlines.arm("warning", id)
            self._deadlines.arm("idle", id)
