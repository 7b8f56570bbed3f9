"""One process that answers for an endpoint: `python -m aios_jupyter.models.replica`.

`serve` starts it, with a `Replica` as the first line of its standard input and the listening socket
as an inherited descriptor. What follows on standard input are `Order`s: versions to change to,
connections to let go, to leave, without a request lost. What it has to say goes to standard output,
a `Said` a line. When standard input ends, or SIGTERM comes, it finishes what is in flight and exits
with 0. torch and MLflow are never imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
import uvicorn

from ..errors import AiosError, ConflictError
from ..schema import Struct
from .connection import Connection
from .following import text
from .predictor import Package, Predictor, open_package, zeros
from .processes import Said
from .service import Deployed, Limits, Service

log = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
LEAVE_SECONDS = 3.0
"""Clients that keep a connection have so long to be told with a reply that it ends."""
AWAY_SECONDS = 0.5
"""For so long after that a replica takes no new connections, so that others have them."""


class Serving(Struct, frozen=True):
    """The versions to answer with: `canary` gets `share` of the requests, `shadow` copies."""

    main: Package
    canary: Package | None = None
    share: float = 0.0
    shadow: Package | None = None

    @property
    def text(self) -> str:
        """As people read it: `3`, or `3 (10% 4)`."""
        return text(msgspec.to_builtins(self))


class Replica(Struct, frozen=True):
    """All that a replica has to know.

    Attributes
    ----------
    fd
        The listening socket.
    alone
        Nobody else answers on it: a relay decides which connections come.
    """

    fd: int
    name: str
    token: str
    serving: Serving
    limits: Limits
    threads: int | None = None
    allow_pickle: bool = False
    grace: float = 10.0
    certificate: str = ""
    key: str = ""
    alone: bool = False


class Order(Struct, frozen=True):
    """What a replica is told while it answers.

    Attributes
    ----------
    serving
        Other versions to answer with.
    rate
        Requests a second to let through.
    shed
        A share of the kept connections to let go of, each with its next reply.
    leave
        Take no new connections, and end when those that are there have ended.
    """

    serving: Serving | None = None
    rate: float | None = None
    shed: float = 0.0
    leave: bool = False


def main() -> int:
    """Answer until told to stop."""
    with _own_channel() as channel:
        import onnxruntime  # noqa: F401  # while the registry is asked what to open

        line = sys.stdin.buffer.readline()
        if not line:
            return 0  # nobody is there any more
        orders = msgspec.json.decode(line, type=Replica)
        try:
            main = orders.serving.main
            service = Service(
                _opened(main, orders), orders.name, str(main.version), orders.token, orders.limits
            )
            others = [
                None if one is None else service.deployed(_opened(one, orders), str(one.version))
                for one in (orders.serving.canary, orders.serving.shadow)
            ]
        except AiosError as error:
            channel.say(Said(refused=str(error), kind=error.kind))
            return 1
        with contextlib.closing(socket.socket(fileno=orders.fd)) as listener:
            server = _Server(service, orders, channel, others)
            server.run(sockets=[listener])
    return 0


class _Channel:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def say(self, said: Said) -> None:
        """One line; nobody may be there any more."""
        with contextlib.suppress(BrokenPipeError):
            self._file.write(msgspec.json.encode(said) + b"\n")
            self._file.flush()


@contextlib.contextmanager
def _own_channel() -> Iterator[_Channel]:
    """Standard output for us alone: what a model prints goes to the log."""
    sys.stdout.flush()
    file = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        yield _Channel(file)
    finally:
        with contextlib.suppress(BrokenPipeError):  # what it could not say last
            file.close()


def _opened(package: Package, orders: Replica) -> Predictor:
    predictor = open_package(package, threads=orders.threads, allow_pickle=orders.allow_pickle)
    sample = zeros(predictor.signature)
    if sample is not None:
        with contextlib.suppress(Exception):  # zeros may be no valid input; requests will tell
            predictor.run(sample)  # before anybody waits: the first run allocates
    return predictor


class _Server(uvicorn.Server):
    """uvicorn that says when it answers, takes orders, reports now and then, and ends cleanly."""

    def __init__(
        self,
        service: Service,
        orders: Replica,
        channel: _Channel,
        others: list[Deployed | None],
    ) -> None:
        self._service = service
        self._orders = orders
        self._channel = channel
        self._others = others
        super().__init__(
            uvicorn.Config(
                service.app(),
                http=Connection,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,  # nothing here asks who the client is
                backlog=1024,
                timeout_keep_alive=75,
                # What is left of the grace is for our own end before SIGKILL comes.
                timeout_graceful_shutdown=max(1, int(orders.grace * 0.8)),
                ssl_certfile=orders.certificate or None,
                ssl_keyfile=orders.key or None,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM in the loop; uvicorn's own would raise it again at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # `serve` tells us
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    def _drain(self) -> None:
        self._service.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door, then say so."""
        assert sockets
        self._door = sockets[0].dup()
        canary, shadow = self._others
        share = self._orders.serving.share
        self._service.put(self._service.open()[0], canary, share, shadow)
        await super().startup(sockets)
        self._channel.say(Said(serving=self._orders.serving.text))
        self._shedding = asyncio.create_task(asyncio.sleep(0))
        self._tasks = [asyncio.create_task(self._report()), asyncio.create_task(self._obey())]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is in flight."""
        for task in (*self._tasks, self._shedding):
            task.cancel()
        self._door.close()  # else clients would wait for somebody to accept them
        await super().shutdown(sockets)
        self._report_now()
        await self._service.close()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._report_now()

    def _report_now(self) -> None:
        if changes := self._service.telemetry.changes():
            self._channel.say(Said(metrics=changes))

    async def _obey(self) -> None:
        """Change versions as told; without `serve` there is nobody to answer for."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 22)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = msgspec.json.decode(line, type=Order)
            if order.serving is not None:
                await self._take(order.serving)
            if order.rate is not None:
                self._service.limit(order.rate)
            if order.shed:
                self._shedding.cancel()
                self._shedding = asyncio.create_task(self._shed(order.shed))
            if order.leave:
                self._leaving = asyncio.create_task(self._leave())
        self._drain()

    async def _shed(self, share: float) -> None:
        """Let a share of the clients go, and leave it to others to take them up."""
        alone = self._orders.alone
        if not alone:
            self._close_door()
        self._service.shed(round(share * len(self.server_state.connections)))
        deadline = time.monotonic() + LEAVE_SECONDS
        while self._service.shedding and time.monotonic() < deadline:  # noqa: ASYNC110  # replies count it down
            await asyncio.sleep(0.05)
        if alone:
            return
        await asyncio.sleep(AWAY_SECONDS)
        if self._service.shedding is not None and not self.should_exit:  # it is to stay
            await super().startup([self._door.dup()])

    def _close_door(self) -> None:
        """Take no new connections; the socket stays open, for others and for later."""
        for server in self.servers:
            server.close()

    async def _leave(self) -> None:
        """Let clients go without a request lost: new ones to others, the rest with a reply."""
        if self._orders.alone:
            await asyncio.sleep(AWAY_SECONDS)  # the relay may just have sent somebody
        self._close_door()
        self._service.shed(None)
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.05)
        self.should_exit = True  # uvicorn closes what is idle, and waits for what is not

    async def _take(self, serving: Serving) -> None:
        try:
            await self._change(serving)
        except AiosError as error:
            self._channel.say(Said(refused=str(error), kind=error.kind))
        else:
            self._channel.say(Said(serving=serving.text))

    async def _change(self, serving: Serving) -> None:
        main = await self._ready(serving.main)
        if main.signature.inputs != self._service.signature.inputs:
            raise ConflictError(
                f"{serving.main.name}/{serving.main.version} takes other inputs than version "
                f"{self._service.version}, so that its clients would fail; serve it anew."
            )
        canary = None if serving.canary is None else await self._ready(serving.canary)
        shadow = None if serving.shadow is None else await self._ready(serving.shadow)
        self._service.put(main, canary, serving.share, shadow)

    async def _ready(self, package: Package) -> Deployed:
        """A version that answers already, or one opened beside what answers."""
        for one in self._service.loaded():
            if one.version == str(package.version):
                return one
        predictor = await asyncio.to_thread(_opened, package, self._orders)
        return self._service.deployed(predictor, str(package.version))


if __name__ == "__main__":
    sys.exit(main())
