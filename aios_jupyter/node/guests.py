"""Kernels that run here for a Jupyter server elsewhere.

Such a kernel is a run of one rank under its lease, so that it is ended and confirmed gone like any
other. What is here besides: its sockets, which are files that this account alone can open, streams
from and to them through the agent's port, signals, and its end when its server is gone. Whoever runs code
in this account could use its sockets as long as it lives, as with an SSH agent, but not take its user's
key, which is never here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from ..broker.messages import ById, Refused
from ..broker.protocol import Connection
from ..errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError
from ..runs import messages as msg
from ..runs import tunnel
from ..runs.messages import StartRun
from ..runs.spec import Entry
from ..schema import DeviceKind
from ..tls import Bundle, peer
from .accounts import Account
from .hosted import Hosted
from .hosting import Hosting

log = logging.getLogger("aios.node")

# A kernel whose server has gone waits so long for it to come back, as after a network's hiccup.
ALONE_GRACE = 10.0
HEAD_TIMEOUT = 10.0
LONGEST = 200
BIND_TIMEOUT = 60.0
BIND_INTERVAL = 0.05
# In the run's directory: where its sockets are.
PLACE = "sockets"
# In there: what the kernel itself makes.
OWN = "k"
PLACEHOLDER = "{connection_file}"
ON_GPU = (DeviceKind.GPU, DeviceKind.MIG)


def place(
    order: StartRun, directory: Path, keys: Path | None = None, account: Account | None = None
) -> StartRun:
    """The order with all that this node says: connection file, program, folder and devices.

    `keys` is the folder of the node's certificates, `account` whose the kernel is to be.

    Raises
    ------
    OSError
        There is no such program here, no room, or no connection file.
    """
    spec, rank = order.spec, order.ranks[0]
    try:
        about = dict(json.loads(spec.source))
    except (ValueError, TypeError) as error:
        raise OSError(f"its connection file does not read ({error})") from None
    # Names of sockets are short, and the run's directory need not be.
    sockets = Path(tempfile.mkdtemp(prefix="aios-"))
    (directory / PLACE).write_text(str(sockets))
    # What the kernel makes is in a folder of its own, so that it can replace nothing of ours.
    (sockets / OWN).mkdir(mode=0o700)
    ports = {f"{name}_port": number for number, name in enumerate(tunnel.CHANNELS, 1)}
    connection = about | ports | {"transport": "ipc", "ip": str(sockets / OWN / "k")}
    # Not in the run's directory, which admins may read.
    file = sockets / "kernel.json"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        json.dump(connection, opened)
    if account is not None:
        os.chown(file, account.uid, account.gid)
        os.chown(sockets / OWN, account.uid, account.gid)
        sockets.chmod(0o711)
    gpus = rank.devices if rank.kind in ON_GPU else ()
    program, *arguments = [part.replace(PLACEHOLDER, str(file)) for part in spec.argv]
    environment = {
        **spec.env,
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "AIOS_DEVICE": "cuda:0" if gpus else "cpu",
        "AIOS_LEASE": spec.lease,
        tunnel.VARIABLE: str(sockets / tunnel.LENT),
        tunnel.KEYS: "" if account else str(_dask_keys(keys)),
    }
    cwd, home = spec.cwd, account.home if account else str(Path.home())
    spec = msgspec.structs.replace(
        spec,
        source="",
        argv=(_program(program), *arguments),
        # Whether another account may enter it turns out there.
        cwd=cwd if account or Path(cwd).is_dir() else home,
        env=environment,
    )
    return msgspec.structs.replace(order, spec=spec)


def _dask_keys(keys: Path | None) -> Path | str:
    return keys if keys and Bundle.dask(keys).key.exists() else ""


def _program(name: str) -> str:
    """Where a kernel's program is here: Python is where this node's own is, if it is nowhere else."""
    found = shutil.which(name)
    if found is None and Path(name).name.startswith("python"):
        return sys.executable
    if found is None:
        raise FileNotFoundError(2, "no such program on this node", name)
    return found


def forget(directory: Path) -> None:
    """The run's kernel is gone, and so are its sockets."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree((directory / PLACE).read_text(), ignore_errors=True)
        (directory / PLACE).unlink()


def sweep(directory: Path) -> None:
    """Remove what an earlier agent has left of its kernels' sockets."""
    for left in directory.glob(f"*/{PLACE}"):
        forget(left.parent)


class Guests:
    """Streams, signals and the end of kernels that belong to servers elsewhere.

    Parameters
    ----------
    runs
        This node's runs.
    admit
        Called with the name and serial number of a certificate; raises to refuse.
    on_refusal
        Called with each refusal of a stream.
    keys
        The folder of this node's certificates, for kernels on nodes that do data tasks.
    """

    def __init__(
        self,
        runs: Hosting,
        admit: Callable[[str, int], None],
        on_refusal: Callable[[Refused], None],
        keys: Path | None = None,
    ) -> None:
        self._runs = runs
        self._admit = admit
        self._on_refusal = on_refusal
        self._keys = keys
        self._streams: dict[asyncio.StreamWriter, int] = {}
        self._lent: dict[str, asyncio.Queue[tunnel.Stream]] = {}
        self._attended: dict[str, set[Connection]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- through the agent's port, as streams

    def protocol(self) -> asyncio.Protocol:
        """What speaks with whoever asks for a stream."""
        reader = asyncio.StreamReader(limit=tunnel.CHUNK)
        return asyncio.StreamReaderProtocol(reader, self._streamed)

    def let_go(self, serials: frozenset[int]) -> None:
        """End the streams of certificates that admit no longer."""
        for writer, serial in list(self._streams.items()):
            if serial in serials:
                writer.transport.abort()

    def close(self) -> None:
        """End all streams."""
        for writer in list(self._streams):
            writer.close()
        for task in self._tasks:
            task.cancel()

    async def _streamed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream, name, run = (reader, writer), "", ""
        try:
            name, _, serial = peer(writer.transport)
            self._streams[writer] = serial
            self._admit(name, serial)
            async with asyncio.timeout(HEAD_TIMEOUT):
                head = await tunnel.receive(reader, tunnel.Head)
            run = head.run
            hosted = await self._own(name, run)
            if head.channel == tunnel.LENT:
                await self._keep(hosted, stream)
            else:
                inner = await self._inside(hosted, head.channel)
                tunnel.send(writer, tunnel.Answer())
                await tunnel.join(stream, inner)
        except AiosError as error:
            if isinstance(error, AccessError):
                about, why = run[:LONGEST], str(error)[:LONGEST]
                self._on_refusal(Refused(who=name, op="kernel.stream", about=about, why=why))
            tunnel.refuse(writer, error)
        except (OSError, TimeoutError) as error:
            log.info("a stream has ended: %s", error)
            writer.close()
        finally:
            self._streams.pop(writer, None)

    async def _own(self, name: str, run: str) -> Hosted:
        hosted = await self._runs.expect(run)
        if hosted.run.user != name:
            raise AccessError(f"Run {run} belongs to {hosted.run.user}, not to you.")
        if hosted.order is None or hosted.order.spec.entry is not Entry.KERNEL:
            raise ConflictError(f"Run {run} is not a kernel, or has not been started.")
        return hosted

    async def _inside(self, hosted: Hosted, channel: str) -> tunnel.Stream:
        """The kernel's own end of a channel, which is there a moment after its start."""
        if channel not in tunnel.CHANNELS:
            raise UsageError(f"{channel!r} is not a channel of a kernel.")
        path = _sockets(hosted) / OWN / f"k-{tunnel.CHANNELS.index(channel) + 1}"
        deadline = asyncio.get_running_loop().time() + BIND_TIMEOUT
        while not hosted.ended.is_set():
            # Bound first, then listening.
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return await _connect(path, hosted.account)
            if asyncio.get_running_loop().time() > deadline:
                raise ConflictError(f"Kernel {hosted.run.id} does not listen.")
            await asyncio.sleep(BIND_INTERVAL)
        raise NotFoundError(f"Kernel {hosted.run.id} has ended.")

    # --- the other way: a kernel's calls to the cluster

    async def _keep(self, hosted: Hosted, stream: tunnel.Stream) -> None:
        """Keep a lent stream until the kernel takes it, or either has gone."""
        await self._lent.setdefault(hosted.run.id, asyncio.Queue()).put(stream)
        ended = asyncio.create_task(hosted.ended.wait())
        closed = asyncio.create_task(stream[1].wait_closed())
        try:
            await asyncio.wait([ended, closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            closed.cancel()
            await asyncio.gather(ended, closed, return_exceptions=True)
            stream[1].close()
            if hosted.ended.is_set():
                self._lent.pop(hosted.run.id, None)

    def prepare(self, hosted: Hosted, order: StartRun) -> StartRun:
        """Have all that a kernel needs here; other runs need nothing.

        Raises
        ------
        OSError
            There is no such program here, or no room.
        """
        if order.spec.entry is not Entry.KERNEL:
            return order
        # What is placed is removed when it has ended, also when it never starts.
        self._spawn(self._lend(hosted))
        return place(order, hosted.directory, self._keys, hosted.account)

    async def _lend(self, hosted: Hosted) -> None:
        """Lead a kernel's calls to the streams that are lent to it, as long as it lives."""
        lent = self._lent.setdefault(hosted.run.id, asyncio.Queue())

        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                stream = await lent.get()
                if not stream[1].is_closing():
                    break
            tunnel.send(stream[1], tunnel.Answer())
            await tunnel.join((reader, writer), stream)

        try:
            lent_at = _sockets(hosted) / tunnel.LENT
            server = await asyncio.start_unix_server(called, lent_at)
            if hosted.account is not None:
                os.chown(lent_at, hosted.account.uid, hosted.account.gid)
            await hosted.ended.wait()
            server.close()
        except NotFoundError:
            await hosted.ended.wait()
        finally:
            forget(hosted.directory)
        self._lent.pop(hosted.run.id, None)
        for connection in self._attended.pop(hosted.run.id, set()):
            connection.tell("kernel.ended", self._seen(hosted))

    # --- as calls

    async def attend(self, connection: Connection, body: ById) -> msg.KernelSeen:
        """Its server looks after a kernel: it is told of its end, and its own end is the kernel's."""
        hosted = await self._own(connection.name, body.id)
        if not hosted.ended.is_set():
            self._attended.setdefault(body.id, set()).add(connection)
            self._spawn(self._when_closed(connection, hosted))
        return self._seen(hosted)

    async def signal(self, connection: Connection, body: msg.KernelSignal) -> None:
        """Signal a kernel and what it has started, as Jupyter does with one of its own machine."""
        hosted = await self._own(connection.name, body.run)
        if body.number not in set(signal.Signals):
            raise UsageError(f"{body.number} is not a signal.")
        for pid in hosted.gang.pids.values() if hosted.gang else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, body.number)

    async def _when_closed(self, connection: Connection, hosted: Hosted) -> None:
        await connection.closed.wait()
        attending = self._attended.get(hosted.run.id)
        if attending is None:
            return
        attending.discard(connection)
        await asyncio.sleep(ALONE_GRACE)
        if not attending and not hosted.ended.is_set():
            await self._runs.stop(hosted.run.id, "its Jupyter server is gone")

    def _seen(self, hosted: Hosted) -> msg.KernelSeen:
        code, reason = None, ""
        if hosted.ended.is_set():
            code, reason = (
                (hosted.exits[0].code, hosted.exits[0].reason) if hosted.exits else (-9, "")
            )
        pids = hosted.gang.pids if hosted.gang else {}
        return msg.KernelSeen(run=hosted.run.id, pid=pids.get(0, 0), code=code, reason=reason)

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _connect(path: Path, account: Account | None) -> tunnel.Stream:
    """A stream to a socket; one that another account has made may be no link to anybody else's."""
    if account is None:
        return await asyncio.open_unix_connection(path)
    held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(held)
        if not stat.S_ISSOCK(facts.st_mode) or facts.st_uid != account.uid:
            raise ConflictError(f"{path.name} is no socket of {account.name}.")
        return await asyncio.open_unix_connection(f"/proc/self/fd/{held}")
    finally:
        os.close(held)


def _sockets(hosted: Hosted) -> Path:
    try:
        return Path((hosted.directory / PLACE).read_text())
    except FileNotFoundError:
        raise NotFoundError(f"Kernel {hosted.run.id} has ended.") from None
