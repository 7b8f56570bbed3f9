"""How requests become leases, and how leases, runs and sessions come to their ends.

A lease goes ACTIVE → (ENDING, once a run has used it) → gone. Its devices are granted again when
every node that it has devices on has confirmed that its processes are gone, or has been out of
reach for the node grace.
"""

from __future__ import annotations

import math

from ..schema import Booking, Keep, Lease, LeaseState, Request, RequestState, Run, Scope, Slot
from . import events as ev
from . import gang
from .allotment import Allotting
from .deadlines import Deadlines
from .demand import demand_of
from .events import replace
from .ledger import nodes_of
from .policy import POOLS, Pool

# Leases that outlive their session.
APART = (Scope.DETACHED, Scope.RESERVED)


class Leasing(Allotting):
    """The ledger with its rules; the parameters are those of `State`."""

    def __init__(
        self,
        owner_grace: float,
        node_grace: float,
        unused_grace: float,
        node_memory: float,
        policy: str,
    ) -> None:
        super().__init__(policy)
        self.owner_grace = owner_grace
        self.node_grace = node_grace
        self.unused_grace = unused_grace
        self.end_grace: float | None = None
        self.node_memory = max(node_memory, node_grace)
        # In the event that is being handled: nobody is given devices and has them taken in one.
        self._just_granted: set[str] = set()
        self._deadlines = Deadlines(
            {
                "expiry": (self._expiry, self._expired),
                "owner": (self._owner_deadline, self._owner_overdue),
                "unused": (self._unused_deadline, self._unused),
                "node": (self._node_deadline, self._write_off),
                "forget": (self._forget_deadline, self._forget),
                "age": (self._age_deadline, self._aged),
                "look": (self._looks.get, self._look),
            }
        )

    # --- requests

    def _grant(self) -> None:
        """Grant whatever is next and fits, in every line."""
        self._just_granted.clear()
        again = True
        while again:
            # What the last line was granted may have changed whose turn it is in the first.
            for pool in POOLS:
                again = False
                while True:
                    if found := self._next(pool):
                        again = True
                        self._grant_to(*found)
                    elif not self._make_room(pool):
                        break

    def _make_room(self, pool: Pool) -> bool:
        """Have leases end so that the first of a line can start; whether any now does."""
        return False

    def _grant_to(
        self, request: Request, slots: tuple[Slot, ...], booking: Booking | None = None
    ) -> Lease:
        if request.preemptible:
            self._arrived[request.id] = self._queue.arrival(request.id)
            request = replace(request, behind=None, **self._waiting_done(request))
        if not request.queue:  # of a reservation
            request = replace(request, queue=self._quotas.queues_of(request.user)[0])
        self._queue.remove(request.id)
        fence = self._next_fence()
        lent = self._lent_until(slots)
        expires = lent if request.time is None else self._now + request.time
        self._just_granted.add(f"L{fence}")
        lease = Lease(
            id=f"L{fence}",
            request=request.id,
            session=request.session,
            user=request.user,
            slots=slots,
            fence=fence,
            granted=self._now,
            expires=booking.end if booking else expires,
            predicted=request.predicted,
            label=request.label,
            scope=request.scope,
            queue=request.queue,
            batch=request.batch,
            preemptible=request.preemptible,
            priority=request.priority,
            idle=request.idle,
            ran=request.ran,
            attained=request.attained,
            booking=booking.id if booking else "",
        )
        for slot in slots:
            self.fleet.hold(slot, lease.id)
        request = replace(request, state=RequestState.GRANTED, lease=lease.id)
        self._put("lease", lease.id, lease)
        self._put("request", request.id, request)
        self._deadlines.arm("expiry", lease.id)
        devices = [slot.device for slot in slots]
        self._audit("granted", lease.user, lease=lease.id, request=request.id, devices=devices)
        self._out.append(ev.Granted(request=request, lease=lease))
        return lease

    def _waiting_done(self, request: Request) -> dict[str, float]:
        """What a request takes along from its wait, should its lease be preempted.

        One that had waited so long that it went first has its age and its attained service behind
        it: it would otherwise be first again at once, and take turns with those it goes before.
        """
        if self._queue.aged(request.id):
            return {"waited": 0.0, "attained": 0.0}
        since = request.submitted if request.requeued is None else request.requeued
        return {"waited": request.waited + max(0.0, self._now - since)}

    def _end_queued(self, request: Request, reason: str) -> None:
        self._queue.remove(request.id)
        request = self._end_request(request, reason)
        self._audit("request ended", request.user, request=request.id, reason=reason)
        self._out.append(ev.RequestEnded(request=request))

    def _end_request(self, request: Request, reason: str) -> Request:
        request = replace(request, state=RequestState.ENDED, reason=reason)
        self._arrived.pop(request.id, None)
        self._put("request", request.id, request)
        self._note_ended_request(request)
        return request

    def _review_queue(self) -> None:
        """The cluster has other devices than before: requests may have to wait for others."""
        for request in self.queue():
            pool = self.fleet.pool_for(request.want, demand_of(request))
            if pool is None:
                self._end_queued(request, "the cluster no longer has enough devices for it")
            else:
                self._queue.move(request.id, pool)

    # --- leases

    def _end(
        self,
        lease: Lease,
        reason: str,
        lost_node: str = "",
        grace: float | None = None,
        *,
        preempted: bool = False,
    ) -> None:
        """Begin the end of a lease; it is over at once when no processes can be left.

        The request of a session's lease that is `preempted` then waits again, and so does that of one
        whose runs go on under the next.
        """
        if lease.state is LeaseState.ENDING:
            if self._comes_back(lease):
                self._end_request(self.requests[lease.request], reason)
                for id in self._live.get(lease.id, ()):
                    self._put("run", id, gang.told_to_stop(self.runs[id], reason))
            return
        resumes = preempted and self._goes_on(lease)
        if resumes or (preempted and lease.scope is Scope.SESSION):
            ran = max(0.0, self._now - lease.granted)
            request = replace(
                self.requests[lease.request],
                ran=lease.ran + ran,
                attained=lease.attained + ran * len(lease.slots),
            )
            self._put("request", request.id, request)
        else:
            self._end_request(self.requests[lease.request], reason)
        for id in self._live.get(lease.id, ()):
            run = self.runs[id]
            told = gang.told_to_stop(run, reason, lost_node, preempted=preempted)
            self._put("run", id, gang.moved(run, reason) if resumes else told)
        lease = replace(
            lease,
            state=LeaseState.ENDING,
            reason=reason,
            grace=grace,
            preempted=preempted,
            resumes=resumes,
        )
        self._audit("lease ended", lease.user, lease=lease.id, reason=reason)
        owner = self.sessions.get(lease.session)
        there = lease.used or (owner is not None and owner.kernel)
        waiting = nodes_of(lease) - self._written_off if there else set()
        self._waiting_for[lease.id] = waiting
        if not waiting:
            # What is dropped at once is not for the journal.
            self.leases[lease.id] = lease
            self._finish(lease)
            return
        self._put("lease", lease.id, lease)
        connected = tuple(sorted(node for node in waiting if self.fleet.up(node)))
        if connected:
            self._out.append(
                ev.EndLease(
                    lease=lease.id, nodes=connected, reason=reason, grace=grace, keep=resumes
                )
            )

    def _goes_on(self, lease: Lease) -> bool:
        """Whether the runs of a lease that is preempted go on under the next one of its request."""
        return False

    def _comes_back(self, lease: Lease) -> bool:
        """Whether the request of a lease that ends is to wait again."""
        request = self.requests.get(lease.request)
        return (
            request is not None
            and request.state is RequestState.GRANTED
            and lease.state is LeaseState.ENDING
        )

    def _confirm(self, lease: Lease, node: str) -> None:
        """A node has no processes of an ending lease, or has been given up."""
        waiting = self._waiting_for[lease.id]
        if node in waiting:
            waiting.remove(node)
            if not waiting:
                self._finish(lease)

    def _finish(self, lease: Lease) -> None:
        del self._waiting_for[lease.id]
        self._drop("lease", lease.id)
        if lease.used:
            for node in sorted(nodes_of(lease) & self._written_off):
                devices = tuple(slot.device for slot in lease.slots if slot.node == node)
                self._put(
                    "unconfirmed",
                    f"{lease.id}@{node}",
                    ev.Unconfirmed(node=node, lease=lease.id, devices=devices),
                )
        for slot in lease.slots:
            self.fleet.unhold(slot, lease.id)
        for id in list(self._live.get(lease.id, ())):
            self._leave(self.runs[id], lease)
        self._out.append(ev.LeaseEnded(lease=lease))
        if self._comes_back(lease):
            self._requeue(self.requests[lease.request])

    def _leave(self, run: Run, lease: Lease) -> None:
        """A run has lost its lease."""
        self._end_run(run)

    def _awaited(self, request: Request) -> bool:
        """Whether a run waits for the request's lease, so that it outlives its session."""
        return False

    def _keeps_runs(self, lease: str) -> bool:
        """Whether runs of a lease that is over are still to go on."""
        return False

    def _requeue(self, request: Request) -> None:
        """A request waits again, at the place that its age gives it."""
        request = replace(request, state=RequestState.QUEUED, lease="", requeued=self._now)
        pool = self.fleet.pool_for(request.want, demand_of(request))
        if pool is None:
            request = self._end_request(request, "the cluster no longer has enough devices for it")
            self._out.append(ev.RequestEnded(request=request))
            return
        self._put("request", request.id, request)
        self._enqueue(request, pool)
        self._deadlines.arm("age", request.id)

    def _expiry(self, lease: str) -> float | None:
        found = self.leases.get(lease)
        return found.expires if found and found.state is LeaseState.ACTIVE else None

    def _expired(self, lease: str) -> None:
        self._end(self.leases[lease], "its time is over", grace=self.end_grace)

    def _unused_deadline(self, lease: str) -> float | None:
        found = self.leases.get(lease)
        if (
            found is None
            or found.used
            or found.scope is not Scope.DETACHED
            or found.session in self.sessions
        ):
            return None
        return found.granted + self.unused_grace if found.state is LeaseState.ACTIVE else None

    def _unused(self, lease: str) -> None:
        self._end(self.leases[lease], "no run came for it and its session is gone")

    # --- runs

    def _end_run(self, run: Run) -> None:
        run = gang.ended(run, self._now)
        self._put("run", run.id, run)
        self._note_ended_run(run)
        self._audit(
            "run ended", run.user, run=run.id, lease=run.lease, state=run.state, reason=run.reason
        )
        self._out.append(ev.RunEnded(run=run))
        lease = self.leases.get(run.lease)
        whole = (Scope.SESSION, Scope.RESERVED)
        if lease and lease.scope not in whole and run.lease not in self._live:
            self._end(lease, f"its run {run.id} has ended")

    # --- sessions

    def _end_session(self, session: str, reason: str) -> None:
        self._lost.pop(session, None)
        self._drop("session", session)
        for id in list(self._open.get(session, ())):
            request = self.requests[id]
            if request.state is RequestState.QUEUED:
                if not self._awaited(request):
                    self._end_queued(request, reason)
            elif self.leases[request.lease].scope not in APART:
                self._end(self.leases[request.lease], reason)
            elif (self._unused_deadline(request.lease) or math.inf) <= self._now:
                self._unused(request.lease)
            else:
                self._deadlines.arm("unused", request.lease)

    def _owner_deadline(self, session: str) -> float | None:
        owner = self.sessions.get(session)
        if owner is None or session not in self._lost:
            return None
        if owner.keep is Keep.PROCESS and owner.pid:
            return None  # such a process is watched, and reported when it is dead
        return self._lost[session] + self.owner_grace

    def _owner_overdue(self, session: str) -> None:
        reason = f"its session was lost and did not come back within {self.owner_grace:g} s"
        self._end_session(session, reason)

    # --- nodes

    def _node_deadline(self, node: str) -> float | None:
        since = self.fleet.down.get(node)
        return None if since is None else since + self.node_grace

    def _write_off(self, node: str) -> None:
        """A node was down for too long: nothing waits for it any longer."""
        self._written_off.add(node)
        for lease in list(self.leases.values()):
            if node not in nodes_of(lease):
                continue
            if lease.state is LeaseState.ENDING:
                self._confirm(lease, node)
            elif not self._survives(lease, node):
                self._end(lease, self._why_lost(node), lost_node=node)

    def _why_lost(self, node: str) -> str:
        """What became of a node, for its leases."""
        return f"node {node} was lost"

    def _survives(self, lease: Lease, node: str) -> bool:
        """Whether a lease goes on without a node that is lost for good."""
        return False

    def _forget_deadline(self, node: str) -> float | None:
        since = self.fleet.down.get(node)
        return None if since is None else since + self.node_memory

    def _forget(self, node: str) -> None:
        if node not in self._written_off:
            self._write_off(node)
        self._written_off.discard(node)
        for id, record in list(self._unconfirmed.items()):
            if record.node == node:
                self._drop("unconfirmed", id)
        self.fleet.forget(node)
        self._drop("node", node)
        self._review_queue()

    # --- time

    def _clock_back(self) -> None:
        """After the clock jumped back nothing began in the future: no wait becomes longer."""
        for table in (self._lost, self.fleet.down):
            table.update({id: min(since, self._now) for id, since in table.items()})
        for kind, shares in (("usage", self._turns.users), ("queue-usage", self._turns.queues)):
            for who, record in list(shares.used.items()):
                if record.time > self._now:
                    self._put(kind, who, replace(record, time=self._now))
        # Also those that were granted: one that is preempted waits again.
        for request in list(self.requests.values()):
            if request.state is not RequestState.ENDED and request.submitted > self._now:
                self._put("request", request.id, replace(request, submitted=self._now))
        self._order_by(self.policy)
        for lease in list(self.leases.values()):
            early = lease.granted - self._now
            if early > 0:
                expires = None if lease.expires is None else lease.expires - early
                self._put("lease", lease.id, replace(lease, granted=self._now, expires=expires))
            elif lease.state is LeaseState.ENDING:
                self._note_end(lease)  # which is now, and not when it was later
        self._arm_all()

    def _arm_all(self) -> None:
        for id in self.leases:
            self._deadlines.arm("expiry", id)
            self._deadlines.arm("unused", id)
        for request in self.queue():
            self._deadlines.arm("age", request.id)
        for id in self._lost:
            self._deadlines.arm("owner", id)
        for id in self.fleet.down:
            self._deadlines.arm("node", id)
            self._deadlines.arm("forget", id)
