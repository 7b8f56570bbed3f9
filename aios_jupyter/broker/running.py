"""Runs under leases: how they begin, fail, start again and end; what each change means is in `gang`.

Rank `n` of a run is on the device `n` of its lease. An attempt is over when its ranks have exited,
those on nodes that are out of reach left aside where one of the others has. The next one starts on
the same devices. Where the run may have fewer ranks (its lease was asked for as a range, and it
uses all of it), a node that does not come back within `rejoin_grace` is left out, and its devices
are the lease's no more; and where nobody waits for free devices, as many are taken as the run may
have, on nodes that have its checkpoints (`growing` restarts it for them, `suspending` has it go on
under another lease). A lease that several runs are on keeps its devices, as ranks are known by them.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import AccessError, ConflictError, NotFoundError, UsageError
from ..schema import Lease, LeaseState, Placement, Run, RunState, Slot
from . import events as ev
from . import gang
from .checks import check_active, check_owner
from .demand import demand_of
from .events import replace
from .ledger import nodes_of
from .preemption import Preempting


class Running(Preempting):
    """The rules of leasing, with runs.

    Parameters
    ----------
    rejoin_grace
        Seconds for which the next attempt of a run waits for a node that is down.
    """

    def __init__(self, *parameters: Any, rejoin_grace: float, **more: Any) -> None:
        self.rejoin_grace = rejoin_grace
        super().__init__(*parameters, **more)
        self._deadlines.add(
            "rejoin", self._rejoin_deadline, lambda run: self._regroup(self.runs[run])
        )

    # --- beginning

    def _run_created(self, event: ev.RunCreated) -> None:
        run = event.run
        known = self.runs.get(run.id)
        if known:
            if (known.lease, known.user) != (run.lease, run.user):
                raise AccessError(f"Run {run.id} belongs to another lease; use a new id.")
            return
        lease = self.leases.get(run.lease)
        if lease is None:
            raise NotFoundError(f"There is no lease {run.lease!r}; take one with 'aios alloc'.")
        if lease.user != run.user:
            raise AccessError(f"Lease {lease.id} belongs to {lease.user}; take one of your own.")
        check_active(lease)
        if any(gang.moves(self.runs[id]) for id in self._live.get(lease.id, ())):
            raise ConflictError(
                f"Lease {lease.id} is about to have other devices; try again in a moment."
            )
        if not 0 < run.world_size <= len(lease.slots):
            raise UsageError(
                f"A run on lease {lease.id} has 1 to {len(lease.slots)} ranks, one on each device, "
                f"not {run.world_size}; lease more devices or ask for fewer ranks."
            )
        if not run.nodes or not nodes_of(lease).issuperset(run.nodes):
            raise UsageError(
                f"The run names other nodes than those of lease {lease.id}; name "
                f"{', '.join(sorted(nodes_of(lease)))}."
            )
        request = self.requests[lease.request]
        least = most = run.world_size
        if run.world_size == len(lease.slots) and request.least:
            least, most = request.least, request.count
        run = replace(gang.created(run, self._now), least=least, most=most)
        if not lease.used:
            self._put("lease", lease.id, replace(lease, used=True))
        self._put("run", run.id, run)
        self._live.setdefault(lease.id, {})[run.id] = None
        self._audit("run created", run.user, run=run.id, lease=lease.id, name=run.name)

    def _run_reported(self, event: ev.RunReported) -> None:
        run = self.runs.get(event.run)
        if run and gang.live(run):
            changed = gang.reported(run, event)
            if changed != run:
                self._put("run", run.id, changed)
            for text in gang.new_alerts(run, changed):
                self._out.append(ev.Notice(session=run.session, about=run.id, text=text))

    # --- the end of an attempt

    def _end(self, lease: Lease, *parameters: Any, **more: Any) -> None:
        super()._end(lease, *parameters, **more)
        for id in list(self._live.get(lease.id, ())):
            run = self.runs[id]
            if run.state is RunState.STOPPING and self._attempt_over(run):
                self._end_run(run)

    def _rank_exited(self, event: ev.RankExited) -> None:
        run = self.runs.get(event.run)
        rank = event.exit.rank
        if run is None or not gang.live(run) or not 0 <= rank < run.world_size or run.awaits:
            return
        if event.exit.attempt != run.attempt or any(exit.rank == rank for exit in run.exits):
            return
        own = self.leases[run.lease].slots[rank].node
        # What one agent no longer knows, those of other nodes do.
        others = any(self.fleet.up(node) for node in run.nodes if node != own)
        lost = next((node for node in run.nodes if not self.fleet.up(node)), "")
        changed = gang.exited(run, event.exit, final=event.final and not others, lost=lost)
        self._put("run", run.id, changed)
        self._proceed(changed, told=run.state is changed.state)

    def _proceed(self, run: Run, *, told: bool) -> None:
        """End an attempt that is over, or see to it that it comes to its end."""
        if not self._attempt_over(run):
            if not told:
                self._stop_ranks(run, run.nodes)
        elif run.state is RunState.RESTARTING and not gang.done(run):
            self._regroup(run)
        else:
            self._end_run(run)

    def _stop_ranks(self, run: Run, nodes: tuple[str, ...]) -> None:
        # Those that nothing is wrong with may keep what they have.
        grace = self.preempt_grace if gang.MOVED in run.detail else None
        self._out.append(ev.StopRun(run=run, nodes=nodes, reason=run.reason, grace=grace))

    def _end_run(self, run: Run) -> None:
        super()._end_run(run)
        for id in self._live.get(run.lease, ()):
            # It may be alone now, so that it need not wait for lost nodes.
            self._deadlines.arm("rejoin", id)

    def _attempt_over(self, run: Run) -> bool:
        if gang.is_over(run):
            return True
        if not run.exits or run.state not in (RunState.STOPPING, RunState.RESTARTING):
            return False
        exited = {exit.rank for exit in run.exits}
        slots = self.leases[run.lease].slots[: run.world_size]
        return not any(
            self.fleet.up(slot.node) for rank, slot in enumerate(slots) if rank not in exited
        )

    def _stop_requested(self, event: ev.StopRequested) -> None:
        run = self.runs.get(event.run)
        if run is None:
            raise NotFoundError(f"There is no run {event.run!r}; 'aios runs' lists them.")
        check_owner(f"Run {run.id}", run.user, event)
        if not gang.live(run):
            return
        changed = gang.told_to_stop(run, event.reason)
        if changed != run:
            self._put("run", run.id, changed)
            self._audit("run stopped", event.by, run=run.id, reason=event.reason)
        self._proceed(changed, told=False)

    # --- the next attempt

    def _regroup(self, run: Run) -> None:
        """Start a run of which an attempt is over again, once it is known on which devices."""
        lease = self.leases[run.lease]
        if lease.state is not LeaseState.ACTIVE:
            return
        lost = self._lost_nodes(run)
        if lost:
            when = self._rejoin_deadline(run.id)
            if when is None or when > self._now:
                self._deadlines.arm("rejoin", run.id)
                return
            lease = self._without(lease, lost)
        else:
            lease = self._with_more(run, lease)
        self._start_again(run, lease)

    def _start_again(self, run: Run, lease: Lease) -> None:
        slots = lease.slots[: run.most or run.world_size]
        nodes = tuple(dict.fromkeys(slot.node for slot in slots))
        self._audit(
            "run restarted",
            run.user,
            run=run.id,
            attempt=run.attempt + 1,
            ranks=len(slots),
            reason=run.reason,
        )
        run = gang.again(run, len(slots), nodes, self._now)
        self._put("run", run.id, run)
        if run.past:
            self._out.append(ev.Moved(run=run, nodes=run.past))
        self._out.append(ev.MeetAgain(run=run, node=nodes[0]))

    def _met(self, event: ev.Met) -> None:
        run = self.runs.get(event.run)
        if run and run.state is RunState.STARTING and run.attempt == event.attempt:
            self._out.append(ev.StartAgain(run=run, address=event.address, port=event.port))

    def _lost_nodes(self, run: Run) -> set[str]:
        """Nodes out of reach that its next attempt would be on."""
        slots = self.leases[run.lease].slots[: run.most or run.world_size]
        return {slot.node for slot in slots if not self.fleet.up(slot.node)}

    def _alone(self, run: Run) -> bool:
        """Whether no other run is on its lease."""
        return self._live.get(run.lease, {}).keys() <= {run.id}

    def _can_do_without(self, run: Run, lost: set[str]) -> bool:
        """Whether a run can go on without some of its nodes."""
        left = [slot for slot in self.leases[run.lease].slots if slot.node not in lost]
        return self._alone(run) and run.least < run.most and len(left) >= max(1, run.least)

    def _rejoin_deadline(self, id: str) -> float | None:
        """When a run that waits for lost nodes goes on without them; None: it does not."""
        run = self.runs.get(id)
        if run is None or run.state is not RunState.RESTARTING or run.awaits:
            return None
        if not self._attempt_over(run):
            return None
        lost = self._lost_nodes(run)
        if not lost or not self._can_do_without(run, lost):
            return None
        since = [self.fleet.down[node] for node in lost if node in self.fleet.down]
        # One that is known no more does not come back.
        return max(since, default=-math.inf) + self.rejoin_grace

    def _without(self, lease: Lease, lost: set[str]) -> Lease:
        """Take devices of lost nodes from a lease.

        They are granted to nobody before the nodes are back and no process of the lease is there.
        """
        for node in sorted(lost):
            devices = tuple(slot.device for slot in lease.slots if slot.node == node)
            record = ev.Unconfirmed(node=node, lease=lease.id, devices=devices)
            self._put("unconfirmed", f"{lease.id}@{node}", record)
        for slot in lease.slots:
            if slot.node in lost:
                self.fleet.unhold(slot, lease.id)
        kept = tuple(slot for slot in lease.slots if slot.node not in lost)
        return self._changed(lease, replace(lease, slots=kept), "lease shrunk")

    def _with_more(self, run: Run, lease: Lease) -> Lease:
        """Take free devices for a lease that has fewer than its run may use, if nobody waits.

        Devices of a node come to stand together, as its ranks have to.
        """
        found = self._more_for(run, lease)
        slots = (*lease.slots, *found)
        order = list(dict.fromkeys(slot.node for slot in slots))
        slots = tuple(sorted(slots, key=lambda slot: order.index(slot.node)))
        if slots == lease.slots:
            return lease
        for slot in found:
            self.fleet.hold(slot, lease.id)
        what = "lease grown" if found else "lease put in order"
        return self._changed(lease, replace(lease, slots=slots), what)

    def _more_for(self, run: Run, lease: Lease) -> tuple[Slot, ...]:
        """The free devices that a run may take beside those that it has.

        None where anybody waits, or another run is on its lease.
        """
        missing = run.most - len(lease.slots)
        pool = self.fleet.pool_of_slot(lease.slots[0])
        if missing <= 0 or not self._alone(run) or self._queue.head(pool) is not None:
            return ()
        self._charge(lease, -1)
        allowed = self._quotas.room(lease.queue, lease.user, pool).allowed - len(lease.slots)
        self._charge(lease, +1)
        most = int(min(missing, allowed))
        if most <= 0:
            return ()
        request = self.requests[lease.request]
        left = None if lease.expires is None else max(0.0, lease.expires - self._now)
        stock = self.fleet.branch()
        self._set_aside(stock, self._kept_from(replace(request, time=left)))
        near = run.nodes[:1] if request.placement is Placement.NODE else run.nodes
        if not run.checkpoints or request.placement is Placement.NODE:
            elsewhere = [node for id, node in self.nodes.items() if id not in near]
            self._set_aside(stock, (device.id for node in elsewhere for device in node.devices))
        return stock.pick(pool, demand_of(request)._replace(least=1, most=most)) or ()

    def _changed(self, before: Lease, lease: Lease, what: str) -> Lease:
        """A lease has other devices than before."""
        self._charge(before, -1)
        self._put("lease", lease.id, lease)
        self._charge(lease, +1)
        devices = [slot.device for slot in lease.slots]
        self._audit(what, lease.user, lease=lease.id, devices=devices)
        self._out.append(ev.Handed(lease=lease))
        return lease

    # --- nodes

    def _live_runs_on(self, node: str) -> list[Run]:
        ids = [id for runs in self._live.values() for id in runs]
        return [self.runs[id] for id in ids if node in self.runs[id].nodes]

    def _note_lost_node(self, node: str, *, gone: bool = False) -> None:
        """What that means for runs on it; `gone`: for long, so that it is not waited for."""
        for run in self._live_runs_on(node):
            changed = gang.lost_node(run, node, gone=gone)
            if changed != run:
                self._put("run", run.id, changed)
            if changed.state in (RunState.STOPPING, RunState.RESTARTING):
                self._proceed(changed, told=run.state is changed.state)

    def _note_joined_node(self, node: str, held: frozenset[str]) -> None:
        for run in self._live_runs_on(node):
            if run.state is RunState.STARTING and run.attempt and run.nodes[0] == node:
                self._out.append(ev.MeetAgain(run=run, node=node))
            elif run.state not in (RunState.STOPPING, RunState.RESTARTING):
                continue
            elif self._attempt_over(run):
                self._proceed(run, told=True)
            elif run.lease in held:
                self._stop_ranks(run, (node,))

    def _survives(self, lease: Lease, node: str) -> bool:
        """Whether a lease can lose a node: all its runs there may go on with fewer ranks."""
        runs = [self.runs[id] for id in self._live.get(lease.id, ())]
        return bool(runs) and all(
            self._can_do_without(run, self._lost_nodes(run))
            and run.state is not RunState.STOPPING
            and (gang.may_restart(run) or run.state is RunState.RESTARTING)
            for run in runs
        )

    def _write_off(self, node: str) -> None:
        super()._write_off(node)
        self._note_lost_node(node, gone=True)

    def _arm_all(self) -> None:
        super()._arm_all()
        for runs in self._live.values():
            for id in runs:
                self._deadlines.arm("rejoin", id)
