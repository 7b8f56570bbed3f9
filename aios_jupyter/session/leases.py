"""`alloc`, `release`, `extend`, `leases`, `queue`, `explain`, `cancel`, `policy`, `reserve`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time as clock
from collections.abc import Callable
from typing import Any

from ..broker.client import Pending
from ..broker.messages import ById, ExtendBy, PolicyChoice, Reprioritize, SignatureChoice
from ..errors import AccessError, AllocationError, NotFoundError, UsageError
from ..schema import Booking, Lease, LeaseState, Scope
from ..units import format_duration, parse_count, parse_duration, parse_size, parse_when
from .asking import FOREVER, not_granted, request_for, wanted
from .link import LEASE, Link

WATCH_INTERVAL = 0.5


class LeaseVerbs(Link):
    """A session that takes and gives back devices."""

    def alloc(
        self,
        *,
        gpus: int | str | None = None,
        devices: int | str | None = None,
        cpus: int | str | None = None,
        memory: str | int | None = None,
        model: str = "",
        share: bool = False,
        placement: str = "pack",
        node: str = "",
        cpus_per_device: int = 0,
        memory_per_device: str | int | None = None,
        time: str | float | None = None,
        wait: str | float | None = None,
        nonblock: bool = False,
        label: str = "",
        on_wait: Callable[[dict[str, Any]], None] | None = None,
        scope: Scope = Scope.SESSION,
        priority: int = 0,
        queue: str = "",
        preemptible: bool = False,
        reservation: str | None = None,
    ) -> Lease:
        """Lease devices, all of them or none; waits in the queue for as long as it takes.

        Parameters
        ----------
        gpus, devices, cpus
            How many, exactly one of the three: real or simulated GPUs only; GPUs where the cluster
            has any and CPU slots where it has none; CPU slots. "2:4" takes as many as are free of 2
            to 4.
        memory
            Least memory of each device, "8GB" or bytes.
        model
            What the name of each device contains, in any case: "a100".
        share
            Take no more than `memory` of each device, and let others have the rest of it.
        placement
            `pack` on few nodes, `spread` over many, or `node`: all on one.
        node
            The name of the node that all are to be of.
        cpus_per_device, memory_per_device
            Cores and memory of its node that come with each device, for this lease alone.
        time
            How long, "2h" or seconds; None for as long as the session lives.
        scope
            What the lease lasts for, apart from its time.
        wait, nonblock
            Give up after so long; or at once.
        on_wait
            Called with the request's row of the queue whenever that changes.
        priority
            Under the policy `priority`, higher goes first; above 0 for admins alone.
        queue
            Whose quota it takes from; one that this user is a member of, by default their own.
        preemptible
            The devices may be taken for others: runs get SIGTERM and time for a checkpoint, and the
            request then waits again. `again` gives the lease that follows.
        reservation
            Take up this reservation of this user, in place of saying how many; waits until it
            starts.

        Raises
        ------
        AllocationError
            Refused, cancelled, or not granted in the time given.
        UsageError
            What is asked for makes no sense.
        """
        limit = 0.0 if nonblock else (FOREVER if wait is None else parse_duration(wait))
        if reservation is not None:
            if any(n is not None for n in (gpus, devices, cpus, memory, time)):
                raise UsageError("A reservation says how many and for how long; leave that out.")
            return self._take_up(reservation, limit)
        request = request_for(
            gpus=gpus,
            devices=devices,
            cpus=cpus,
            memory=memory,
            model=model,
            share=share,
            placement=placement,
            node=node,
            cpus_per_device=cpus_per_device,
            memory_per_device=memory_per_device,
            time=time,
            label=label or self.label,
            scope=scope,
            priority=priority,
            queue=queue,
            preemptible=preemptible,
        )
        client = self.client
        pending = self._loop.run(client.submit(request))
        deadline = clock.monotonic() + limit
        shown: dict[str, Any] | None = None
        try:
            while not pending.granted.done():
                row = self._call("queue.row", ById(id=request.id))
                left = deadline - clock.monotonic()
                if left <= 0 and not pending.granted.done():
                    raise AllocationError(not_granted(request, limit, row or shown))
                if row and row != shown and left > 0:
                    shown = row
                    if on_wait:
                        on_wait(row)
                self._loop.run(_settle(pending, min(left, WATCH_INTERVAL)))
        except BaseException:
            if not pending.granted.done():
                self.cancel(request.id)
            raise
        lease = pending.granted.result().lease
        if self.for_children and lease.scope is Scope.SESSION:
            os.environ.setdefault(LEASE, lease.id)
        return lease

    def _take_up(self, reservation: str, limit: float) -> Lease:
        client = self.client
        deadline = clock.monotonic() + limit
        while (claim := self._loop.run(client.claim(reservation))).grant is None:
            if clock.monotonic() >= deadline:
                left = format_duration(max(0.0, claim.start - clock.time()))
                raise AllocationError(f"Reservation {reservation} starts in {left}; wait for it.")
            clock.sleep(WATCH_INTERVAL)
        return claim.grant.lease

    def reserve(
        self,
        *,
        at: str | float,
        time: str | float,
        gpus: int | str | None = None,
        devices: int | str | None = None,
        cpus: int | str | None = None,
        memory: str | int | None = None,
        label: str = "",
    ) -> dict[str, Any]:
        """Have devices kept for a time to come; then they are leased without being asked for.

        Parameters
        ----------
        at
            From when: "22:00", "2026-03-01T08:30", "+30m", or seconds since the epoch.
        time
            For how long, "8h" or seconds.
        gpus, devices, cpus, memory
            As for `alloc`.

        Returns
        -------
        dict
            `id`, `start` and `end` (epoch seconds), `devices`, `lease` once it has begun.

        Raises
        ------
        AllocationError
            So many cannot be promised; the sentence names what can be.
        """
        want, least, count = wanted(gpus, devices, cpus)
        if least != count:
            raise UsageError("A reservation is of one number of devices; give that, not a range.")
        booking = Booking(
            id=f"b-{secrets.token_hex(4)}",
            session="",
            user="",
            want=want,
            count=count,
            memory=0 if memory is None else parse_size(memory),
            start=parse_when(at, clock.time()),
            time=parse_duration(time),
            label=label or self.label,
        )
        return dict(self._call("reserve", booking))

    def reservations(self) -> list[dict[str, Any]]:
        """Everybody's reservations, those that have begun included, the earliest first."""
        return sorted(self.status()["reservations"].values(), key=lambda row: row["start"])

    def leases(self) -> list[Lease]:
        """Leases of this user that have not ended, this session's first."""
        rows = [row for row in self.status()["leases"].values() if row["user"] == self.user]
        found: list[Lease] = []
        for row in rows:
            with contextlib.suppress(NotFoundError):  # it has ended since
                found.append(self._call("lease.get", ById(id=row["id"]), Lease))
        mine = self.client.session
        return sorted(found, key=lambda lease: (lease.session != mine, lease.fence))

    def release(self, lease: str | None = None, *, everything: bool = False) -> list[str]:
        """End a lease, or every lease of this session, or (`everything`) of this user.

        Raises
        ------
        NotFoundError
            There is nothing to release.
        """
        if lease is not None:
            ended = [lease]
        else:
            mine = self.client.session
            ended = [
                held.id
                for held in self.leases()
                if held.state is LeaseState.ACTIVE and (everything or held.session == mine)
            ]
            if not ended:
                raise NotFoundError(
                    "This session holds no lease; 'aios leases' lists all of yours, and "
                    "'aios release ID' ends one."
                )
        for identity in ended:
            self._call("release", ById(id=identity))
        return ended

    def extend(self, lease: str | None, time: str | float) -> Lease:
        """Have a lease (default: this session's newest) end `time` from now."""
        body = ExtendBy(id=lease or self._held().id, time=parse_duration(time))
        extended: Lease = self._call("extend", body, Lease)
        return extended

    def again(self, lease: Lease, *, wait: str | float | None = None) -> Lease:
        """The lease that a preempted one's request holds now; waits until there is one.

        Raises
        ------
        AllocationError
            There was none in the time given, or the request has ended.
        """
        limit = FOREVER if wait is None else parse_duration(wait)
        deadline = clock.monotonic() + limit
        while True:
            found = self.explain(lease.request)
            if found["state"] == "ended":
                raise AllocationError(f"Request {lease.request} has ended: {found['reason']}.")
            for held in self.leases() if found["state"] == "granted" else ():
                if held.id == found["lease"] and held.state is LeaseState.ACTIVE:
                    return held
            if clock.monotonic() >= deadline:
                raise AllocationError(
                    f"Request {lease.request} has no lease again after {limit:g} s; wait longer, "
                    "or see 'aios queue'."
                )
            clock.sleep(WATCH_INTERVAL)

    def queue(self) -> list[dict[str, Any]]:
        """Waiting requests in order, with position and reason."""
        return sorted(self.status()["queue"].values(), key=lambda row: row["position"])

    def explain(self, request: str) -> dict[str, Any]:
        """Why a request waits, and until when.

        Returns
        -------
        dict
            `reason` in a word and `why` in a sentence; `position` of `waiting` in its line; `eta`
            (epoch seconds, None when leases before it have no end) between `earliest` and `latest`;
            `predicted` length of its lease and by what factor such predictions were short, `error`.

        Raises
        ------
        NotFoundError
            There is no such request.
        """
        return dict(self._call("explain", ById(id=request)))

    def cancel(self, request: str) -> None:
        """Take a waiting request or a reservation back; one that has begun ends."""
        self._call("cancel", ById(id=request))

    def reprioritize(self, request: str, priority: int) -> dict[str, Any]:
        """Have a request that waits go before or after others under the policy `priority`.

        Parameters
        ----------
        request
            Its id.
        priority
            Higher goes first. Its owner may give one up to 0, or lower the one that it has; admins
            any, to anybody's request.

        Returns
        -------
        dict
            What `explain` says of it then.

        Raises
        ------
        AccessError
            That is for an admin to do.
        ConflictError
            The request waits no more.
        """
        self._call("reprioritize", Reprioritize(id=request, priority=priority))
        return self.explain(request)

    def policy(
        self,
        name: str | None = None,
        *,
        aging: str | float | None = None,
        weights: dict[str, float] | None = None,
        idle: str | float | None = None,
        queue: str = "",
        max_time: str | float | None = None,
        require_signature: bool | None = None,
    ) -> dict[str, Any]:
        """How requests are ordered; with an argument, change that (for admins).

        Parameters
        ----------
        name
            `fifo`, `sjf`, `priority`, `fair`, `las` or `gittins`.
        aging
            After how long a request goes before all others; not under `fifo` and `priority`.
        weights
            Users' parts under `fair`: one of weight 2 may use twice as much as one of 1.
        idle, queue
            After how long without computing a lease is warned, and a grace later ended, for one
            queue or for all that have no time of their own; "off" for never.
        max_time
            How long a lease may last for who is no admin, also after extensions; "off".
        require_signature
            Whether only models that somebody known has signed are served, opened and exported by
            the cluster's people.

        Returns
        -------
        dict
            `name` and `aging` in force, `policies` that there are, `weights` other than 1, `idle`
            by queue, `max_time` (s) and `require_signature`.

        Raises
        ------
        AccessError
            You are no admin.
        UsageError
            There is no such policy, or that is not a weight or a time.
        """
        if require_signature is not None:
            self._call("trust.set", SignatureChoice(required=require_signature))
        if name is None and aging is None and not weights and idle is None and max_time is None:
            return dict(self._call("policy.get"))
        choice = PolicyChoice(
            name=name,
            aging=None if aging is None else parse_duration(aging),
            weights=weights or {},
            idle={} if idle is None else {queue: _limit(idle)},
            max_time=None if max_time is None else _limit(max_time),
        )
        return dict(self._call("policy.set", choice))

    def _held(self) -> Lease:
        mine = [
            lease
            for lease in self.leases()
            if lease.session == self.client.session
            and lease.state is LeaseState.ACTIVE
            and lease.scope in (Scope.SESSION, Scope.RESERVED)
        ]
        if not mine:
            raise NotFoundError("This session holds no lease; take one with: aios alloc")
        return mine[-1]

    def _around(self) -> Lease | None:
        """The lease of the kernel that has started this process, as it starts a cell's `!aios`."""
        named = os.environ.get(LEASE)
        if named:
            # It may have ended, or be one of another cluster.
            with contextlib.suppress(NotFoundError, AccessError):
                found: Lease = self._call("lease.get", ById(id=named), Lease)
                return found if found.state is LeaseState.ACTIVE else None
        return None

    def _lease_held(self, least: int) -> Lease | None:
        """The lease held, here or by the kernel around us, where it has so many devices."""
        held: Lease | None
        try:
            held = self._held()
        except NotFoundError:
            held = self._around()
        return held if held and len(held.slots) >= least else None

    def _lease_for_run(
        self,
        lease: str | None,
        want: dict[str, Any],
        on_wait: Callable[[dict[str, Any]], None] | None,
        *,
        own: bool = False,
        **how: Any,
    ) -> Lease:
        """The lease named; one held, here or by the kernel around us; or (`own`) one for this run.

        One that is held is taken where it is large enough.
        """
        if lease is not None and own:
            raise UsageError(
                "A queue, a time and what else says which devices to take are for a lease of the "
                "run's own; leave them out, or leave out --lease (lease=)."
            )
        if lease is not None:
            found: Lease = self._call("lease.get", ById(id=lease), Lease)
            return found
        given = next((n for n in want.values() if n is not None), None)
        count = None if given is None else parse_count(given)[0]
        held = None if own else self._lease_held(count or 1)
        if held:
            return held
        if count is None:
            want = {"devices": 1}
        return self.alloc(**want, on_wait=on_wait, scope=Scope.CELL, **how)


def _limit(time: str | float) -> float:
    """A limit in seconds, 0 for none."""
    return 0.0 if time == "off" else parse_duration(time)


async def _settle(pending: Pending, timeout: float) -> None:
    await asyncio.wait([pending.granted], timeout=timeout)
