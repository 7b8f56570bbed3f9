"""The broker's decisions: events and the time in, actions out. No clock, no IO, no chance.

Here is what each event means and who may ask for what; `leasing.py` has the rules by which things
begin and end, `ledger.py` what is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import AccessError, ConflictError, NotFoundError, UsageError
from ..schema import (
    Lease,
    LeaseState,
    Node,
    Request,
    RequestState,
    Scope,
    Slot,
    Want,
)
from . import events as ev
from . import history
from .checks import check_owner, check_priority, check_time
from .demand import demand_of
from .events import replace
from .ledger import nodes_of
from .lent import Lent
from .measures import Measuring
from .policy import Pool
from .refusal import refusal


class State(Measuring, Lent):
    """All that the broker knows and decides.

    Parameters
    ----------
    owner_grace
        Seconds for which leases wait for an owner whose connection closed.
    node_grace
        Seconds for which leases wait for a node that is down.
    unused_grace
        Seconds after its grant for which a lease that belongs to its runs waits for the first one
        when its session is gone.
    node_memory
        Seconds after which a node that is down is forgotten, and requests that it alone could
        have granted end.
    policy
        What orders the queue until an admin chooses another.
    min_run, preempt_grace, rejoin_grace, grow_after, grow_interval
        Those of `Preempting`, `Running` and `Growing`.
    warn_before, end_grace, idle_grace, reserve_limit
        Those of `Timing` and `Bookings`.
    """

    def __init__(
        self,
        *,
        owner_grace: float = 60.0,
        node_grace: float = 60.0,
        unused_grace: float = 60.0,
        node_memory: float = 900.0,
        policy: str = "fifo",
        min_run: float = 60.0,
        preempt_grace: float = 30.0,
        rejoin_grace: float = 10.0,
        grow_after: float = 60.0,
        grow_interval: float = 600.0,
        warn_before: float = 300.0,
        end_grace: float = 30.0,
        idle_grace: float = 300.0,
        reserve_limit: float = 64 * 3600.0,
    ) -> None:
        super().__init__(
            owner_grace,
            node_grace,
            unused_grace,
            node_memory,
            policy,
            reserve_limit,
            min_run=min_run,
            preempt_grace=preempt_grace,
            rejoin_grace=rejoin_grace,
            grow_after=grow_after,
            grow_interval=grow_interval,
            warn_before=warn_before,
            end_grace=end_grace,
            idle_grace=idle_grace,
        )
        self._latest = -math.inf
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.SessionOpened: self._session_opened,
            ev.SessionLost: self._session_lost,
            ev.SessionClosed: self._session_closed,
            ev.Submitted: self._submitted,
            ev.Cancelled: self._cancelled,
            ev.Reprioritized: self._reprioritized,
            ev.Released: self._released,
            ev.Extended: self._extended,
            ev.NodeJoined: self._node_joined,
            ev.NodeLost: self._node_lost,
            ev.NodeExpected: self._node_expected,
            ev.NodeGone: self._node_gone,
            ev.OutsideReported: self._outside_reported,
            ev.RunCreated: self._run_created,
            ev.RunReported: self._run_reported,
            ev.RankExited: self._rank_exited,
            ev.Met: self._met,
            ev.StopRequested: self._stop_requested,
            ev.RanksGone: self._ranks_gone,
            ev.PolicyChanged: self._policy_changed,
            ev.WeightChanged: self._weight_changed,
            ev.QuotaSet: self._quota_set,
            ev.QuotaRemoved: self._quota_removed,
            ev.LimitChanged: self._limit_changed,
            ev.SignatureDemanded: self._signature_demanded,
            ev.Booked: self._booked,
            ev.Claimed: self._claimed,
            ev.FoundIdle: self._found_idle,
            ev.FoundBusy: self._found_busy,
            ev.ForecastTold: self._forecast_told,
            ev.Tick: self._tick,
        }

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take in what has happened.

        Parameters
        ----------
        event
            One of `broker.events`.
        now
            Seconds since the epoch. It may jump back.

        Returns
        -------
        list
            Actions, in the order in which they are to be carried out.

        Raises
        ------
        AiosError
            A user's mistake; nothing has changed.
        """
        self._now = now
        self._latest = max(self._latest, now)
        out = self._begin()
        self._handlers[type(event)](event)
        self._grant()
        return out

    def restore(self, records: Iterable[tuple[str, str, ev.Record]], now: float) -> list[ev.Action]:
        """Rebuild a new `State` from the journal's records, in the order they were first put.

        Every session is lost and every node down as of now, until they say hello again.
        """
        self._now = self._latest = now
        out = self._begin()
        self._load(records)
        self._load_plans()
        self._load_times()
        self._review_queue()
        self._clock_back()
        self._deadlines.fire(now)
        return out

    def next_deadline(self) -> float | None:
        """When a Tick will next change something by itself, in seconds since the epoch."""
        return self._deadlines.next()

    def _tick(self, _: ev.Tick) -> None:
        if self._now < self._latest:
            self._clock_back()
            self._latest = self._now
        self._deadlines.fire(self._now)
        self._look_for_room()
        self._keep_counts()

    # --- sessions

    def _session_opened(self, event: ev.SessionOpened) -> None:
        owner = event.owner
        known = self.sessions.get(owner.id)
        if known and known.user != owner.user:
            raise AccessError(f"Session {owner.id} belongs to {known.user}; open one of your own.")
        self._lost.pop(owner.id, None)
        if known != owner:
            self._put("session", owner.id, owner)

    def _session_lost(self, event: ev.SessionLost) -> None:
        if event.session not in self.sessions:
            return
        if event.dead:
            self._end_session(event.session, "the process that asked for it has ended")
        else:
            self._lost.setdefault(event.session, self._now)
            self._deadlines.arm("owner", event.session)

    def _session_closed(self, event: ev.SessionClosed) -> None:
        if event.session in self.sessions:
            self._end_session(event.session, "its session has ended")

    # --- requests

    def _submitted(self, event: ev.Submitted) -> None:
        request = event.request
        known = self.requests.get(request.id)
        if request.id in self.bookings:
            raise ConflictError(f"{request.id} is the id of a reservation; use a new one.")
        if known:
            if known.session != request.session:
                raise AccessError(f"Request {request.id} belongs to another session; use a new id.")
            return
        owner = self.sessions.get(request.session)
        if owner is None:
            raise ConflictError(f"Session {request.session} is not open; connect again.")
        if owner.user != request.user:
            raise AccessError(f"Session {owner.id} belongs to {owner.user}; ask in your own.")
        check_time(request.time)
        if request.scope is Scope.RESERVED:
            raise UsageError("Such a lease comes from a reservation; make one with 'reserve'.")
        check_priority(request.priority, request.user, event.admin)
        queue = self._quotas.queue_for(request)
        request = self._within_limits(request, event.admin)
        pool = self._pool_or_refuse(request)
        error = self._quotas.refusal(queue, pool, request.least or request.count)
        if error:
            raise error
        # The peer made the record: what is the broker's to say is said here.
        request = replace(
            request,
            submitted=self._now,
            queue=queue,
            predicted=history.predict(self._history, request),
            requeued=None,
            waited=0.0,
            ran=0.0,
            attained=0.0,
            behind=None,
            state=RequestState.QUEUED,
            lease="",
            reason="",
        )
        self._put("request", request.id, request)
        self._open.setdefault(request.session, {})[request.id] = None
        self._note_arrival(request, pool)
        self._enqueue(request, pool)
        self._deadlines.arm("age", request.id)

    def _pool_or_refuse(self, request: Request) -> Pool:
        fleet, want = self.fleet, request.want
        accelerated = want is Want.DEVICE and fleet.capacity(Pool.ACCELERATOR) > 0
        pool = Pool.ACCELERATOR if want is Want.GPU or accelerated else Pool.CPU
        error = refusal(want, pool, demand_of(request), fleet.hardware)
        if error:
            raise error
        return pool

    def _cancelled(self, event: ev.Cancelled) -> None:
        request = self.requests.get(event.request)
        if request is None and self._cancel_booking(event.request, event):
            return
        if request is None:
            raise NotFoundError(
                f"There is no request {event.request!r}; 'aios queue' lists those that wait."
            )
        check_owner(f"Request {request.id}", request.user, event)
        reason = f"cancelled by {event.by}"
        if request.state is RequestState.QUEUED:
            self._end_queued(request, reason)
        elif request.state is RequestState.GRANTED:
            self._end(self.leases[request.lease], reason)

    def _reprioritized(self, event: ev.Reprioritized) -> None:
        request = self.requests.get(event.request)
        if request is None:
            raise NotFoundError(
                f"There is no request {event.request!r}; 'aios queue' lists those that wait."
            )
        check_owner(f"Request {request.id}", request.user, event)
        if request.state is not RequestState.QUEUED:
            raise ConflictError(f"Request {request.id} waits no more; its priority says nothing.")
        check_priority(event.priority, event.by, event.admin, now=request.priority)
        if event.priority == request.priority:
            return
        before, request = request.priority, replace(request, priority=event.priority)
        self._put("request", request.id, request)
        self._queue.rekey(request)
        # It may take leases now that it could not take before.
        self._no_room.pop(self._queue.pool(request.id), None)
        if event.by != request.user:
            self._audit(
                "priority changed",
                event.by,
                request=request.id,
                user=request.user,
                before=before,
                after=request.priority,
            )

    # --- nodes

    def _node_joined(self, event: ev.NodeJoined) -> None:
        node, held = event.node, frozenset(event.held)
        self.fleet.check(node)
        before = self.nodes.get(node.id)
        self._written_off.discard(node.id)
        changed = self.fleet.join(node)
        self.fleet.set_outside(node.id, event.outside)
        for record in changed:
            self._put("node", record.id, record)
            self._lend(record)
        for lease in list(self.leases.values()):
            if node.id in nodes_of(lease):
                self._meet(lease, node, lease.id in held)
        self._block_stale(node, held)
        self._note_joined_node(node.id, held)
        if before is None or before.devices != node.devices or len(changed) > 1:
            self._review_queue()

    def _meet(self, lease: Lease, node: Node, held: bool) -> None:
        """A node with devices of a lease is there (again): bring the two in line."""
        if lease.state is LeaseState.ENDING:
            if held:
                self._waiting_for[lease.id].add(node.id)
                self._out.append(
                    ev.EndLease(
                        lease=lease.id,
                        nodes=(node.id,),
                        reason=lease.reason,
                        grace=lease.grace,
                        keep=lease.resumes,
                    )
                )
            else:
                self._confirm(lease, node.id)
            return
        offered = {device.id for device in node.devices}
        gone = [s.device for s in lease.slots if s.node == node.id and s.device not in offered]
        if gone:
            self._end(lease, f"device {gone[0]} is no longer offered by node {node.id}")
            return
        slots = tuple(_at(slot, node) for slot in lease.slots)
        if slots != lease.slots:
            self._put("lease", lease.id, replace(lease, slots=slots))

    def _block_stale(self, node: Node, held: frozenset[str]) -> None:
        """Keep devices with processes of leases that are over from being granted."""
        records = {r.lease: r for r in self._unconfirmed.values() if r.node == node.id}
        for id in sorted(records.keys() - held):
            self._drop("unconfirmed", f"{id}@{node.id}")
        self.fleet.unblock_all(node.id)
        for id in sorted(held):
            lease = self.leases.get(id)
            if lease and node.id in nodes_of(lease):
                continue
            # Where it is not known which devices those processes are on, it may be any.
            record = records.get(id)
            devices = record.devices if record else [device.id for device in node.devices]
            self.fleet.block(devices, id)
            reason = "it holds nothing on this node"
            keep = self._keeps_runs(id)
            self._out.append(ev.EndLease(lease=id, nodes=(node.id,), reason=reason, keep=keep))

    def _node_lost(self, event: ev.NodeLost) -> None:
        if not self.fleet.up(event.node):
            return
        self.fleet.lose(event.node, self._now)
        self._deadlines.arm("node", event.node)
        self._deadlines.arm("forget", event.node)
        self._note_lost_node(event.node)

    def _outside_reported(self, event: ev.OutsideReported) -> None:
        if self.fleet.up(event.node):
            self.fleet.set_outside(event.node, event.outside)

    def _ranks_gone(self, event: ev.RanksGone) -> None:
        lease = self.leases.get(event.lease)
        if lease and lease.state is LeaseState.ENDING:
            self._confirm(lease, event.node)
        self.fleet.unblock(event.node, event.lease)
        if f"{event.lease}@{event.node}" in self._unconfirmed:
            self._drop("unconfirmed", f"{event.lease}@{event.node}")


def _at(slot: Slot, node: Node) -> Slot:
    """The slot with the address that its node has now."""
    return replace(slot, address=node.address) if slot.node == node.id else slot
