"""Whatever bytes a peer sends: it is answered or its connection ends, and nobody else notices.

A whole broker and an agent's door in this process. Alice holds a lease with a run; Mallory, who has
a certificate of the same cluster, sends frames. After each example Alice's connection answers, what
is hers is as it was, and the journal is what the state says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_jupyter import tls
from aios_jupyter.broker import events as ev
from aios_jupyter.broker import messages as msg
from aios_jupyter.broker.loop import Loop
from aios_jupyter.broker.messages import VERSION
from aios_jupyter.broker.protocol import MAX_FRAME, Connection, connect
from aios_jupyter.broker.service import Broker
from aios_jupyter.config import Settings
from aios_jupyter.node import hosting, restarts
from aios_jupyter.node.door import Door
from aios_jupyter.runs import messages as agent_msg
from aios_jupyter.schema import (
    Device,
    DeviceKind,
    Lease,
    Node,
    Owner,
    Request,
    Run,
    RunKind,
    Want,
)
from aios_jupyter.units import split_address

ANSWER_TIMEOUT = 10.0
BARRIER = 2**31
encode = msgspec.msgpack.encode
quick = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def frame(*parts: Any) -> bytes:
    body = encode(parts)
    return len(body).to_bytes(4, "big") + body


def hello_of(secret: str, *, version: int = VERSION) -> msg.SessionHello:
    owner = Owner(id=msg.session_id(secret), user="")
    return msg.SessionHello(version=version, owner=owner, secret=secret)


class World:
    """A broker and a door with Alice's things; `loop` is where they live."""

    def __init__(self, root: Path) -> None:
        self.loop = Loop()
        self.tls = root / "tls"
        tls.create(self.tls)
        for name in ("alice", "mallory"):
            tls.issue(self.tls, name, name, "user")
        (root / "state").mkdir()
        self._state = root / "state"
        self.ended = False
        self.secret = secrets.token_hex(16)
        self.refusals: list[msg.Refused] = []
        self.runs_dir = root / "runs"
        self.loop.run(self._open())

    def _end(self) -> None:
        self.ended = True

    async def _open(self) -> None:
        bundle = tls.Bundle.of(self.tls, "broker")
        # What was sent before goes away by itself after the grace: not while something is looked at.
        times = Settings(suspect_after=3600, owner_grace=3600)
        self.broker = Broker(self._state, bundle, times, on_end=self._end)
        self.address = f"127.0.0.1:{await self.broker.start('127.0.0.1', 0)}"
        runs = restarts.HostedRuns(self.runs_dir, "node", "127.0.0.1", lambda *_: None)
        grants: dict[str, msg.Grant] = {}
        node = tls.Bundle.of(self.tls, "node")
        revoked = tls.Revoked(self.tls)
        self.door = Door(runs, grants, "box", revoked, self.refusals.append)
        self.door_address = await self.door.open("127.0.0.1", node.server_context())
        self.agent = await connect(self.address, node.client_context())
        devices = tuple(
            Device(id=f"d{i}", kind=DeviceKind.SIMULATED, name="sim", index=i, memory=2**34)
            for i in range(4)
        )
        box = Node(id="box", host="box", address=self.door_address, pid=1, devices=devices)
        await self.agent.call("node.hello", msg.NodeHello(version=VERSION, node=box))
        self.alice = await self._client("alice")
        await self.alice.call("hello", hello_of(self.secret))
        request = Request(id="q-alice", session="", user="", want=Want.GPU, count=2)
        answer = await self.alice.call("submit", request, msg.Submitted)
        self.lease: Lease = answer.lease
        run = Run(id="r-alice", lease=self.lease.id, session="", user="", kind=RunKind.RUN,
                  name="hers", world_size=2, nodes=())  # fmt: skip
        self.run: Run = await self.alice.call("run.create", run, Run)
        self.lease = await self.alice.call("lease.get", msg.ById(id=self.lease.id), Lease)
        await runs.announced(self.run, (0, 1))
        grants[self.lease.id] = msg.Grant(lease=self.lease, token=answer.token)
        self.token = answer.token
        (self.runs_dir / "r-alice" / "rank-0.log").write_text("hush")
        # What is counted is kept once a second: now, and not while something is looked at.
        self.broker.hub.handle(ev.Tick())

    async def _client(self, name: str) -> Connection:
        context = tls.Bundle.of(self.tls, name).client_context()
        return await connect(self.address, context)

    def close(self) -> None:
        async def over() -> None:
            for connection in (self.alice, self.agent):
                connection.close()
                await connection.wait_closed()
            await self.door.close()
            await self.broker.stop()

        self.loop.run(over())
        self.loop.stop()

    # --- what must hold

    def records(self) -> dict[tuple[str, str], bytes]:
        async def read() -> dict[tuple[str, str], bytes]:
            return {
                (kind, id): encode(record) for kind, id, record in self.broker.hub.state.records()
            }

        return self.loop.run(read())

    def check(self) -> None:
        """Alice notices nothing."""

        async def look() -> None:
            status = await self.alice.call("status", timeout=ANSWER_TIMEOUT)
            assert status["leases"][self.lease.id]["state"] == "active"
            assert status["runs"]["r-alice"]["state"] == "starting"
            own = await self.alice.call("lease.get", msg.ById(id=self.lease.id), Lease)
            assert own == self.lease
            assert not self.alice.closed.is_set()
            assert not self.agent.closed.is_set()
            hub = self.broker.hub
            hub.journal.commit()
            kept = {(kind, id): record for kind, id, record in hub.journal.load()}
            assert kept == {(kind, id): record for kind, id, record in hub.state.records()}

        self.loop.run(look())
        assert not self.ended
        files = {path.name: path.read_bytes() for path in (self.runs_dir / "r-alice").iterdir()}
        assert set(files) == {"run.json", "rank-0.log"}
        assert json.loads(files["run.json"])["user"] == "alice"
        assert [path.name for path in self.runs_dir.iterdir()] == ["r-alice"]

    def send(self, *chunks: bytes, to: str = "broker", until: int | None = None) -> list[Any]:
        """Send these bytes as Mallory; returns the frames that came back.

        Up to the answer to the call `until`, or until the connection ended; None: not waited for.
        """
        address = self.address if to == "broker" else self.door_address

        async def attack() -> list[Any]:
            host, port = split_address(address)
            context = tls.Bundle.of(self.tls, "mallory").client_context()
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            frames: list[Any] = []
            # A reset is as good an end as an orderly one.
            with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
                for chunk in chunks:
                    writer.write(chunk)
                    await writer.drain()
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    while until is not None and (not frames or frames[-1][1] != until):
                        size = int.from_bytes(await reader.readexactly(4), "big")
                        frames.append(msgspec.msgpack.decode(await reader.readexactly(size)))
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            return frames

        return self.loop.run(attack())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosting, "ANNOUNCE_TIMEOUT", 0.01)
        made = World(tmp_path_factory.mktemp("fuzz"))
        yield made
        made.close()


# --- what is sent

words = st.sampled_from(
    ["", "r-alice", "q-alice", "L1", "alice", "mallory", "box", "d0", "gpu", "run", "cell", "..",
     "../r-alice", "rank-0.log", "run.json", "\0", "é" * 50, "x" * 400, "starting", "stopped"]
)  # fmt: skip
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, -1, 2, 2**31, 1e300]),
    st.floats(),
    st.text(max_size=20),
    words,
    st.binary(max_size=40),
)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


def shaped(kind: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Bodies that look like `kind`: its fields, with values that often are of the right type."""
    info = msgspec.inspect.type_info(kind) if not isinstance(kind, msgspec.inspect.Type) else kind
    match info:
        case msgspec.inspect.StructType(fields=fields) if depth < 4:
            return st.fixed_dictionaries(
                {f.name: shaped(f.type, depth + 1) for f in fields if f.required},
                optional={f.name: shaped(f.type, depth + 1) for f in fields if not f.required},
            )
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*(shaped(each, depth) for each in types))
        case msgspec.inspect.StrType():
            return words | st.text(max_size=10)
        case msgspec.inspect.IntType():
            return st.sampled_from([0, 1, 2, -1, VERSION, 2**40]) | st.integers(-(2**63), 2**63)
        case msgspec.inspect.FloatType():
            return st.floats()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.BytesType():
            return st.binary(max_size=40)
        case msgspec.inspect.EnumType(cls=cls):
            return st.sampled_from([member.value for member in cls])
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(shaped(item, depth + 1), max_size=3)
        case msgspec.inspect.DictType(value_type=value):
            return st.dictionaries(words, shaped(value, depth + 1), max_size=3)
        case msgspec.inspect.NoneType():
            return st.none()
    return anything


def calls(handlers: dict[str, Any]) -> st.SearchStrategy[tuple[str, Any]]:
    def one(op: str) -> st.SearchStrategy[tuple[str, Any]]:
        kind = handlers[op][0]
        bodies = anything if kind is None or kind is Any else shaped(kind) | anything
        return st.tuples(st.just(op), bodies)

    return st.sampled_from(sorted(handlers)).flatmap(one)


def hello_frame(to: str, secret: str) -> bytes:
    if to == "broker":
        return frame("call", 0, "hello", hello_of(secret))
    return frame("call", 0, "agent.hello", agent_msg.AgentHello(version=VERSION))


# --- the properties


def lasting(records: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Without what hellos add, and counts of what was before, which are put there each second."""
    return {key: record for key, record in records.items() if key[0] not in ("session", "hour")}


@quick
@given(data=st.data())
def test_valid_frames_with_any_body_are_answered_or_refused(world: World, data: Any) -> None:
    op, body = data.draw(calls(world.broker._handlers))
    hello = hello_frame("broker", secrets.token_hex(16))
    barrier = frame("call", BARRIER, "beat", None)
    world.send(hello, until=0)
    before = world.records()
    answers = world.send(
        hello, frame("call", 1, op, body), frame("call", 2, "bye", None), barrier, until=BARRIER
    )
    answered = [answer for answer in answers if answer[:2] in (["reply", 1], ["fail", 1])]
    assert len(answered) == 1, f"{op} is answered once: {answers}"
    if answered[0][0] == "fail":
        # The sentence of a mistake of ours would be that it "failed within the cluster".
        assert "failed within" not in answered[0][3]
        after = {key: value for key, value in world.records().items() if key[0] != "session"}
        assert after == {key: value for key, value in before.items() if key[0] != "session"}
    world.check()


@quick
@given(data=st.data())
def test_the_agent_answers_or_refuses_any_body(world: World, data: Any) -> None:
    handlers = world.door._connection().handlers
    world.door._connections.clear()
    op, body = data.draw(calls(handlers))
    hello = hello_frame("agent", "")
    answers = world.send(
        hello, frame("call", 1, op, body), frame("call", BARRIER, "beat", None), to="agent", until=1
    )
    (answered,) = [answer for answer in answers if answer[1] == 1]
    if op not in ("beat", "agent.hello"):
        assert answered[0] == "fail", f"{op} was let through: {body}"
    if answered[0] == "fail":
        assert "failed within" not in answered[3]
    world.check()


@quick
@given(data=st.data())
def test_any_bytes_after_the_hello_harm_nobody(world: World, data: Any) -> None:
    to = data.draw(st.sampled_from(["broker", "agent"]))
    hello = hello_frame(to, secrets.token_hex(16))
    chunks = data.draw(st.lists(st.binary(max_size=200), max_size=5))
    world.send(hello, *chunks, to=to)
    world.send(*chunks, to=to)
    world.check()


@quick
@given(data=st.data())
def test_spoiled_streams_harm_nobody(world: World, data: Any) -> None:
    """Valid streams cut off, with bytes changed, out of order, or sent twice."""
    secret = secrets.token_hex(16)
    some = st.lists(calls(world.broker._handlers), min_size=1, max_size=4)
    frames = [hello_frame("broker", secret)]
    frames += [frame("call", n, op, body) for n, (op, body) in enumerate(data.draw(some), 1)]
    how = data.draw(st.sampled_from(["cut", "change", "reorder", "repeat"]))
    stream = bytearray(b"".join(frames))
    if how == "cut":
        del stream[data.draw(st.integers(0, len(stream))) :]
    elif how == "change":
        places = st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=6)
        for place in data.draw(places):
            stream[place] = data.draw(st.integers(0, 255))
    elif how == "reorder":
        stream = bytearray(b"".join(data.draw(st.permutations(frames))))
    else:
        stream = stream * 2
    world.send(bytes(stream))
    world.check()


def test_frames_of_other_kinds_are_ignored_or_end_the_connection(world: World) -> None:
    hello = hello_frame("broker", secrets.token_hex(16))
    barrier = frame("call", BARRIER, "beat", None)
    for other in (
        frame("reply", 1, None),
        frame("reply", 2**63, {"a": 1}),
        frame("fail", 1, "access", "no"),
        frame("event", "view", {}),
        frame("event", "granted", None),
    ):
        answers = world.send(hello, other, barrier, until=BARRIER)
        assert answers[-1][:2] == ["reply", BARRIER]
    for broken in (
        frame("call", 1),
        frame("call", "x", "beat", None),
        frame("call", -1.5, "beat", None),
        frame("nonsense", 1, "beat", None),
        frame({"call": 1}),
        frame(),
        b"\0\0\0\0",
        (MAX_FRAME + 1).to_bytes(4, "big"),
        b"\xff" * 64,
        # Nested deeper than anybody would read.
        (100_000).to_bytes(4, "big") + b"\x91" * 100_000,
        (5).to_bytes(4, "big") + b"\xdd\xff\xff\xff\xff",
    ):
        answers = world.send(hello, broken, barrier, until=BARRIER)
        assert [answer[1] for answer in answers] in ([0], []), broken[:40]
        world.check()


def test_a_body_nested_without_end_is_refused(world: World) -> None:
    secret = secrets.token_hex(16)
    for op in ("status", "beat", "audit", "submit"):
        head = encode(["call", 1, op])[:0] + b"\x94" + b"".join(map(encode, ("call", 1, op)))
        body = head + b"\x91" * 900 + b"\xc0"
        data = len(body).to_bytes(4, "big") + body
        barrier = frame("call", BARRIER, "beat", None)
        world.send(hello_frame("broker", secret), data, barrier, until=BARRIER)
        world.check()


@pytest.mark.parametrize("version", [0, -1, VERSION + 1, 2**62, "1", None, 1.5, [1]])
def test_another_version_ends_that_connection(world: World, version: Any) -> None:
    hello = msgspec.to_builtins(hello_of(secrets.token_hex(16))) | {"version": version}
    before = world.records()
    answers = world.send(
        frame("call", 0, "hello", hello),
        frame("call", BARRIER, "status", None),
        until=BARRIER,
    )
    assert [answer[:2] for answer in answers] == [["fail", 0]]
    assert world.records() == before
    world.check()


def test_alices_own_bytes_replayed_by_somebody_else_are_refused(world: World) -> None:
    """Her hello with its secret, her request and her release, over Mallory's connection."""
    before = world.records()
    request = Request(id="q-alice", session="", user="", want=Want.GPU, count=2)
    answers = world.send(
        hello_frame("broker", world.secret),
        frame("call", 1, "submit", request),
        frame("call", 2, "release", msg.ById(id=world.lease.id)),
        frame("call", 3, "lease.token", msg.ById(id=world.lease.id)),
        frame("call", BARRIER, "beat", None),
        until=BARRIER,
    )
    kinds = [answer[0] for answer in answers]
    assert kinds == ["fail", "fail", "fail", "fail", "reply"]
    assert world.records() == before
    world.check()
    answers = world.send(
        hello_frame("agent", ""),
        frame("call", 1, "run.open",
              agent_msg.OpenRun(run="r-alice", lease=world.lease.id, token=world.token)),
        to="agent",
        until=1,
    )  # fmt: skip
    assert answers[-1][:3] == ["fail", 1, "access"]
    world.check()


def test_who_asks_without_reading_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that nobody takes do not fill the broker's memory."""
    from aios_jupyter.broker import protocol

    monkeypatch.setattr(protocol, "MAX_BACKLOG", 2 * 1024 * 1024)
    question = frame("call", 1, "status", None)
    hello = hello_frame("broker", secrets.token_hex(16))
    world.send(hello, *([question * 1000] * 40))
    world.check()

    async def backlog() -> int:
        sizes = [c._transport.get_write_buffer_size() for c in world.broker._connections]
        return max(sizes, default=0)

    assert world.loop.run(backlog()) < 16 * 1024 * 1024


def test_many_refusals_are_counted_and_do_not_fill_the_journal(world: World) -> None:
    def noted() -> int:
        async def count() -> int:
            return len(world.broker.hub.journal.audit(10_000))

        return world.loop.run(count())

    # What earlier tests had refused is counted in the second in which it was.
    time.sleep(1.5)
    before = noted()
    release = [frame("call", n, "release", msg.ById(id=world.lease.id)) for n in range(1, 2001)]
    answers = world.send(
        hello_frame("broker", secrets.token_hex(16)),
        b"".join(release),
        frame("call", BARRIER, "beat", None),
        until=BARRIER,
    )
    assert sum(answer[0] == "fail" for answer in answers) == 2000
    assert 10 <= noted() - before < 200
    time.sleep(1.5)
    newest = world.loop.run(_newest(world))
    assert newest["detail"]["more"] > 1000
    world.check()


async def _newest(world: World) -> dict[str, Any]:
    (record,) = world.broker.hub.journal.audit(1)
    return record


# --- what is not hers, by crafted frames on her own valid certificate

IMPERSONATIONS: list[tuple[str, Any]] = [
    ("release", {"id": "LEASE"}),
    ("release", {"id": "LEASE", "reason": "", "user": "alice", "by": "alice", "admin": True}),
    ("extend", {"id": "LEASE", "time": 86400.0}),
    ("extend", {"id": "LEASE", "time": None, "by": "alice", "admin": True}),
    ("extend", {"id": "LEASE", "time": -1.0}),
    ("cancel", {"id": "q-alice", "by": "alice"}),
    ("lease.get", {"id": "LEASE"}),
    ("lease.token", {"id": "LEASE", "user": "alice"}),
    ("run.get", {"id": "r-alice"}),
    ("run.stop", {"id": "r-alice", "reason": "stopped by alice"}),
    ("submit", {"id": "q-alice", "session": "SESSION", "user": "alice", "want": "gpu", "count": 2}),
    ("run.create", {"id": "r-alice", "lease": "LEASE", "session": "SESSION", "user": "alice",
                    "kind": "run", "name": "hers", "world_size": 2, "nodes": ["box"]}),
    ("run.create", {"id": "r-other", "lease": "LEASE", "session": "SESSION", "user": "alice",
                    "kind": "run", "name": "hers", "world_size": 2, "nodes": ["box"]}),
    ("node.hello", {"version": VERSION, "node": {"id": "box", "host": "box", "address": "a:1",
                                                 "pid": 1, "devices": []}}),
    ("node.gone", {"id": "LEASE"}),
    ("node.exit", {"run": "r-alice", "exit": {"rank": 0, "code": 0, "time": 1.0}}),
    ("node.run", {"run": "r-alice", "state": "succeeded"}),
    ("node.met", {"run": "r-alice", "attempt": 1, "address": "a", "port": 1}),
    ("user.changed", {"what": "revoked", "name": "alice"}),
    ("shutdown", None),
    ("audit", None),
]  # fmt: skip


def filled(body: Any, world: World) -> Any:
    if isinstance(body, dict):
        return {key: filled(value, world) for key, value in body.items()}
    if not isinstance(body, str):
        return body
    return {"LEASE": world.lease.id, "SESSION": msg.session_id(world.secret)}.get(body, body)


@pytest.mark.parametrize(
    ("op", "body"), IMPERSONATIONS, ids=[f"{n}-{op}" for n, (op, _) in enumerate(IMPERSONATIONS)]
)
def test_what_is_alices_is_refused_to_others(world: World, op: str, body: Any) -> None:
    """With a hello of her own, with one that names Alice, and as an event that asks nothing."""
    before = world.records()
    content = filled(body, world)
    named = msgspec.to_builtins(hello_of(secrets.token_hex(16)))
    named["owner"] |= {"user": "alice", "label": "alice's notebook"}
    for hello in (hello_frame("broker", secrets.token_hex(16)), frame("call", 0, "hello", named)):
        answers = world.send(
            hello,
            frame("call", 1, op, content),
            frame("call", 2, "bye", None),
            frame("call", BARRIER, "beat", None),
            until=BARRIER,
        )
        assert [answer[:2] for answer in answers][:2] == [["reply", 0], ["fail", 1]], answers
        assert answers[1][2] in ("access", "usage", "conflict", "not-found"), answers
        if op not in ("submit", "shutdown"):
            assert answers[1][2] == "access", answers
    # An event is carried out without an answer, so that nothing of it may be carried out.
    world.send(hello_frame("broker", secrets.token_hex(16)), frame("event", op, content))
    after = {key: value for key, value in world.records().items() if key[0] != "session"}
    assert after == {key: value for key, value in before.items() if key[0] != "session"}
    world.check()


def test_a_connection_cannot_become_another_session(world: World) -> None:
    """A second hello, with Alice's owner or with her secret, changes nothing."""
    before = world.records()
    own = secrets.token_hex(16)
    alices = msgspec.to_builtins(hello_of(own))
    alices["owner"]["id"] = msg.session_id(world.secret)
    answers = world.send(
        hello_frame("broker", own),
        frame("call", 1, "hello", alices),
        frame("call", 2, "hello", hello_of(world.secret)),
        frame("call", 3, "release", msg.ById(id=world.lease.id)),
        frame("call", 4, "bye", None),
        frame("call", BARRIER, "beat", None),
        until=BARRIER,
    )
    kinds = [answer[0] for answer in answers]
    assert kinds == ["reply", "fail", "fail", "fail", "reply", "reply"]
    assert world.records() == before
    world.check()


def test_her_calls_are_answered_while_somebody_floods(world: World) -> None:
    """Frames of every bad kind, without end, on several connections: hers goes on beside them."""
    hello = hello_frame("broker", secrets.token_hex(16))
    bad = [
        hello + frame("call", 1, "release", msg.ById(id=world.lease.id)) * 500,
        hello + frame("call", 1, "submit", {"id": 5}) * 500,
        (MAX_FRAME + 1).to_bytes(4, "big"),
        hello + (MAX_FRAME).to_bytes(4, "big") + b"\x91" * 50_000,
        hello[: len(hello) // 2],
        frame("call", 0, "status", None) * 500,
    ]

    async def flood(data: bytes, stop: asyncio.Event) -> int:
        host, port = split_address(world.address)
        context = tls.Bundle.of(world.tls, "mallory").client_context()
        number = 0
        while not stop.is_set():
            with contextlib.suppress(OSError, ssl.SSLError):
                _, writer = await asyncio.open_connection(host, port, ssl=context)
                writer.write(data)
                number += 1
                await writer.drain()
                writer.transport.abort()
        return number

    async def beside() -> tuple[int, list[int]]:
        stop = asyncio.Event()
        floods = [asyncio.ensure_future(flood(data, stop)) for data in bad]
        answered = 0
        try:
            for _ in range(100):
                own = await world.alice.call("lease.get", msg.ById(id=world.lease.id), Lease, 10)
                assert own == world.lease
                answered += 1
        finally:
            stop.set()
        return answered, await asyncio.gather(*floods)

    answered, floods = world.loop.run(beside())
    assert answered == 100
    assert all(floods), floods
    world.check()
