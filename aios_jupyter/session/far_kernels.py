"""A kernel on another node, for a Jupyter that talks to ports of its own machine.

Each channel of the kernel has a port here, on loopback, whose connections go through the node's port
(`runs/tunnel.py`); they stay the same when the kernel is restarted, on whichever node. The node
ends the kernel with its lease, and when this process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from ..broker.client import AsyncClient
from ..broker.messages import VERSION, ById
from ..broker.protocol import Connection
from ..broker.protocol import connect as dial
from ..errors import AiosError, ClusterError, NotFoundError
from ..runs import messages as msg
from ..runs import tunnel
from ..runs.launcher import Launcher
from ..runs.spec import Entry, Rendezvous, RunSpec, ranks_on, row_of
from ..schema import LIVE, Lease, Run, RunKind
from ..tls import Bundle
from ..units import split_address
from .carried import carried

RETRY = 0.3
LOST = -9

log = logging.getLogger("aios.kernels")


class FarKernel:
    """One kernel through all its restarts; lives in one event loop.

    Parameters
    ----------
    client, launcher
        The session that has the lease.
    locate
        Gives the broker's address, and who we are.
    secret
        Of the session, which the kernel joins.
    on_notice
        Called with a sentence when the kernel has ended otherwise than well.
    tasks
        Gives the address of Dask's scheduler; raises AccessError where it is not for the kernel's user.

    Attributes
    ----------
    node
        Where it runs.
    pid
        Its process there, 0 before that is known.
    code
        How it ended: an exit code, or a negative signal's number; None while it runs.
    stranded
        Whether its node's agent has ended with it: it cannot be started there again.
    """

    def __init__(
        self,
        client: AsyncClient,
        launcher: Launcher,
        locate: Callable[[], Awaitable[tuple[str, Bundle]]],
        secret: str,
        on_notice: Callable[[str], None],
        tasks: Callable[[], str],
    ) -> None:
        self.node = ""
        self.pid = 0
        self.code: int | None = None
        self.stranded = False
        self._client = client
        self._launcher = launcher
        self._locate = locate
        self._secret = secret
        self._on_notice = on_notice
        self._where_tasks = tasks
        self._run = ""
        self._address = ""
        self._agent: Connection | None = None
        self._doors: list[asyncio.Server] = []
        # Of this life of the kernel, and streams that go on until their end.
        self._tasks: set[asyncio.Task[Any]] = set()
        client.listen(self._told)

    # --- what Jupyter connects to

    async def listen(self, ip: str, ports: Mapping[str, int]) -> dict[str, int]:
        """Have a port for each channel, those of `ports` where they are given."""
        if not self._doors:
            for channel in tunnel.CHANNELS:
                door = await asyncio.start_server(self._joins(channel), ip, ports.get(channel, 0))
                self._doors.append(door)
        names = zip(tunnel.CHANNELS, self._doors, strict=True)
        return {channel: door.sockets[0].getsockname()[1] for channel, door in names}

    def _joins(self, channel: str) -> Callable[..., Coroutine[Any, Any, None]]:
        async def joins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._keep(task)
            try:
                if not self._run or self.code is not None:
                    return
                _, bundle = await self._locate()
                head = tunnel.Head(run=self._run, channel=channel)
                far = await tunnel.dial(
                    self._address, bundle, head, wait=60 + tunnel.ANSWER_TIMEOUT
                )
                await tunnel.join((reader, writer), far)
            except AiosError as error:
                # Its front end tries again by itself, for as long as the kernel is there.
                log.info("channel %s: %s", channel, error)
            finally:
                writer.close()

        return joins

    # --- the kernel

    async def start(
        self,
        lease: Lease,
        command: Sequence[str],
        connection: Mapping[str, Any],
        environment: Mapping[str, str],
        cwd: str,
    ) -> None:
        """Start it on the node of the lease's first device; its ports here are those of `listen`.

        Parameters
        ----------
        command
            With `{connection_file}` in it.
        connection
            What such a file has for whoever connects here.

        Raises
        ------
        AiosError
            The broker or the node has refused; nothing runs.
        """
        self._end_life()
        slot = lease.slots[0]
        self.node, self._address, self._run = slot.node, slot.address, f"r-{secrets.token_hex(4)}"
        self.code, self.pid, self.stranded = None, 0, False
        # Ports are this machine's business, its names too.
        about = {k: v for k, v in connection.items() if not k.endswith("_port")}
        spec = RunSpec(
            id=self._run,
            lease=lease.id,
            kind=RunKind.KERNEL,
            name=lease.label,
            entry=Entry.KERNEL,
            source=json.dumps(about, default=_text),
            argv=tuple(command),
            cwd=cwd,
            env=carried(environment),
        )
        token = self._client.tokens.get(lease.id) or (await self._client.token(lease.id)).token
        run = await self._client.call("run.create", row_of(spec, lease.label), Run)
        try:
            agent = await self._launcher.agent(self._address)
            ranks = ranks_on(slot.node, lease.slots)[:1]
            meet = Rendezvous(address="", port=0)
            order = msg.StartRun(spec=spec, ranks=ranks, rendezvous=meet, token=token)
            await agent.call("run.start", order, timeout=60)
            await self._look()
        except AiosError as error:
            self._ended(LOST, str(error))
            await self._launcher.abandon(run, [self._address], f"it could not be started: {error}")
            raise
        self._keep(asyncio.create_task(self._attend()))
        self._keep(asyncio.create_task(self._lend()))

    async def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.code is None and self._agent is not None:
            # It has just ended, or its node is away: then that is seen.
            with contextlib.suppress(AiosError):
                body = msg.KernelSignal(run=self._run, number=number)
                await self._agent.call("kernel.signal", body, timeout=10)

    async def close(self) -> None:
        """Stop listening here; the kernel ends with its lease."""
        for door in self._doors:
            door.close()
        self._doors.clear()
        self._end_life()

    def _end_life(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- how it is

    async def _look(self) -> None:
        """Look after it over a connection of its own, whose end is the kernel's."""
        _, bundle = await self._locate()
        handlers: dict[str, Any] = {
            "kernel.ended": (msg.KernelSeen, lambda _, seen: self._take(seen))
        }
        self._agent = await dial(self._address, bundle.client_context(), handlers)
        await self._agent.call("agent.hello", msg.AgentHello(version=VERSION), timeout=10)
        seen = await self._agent.call(
            "kernel.attend", ById(id=self._run), msg.KernelSeen, timeout=10
        )
        self.pid = seen.pid
        self._take(seen)

    async def _attend(self) -> None:
        while self.code is None:
            assert self._agent is not None
            await self._agent.closed.wait()
            await asyncio.sleep(RETRY)
            await self._look_again()

    async def _look_again(self) -> None:
        if self.code is not None:
            return
        try:
            await self._look()
        except NotFoundError as error:
            # Another agent, after the end of the one that had it.
            self._ended(LOST, str(error))
        except AiosError:
            if await self._nobody_there():
                self.stranded = True
                self._ended(LOST, f"the agent of node {self.node} has ended")
            else:
                # Its node is out of reach: whether it ends by that is the broker's to say.
                await self._ask_broker()

    async def _nobody_there(self) -> bool:
        """Whether the machine answers, and no agent does: with it the kernel has ended."""
        host, port = split_address(self._address)
        try:
            async with asyncio.timeout(RETRY):
                _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        writer.close()
        return False

    async def _ask_broker(self) -> None:
        with contextlib.suppress(ClusterError):
            body = ById(id=self._run)
            run: Run = await self._client.call("run.get", body, Run, timeout=5)
            if run.state not in LIVE:
                self._ended(LOST, run.reason)

    def _told(self, topic: str, body: Any) -> None:
        if topic == "run.ended" and body.id == self._run:
            code = body.exits[0].code if body.exits else LOST
            self._ended(code, body.reason)

    def _take(self, seen: msg.KernelSeen) -> None:
        if seen.run == self._run and seen.code is not None:
            self._ended(seen.code, seen.reason)

    def _ended(self, code: int, reason: str) -> None:
        if self.code is None:
            self.code = code
            if code:
                why = f": {reason}" if reason else ""
                self._on_notice(f"the kernel on node {self.node} has ended{why}")

    # --- its own calls to the cluster

    async def _lend(self) -> None:
        """Have a stream ready for the kernel's next call, as long as it lives."""
        while self.code is None:
            try:
                _, bundle = await self._locate()
                head = tunnel.Head(run=self._run, channel=tunnel.LENT)
                stream = await tunnel.dial(self._address, bundle, head, wait=10 * 365 * 86400)
                self._keep(asyncio.create_task(self._serve(stream)))
            except AiosError:
                await asyncio.sleep(RETRY)

    async def _serve(self, stream: tunnel.Stream) -> None:
        """Lead one call where it is to go: to the broker, or to a node."""
        reader, writer = stream
        try:
            wanted = (await reader.readline()).decode().strip()
            if wanted == tunnel.SESSION:
                tunnel.send(writer, tunnel.Standing(secret=self._secret))
                await writer.drain()
                return
            if wanted == tunnel.TASKS:
                tunnel.send(writer, await asyncio.to_thread(self._located_tasks))
                await writer.drain()
                return
            broker, bundle = await self._locate()
            address = broker if wanted == tunnel.BROKER else wanted
            await tunnel.join(stream, await tunnel.connect(address, bundle))
        except (AiosError, OSError, ValueError) as error:
            log.info("a call of kernel %s was not answered: %s", self._run, error)
        finally:
            writer.close()

    def _located_tasks(self) -> tunnel.Tasks:
        try:
            return tunnel.Tasks(address=self._where_tasks())
        except AiosError as error:
            return tunnel.Tasks(refused=str(error))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
