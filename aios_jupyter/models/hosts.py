"""Other machines that run replicas of an endpoint: they join, and are told what to do. Light.

Each is a run under a lease of its own (`host.py`). It is asked for replicas as this machine is, so
that all else (how many there are, versions, what is shared out) does not know where they run.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ..broker.protocol import Connection, serve
from ..errors import NotFoundError
from ..tls import Bundle
from . import host_messages as msg
from .numbers import TOLD, keep, summed, write
from .plan import Plan
from .processes import ReplicaProcess

log = logging.getLogger(__name__)


class Host:
    """A machine that has joined."""

    def __init__(self, number: int, joining: msg.Joining, connection: Connection) -> None:
        self.name = f"{joining.node} ({number})"
        self.number = number
        self.slots = joining.slots
        self.devices = joining.devices
        self.connection = connection
        self.replicas: dict[int, FarReplica] = {}


class FarReplica(ReplicaProcess):
    """A replica on another machine."""

    def __init__(self, identity: int, host: Host, device: str) -> None:
        super().__init__(host.name, device, fd=-1)
        self._id = identity
        self._connection = host.connection
        self._said: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def order(self, order: dict[str, Any]) -> None:
        self._connection.tell("told", msg.Told(id=self._id, order=order))

    def signal(self, number: int) -> None:
        self._connection.tell("signal", msg.Signal(id=self._id, number=number))

    def hear(self, line: bytes) -> None:
        """It has said something."""
        self._said.put_nowait(line)

    def end(self, status: int) -> None:
        """It has ended, or its machine is gone."""
        if not self._status.done():
            self._status.set_result(status)
            self._said.put_nowait(None)

    async def lines(self) -> AsyncIterator[bytes]:
        while (line := await self._said.get()) is not None:
            yield line

    async def wait(self) -> int:
        return await asyncio.shield(self._status)


class Hosts:
    """The machines, and the port at which they join.

    Parameters
    ----------
    bundle
        What they and we show and trust: made for this endpoint alone.
    numbers
        The folder of this machine's metrics.
    serving
        Gives the versions that replicas are told to serve, by part (`replica.Serving`).
    on_change
        Called when there is more room, or less, and when replicas are about to go.
    """

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        numbers: Path,
        serving: Callable[[], list[dict[str, Any]]],
        on_change: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._bundle = bundle
        self._numbers = numbers
        self._serving = serving
        self._on_change = on_change
        self._last = 0
        self._server: asyncio.Server | None = None
        self.joined: dict[str, Host] = {}

    async def open(self, host: str) -> str:
        """Listen for machines; gives back where."""
        handlers: dict[str, Any] = {
            "hosts.hello": (msg.Joining, self._join),
            "files": (msg.AskFiles, self._files),
            "part": (msg.AskPart, self._part),
            "listening": (msg.Listening, self._listening),
            "line": (msg.Line, self._line),
            "exited": (msg.Exited, self._exited),
            "numbers": (msg.Numbers, self._count),
            "leaving": (Any, lambda connection, body: self._leaves(connection)),
            "beat": (Any, lambda connection, body: None),
        }

        def make() -> Connection:
            return Connection(handlers, on_close=self._gone, server=True)

        self._server, port = await serve(host, 0, self._bundle.server_context(), make)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self, host: str, device: str) -> FarReplica:
        """Start a replica there."""
        self._last += 1
        there = self.joined[host]
        replica = there.replicas[self._last] = FarReplica(self._last, there, device)
        there.connection.tell("start", msg.Start(id=self._last, device=device))
        return replica

    async def keep(self) -> None:
        """Tell the machines now and then that we are here, and what all replicas have done."""
        loop = asyncio.get_running_loop()
        text = b""
        while True:
            await asyncio.sleep(msg.BEAT_SECONDS)
            text = await asyncio.to_thread(self._sum) or text
            for host in list(self.joined.values()):
                if loop.time() - host.connection.heard > msg.SILENT_SECONDS:
                    host.connection.abort("nothing was heard of it")
                else:
                    host.connection.tell("summed", msg.Summed(text=text))

    def _sum(self) -> bytes:
        """What all have done; nothing while a replica is just making its file."""
        try:
            text = summed(self._numbers)
        except (struct.error, ValueError) as error:
            log.debug("the numbers could not be added up: %s", error)
            return b""
        write(self._numbers / TOLD, text)
        return text

    async def close(self) -> None:
        """Let all go: the endpoint has ended."""
        if self._server is not None:
            self._server.close()
        for host in list(self.joined.values()):
            host.connection.tell("bye")
            host.connection.close()

    # --- what they say

    def _join(self, connection: Connection, joining: msg.Joining) -> msg.Door:
        self._last += 1
        host = Host(self._last, joining, connection)
        connection.context = host
        self.joined[host.name] = host
        log.info("%s has room for %d replicas", host.name, host.slots)
        self._on_change()
        paths = (self._plan.certificate, self._plan.key)
        certificate, key = (Path(path).read_text() if path else "" for path in paths)
        return msg.Door(certificate=certificate, key=key)

    def _leaves(self, connection: Connection) -> None:
        """A machine is about to go: what is on its way there is still answered."""
        host: Host | None = connection.context
        if host is None or self.joined.pop(host.name, None) is None:
            return
        log.warning("%s leaves", host.name)
        for replica in host.replicas.values():
            replica.lost = True
        self._on_change()

    def _gone(self, connection: Connection) -> None:
        self._leaves(connection)
        if connection.context is not None:
            for replica in connection.context.replicas.values():
                replica.end(-signal.SIGKILL)
            connection.context.replicas.clear()

    def _listening(self, connection: Connection, body: msg.Listening) -> None:
        if replica := connection.context.replicas.get(body.id):
            replica.address = body.address

    def _line(self, connection: Connection, body: msg.Line) -> None:
        if replica := connection.context.replicas.get(body.id):
            replica.hear(body.data)

    def _exited(self, connection: Connection, body: msg.Exited) -> None:
        if replica := connection.context.replicas.pop(body.id, None):
            replica.end(body.status)

    def _count(self, connection: Connection, body: msg.Numbers) -> None:
        keep(self._numbers, connection.context.number, body.files)

    # --- files of what is served

    def _folder(self, name: str, version: int) -> Path:
        for package in self._serving():
            if (package["name"], package["version"]) == (name, version):
                return Path(package["path"])
        raise NotFoundError(f"{name}/{version} is not served here any more.")

    def _files(self, connection: Connection, body: msg.AskFiles) -> list[str]:
        root = self._folder(body.name, body.version)
        return [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]

    async def _part(self, connection: Connection, body: msg.AskPart) -> bytes:
        root = self._folder(body.name, body.version).resolve()
        path = (root / body.file).resolve()
        if not path.is_relative_to(root):
            raise NotFoundError(f"{body.name}/{body.version} has no file {body.file}.")
        return await asyncio.to_thread(_read, path, body.offset)


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(msg.PART)
    except OSError as error:
        raise NotFoundError(f"{path.name} cannot be read ({error.strerror}).") from None
