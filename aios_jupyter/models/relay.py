"""Passes an endpoint's connections on to its replicas: `python -m aios_jupyter.models.relay FD`.

For endpoints with replicas on several machines: `relaying.py` starts it, with the listening socket
as an inherited descriptor. Each line of its standard input is an `Order`. A new connection goes to
the replica that has the fewest, bytes pass as they are (TLS ends at the replica), and a connection
that comes while there is no replica waits for one, of which standard output tells with a line. It
ends with its standard input. Light: neither the web server nor the model is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time

import msgspec

from ..runs.tunnel import Stream, join
from ..schema import Struct
from ..units import split_address

CONNECT_SECONDS = 2.0
"""A replica that does not take a connection for so long is passed over."""

WAIT_SECONDS = 120.0
"""A connection waits for a replica for so long at most."""

LAST_SECONDS = 1.0


class Order(Struct, frozen=True):
    """What the relay is told.

    Attributes
    ----------
    upstreams
        `host:port` of each replica that takes new connections.
    gone
        Those whose connections are over: nobody will answer on them.
    closed
        Take no new connections.
    """

    upstreams: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    closed: bool = False


class Relay:
    """Connections from one listening socket to replicas."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._upstreams: tuple[str, ...] = ()
        self._open: dict[str, set[asyncio.Task[None]]] = {}
        self._refused: dict[str, float] = {}
        self._known = asyncio.Event()
        self._turn = 0

    async def obey(self, order: Order) -> None:
        """Take an order; the first with a replica opens the door."""
        self._upstreams = order.upstreams
        for address in order.gone:
            for task in self._open.get(address, ()):
                task.cancel()
        if order.upstreams:
            self._known.set()
        else:
            self._known.clear()
        if order.closed:
            if self._server is not None:
                self._server.close()
        elif self._server is None and order.upstreams:
            self._server = await asyncio.start_server(
                self._connected, sock=self._listener, backlog=1024
            )

    async def end(self) -> None:
        """Pass on what the replicas have said last."""
        if self._server is not None:
            self._server.close()
        if passing := [task for tasks in self._open.values() for task in tasks]:
            await asyncio.wait(passing, timeout=LAST_SECONDS)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            chosen = await self._reached()
        except TimeoutError:
            writer.close()
            return
        address, replica = chosen
        passing = asyncio.ensure_future(join((reader, writer), replica))
        here = self._open.setdefault(address, set())
        here.add(passing)
        try:
            await passing
        except asyncio.CancelledError:
            if not passing.cancelled():
                raise
        finally:
            here.discard(passing)
            if not here:
                self._open.pop(address, None)

    async def _reached(self) -> tuple[str, Stream]:
        """A connection to a replica, as soon as there is one.

        Raises
        ------
        TimeoutError
            There was none for too long.
        """
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                if not self._known.is_set():
                    _say({"waits": True})
                    await self._known.wait()
                address = self._fewest()
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        host, port = split_address(address)
                        return address, await asyncio.open_connection(host, port)
                except (OSError, TimeoutError):
                    self._refused[address] = time.monotonic()
                    await asyncio.sleep(0.01)

    def _fewest(self) -> str:
        """The replica that has the fewest connections; of several, one after the other."""
        now = time.monotonic()
        able = [
            address
            for address in self._upstreams
            if now - self._refused.get(address, -CONNECT_SECONDS) >= CONNECT_SECONDS
        ]
        able = able or list(self._upstreams)
        self._turn += 1
        turned = [able[(self._turn + index) % len(able)] for index in range(len(able))]
        return min(turned, key=lambda address: len(self._open.get(address, ())))


def _say(said: dict[str, bool]) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.buffer.flush()


async def _serve(listener: socket.socket) -> None:
    relay = Relay(listener)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 22)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await relay.obey(msgspec.json.decode(line, type=Order))
    await relay.end()


def main() -> int:
    """Relay until standard input ends."""
    with contextlib.closing(socket.socket(fileno=int(sys.argv[1]))) as listener:
        try:
            import uvloop
        except ImportError:
            asyncio.run(_serve(listener))
        else:
            uvloop.run(_serve(listener))
    return 0


if __name__ == "__main__":
    # Connections that are still open end with the process.
    os._exit(main())
