"""What kernels, shells and servers may call; each call is checked against the name that the
caller's certificate carries.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import time
from typing import Any

from .. import __version__
from ..errors import AccessError, ConflictError, NotFoundError, UsageError
from ..process import alive
from ..schema import Booking, Keep, Lease, LeaseState, Owner, Request, RequestState, Run
from . import events as ev
from . import messages as msg
from .events import replace
from .hub import Hub, SessionLink
from .ledger import nodes_of
from .protocol import Connection, Handler
from .views import load_view, policy_view, reservation_rows

# Calls that change nothing: viewers may make them, and they do not keep an idle cluster up.
READ_ONLY = frozenset(
    {
        "hello",
        "bye",
        "status",
        "subscribe",
        "queue.row",
        "explain",
        "load",
        "lease.get",
        "run.get",
        "policy.get",
        "quota.get",
        "trust.get",
    }
)
# What a peer may name things: an id is also a directory's name on the nodes.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
LONGEST_NAME = 300
MOST_RESTARTS = 1000
MOST_RECORDS = 10_000
LONGEST_TIME = 100 * 365 * 86400.0


class People:
    """Sessions, their leases and runs."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._host = socket.gethostname()
        self._lost: dict[str, Owner] = dict(hub.state.sessions)

    def handlers(self) -> dict[str, Handler]:
        """The calls, for `Connection`."""
        calls: dict[str, Handler] = {
            "hello": (msg.SessionHello, self._hello),
            "bye": (None, self._bye),
            "stand": (msg.StandFor, self._stand),
            "submit": (Request, self._submit),
            "cancel": (msg.ById, self._cancel),
            "reprioritize": (msg.Reprioritize, self._reprioritize),
            "release": (msg.ById, self._release),
            "extend": (msg.ExtendBy, self._extend),
            "reserve": (Booking, self._reserve),
            "claim": (msg.ById, self._claim),
            "queue.row": (msg.ById, self._queue_row),
            "explain": (msg.ById, self._explain),
            "load": (None, self._load),
            "policy.get": (None, self._policy),
            "policy.set": (msg.PolicyChoice, self._choose_policy),
            "lease.get": (msg.ById, self._lease),
            "lease.active": (msg.ById, self._active),
            "lease.token": (msg.ById, self._lease_token),
            "run.create": (Run, self._run_create),
            "run.get": (msg.ById, self._run_get),
            "run.stop": (msg.ById, self._run_stop),
            "audit": (msg.Records | None, self._audit),
        }
        return {op: (body, self.guard(op, function)) for op, (body, function) in calls.items()}

    def guard(self, op: str, function: Any) -> Any:
        """Who may call: those who said hello; viewers only to look. Refusals are audit records."""

        def guarded(connection: Connection, body: Any) -> Any:
            try:
                if op != "hello" and not isinstance(connection.context, SessionLink):
                    raise AccessError(f"A session must say hello before {op!r}.")
                if connection.role == "viewer" and op not in READ_ONLY:
                    raise AccessError(f"{connection.name} may look but not {op}; ask an admin.")
                if self._hub.journal.failure and op not in READ_ONLY:
                    # Nothing could be promised.
                    raise self._hub.journal.failure
                result = function(connection, body)
            except AccessError as error:
                about = getattr(body, "id", "") or getattr(body, "lease", "")
                self._hub.refuse(op, connection.name, about, str(error))
                raise
            if op not in READ_ONLY:
                self._hub.used = time.monotonic()
            return result

        return guarded

    def kept_back(self, connection: Connection, op: str, body: Any) -> None:
        """The answer to a call could not be made durable: a new request is taken back."""
        if op == "submit" and not self._hub.journal.durable("request", body.id):
            reason = "the broker's journal could not be written"
            self._hub.handle(ev.Cancelled(request=body.id, by=reason, admin=True))

    def look_for_lost(self) -> None:
        """End sessions whose processes are gone; called once a second."""
        for owner in list(self._lost.values()):
            if owner.id in self._hub.state.sessions:
                self._look_for(owner)
            else:
                del self._lost[owner.id]

    def left(self, session: SessionLink, connection: Connection) -> None:
        """A connection of a session has gone; the session is lost with its last one."""
        owner = session.owner
        others = self._hub.sessions.get(owner.id, set())
        others.discard(connection)
        if not others:
            self._hub.sessions.pop(owner.id, None)
        # Those that only look on, or are led here by others, keep nothing.
        if session.passive or any(not other.context.passive for other in others):
            return
        self._lost[owner.id] = owner
        self._look_for(owner)
        if owner.keep is Keep.CONNECTION and owner.id in self._lost:
            self._hub.handle(ev.SessionLost(session=owner.id, dead=False))
        # A killed process closes its sockets a moment before it is gone.
        asyncio.get_running_loop().call_later(0.1, self._look_for, owner)

    def _look_for(self, owner: Owner) -> None:
        """End a session whose process is known to be gone; another machine's cannot be seen."""
        if owner.id not in self._lost or owner.host != self._host or not owner.pid:
            return
        if not alive(owner.pid, owner.pid_start):
            del self._lost[owner.id]
            self._hub.handle(ev.SessionLost(session=owner.id, dead=True))

    def _hello(self, connection: Connection, hello: msg.SessionHello) -> msg.Welcome:
        if connection.context is not None:
            raise ConflictError("This connection has said hello before; open another one.")
        owner = hello.owner
        check_names(owner.host, owner.label)
        if owner.id != msg.session_id(hello.secret):
            raise AccessError("That session belongs to somebody else.")
        if connection.role in ("node", "broker"):
            raise AccessError("A node's certificate cannot open a session.")
        owner = replace(owner, user=connection.name)
        known = self._hub.state.sessions.get(owner.id)
        if known and known.user != owner.user:
            raise AccessError("That session belongs to somebody else.")
        connection.context = SessionLink(owner, hello.passive)
        self._hub.sessions.setdefault(owner.id, set()).add(connection)
        if not hello.passive:
            self._lost.pop(owner.id, None)
            self._hub.handle(ev.SessionOpened(owner=owner))
        return msg.Welcome(
            cluster=self._hub.settings.cluster,
            user=connection.name,
            role=connection.role,
            version=__version__,
            dask=self._hub.dask,
        )

    def _bye(self, connection: Connection, _: None) -> None:
        session: SessionLink = connection.context
        self._hub.sessions[session.owner.id].discard(connection)
        if not session.passive:
            self._hub.handle(ev.SessionClosed(session=session.owner.id))
        connection.context = SessionLink(session.owner, passive=True)

    def _stand(self, connection: Connection, body: msg.StandFor) -> None:
        """Whoever starts a kernel has its leases first, and the kernel's process from then on."""
        link: SessionLink = connection.context
        owner = replace(
            link.owner,
            pid=body.pid,
            pid_start=body.pid_start,
            keep=body.keep,
            kernel=body.kernel,
        )
        connection.context = SessionLink(owner, link.passive)
        self._hub.handle(ev.SessionOpened(owner=owner))
        for lease in self._hub.state.leases.values():
            if lease.session == owner.id and lease.state is LeaseState.ACTIVE:
                grant = self._hub.grant_for_agent(lease)
                self._hub.tell_nodes(nodes_of(lease), "lease.granted", grant)

    def _submit(self, connection: Connection, request: Request) -> msg.Submitted:
        owner = connection.context.owner
        check_id(request.id)
        check_names(request.label, request.queue, request.node)
        _check_time(request.time)
        request = replace(
            request,
            session=owner.id,
            user=owner.user,
            submitted=time.time(),
            batch=self._batch_of(owner, request),
        )
        event = ev.Submitted(request=request, admin=connection.role == "admin")
        self._hub.handle(event, told=(request.id, connection))
        request = self._hub.state.requests[request.id]
        lease = self._hub.state.leases.get(request.lease)
        if lease is None or lease.state is not LeaseState.ACTIVE:
            return msg.Submitted(request=request)
        return msg.Submitted(request=request, lease=lease, token=self._hub.token(lease))

    def _batch_of(self, owner: Owner, request: Request) -> str:
        """The batch that a request belongs to: what a notebook of one asks for is of it, too."""
        open_ = self._hub.state.open_requests(owner.id)
        batch = request.batch or next((r.batch for r in open_ if r.batch), "")
        if batch:
            check_id(batch)
        known = self._hub.batches.get(batch)
        if known and known["user"] != owner.user:
            raise AccessError(f"Batch {batch} belongs to {known['user']}, not to you.")
        return batch

    def _cancel(self, connection: Connection, body: msg.ById) -> None:
        self._hub.handle(
            ev.Cancelled(request=body.id, by=connection.name, admin=connection.role == "admin")
        )

    def _reprioritize(self, connection: Connection, body: msg.Reprioritize) -> None:
        self._hub.handle(
            ev.Reprioritized(
                request=body.id,
                priority=body.priority,
                by=connection.name,
                admin=connection.role == "admin",
            )
        )

    def _reserve(self, connection: Connection, booking: Booking) -> dict[str, Any] | None:
        owner = connection.context.owner
        check_id(booking.id)
        check_names(booking.label)
        booking = replace(booking, session=owner.id, user=owner.user)
        self._hub.handle(ev.Booked(booking=booking, admin=connection.role == "admin"))
        return reservation_rows(self._hub.state).get(booking.id)

    def _claim(self, connection: Connection, body: msg.ById) -> msg.Claim:
        state, session = self._hub.state, connection.context.owner.id
        self._hub.handle(ev.Claimed(booking=body.id, session=session, by=connection.name))
        booking = state.bookings.get(body.id)
        if booking:
            return msg.Claim(start=booking.start)
        lease = state.leases[state.lease_of(body.id)]
        grant = msg.Grant(lease=lease, token=self._hub.token(lease))
        return msg.Claim(start=lease.granted, grant=grant)

    def _queue_row(self, connection: Connection, body: msg.ById) -> dict[str, Any] | None:
        return self._hub.outlook.row(body.id, time.time())

    def _explain(self, connection: Connection, body: msg.ById) -> dict[str, Any]:
        return self._hub.outlook.explain(body.id, time.time())

    def _load(self, connection: Connection, _: None) -> dict[str, Any]:
        return load_view(self._hub.state)

    def _policy(self, connection: Connection, _: None) -> dict[str, Any]:
        return policy_view(self._hub.state)

    def _choose_policy(self, connection: Connection, body: msg.PolicyChoice) -> dict[str, Any]:
        by, admin = connection.name, connection.role == "admin"
        for user, weight in body.weights.items():
            self._hub.handle(ev.WeightChanged(user=user, weight=weight, by=by, admin=admin))
        if body.name is not None or body.aging is not None:
            name = body.name or self._hub.state.policy.name
            self._hub.handle(ev.PolicyChanged(name=name, aging=body.aging, by=by, admin=admin))
        limits = [("idle", queue, seconds) for queue, seconds in body.idle.items()]
        if body.max_time is not None:
            limits.append(("max-time", "", body.max_time))
        for limit, queue, seconds in limits:
            check_names(queue)
            self._hub.handle(
                ev.LimitChanged(
                    name=limit, queue=queue, seconds=seconds or None, by=by, admin=admin
                )
            )
        return policy_view(self._hub.state)

    def _release(self, connection: Connection, body: msg.ById) -> None:
        lease = self._hub.state.leases.get(body.id)
        others = lease is not None and lease.user != connection.name
        own = body.reason[:LONGEST_NAME] or "released"
        self._hub.handle(
            ev.Released(
                lease=body.id,
                by=connection.name,
                admin=connection.role == "admin",
                reason=f"released by {connection.name}" if others else own,
            )
        )
        if lease is not None and others:
            self._hub.audit("lease released", connection.name, lease=lease.id, user=lease.user)

    def _extend(self, connection: Connection, body: msg.ExtendBy) -> Lease:
        _check_time(body.time)
        self._hub.handle(
            ev.Extended(
                lease=body.id,
                time=body.time,
                by=connection.name,
                admin=connection.role == "admin",
            )
        )
        lease = self._hub.state.leases[body.id]
        self._hub.tell_nodes(
            {s.node for s in lease.slots}, "lease.granted", self._hub.grant_for_agent(lease)
        )
        return lease

    def _lease(self, connection: Connection, body: msg.ById) -> Lease:
        return self._owned_lease(connection, body.id)

    def _active(self, connection: Connection, body: msg.ById) -> None:
        """A kernel that was started with these devices computes."""
        self._hub.activity.note(self._owned_lease(connection, body.id).id, time.time())

    def _lease_token(self, connection: Connection, body: msg.ById) -> msg.Grant:
        lease = self._owned_lease(connection, body.id)
        if lease.state is not LeaseState.ACTIVE:
            raise ConflictError(f"Lease {lease.id} is ending ({lease.reason}); take a new one.")
        return msg.Grant(lease=lease, token=self._hub.token(lease))

    def _owned_lease(self, connection: Connection, identity: str) -> Lease:
        lease = self._hub.state.leases.get(identity)
        if lease is None:
            raise NotFoundError(f"There is no lease {identity!r}; 'aios leases' lists yours.")
        if lease.user != connection.name:
            raise AccessError(f"Lease {identity} belongs to {lease.user}, not to you.")
        return lease

    # --- runs

    def _run_create(self, connection: Connection, run: Run) -> Run:
        owner = connection.context.owner
        check_id(run.id)
        check_names(run.name, run.label, run.framework)
        known = self._hub.state.runs.get(run.id)
        if known:
            kind = ConflictError if known.user == owner.user else AccessError
            raise kind(f"Run {run.id} is there already; give yours another id.")
        if run.world_size < 1:
            raise UsageError(f"{run.world_size} is not a number of ranks; ask for at least one.")
        if not 0 <= run.max_restarts <= MOST_RESTARTS:
            raise UsageError(
                f"A run may be restarted 0 to {MOST_RESTARTS} times, not {run.max_restarts}."
            )
        lease = self._owned_lease(connection, run.lease)
        slots = lease.slots[: run.world_size]
        run = replace(
            run,
            session=owner.id,
            user=owner.user,
            label=run.label or owner.label,
            nodes=tuple(dict.fromkeys(slot.node for slot in slots)),
            world_size=len(slots),
            started=time.time(),
            detail={},
            batch=lease.batch,
        )
        missing = [node for node in run.nodes if node not in self._hub.agents]
        if missing:
            raise ConflictError(f"Node {missing[0]} of lease {lease.id} is down; try again later.")
        self._hub.handle(ev.RunCreated(run=run))
        self._hub.activity.note(lease.id, time.time())
        for node in run.nodes:
            ranks = tuple(rank for rank, slot in enumerate(slots) if slot.node == node)
            self._hub.agents[node].tell("run.created", msg.RunCreated(run=run, ranks=ranks))
        return run

    def _run_get(self, connection: Connection, body: msg.ById) -> Run:
        run = self._hub.state.runs.get(body.id)
        if run is None:
            raise NotFoundError(f"There is no run {body.id!r}; 'aios runs' lists them.")
        if run.user != connection.name and connection.role != "admin":
            raise AccessError(f"Run {run.id} belongs to {run.user}, not to you.")
        return run

    def _run_stop(self, connection: Connection, body: msg.ById) -> None:
        self._hub.handle(
            ev.StopRequested(
                run=body.id,
                by=connection.name,
                admin=connection.role == "admin",
                reason=body.reason[:LONGEST_NAME] or f"stopped by {connection.name}",
            )
        )

    def _audit(self, connection: Connection, body: msg.Records | None) -> list[Any]:
        if connection.role != "admin":
            raise AccessError("Only an admin may read the audit records.")
        limit = body.limit if body else msg.Records().limit
        return list(self._hub.journal.audit(max(0, min(limit, MOST_RECORDS))))

    # --- revoked

    def revoked(self, user: str) -> None:
        """End all that somebody has here whose access was taken away."""
        state, reason = self._hub.state, f"the access of {user} was revoked"
        for request in [r for r in state.requests.values() if r.user == user]:
            lease = state.leases.get(request.lease)
            if lease:
                self._hub.handle(ev.Released(lease=lease.id, by=user, admin=True, reason=reason))
            elif request.state is RequestState.QUEUED:
                self._hub.handle(ev.Cancelled(request=request.id, by="an admin", admin=True))
        for booking in [b for b in state.bookings.values() if b.user == user]:
            self._hub.handle(ev.Cancelled(request=booking.id, by="an admin", admin=True))


def check_id(identity: str) -> None:
    """Refuse what cannot be an id."""
    if not ID.fullmatch(identity):
        raise UsageError(
            f"{identity[:80]!r} is not an id; use up to 64 letters, digits, '-' and '_'."
        )


def check_names(*names: str) -> None:
    """Refuse names that are too long."""
    if any(len(name) > LONGEST_NAME for name in names):
        raise UsageError(f"A name has at most {LONGEST_NAME} characters; give a shorter one.")


def _check_time(seconds: float | None) -> None:
    if seconds is not None and math.isfinite(seconds) and seconds > LONGEST_TIME:
        raise UsageError(f"{seconds:g} seconds is over 100 years; leave the time out for no limit.")
