"""What the broker knows, and how each change of it gets into the journal.

`Ledger` is the ground on which `leasing.py` and `state.py` stand: records by id, the indexes that
save a scan, and the actions of the event at hand. Applying its Put and Drop actions in order to an
empty journal gives `records()`, and `load` gives the ledger back.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..schema import (
    Lease,
    LeaseState,
    Node,
    Owner,
    Process,
    Request,
    RequestState,
    Run,
)
from . import events as ev
from . import gang
from .demand import demand_of
from .fleet import Fleet
from .policy import Pool
from .waiting import Queue

ENDED_REQUESTS = 1000
ENDED_RUNS = 200


class Ledger:
    """Records, indexes and pending actions.

    Attributes
    ----------
    sessions, requests, leases, runs
        Records by id. Requests and runs that have ended are kept for a while, leases are not.
    fleet
        Nodes and devices.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Owner] = {}
        self.requests: dict[str, Request] = {}
        self.leases: dict[str, Lease] = {}
        self.runs: dict[str, Run] = {}
        self.fleet = Fleet()
        self._queue: Queue
        self._arrivals = 0
        # When requests arrived that hold a lease which may be preempted.
        self._arrived: dict[str, int] = {}
        self._fence = 0
        self._unconfirmed: dict[str, ev.Unconfirmed] = {}
        # Since when a session's connection is gone; nodes that are not waited for any longer.
        self._lost: dict[str, float] = {}
        self._written_off: set[str] = set()
        # What is open by session, live runs by lease, nodes still to confirm by ending lease.
        self._open: dict[str, dict[str, None]] = {}
        self._live: dict[str, dict[str, None]] = {}
        self._waiting_for: dict[str, set[str]] = {}
        self._ended_requests: deque[str] = deque()
        self._ended_runs: deque[str] = deque()
        self._tables: dict[str, dict[str, Any]] = {
            "session": self.sessions,
            "request": self.requests,
            "lease": self.leases,
            "run": self.runs,
            "unconfirmed": self._unconfirmed,
        }
        self._now = 0.0
        self._out: list[ev.Action] = []

    # --- read side

    @property
    def nodes(self) -> dict[str, Node]:
        """Every known node, also those that are down."""
        return self.fleet.nodes

    @property
    def holder(self) -> dict[str, str]:
        """The lease that holds a device, by device; of several that share it, the first."""
        return self.fleet.holder

    @property
    def outside(self) -> dict[str, tuple[Process, ...]]:
        """Processes outside any lease, by device."""
        return self.fleet.outside

    def node_up(self, node: str) -> bool:
        """Whether a node's agent is connected."""
        return self.fleet.up(node)

    def queue(self, pool: Pool | None = None) -> list[Request]:
        """Requests that wait, in the order of their line; of both lines, the older comes first."""
        lines = [self._queue.ordered(p) for p in Pool if pool in (None, p)]
        return [self.requests[id] for id in heapq.merge(*lines, key=self._queue.arrival)]

    def open_requests(self, session: str) -> list[Request]:
        """What a session waits for, and what it holds leases by."""
        return [self.requests[id] for id in self._open.get(session, ())]

    def pool(self, request: str) -> Pool:
        """The line in which a request waits."""
        return self._queue.pool(request)

    def held(self, request: str) -> bool:
        """Whether a quota keeps a request that waits from being next."""
        return self._queue.held(request) is not None

    def reason(self, request: str) -> str:
        """Why a request waits, in a word; for one that has ended, why it has."""
        found = self.requests[request]
        if found.state is not RequestState.QUEUED:
            return found.reason
        whose = self._queue.held(request)
        if whose is not None:
            return f"Quota({whose})"
        pool = self._queue.pool(request)
        head = self._queue.head(pool)
        if self.fleet.fits(pool, demand_of(found)):
            return f"Reservation(for {self._kept_for(pool, found) or head})"
        if head == request:
            return self.fleet.shortage(pool, demand_of(found))
        return "Priority"

    def _kept_for(self, pool: Pool, request: Request) -> str:
        """The reservation that keeps a request from starting; "": none does."""
        raise NotImplementedError

    def records(self) -> Iterable[tuple[str, str, ev.Record]]:
        """What the journal has when every action so far has been applied to it."""
        if self._fence:
            yield "counter", "fence", self._fence
        for kind, table in {"node": self.nodes, **self._tables}.items():
            for id, record in table.items():
                yield kind, id, record

    # --- changes

    def _begin(self) -> list[ev.Action]:
        """A new event: the list into which its actions go."""
        self._out = []
        return self._out

    def _put(self, kind: str, id: str, record: ev.Record) -> None:
        if kind != "node":
            self._tables[kind][id] = record
        self._out.append(ev.Put(kind=kind, id=id, record=record))

    def _drop(self, kind: str, id: str) -> None:
        if kind != "node":
            del self._tables[kind][id]
        self._out.append(ev.Drop(kind=kind, id=id))

    def _next_fence(self) -> int:
        self._fence += 1
        self._out.append(ev.Put(kind="counter", id="fence", record=self._fence))
        return self._fence

    def _audit(self, what: str, who: str, **detail: Any) -> None:
        self._out.append(ev.Audit(what=what, who=who, detail=detail))

    def _enqueue(self, request: Request, pool: Pool) -> None:
        """Put a request in its line; one that was preempted is there as old as it was."""
        arrival = self._arrived.pop(request.id, None)
        self._queue.add(request, pool, self._next_arrival() if arrival is None else arrival)

    def _next_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def _note_ended_request(self, request: Request) -> None:
        discard(self._open, request.session, request.id)
        self._ended_requests.append(request.id)
        while len(self._ended_requests) > ENDED_REQUESTS:
            self._drop("request", self._ended_requests.popleft())

    def _note_ended_run(self, run: Run) -> None:
        discard(self._live, run.lease, run.id)
        self._ended_runs.append(run.id)
        while len(self._ended_runs) > ENDED_RUNS:
            self._drop("run", self._ended_runs.popleft())

    # --- from the journal

    def _load(self, records: Iterable[tuple[str, str, ev.Record]]) -> None:
        """Take the records of an earlier life: every session lost, every node down as of now."""
        for kind, id, record in records:
            if isinstance(record, Node):
                self.fleet.known(record, self._now)
            elif isinstance(record, int):
                self._fence = record
            else:
                self._tables[kind][id] = record
        self._lost = dict.fromkeys(self.sessions, self._now)
        for lease in self.leases.values():
            for slot in lease.slots:
                self.fleet.hold(slot, lease.id)
            if lease.state is LeaseState.ENDING:
                self._waiting_for[lease.id] = nodes_of(lease)
        for request in self.requests.values():
            self._load_request(request)
        for run in sorted(self.runs.values(), key=lambda run: run.ended or 0.0):
            if not gang.live(run):
                self._ended_runs.append(run.id)
            elif not run.awaits:
                self._live.setdefault(run.lease, {})[run.id] = None

    def _load_request(self, request: Request) -> None:
        if request.state is RequestState.ENDED:
            self._ended_requests.append(request.id)
            return
        self._open.setdefault(request.session, {})[request.id] = None


def nodes_of(lease: Lease) -> set[str]:
    """The nodes on which a lease has devices."""
    return {slot.node for slot in lease.slots}


def discard(index: dict[str, dict[str, None]], key: str, id: str) -> None:
    """Take an id out of an index, and the key when nothing is left under it."""
    ids = index.get(key)
    if ids is not None:
        ids.pop(id, None)
        if not ids:
            del index[key]
