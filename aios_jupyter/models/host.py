"""A machine that runs replicas of an endpoint on another one: a run under a lease of its own.

It joins the endpoint (`hosts.py`), starts and ends replicas as told there, fetches what they are to
serve, and passes on what they are told and say. It ends when the endpoint does, or cannot be
reached any more. Light: neither the web server nor the model is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from ..broker.messages import VERSION
from ..broker.protocol import Connection, connect
from ..errors import AiosError, ClusterError
from ..tls import Bundle
from . import host_messages as msg
from .following import PARTS
from .numbers import FOLDER, TOLD, changed, write
from .processes import Said, inner_listener, spawned
from .processes import write as tell

log = logging.getLogger(__name__)

LEAVE_SECONDS = 6.0
GIVE_UP_SECONDS = 120.0
"""An endpoint that is not reached for so long has ended."""


def run(address: str, files: dict[str, str], slots: int, devices: tuple[str, ...]) -> None:
    """Be one until the endpoint has ended.

    Parameters
    ----------
    address
        Where machines join the endpoint.
    files
        Authority, certificate and key that admit to it, by name, as PEM.
    slots, devices
        How many replicas there is room for, and the GPUs for them; none where that is left alone.

    Raises
    ------
    ClusterError
        The endpoint cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="aios-replicas-") as folder:
        root = Path(folder)
        for name, text in files.items():
            _write_private(root / name, text)
        os.environ[FOLDER] = str(root / "numbers")
        (root / "numbers").mkdir()
        bundle = Bundle.of(root, "endpoint")
        asyncio.run(_Host(address, bundle, root, slots, devices).run())


class _Replica:
    """A replica here: its process once it is started, and what it is told, in order."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._signalled = 0

    async def start(self, device: str, listener: socket.socket) -> asyncio.subprocess.Process:
        """Start its process, unless it is to be none any more."""
        self.process = await spawned(device, listener)
        if self._signalled:
            self.signal(self._signalled)
        return self.process

    def signal(self, number: int) -> None:
        """Send it a signal, also if it is only being started."""
        self._signalled = number
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class _Host:
    def __init__(
        self, address: str, bundle: Bundle, root: Path, slots: int, devices: tuple[str, ...]
    ) -> None:
        self._address = address
        self._bundle = bundle
        self._root = root
        self._slots = slots
        self._devices = devices
        self._replicas: dict[int, _Replica] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._files = _Files(root)
        self._door = ("", "")
        self._told_numbers: dict[str, bytes] = {}
        self._bye = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Join, and join again where the connection is lost."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # Of a later attempt the first has been there.
        joined = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        deadline = loop.time() + GIVE_UP_SECONDS
        while not (self._stopping.is_set() or self._bye):
            try:
                await self._once()
                joined, deadline = True, loop.time() + GIVE_UP_SECONDS
            except ClusterError as error:
                log.warning("%s", error)
                if loop.time() > deadline:
                    if joined:
                        return
                    raise
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), 0.5)

    async def _once(self) -> None:
        """From one hello to the end of that connection, with which all replicas end."""
        handlers: dict[str, Any] = {
            "start": (msg.Start, self._start),
            "told": (msg.Told, self._told),
            "signal": (msg.Signal, self._signal),
            "summed": (msg.Summed, self._summed),
            "bye": (Any, self._goodbye),
        }
        connection = await connect(self._address, self._bundle.client_context(), handlers)
        try:
            hello = msg.Joining(
                version=VERSION, node=socket.gethostname(), slots=self._slots, devices=self._devices
            )
            door = await connection.call("hosts.hello", hello, msg.Door, timeout=10)
            self._take_door(door)
            beside = asyncio.create_task(self._beat(connection))
            stopping = asyncio.create_task(self._stopping.wait())
            closed = asyncio.create_task(connection.closed.wait())
            await asyncio.wait([stopping, closed], return_when=asyncio.FIRST_COMPLETED)
            if not closed.done():
                connection.tell("leaving")
                await self._let_leave()
            for task in (beside, stopping, closed):
                task.cancel()
        finally:
            await self._end_all()
            await self._tell_numbers(connection)
            self._forget_numbers()
            connection.close()
            await connection.wait_closed()

    def _take_door(self, door: msg.Door) -> None:
        if not door.certificate:
            return
        paths = self._root / "door.pem", self._root / "door.key"
        for path, text in zip(paths, (door.certificate, door.key), strict=True):
            _write_private(path, text)
        self._door = str(paths[0]), str(paths[1])

    async def _beat(self, connection: Connection) -> None:
        """Say that we are here and what was done; leave an endpoint that is silent."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(msg.BEAT_SECONDS)
            if loop.time() - connection.heard > msg.SILENT_SECONDS:
                connection.abort("nothing was heard of the endpoint")
            if not await self._tell_numbers(connection):
                connection.tell("beat")

    async def _tell_numbers(self, connection: Connection) -> bool:
        files = await asyncio.to_thread(changed, self._root / "numbers", self._told_numbers)
        if files:
            connection.tell("numbers", msg.Numbers(files=files))
        return bool(files)

    def _forget_numbers(self) -> None:
        """Those of replicas that have ended: the next time we join as another machine."""
        self._told_numbers.clear()
        for path in (self._root / "numbers").glob("*.db"):
            path.unlink()

    async def _let_leave(self) -> None:
        """Have the replicas finish what their clients ask, of whom no new ones are sent here."""
        for replica in self._replicas.values():
            if replica.process is not None:
                tell(replica.process, {"leave": True})
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS)

    async def _end_all(self) -> None:
        for replica in self._replicas.values():
            replica.signal(signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=3)
        for replica in self._replicas.values():
            replica.signal(signal.SIGKILL)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what the endpoint says

    def _goodbye(self, connection: Connection, body: Any) -> None:
        self._bye = True

    def _summed(self, connection: Connection, body: msg.Summed) -> None:
        write(self._root / "numbers" / TOLD, body.text)

    def _start(self, connection: Connection, body: msg.Start) -> None:
        replica = self._replicas[body.id] = _Replica()
        task = asyncio.create_task(self._keep(connection, replica, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, connection: Connection, replica: _Replica, body: msg.Start) -> None:
        """One replica from its start to its end."""
        status = -signal.SIGKILL
        listener, address = inner_listener(os.environ.get("MASTER_ADDR") or "127.0.0.1")
        with contextlib.closing(listener):
            try:
                process = await replica.start(body.device, listener)
                connection.tell("listening", msg.Listening(id=body.id, address=address))
                orders = self._pass_on(connection, replica, body.id, listener.fileno())
                telling = asyncio.create_task(orders)
                assert process.stdout is not None
                while line := await process.stdout.readline():
                    connection.tell("line", msg.Line(id=body.id, data=line))
                telling.cancel()
                status = await process.wait()
            finally:
                self._replicas.pop(body.id, None)
                connection.tell("exited", msg.Exited(id=body.id, status=status))

    def _told(self, connection: Connection, body: msg.Told) -> None:
        if replica := self._replicas.get(body.id):
            replica.orders.put_nowait(body.order)

    def _signal(self, connection: Connection, body: msg.Signal) -> None:
        if replica := self._replicas.get(body.id):
            replica.signal(body.number)

    async def _pass_on(
        self, connection: Connection, replica: _Replica, identity: int, fd: int
    ) -> None:
        """Orders one after the other, each once what it names is here."""
        while True:
            order = dict(await replica.orders.get())
            first = "fd" in order
            if first:
                order["fd"] = fd
                order["certificate"], order["key"] = self._door
            try:
                if order.get("serving"):
                    order["serving"] = await self._at_home(connection, order["serving"])
            except AiosError as error:
                said = Said(refused=str(error), kind=error.kind)
                connection.tell("line", msg.Line(id=identity, data=msgspec.json.encode(said)))
                if first:
                    replica.signal(signal.SIGKILL)
                continue
            assert replica.process is not None
            tell(replica.process, order)

    async def _at_home(self, connection: Connection, serving: dict[str, Any]) -> dict[str, Any]:
        """What is to be served, with paths of this machine."""
        found = dict(serving)
        for part in PARTS:
            if found.get(part):
                found[part] = await self._files.here(connection, found[part])
        return found


class _Files:
    """The files of versions: those of this machine where they are the same, else fetched once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str, int], str] = {}
        self._lock = asyncio.Lock()

    async def here(self, connection: Connection, package: dict[str, Any]) -> dict[str, Any]:
        """The package with a path of this machine.

        Raises
        ------
        AiosError
            It cannot be fetched.
        """
        key = package["name"], package["version"]
        async with self._lock:
            if key not in self._known:
                same = await asyncio.to_thread(_same, package)
                self._known[key] = package["path"] if same else await self._fetch(connection, *key)
        return {**package, "path": self._known[key]}

    async def _fetch(self, connection: Connection, name: str, version: int) -> str:
        folder = Path(tempfile.mkdtemp(dir=self._root, prefix=f"{name}-{version}-"))
        ask = msg.AskFiles(name=name, version=version)
        for file in await connection.call("files", ask, list[str], timeout=60):
            offset, data = 0, b""
            while not offset or len(data) == msg.PART:
                part = msg.AskPart(name=name, version=version, file=file, offset=offset)
                data = await connection.call("part", part, bytes, timeout=60)
                await asyncio.to_thread(_append, folder, file, data)
                offset += len(data)
                if not data:
                    break
        return str(folder)


def _append(folder: Path, file: str, data: bytes) -> None:
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ClusterError(f"A file with the name {file!r} is not taken.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as out:
        out.write(data)


def _same(package: dict[str, Any]) -> bool:
    """Whether this machine has these very files at the same place: it shares them."""
    if not package.get("files") or not Path(package["path"], package["main"]).is_file():
        return False
    from .predictor import Package, verify

    try:
        verify(msgspec.convert(package, Package))
    except (AiosError, OSError):
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
