"""The wire between kernels, broker and node agents: typed msgpack frames over TLS, no pickle.

Frames are those of `frames.py`. The first call on a connection is an op that ends in "hello" and
carries `version`; anything else closes the connection. Bodies are structs of `schema.py` and
`messages.py`, checked for types when decoded: a malformed body is a `fail`, a malformed frame ends
the connection. Payloads (pickled cells) are opaque bytes within a body.

A server does not read from a peer that does not take its answers, so that nobody can make it keep
more than a frame and `MAX_BACKLOG` bytes for him.

Writes are coalesced: everything that one turn of the event loop produced leaves in one write.
`before_write` runs ahead of that write; the broker commits its journal there, so that nothing is
seen before it is durable, at one commit for all connections of a turn. Where that fails, answers
become refusals with its sentence, and events wait until it succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec

from ..errors import AiosError, ClusterError, ProtocolError, from_kind
from ..tls import SERVER_ROLES, peer
from ..units import split_address
from . import frames, hello
from .frames import MAX_FRAME

CHUNK = 4 * 1024 * 1024
HIGH_WATER = 8 * 1024 * 1024
MAX_BACKLOG = 4 * MAX_FRAME

LOST = "The connection to the cluster was lost; look at 'aios status' and try again."
REFUSED = (
    "The cluster refuses this certificate ({}); ask its owner for a new bundle ('aios user add')."
)

log = logging.getLogger("aios.protocol")

Handler = tuple[Any, Callable[["Connection", Any], Any]]


class Connection(asyncio.Protocol):
    """One connection, either side.

    Parameters
    ----------
    handlers
        `op or topic -> (body type, function(connection, body))`. A call's function returns the
        reply's body or an awaitable of it, and raises an `AiosError` to refuse.
    on_close
        Called once with the connection when it is gone.
    before_write
        Called ahead of each write; an `AiosError` that it raises keeps all but that sentence back.
    on_kept
        Called with each call (its op and body) whose answer was kept back.
    admit
        Called with the connection ahead of its hello; raises an `AiosError` to refuse it.
    server
        Whether this side listens: it then expects a hello first.
    """

    through = ""  # where a socket is to lead, whose other end checks who is there

    def __init__(
        self,
        handlers: dict[str, Handler],
        *,
        on_close: Callable[[Connection], None] | None = None,
        before_write: Callable[[], None] | None = None,
        on_kept: Callable[[Connection, str, Any], None] | None = None,
        admit: Callable[[Connection], None] | None = None,
        server: bool = False,
    ) -> None:
        self.handlers = handlers
        self.name = self.role = ""
        self.serial = 0
        self.greeted = not server
        self.heard = 0.0
        self.context: Any = None
        self._server = server
        self._on_close = on_close
        self._before_write = before_write
        self._on_kept = on_kept
        # Answers since the last write: place in the outbox, id, op ("" for refusals) and body.
        self._answered: list[tuple[int, int, str, Any]] = []
        self._admit = admit
        self._lost = LOST
        self._buffer = bytearray()
        self._outbox: list[bytearray] = []
        self._unwritten = 0
        self._flushing = False
        self._later: asyncio.TimerHandle | None = None
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed = asyncio.Event()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Any", transport)
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        if self.through:
            self._transport.write(f"{self.through}\n".encode())
            return
        try:
            self.name, self.role, self.serial = peer(transport)
        except AiosError:
            self.abort("no certificate")
            return
        if self._server:
            self._loop.call_later(hello.WITHIN, self._expect_hello)
        elif self.role not in SERVER_ROLES:
            self.abort(f"the other side is a {self.role}, not a broker or node")

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= 4 and not self._transport.is_closing():
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > MAX_FRAME:
                self.abort(f"a frame of {size} bytes")
                return
            if end - start - 4 < size:
                break
            frame = bytes(buffer[start + 4 : start + 4 + size])
            start += 4 + size
            try:
                message = frames.decode(frame)
            except (msgspec.MsgspecError, RecursionError) as error:
                self.abort(f"a malformed frame ({error})")
                return
            self._dispatch(message)
        del buffer[:start]

    def pause_writing(self) -> None:
        self._writable.clear()
        # A client reads on: were both sides to stop, neither would ever go on.
        if self._server:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._server and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, ssl.SSLError) and not self._server:
            self._lost = REFUSED.format((error.reason or str(error)).lower().replace("_", " "))
        self.closed.set()
        self._writable.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ClusterError(self._lost))
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        if self._on_close:
            self._on_close(self)

    # --- sending

    async def call(
        self, op: str, body: Any = None, result: Any = Any, timeout: float | None = None
    ) -> Any:
        """Ask the other side and wait for its reply, decoded as `result`.

        Raises
        ------
        AiosError
            The class and sentence that the other side refused with.
        ClusterError
            The connection is lost, or no reply came within `timeout` seconds.
        """
        if self.closed.is_set():
            raise ClusterError(self._lost)
        identity = self._next = self._next + 1
        future: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        self._waiting[identity] = future
        timer = None
        try:
            self._send(("call", identity, op, body))
            if timeout is not None:
                # Lighter than `asyncio.timeout`, of which every call would make one.
                late = f"The cluster did not answer {op!r} within {timeout:g} s."
                fail = frames.Fail(identity, ClusterError.kind, late)
                timer = self._loop.call_later(timeout, self._settle, fail)
            raw = await future
        finally:
            if timer:
                timer.cancel()
            self._waiting.pop(identity, None)
        return msgspec.msgpack.decode(raw, type=result)

    def tell(self, topic: str, body: Any = None, *, within: float = 0.0) -> None:
        """Send an event; nothing waits for it.

        With `within` (seconds) it may wait so long for others to leave in the same write; it never
        comes after what is sent later.
        """
        if not self.closed.is_set():
            self._send(("event", topic, body), within)

    async def drain(self) -> None:
        """Wait until the other side has taken most of what was sent."""
        await asyncio.sleep(0)
        await self._writable.wait()

    def close(self) -> None:
        """Write what is waiting and close."""
        if not self.closed.is_set():
            self._flush()
            self._transport.close()

    async def wait_closed(self, timeout: float = 1.0) -> None:
        """After `close`: wait for the other side's goodbye, and do without it when it is late."""
        try:
            async with asyncio.timeout(timeout):
                await self.closed.wait()
        except TimeoutError:
            self._transport.abort()
            await self.closed.wait()

    def abort(self, why: str) -> None:
        """Close at once; this side alone is told why, in its log."""
        log.warning("closing a connection of %s (%s): %s", self.name, self.role, why)
        self._transport.abort()

    def _send(self, message: tuple[Any, ...], within: float = 0.0) -> None:
        data = frames.encode(message)
        self._unwritten += len(data)
        if self._server and self._unwritten > MAX_BACKLOG:
            # So many questions at once that the answers would fill the memory.
            self._outbox.clear()
            self.abort("it asks faster than it reads")
            return
        self._outbox.append(data)
        if self._flushing:
            return
        if within:
            if self._later is None:
                self._later = self._loop.call_later(within, self._flush)
            return
        self._flushing = True
        if self._server:
            # What has arrived meanwhile is taken in first: one commit for more of them.
            self._loop.call_soon(self._loop.call_soon, self._flush)
        else:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._before_write:
            try:
                self._before_write()
            except AiosError as error:
                self._keep_back(error)
                return
        self._answered.clear()
        if self._outbox and not self._transport.is_closing():
            self._transport.write(b"".join(self._outbox))
            if self._server and self._transport.get_write_buffer_size() > MAX_BACKLOG:
                self.abort("it does not read what it is told")
        self._outbox.clear()
        self._unwritten = 0

    def flush(self) -> None:
        """Write what was kept back, if that can be written now."""
        if self._outbox and not self.closed.is_set():
            self._flush()

    def _keep_back(self, error: AiosError) -> None:
        """Nothing may be seen of what is not durable; whoever asked is told why."""
        kept, self._answered = self._answered, []
        for place, *_ in reversed(kept):
            del self._outbox[place]
        self._unwritten = sum(map(len, self._outbox))
        if not self._transport.is_closing():
            fails = (frames.encode(("fail", id, error.kind, str(error))) for _, id, _, _ in kept)
            self._transport.write(b"".join(fails))
        for _, _, op, body in kept:
            if self._on_kept and op:
                self._on_kept(self, op, body)

    # --- receiving

    def _expect_hello(self) -> None:
        if not self.greeted and not self.closed.is_set():
            self.abort(f"no hello within {hello.WITHIN:g} s")

    def _dispatch(self, message: Any) -> None:
        kind = type(message)
        if kind is frames.Call:
            self._answer(message.id, message.op, message.body)
        elif kind is frames.Event:
            self._hear(message.topic, message.body)
        else:
            self._settle(message)

    def _settle(self, answer: frames.Reply | frames.Fail) -> None:
        future = self._waiting.get(answer.id)
        if future is None or future.done():
            return
        if isinstance(answer, frames.Reply):
            future.set_result(answer.body)
        else:
            future.set_exception(from_kind(answer.kind, answer.message))

    def _answer(self, identity: int, op: str, body: msgspec.Raw) -> None:
        try:
            if not self.greeted:
                self._greet(op, body)
            handler = self.handlers.get(op)
            if handler is None:
                raise ProtocolError(f"This side does not know the call {op[:80]!r}; update it.")
            kind, function = handler
            try:
                decoded = msgspec.msgpack.decode(body, type=kind)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ProtocolError(f"The call {op!r} has a wrong shape: {error}.") from None
            result = function(self, decoded)
        except AiosError as error:
            self._refuse(identity, error)
            if not self.greeted:
                self.close()
            return
        except Exception as error:  # noqa: BLE001  # logged there
            self._broken(identity, op, error)
            return
        if hasattr(result, "__await__"):
            self._spawn(self._answer_later(identity, op, result))
        else:
            self._answered.append((len(self._outbox), identity, op, decoded))
            self._send(("reply", identity, result))

    def _refuse(self, identity: int, error: AiosError) -> None:
        self._answered.append((len(self._outbox), identity, "", None))
        self._send(("fail", identity, error.kind, str(error)))

    def _greet(self, op: str, body: msgspec.Raw) -> None:
        hello.check(op, body)
        if self._admit:
            self._admit(self)
        self.greeted = True

    async def _answer_later(self, identity: int, op: str, result: Awaitable[Any]) -> None:
        try:
            value = await result
        except AiosError as error:
            self._refuse(identity, error)
        except Exception as error:  # noqa: BLE001  # logged there
            self._broken(identity, op, error)
        else:
            self._send(("reply", identity, value))

    def _broken(self, identity: int, op: str, error: Exception) -> None:
        """A mistake of ours ends this call alone: the connection, and all others, go on."""
        log.error("the call %r failed", op, exc_info=error)
        text = f"{op} failed within the cluster ({error!r}); its log has the details."
        self._send(("fail", identity, AiosError.kind, text))

    def _hear(self, topic: str, body: msgspec.Raw) -> None:
        handler = self.handlers.get(topic)
        if not self.greeted or handler is None:
            if not self.greeted:
                self.abort("an event before the hello")
            return
        kind, function = handler
        try:
            result = function(self, msgspec.msgpack.decode(body, type=kind))
        except (msgspec.MsgspecError, RecursionError) as error:
            self.abort(f"the event {topic!r} has a wrong shape ({error})")
            return
        except Exception:
            log.exception("the event %r failed", topic)
            return
        if hasattr(result, "__await__"):
            self._spawn(result)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a handler failed", exc_info=task.exception())


async def connect(
    address: str,
    context: ssl.SSLContext | Path,
    handlers: dict[str, Handler] | None = None,
    on_close: Callable[[Connection], None] | None = None,
    timeout: float = 10.0,
) -> Connection:
    """Open a connection to `host:port`, or by way of a socket; the caller says hello.

    Raises
    ------
    ClusterError
        Nothing answers there, or it is not of this cluster.
    """
    loop, connection = asyncio.get_running_loop(), Connection(handlers or {}, on_close=on_close)
    try:
        async with asyncio.timeout(timeout):
            if isinstance(context, Path):
                connection.through = address
                await loop.create_unix_connection(lambda: connection, str(context))
            else:
                host, port = split_address(address)
                await loop.create_connection(lambda: connection, host, port, ssl=context)
    except (OSError, ssl.SSLError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise ClusterError(f"The cluster at {address} does not answer ({reason}).") from None
    return connection


async def serve(
    host: str,
    port: int,
    context: ssl.SSLContext,
    make: Callable[[], asyncio.Protocol],
) -> tuple[asyncio.Server, int]:
    """Listen on `host:port` (port 0: any) and return the server and its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, host, port, ssl=context, backlog=512)
    return server, server.sockets[0].getsockname()[1]
