"""A session with the broker, for an event loop; `loop.py` has one for a notebook's own thread.

A session is what owns leases: one kernel, one shell or one server. It survives a lost connection
and a broker that was restarted: the client connects again by itself and says hello with the same
id and secret, and its leases are still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ..config import settings
from ..errors import AccessError, AllocationError, ClusterError, NoClusterError, ProtocolError
from ..process import process_start
from ..schema import Keep, Lease, Owner, Request, Run
from ..tls import Bundle
from . import messages
from .messages import VERSION
from .protocol import Connection, connect

# Calls that change nothing, or nothing more the second time.
REPEATABLE = frozenset(
    {
        *("status", "subscribe", "submit", "queue.row", "lease.get", "lease.token", "run.get"),
        *("reserve", "claim", "stand"),
    }
)
# Seconds in which a handshake that was given up has ended.
GIVEN_UP = 0.05
Locate = Callable[[], Awaitable[tuple[str, Bundle]]]


class RefusedError(ClusterError):
    """The cluster does not let us in; trying again would not help."""


class Pending:
    """A request on its way: `granted` is done when there is a lease, or fails with the reason."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.granted: asyncio.Future[messages.Grant] = asyncio.get_running_loop().create_future()


class AsyncClient:
    """One session with the broker.

    Parameters
    ----------
    locate
        Gives the broker's address and this user's certificates; called again for each attempt to
        reconnect, so that it may bring a dead embedded broker back. Raises ClusterError when there
        is no cluster.
    label
        What people see as the owner: a notebook's name, "terminal", "server".
    keep, pid
        What keeps the session's leases alive, and the process it stands for (default: this one).
    passive
        This session only looks on.
    kernel
        This is a kernel that was started with the session's devices.

    Attributes
    ----------
    tokens
        Lease id → token for every lease granted to this session.
    closed
        Set when the session is over: closed by us, or the cluster has been stopped.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        label: str = "",
        keep: Keep = Keep.CONNECTION,
        pid: int = 0,
        passive: bool = False,
        secret: str = "",
        kernel: bool = False,
    ) -> None:
        pid = pid or os.getpid()
        secret = secret or secrets.token_hex(16)
        self._locate = locate
        self._hello = messages.SessionHello(
            version=VERSION,
            owner=Owner(
                id=messages.session_id(secret),
                user="",
                host=socket.gethostname(),
                pid=pid,
                pid_start=process_start(pid),
                label=label,
                keep=keep,
                kernel=kernel,
            ),
            secret=secret,
            passive=passive,
        )
        self.welcome = messages.Welcome(cluster="", user="", role="", version="")
        self.tokens: dict[str, str] = {}
        self.closed = asyncio.Event()
        self.failure: ClusterError | None = None
        self._pending: dict[str, Pending] = {}
        self._listeners: list[Callable[[str, Any], None]] = []
        self._watcher: Callable[[dict[str, Any]], None] | None = None
        self._connection: Connection | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def session(self) -> str:
        """This session's id."""
        return self._hello.owner.id

    async def open(self) -> AsyncClient:
        """Connect and say hello.

        Raises
        ------
        ClusterError
            There is no cluster, or it does not answer.
        """
        await self._connect()
        self._task = asyncio.create_task(self._stay_connected())
        return self

    async def __aenter__(self) -> AsyncClient:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self, *, goodbye: bool = True) -> None:
        """End the session; with `goodbye` its leases end now, not after the grace."""
        if self.closed.is_set():
            return
        connection, making = self._connection, not self._ready.is_set()
        if goodbye and connection and not connection.closed.is_set():
            with contextlib.suppress(ClusterError):
                await connection.call("bye", timeout=5)
        self._over(ClusterError("This session is closed."))
        if self._task:
            self._task.cancel()
        if connection:
            connection.close()
            await connection.wait_closed()
        if making:
            # uvloop ends a handshake that is given up when it likes, and the loop may be closed next.
            await asyncio.sleep(GIVEN_UP)

    # --- asking

    async def call(
        self, op: str, body: Any = None, result: Any = Any, timeout: float = 60.0
    ) -> Any:
        """One call to the broker; waits for a connection that is being made again.

        Raises
        ------
        ClusterError
            The broker does not answer. A call that changes something is not repeated by itself when
            the connection breaks under it, as it may have been carried out.
        """
        while True:
            connection = await self._connected(timeout)
            try:
                return await connection.call(op, body, result, timeout)
            except ClusterError:
                if not connection.closed.is_set() or op not in REPEATABLE:
                    raise
                # Until the loss has been noticed, `_connected` would give the same one back.
                await asyncio.sleep(0)

    async def submit(self, request: Request) -> Pending:
        """Ask for devices. The answer's `granted` is awaited for as long as the caller likes.

        A lost connection does not lose the request: its id makes a second submission the same.
        """
        pending = Pending(request)
        self._pending[request.id] = pending
        try:
            await self._submit(pending)
        except BaseException:
            self._pending.pop(request.id, None)
            raise
        return pending

    async def _submit(self, pending: Pending) -> None:
        answer = await self.call("submit", pending.request, messages.Submitted)
        if answer.lease:
            self._granted(messages.Grant(lease=answer.lease, token=answer.token))
        elif answer.request.state == "ended":
            self._ended(answer.request)

    async def cancel(self, request: str) -> None:
        """Take a request back."""
        await self.call("cancel", messages.ById(id=request))

    async def stand_for(self, pid: int, keep: Keep, *, kernel: bool) -> None:
        """Have the session stand for another process of this machine, which keeps its leases."""
        start = process_start(pid)
        stand = messages.StandFor(pid=pid, pid_start=start, keep=keep, kernel=kernel)
        owner = msgspec.structs.replace(
            self._hello.owner, pid=pid, pid_start=start, keep=keep, kernel=kernel
        )
        self._hello = msgspec.structs.replace(self._hello, owner=owner)
        await self.call("stand", stand)

    async def token(self, lease: str) -> messages.Grant:
        """The lease and its token, for a lease of this user that another session holds."""
        grant: messages.Grant = await self.call(
            "lease.token", messages.ById(id=lease), messages.Grant
        )
        self.tokens[lease] = grant.token
        return grant

    async def claim(self, reservation: str) -> messages.Claim:
        """Take up a reservation: it will be this session's, or its lease is now."""
        body = messages.ById(id=reservation)
        claim: messages.Claim = await self.call("claim", body, messages.Claim)
        if claim.grant:
            self.tokens[claim.grant.lease.id] = claim.grant.token
        return claim

    async def subscribe(self, watcher: Callable[[dict[str, Any]], None]) -> None:
        """Have `watcher` called with the whole snapshot, then with each delta.

        After a reconnection it gets a whole snapshot again (it has the key "cluster").
        """
        self._watcher = watcher
        await self.call("subscribe")

    async def mend(self) -> None:
        """Have an embedded cluster that has lost a process put right; nothing to do for others."""
        with contextlib.suppress(ClusterError):
            await self._locate()

    def listen(self, listener: Callable[[str, Any], None]) -> None:
        """Have `listener(topic, body)` called when something of this session changes.

        `lease.ended` (Lease), `run.ended` (Run), `notice` (Notice), `batch.stop` (ById): a batch that
        it runs has to end, and `lease.again` (Lease): the request of a lease that was preempted has
        another one.
        """
        self._listeners.append(listener)

    # --- the connection

    async def _connected(self, timeout: float) -> Connection:
        if self._connection and not self._connection.closed.is_set() and self._ready.is_set():
            return self._connection
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            raise ClusterError(
                "The broker does not answer; look at 'aios doctor', or restart the cluster with "
                "'aios down' and 'aios up'."
            ) from None
        if self.failure:
            raise self.failure
        assert self._connection is not None
        return self._connection

    async def _connect(self) -> None:
        address, bundle = await self._locate()
        handlers: dict[str, Any] = {
            "granted": (messages.Grant, lambda _, grant: self._granted(grant)),
            "request.ended": (Request, lambda _, request: self._ended(request)),
            "lease.ended": (Lease, lambda _, lease: self._tell("lease.ended", lease)),
            "run.ended": (Run, lambda _, run: self._tell("run.ended", run)),
            "batch.stop": (messages.ById, lambda _, stop: self._tell("batch.stop", stop)),
            "notice": (messages.Notice, lambda _, notice: self._tell("notice", notice)),
            "view": (dict[str, Any], lambda _, view: self._watcher and self._watcher(view)),
        }
        connection = await connect(address, bundle.client_context(), handlers)
        try:
            await self._resume(connection)
        except BaseException:
            # The other side closes it too, but later than this loop may end.
            connection.close()
            await connection.wait_closed()
            raise
        self._ready.set()

    async def _resume(self, connection: Connection) -> None:
        """Say hello, and ask again for what was asked for on the connection before."""
        try:
            self.welcome = await connection.call("hello", self._hello, messages.Welcome, timeout=10)
        except AccessError as error:
            raise RefusedError(str(error)) from None
        self._connection = connection
        for pending in list(self._pending.values()):
            answer = await connection.call("submit", pending.request, messages.Submitted)
            if answer.lease:
                self._granted(messages.Grant(lease=answer.lease, token=answer.token))
            elif answer.request.state == "ended":
                self._ended(answer.request)
        if self._watcher:
            await connection.call("subscribe")

    async def _stay_connected(self) -> None:
        while not self.closed.is_set():
            connection = self._connection
            assert connection is not None
            await self._beat(connection)
            self._ready.clear()
            await self._reconnect()

    async def _beat(self, connection: Connection) -> None:
        while not connection.closed.is_set():
            try:
                async with asyncio.timeout(settings().heartbeat):
                    await connection.closed.wait()
            except TimeoutError:
                connection.tell("beat")

    async def _reconnect(self) -> None:
        delay, deadline = 0.1, time.monotonic() + settings().reap_after
        while not self.closed.is_set():
            try:
                await self._connect()
            except (ProtocolError, NoClusterError, RefusedError) as error:
                self._over(error)
            except ClusterError as error:
                if time.monotonic() > deadline:
                    self._over(error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
            else:
                return

    def _over(self, failure: ClusterError) -> None:
        self.failure = failure
        self.closed.set()
        self._ready.set()
        for pending in self._pending.values():
            if not pending.granted.done():
                pending.granted.set_exception(failure)
                # Whoever gave up waiting is no longer there to take it.
                pending.granted.exception()
        self._pending.clear()

    # --- what the broker tells

    def _granted(self, grant: messages.Grant) -> None:
        self.tokens[grant.lease.id] = grant.token
        pending = self._pending.pop(grant.lease.request, None)
        if pending is None:
            self._tell("lease.again", grant.lease)
        elif not pending.granted.done():
            pending.granted.set_result(grant)

    def _ended(self, request: Request) -> None:
        pending = self._pending.pop(request.id, None)
        if pending and not pending.granted.done():
            pending.granted.set_exception(
                AllocationError(f"The request for devices ended: {request.reason}.")
            )
            # Whoever gave up waiting is no longer there to take the exception.
            pending.granted.exception()

    def _tell(self, topic: str, body: Any) -> None:
        if topic == "lease.ended":
            self.tokens.pop(body.id, None)
        for listener in self._listeners:
            listener(topic, body)
