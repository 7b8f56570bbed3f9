"""Starts runs from a kernel or shell, and follows them: the caller's end of `node/door.py`.

Cells, variables and events go between here and the agents directly; the broker hears that the run
exists before its first rank is started, and judges how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..broker.client import AsyncClient
from ..broker.messages import VERSION, ById
from ..broker.protocol import Connection, connect
from ..errors import AiosError, ClusterError, NotFoundError
from ..schema import LIVE, Lease, Run, RunState, Slot
from ..tls import Bundle
from . import messages as msg
from .carrying import pulled, push
from .inbox import Inbox
from .packed import SHARE_FROM, Packed
from .spec import Rendezvous, RunSpec, ranks_on

RECONNECT_INTERVAL = 0.3
SETTLE_TIMEOUT = 5.0


class Launcher:
    """Connections to the agents, one each, shared by all runs of a session."""

    def __init__(self, client: AsyncClient, bundle: Bundle) -> None:
        self.client = client
        self._bundle = bundle
        self._agents: dict[str, Connection] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.following: dict[str, Callable[[msg.Events], None]] = {}

    async def agent(self, address: str) -> Connection:
        """The connection to the agent at `address`."""
        async with self._locks.setdefault(address, asyncio.Lock()):
            known = self._agents.get(address)
            if known and not known.closed.is_set():
                return known
            handlers: dict[str, Any] = {"events": (msg.Events, self._events)}
            connection = await connect(address, self._bundle.client_context(), handlers)
            hello = msg.AgentHello(version=VERSION)
            await connection.call("agent.hello", hello, timeout=10)
            self._agents[address] = connection
            return connection

    def _events(self, connection: Connection, batch: msg.Events) -> None:
        follower = self.following.get(batch.tag)
        if follower:
            follower(batch)

    async def close(self) -> None:
        """Let all agents go."""
        for connection in self._agents.values():
            connection.close()
            await connection.wait_closed()

    async def start(
        self, lease: Lease, token: str, spec: RunSpec, run: Run, payload: Packed | None
    ) -> LiveRun:
        """Create the run at the broker, start its ranks on every node of the lease, follow them.

        Raises
        ------
        AiosError
            The broker or an agent refused; ranks that were started already have been ended.
        """
        run = await self.client.call("run.create", run, Run)
        slots = lease.slots[: spec.world_size]
        nodes = list(dict.fromkeys(slot.address for slot in slots))
        try:
            first = await self.agent(nodes[0])
            opening = msg.OpenRun(run=run.id, lease=lease.id, token=token)
            rendezvous = await first.call("run.open", opening, Rendezvous, timeout=30)
            await asyncio.gather(
                *(
                    self._start_node(address, slots, token, spec, rendezvous, payload)
                    for address in nodes
                )
            )
        except AiosError as error:
            await self.abandon(run, nodes, f"it could not be started: {error}")
            raise
        return await LiveRun(self, run, nodes).follow()

    async def attach(self, run: Run, addresses: list[str], *, wait: bool = True) -> LiveRun:
        """Follow a run that exists; without `wait`, up to where it is now."""
        return await LiveRun(self, run, addresses, wait=wait).follow()

    async def ask(
        self, addresses: list[str], op: str, body: Any, result: Any, timeout: float
    ) -> list[Any]:
        """One call to each of these agents."""

        async def one(address: str) -> Any:
            agent = await self.agent(address)
            return await agent.call(op, body, result, timeout=timeout)

        return list(await asyncio.gather(*(one(address) for address in addresses)))

    async def read(self, address: str, run: str, name: str) -> bytearray:
        """A whole file from a run's directory on a node."""
        agent = await self.agent(address)
        data = bytearray()
        while True:
            body = msg.ReadFile(run=run, name=name, offset=len(data))
            part = await agent.call("run.read", body, msg.FilePart)
            data += part.data
            if len(data) >= part.total or not part.data:
                return data

    async def _start_node(
        self,
        address: str,
        slots: tuple[Slot, ...],
        token: str,
        spec: RunSpec,
        rendezvous: Rendezvous,
        payload: Packed | None,
    ) -> None:
        agent = await self.agent(address)
        shared = await push(agent, spec.id, payload, pulls=bool(spec.pull))
        order = msg.StartRun(
            spec=spec,
            ranks=ranks_on(next(s.node for s in slots if s.address == address), slots),
            rendezvous=rendezvous,
            token=token,
            payload=payload is not None,
            shared=shared,
        )
        await agent.call("run.start", order, timeout=60)

    async def abandon(self, run: Run, addresses: list[str], reason: str) -> None:
        """End a run that could not be started everywhere, wherever it was."""
        with contextlib.suppress(ClusterError):
            await self.client.call("run.stop", ById(id=run.id, reason=reason), timeout=3)
        for address in addresses:
            with contextlib.suppress(AiosError):
                agent = await self.agent(address)
                await agent.call("run.abandon", ById(id=run.id, reason=reason), timeout=15)


class LiveRun:
    """A run that is being followed; lives in the client's event loop.

    Attributes
    ----------
    events
        What comes, for one who reads it.
    done
        Done with the broker's last word on the run (`schema.Run`).
    """

    def __init__(
        self, launcher: Launcher, run: Run, addresses: list[str], *, wait: bool = True
    ) -> None:
        self.run = run
        self._wait = wait
        self.events = Inbox(run.id)
        self.done: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self.stopping = False
        self.pulled = ""
        self._pulled_size = 0
        self._launcher = launcher
        self._addresses = addresses
        self._exits: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._lost: AiosError | None = None
        self._seen: dict[str, int] = {}
        self._pulled_at = addresses[0] if addresses else ""

    async def follow(self) -> LiveRun:
        """Begin to receive events."""
        self._task = asyncio.create_task(self._follow_all())
        return self

    async def _follow_all(self) -> None:
        try:
            self._follow_at(self._addresses)
            while running := [task for task in self._followers.values() if not task.done()]:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if self._lost is not None:
                raise self._lost
            self.done.set_result(await self._verdict() if self._wait else self.run)
        except AiosError as error:
            reason = f"{error}"
            ended = msgspec.structs.replace(
                self.run, state=RunState.FAILED, reason=reason, ended=time.time()
            )
            self.done.set_result(ended)
        finally:
            self.events.put(None)

    def _follow_at(self, addresses: list[str]) -> None:
        for address in addresses:
            # One that had left the run may be part of it again.
            if address not in self._followers or self._followers[address].done():
                self._followers[address] = asyncio.create_task(self._follow_one(address))

    async def _follow_one(self, address: str) -> None:
        try:
            await self._follow(address)
        except AiosError as error:
            self._lost = self._lost or error

    async def _follow_others(self) -> None:
        """After a restart there may be ranks on other nodes than before."""
        client = self._launcher.client
        with contextlib.suppress(AiosError):
            run: Run = await client.call("run.get", ById(id=self.run.id), Run, timeout=5)
            nodes = (await client.call("status", timeout=5))["nodes"]
            self._follow_at([nodes[node]["address"] for node in run.nodes if node in nodes])

    async def _follow(self, address: str) -> None:
        """Follow one node to its end, over as many connections as it takes."""
        over = asyncio.Event()
        attempt = self.run.attempt

        def receive(batch: msg.Events) -> None:
            for event in batch.events:
                if event["seq"] > self._seen.get(address, 0):
                    self._seen[address] = event["seq"]
                    self._take(event, address)
            if batch.end:
                over.set()

        # A session may follow a run more than once.
        tag = secrets.token_hex(8)
        self._launcher.following[tag] = receive
        try:
            while not over.is_set():
                try:
                    agent = await self._launcher.agent(address)
                    await self._watch(agent, over, self._seen.get(address, 0), tag)
                except (ClusterError, NotFoundError):
                    # One that has only now been given a part of the run knows of it in a moment.
                    if await self._ended_at_broker():
                        return
                    if self.run.attempt > attempt:
                        # It was rank 0's node, perhaps, which tells of restarts.
                        attempt = self.run.attempt
                        await self._follow_others()
                    await self._launcher.client.mend()
                    await asyncio.sleep(RECONNECT_INTERVAL)
        finally:
            del self._launcher.following[tag]

    async def _watch(self, agent: Connection, over: asyncio.Event, seen: int, tag: str) -> None:
        call = asyncio.create_task(
            agent.call(
                "run.follow",
                msg.Follow(run=self.run.id, seq=seen, wait=self._wait, tag=tag),
                timeout=None,
            )
        )
        try:
            waits = [asyncio.create_task(over.wait()), call]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            waits[0].cancel()
            if call.done():
                await call
                await asyncio.sleep(0)
        finally:
            call.cancel()

    async def _ended_at_broker(self) -> bool:
        """The agent is not there: only when the broker says so is the run over."""
        run: Run = await self._launcher.client.call("run.get", ById(id=self.run.id), Run)
        self.run = run
        return run.state not in LIVE

    def _take(self, event: dict[str, Any], address: str) -> None:
        match event["type"]:
            case "exit":
                self._exits.append(event)
            case "pulled":
                self.pulled, self._pulled_size = event["path"], event["size"]
                self._pulled_at = address
            case "restart" | "moved":
                self._exits.clear()
                self.pulled = ""
                if self._wait:
                    # Held by the dictionary of followers, so that its end is waited for.
                    looking = asyncio.create_task(self._follow_others())
                    self._followers[f"{event['type']} {event['seq']}"] = looking
        self.events.put(event)

    async def _verdict(self) -> Run:
        """The broker's word, which follows the ranks' end at once; ours when the broker is away."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            try:
                body = ById(id=self.run.id)
                run: Run = await self._launcher.client.call("run.get", body, Run, timeout=2)
            except AiosError:
                break
            if run.state not in LIVE:
                return run
            await asyncio.sleep(0.02)
        return self._own_verdict()

    def _own_verdict(self) -> Run:
        failures = [exit for exit in self._exits if exit["code"] != 0]
        state, reason = RunState.SUCCEEDED, ""
        if self.stopping:
            state, reason = RunState.STOPPED, "stopped"
        elif failures:
            first = min(failures, key=lambda exit: exit["time"])
            state, reason = RunState.FAILED, first.get("reason", "")
        return msgspec.structs.replace(self.run, state=state, reason=reason, ended=time.time())

    def failure(self, run: Run) -> dict[str, Any] | None:
        """The exit event of the rank that failed first, by the broker's word where it has one."""
        if "failed_node" in run.detail:
            return None  # what the ranks said then is what came of it
        named = run.detail.get("failed_rank")
        failures = [exit for exit in self._exits if exit["code"] != 0]
        own = [exit for exit in failures if exit.get("traceback")]
        known = [exit for exit in failures if exit["rank"] == named]
        return min(known or own or failures, key=lambda exit: exit["time"], default=None)

    async def stop(self, reason: str) -> None:
        """End the run: through the broker, and at the agents where the broker is away."""
        self.stopping = True
        try:
            body = ById(id=self.run.id, reason=reason)
            await self._launcher.client.call("run.stop", body, timeout=3)
        except ClusterError:
            for address in [address for address in self._followers if ":" in address]:
                agent = await self._launcher.agent(address)
                await agent.call("run.abandon", ById(id=self.run.id, reason=reason), timeout=15)

    async def fetch_pulled(self) -> bytearray | mmap.mmap:
        """What rank 0 gives back: its memory itself where this process can see it, else a copy."""
        if self._pulled_size >= SHARE_FROM:
            agent = await self._launcher.agent(self._pulled_at)
            if (seen := await pulled(agent, self.run.id)) is not None:
                return seen
        return await self.read(self.pulled.rsplit("/", 1)[-1], self._pulled_at)

    async def read(self, name: str, address: str) -> bytearray:
        """A whole file from the run's directory on a node."""
        return await self._launcher.read(address, self.run.id, name)
