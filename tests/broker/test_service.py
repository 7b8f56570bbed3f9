"""The broker as a server, with its journal on a real file: a full disk, snapshots, restarts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aios_jupyter import tls
from aios_jupyter.broker import messages as msg
from aios_jupyter.broker import snapshots
from aios_jupyter.broker.client import AsyncClient
from aios_jupyter.broker.messages import VERSION
from aios_jupyter.broker.protocol import Connection, connect
from aios_jupyter.broker.service import Broker
from aios_jupyter.config import Settings
from aios_jupyter.errors import ClusterError
from aios_jupyter.schema import Device, DeviceKind, Node, Request, Want

FULL = "make room on the disk"


class World:
    """A broker and a node with two devices, in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tls.create(root / "tls")
        self.ends: list[str] = []

    async def open(self) -> World:
        bundle = tls.Bundle.of(self.root / "tls", "broker")
        self.broker = Broker(self.root, bundle, Settings(), on_end=lambda: None)
        self.address = f"127.0.0.1:{await self.broker.start('127.0.0.1', 0)}"
        self.journal = self.broker.hub.journal
        context = tls.Bundle.of(self.root / "tls", "node").client_context()
        heard: dict[str, Any] = {
            "lease.granted": (msg.Grant, lambda _, grant: self.ends.append(grant.lease.id)),
            "lease.end": (msg.LeaseEnd, lambda _, end: self.ends.append(f"-{end.lease}")),
        }
        self.agent = await connect(self.address, context, heard)
        devices = tuple(
            Device(id=f"d{i}", kind=DeviceKind.SIMULATED, name="sim", index=i, memory=2**34)
            for i in range(2)
        )
        node = Node(id="box", host="box", address="127.0.0.1:1", pid=1, devices=devices)
        await self.agent.call("node.hello", msg.NodeHello(version=VERSION, node=node))
        return self

    async def client(self) -> AsyncClient:
        async def locate() -> tuple[str, tls.Bundle]:
            return self.address, tls.Bundle.of(self.root / "tls", "user")

        return await AsyncClient(locate, label="test").open()

    async def close(self) -> None:
        self.agent.close()
        await self.agent.wait_closed()
        with contextlib.suppress(ClusterError):
            await self.broker.stop()

    def fill_disk(self) -> None:
        """Not one page more fits."""
        pages = self.journal._database.execute("PRAGMA page_count").fetchone()[0]
        self.journal._database.execute(f"PRAGMA max_page_count = {pages}")
        free = self.journal._database.execute("PRAGMA freelist_count").fetchone()[0]
        assert free == 0

    def make_room(self) -> None:
        self.journal._database.execute("PRAGMA max_page_count = 1000000")


def want(name: str, count: int = 1, label: str = "") -> Request:
    return Request(id=name, session="", user="", want=Want.GPU, count=count, label=label)


# So large that it does not fit on a page that is there already.
LONG = "x" * 300
MANY = 60


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail(what)


def play(tmp_path: Path, body: Callable[[World], Awaitable[None]]) -> None:
    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        made = await World(tmp_path).open()
        try:
            yield made
        finally:
            await made.close()

    async def main() -> None:
        async with world() as made:
            await body(made)

    asyncio.run(main())


async def refused(client: AsyncClient, count: int) -> list[ClusterError]:
    """So many requests at once: more than the pages that are there hold."""
    asked = (client.submit(want(f"q{n}", label=LONG)) for n in range(count))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, ClusterError) for answer in answers), answers
    return answers  # type: ignore[return-value]


def test_on_a_full_disk_nothing_is_granted_and_everybody_is_told_why(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        client = await world.client()
        held = (await (await client.submit(want("mine"))).granted).lease
        await until(lambda: world.ends == [held.id], "the agent hears of the lease")
        world.fill_disk()
        for error in await refused(client, MANY):
            assert FULL in str(error)
        # From now on nothing is even tried; who looks is told why too.
        with pytest.raises(ClusterError, match=FULL):
            await client.call("release", msg.ById(id=held.id))
        with pytest.raises(ClusterError, match=FULL):
            await client.call("status")
        assert set(client.tokens) == {held.id}
        assert world.ends == [held.id]
        durable = {id for kind, id, _ in world.journal.load() if kind in ("request", "lease")}
        assert durable == {"mine", held.id}
        world.make_room()
        await until(lambda: world.journal.failure is None, "it is written again")
        status = await client.call("status")
        # What could not be promised was taken back, and what was held still is.
        assert set(status["leases"]) == {held.id}
        assert status["queue"] == {}
        again = await (await client.submit(want("again"))).granted
        await client.call("release", msg.ById(id=held.id))
        assert set((await client.call("status"))["leases"]) == {again.lease.id}
        await client.close()

    play(tmp_path, body)


def test_another_session_hears_of_its_grant_once_there_is_room(tmp_path: Path) -> None:
    """A release that cannot be made durable is not seen, and what follows from it waits."""

    async def body(world: World) -> None:
        first, second = await world.client(), await world.client()
        held = (await (await first.submit(want("a", 2))).granted).lease
        waiting = await second.submit(want("b"))
        world.fill_disk()
        # In one write, so that the release is taken in before the failure is known.
        bulk = [first.submit(want(f"q{n}", label=LONG)) for n in range(MANY)]
        answers = await asyncio.gather(
            first.call("release", msg.ById(id=held.id)), *bulk, return_exceptions=True
        )
        assert all(isinstance(answer, ClusterError) for answer in answers)
        await asyncio.sleep(0.1)
        assert not waiting.granted.done()
        world.make_room()
        grant = await asyncio.wait_for(waiting.granted, 10)
        assert [d.device for d in grant.lease.slots] == ["d0"]
        kept = {id for kind, id, _ in world.journal.load() if kind == "lease"}
        assert kept == {grant.lease.id}
        for client in (first, second):
            await client.close()

    play(tmp_path, body)


def test_a_snapshot_is_taken_at_the_start(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        path = snapshots.place(tmp_path / "journal.sqlite")
        await until(path.exists, "a snapshot")

    play(tmp_path, body)


def test_the_submitter_is_told_of_its_grant_once(tmp_path: Path) -> None:
    """By the answer alone; its session's other connections by an event."""

    async def body(world: World) -> None:
        client = await world.client()
        told: list[str] = []
        context = tls.Bundle.of(world.root / "tls", "user").client_context()
        hear: dict[str, Any] = {"granted": (msg.Grant, lambda _, g: told.append(g.lease.request))}
        others: list[Connection] = []
        for _ in range(2):
            others.append(await connect(world.address, context, hear))
            await others[-1].call("hello", client._hello)
        answer = await others[0].call("submit", want("a"), msg.Submitted)
        assert answer.lease is not None and answer.token
        await until(lambda: "a" in told, "the other connection hears of it")
        await others[0].call("status")
        assert told == ["a"]
        assert client.tokens == {answer.lease.id: answer.token}
        for connection in others:
            connection.close()
            await connection.wait_closed()
        await client.close()

    play(tmp_path, body)


def test_a_node_that_comes_back_while_the_cluster_is_stopped_ends_too(tmp_path: Path) -> None:
    """It was away when the others were told; the broker may not be there to ask again."""

    async def body(world: World) -> None:
        client = await world.client()
        await client.call("shutdown")
        told = asyncio.Event()
        context = tls.Bundle.of(world.root / "tls", "node").client_context()
        heard: dict[str, Any] = {"shutdown": (Any, lambda _, body: told.set())}
        late = await connect(world.address, context, heard)
        node = Node(id="late", host="late", address="127.0.0.1:2", pid=2, devices=())
        await late.call("node.hello", msg.NodeHello(version=VERSION, node=node))
        await until(told.is_set, "it is told to end")
        late.close()
        await late.wait_closed()
        await client.close()

    play(tmp_path, body)
