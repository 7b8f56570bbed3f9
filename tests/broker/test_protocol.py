"""The wire: typed frames over TLS, refused when wrong, without harm to anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_jupyter import tls
from aios_jupyter.broker import hello, messages
from aios_jupyter.broker.loop import Loop
from aios_jupyter.broker.messages import VERSION
from aios_jupyter.broker.protocol import MAX_FRAME, Connection, connect, serve
from aios_jupyter.errors import AccessError, ClusterError, NotFoundError, ProtocolError
from aios_jupyter.schema import Struct


class Echo(Struct):
    text: str


class Peer(Struct):
    name: str
    role: str


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    tls.create(directory)
    tls.issue(directory, "other", "mallory", "user")
    return directory


def run(
    material: Path,
    body: Callable[[str, Connection], Awaitable[None]],
    party: str = "user",
) -> None:
    """Serve a small broker-like peer, connect, say hello and run `body(address, connection)`."""

    def refuse(connection: Connection, echo: Echo) -> None:
        raise NotFoundError(f"no {echo.text}")

    async def later(connection: Connection, echo: Echo) -> str:
        await asyncio.sleep(0.01)
        return echo.text

    handlers: dict[str, Any] = {
        "hello": (messages.Version, lambda c, _: Peer(name=c.name, role=c.role)),
        "echo": (Echo, lambda c, echo: echo),
        "later": (Echo, later),
        "refuse": (Echo, refuse),
        "tell": (Echo, lambda c, echo: c.tell("told", echo)),
    }

    async def main() -> None:
        context = tls.Bundle.of(material, "broker").server_context()
        server, port = await serve(
            "127.0.0.1", 0, context, lambda: Connection(handlers, server=True)
        )
        address = f"127.0.0.1:{port}"
        connection = await connect(address, tls.Bundle.of(material, party).client_context())
        try:
            await body(address, connection)
        finally:
            connection.close()
            server.close()

    asyncio.run(main())


def test_a_call_is_answered_by_its_typed_reply(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        peer = await connection.call("hello", messages.Version(version=VERSION), Peer)
        assert peer.role == "admin"
        texts = [f"text {n}" for n in range(200)]
        calls = (connection.call("echo", Echo(text=text), Echo) for text in texts)
        assert [echo.text for echo in await asyncio.gather(*calls)] == texts
        assert await connection.call("later", Echo(text="x"), str) == "x"

    run(material, body)


def test_a_refusal_arrives_as_the_same_class_and_sentence(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        await connection.call("hello", messages.Version(version=VERSION))
        with pytest.raises(NotFoundError, match="no lease"):
            await connection.call("refuse", Echo(text="lease"))

    run(material, body)


def test_the_certificate_says_who_it_is(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        peer = await connection.call("hello", messages.Version(version=VERSION), Peer)
        assert (peer.name, peer.role) == ("mallory", "user")

    run(material, body, party="other")


def test_another_version_is_refused_with_what_to_do(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        with pytest.raises(ProtocolError, match="install the same version"):
            await connection.call("hello", messages.Version(version=VERSION + 1))
        await asyncio.wait_for(connection.closed.wait(), 5)

    run(material, body)


def test_whoever_says_no_hello_is_let_go(material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello, "WITHIN", 0.3)

    async def body(address: str, connection: Connection) -> None:
        await connection.call("hello", messages.Version(version=VERSION))
        context = tls.Bundle.of(material, "user").client_context()
        silent = await connect(address, context)
        await asyncio.wait_for(silent.closed.wait(), 10)
        assert await connection.call("echo", Echo(text="x"), Echo) == Echo(text="x")

    run(material, body)


def test_nothing_is_answered_before_the_hello(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        with pytest.raises(ProtocolError, match="hello"):
            await connection.call("echo", Echo(text="x"))
        await asyncio.wait_for(connection.closed.wait(), 5)

    run(material, body)


def test_a_wrong_shape_is_refused_and_the_connection_goes_on(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        await connection.call("hello", messages.Version(version=VERSION))
        with pytest.raises(ProtocolError, match="wrong shape"):
            await connection.call("echo", {"text": 7})
        with pytest.raises(ProtocolError, match="does not know"):
            await connection.call("nonsense")
        assert (await connection.call("echo", Echo(text="y"), Echo)).text == "y"

    run(material, body)


GARBAGE = {
    "not msgpack": b"\x00\x00\x00\x03\xc1\xc1\xc1",
    "no such tag": b"\x00\x00\x00\x00"[:3] + b"\x06" + msgspec.msgpack.encode(["what", 1])[:6],
    "too large": (MAX_FRAME + 1).to_bytes(4, "big"),
    "plain text": b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_that_connection_and_no_other(material: Path, data: bytes) -> None:
    async def body(address: str, connection: Connection) -> None:
        await connection.call("hello", messages.Version(version=VERSION))
        host, port = address.split(":")
        context = tls.Bundle.of(material, "user").client_context()
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(data)
        answer = b""
        # The server closes; a reset is as good an end as an orderly one.
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 5)
        assert answer == b""
        writer.close()
        assert (await connection.call("echo", Echo(text="z"), Echo)).text == "z"

    run(material, body)


def test_half_a_frame_and_silence_harm_nobody(material: Path) -> None:
    async def body(address: str, connection: Connection) -> None:
        await connection.call("hello", messages.Version(version=VERSION))
        host, port = address.split(":")
        context = tls.Bundle.of(material, "user").client_context()
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(b"\x00\x00")
        await writer.drain()
        assert (await connection.call("echo", Echo(text="z"), Echo)).text == "z"
        writer.close()

    run(material, body)


async def _greet(address: str, material: Path) -> None:
    stranger = await connect(address, tls.Bundle.of(material, "user").client_context())
    await stranger.call("hello", messages.Version(version=VERSION), timeout=5)


def test_a_foreign_authority_and_plain_tcp_are_refused(material: Path, tmp_path: Path) -> None:
    tls.create(tmp_path)

    async def body(address: str, connection: Connection) -> None:
        with pytest.raises(ClusterError):
            await _greet(address, tmp_path)
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"hello")
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 5)
        # At most a TLS alert (record type 21), never a frame.
        assert answer[:1] in (b"", b"\x15")
        writer.close()

    run(material, body)


def test_a_user_cannot_pass_for_a_broker(material: Path) -> None:
    async def main() -> None:
        context = tls.Bundle.of(material, "other").server_context()
        server, port = await serve("127.0.0.1", 0, context, lambda: Connection({}, server=True))
        bundle = tls.Bundle.of(material, "user")
        connection = await connect(f"127.0.0.1:{port}", bundle.client_context())
        with pytest.raises((ClusterError, AccessError)):
            await connection.call("hello", messages.Version(version=VERSION), timeout=5)
        server.close()

    asyncio.run(main())


def test_private_keys_are_private(material: Path) -> None:
    for key in material.glob("*.key"):
        assert key.stat().st_mode & 0o077 == 0
    with pytest.raises((OSError, ssl.SSLError, ClusterError)):
        tls.Bundle.of(material / "nowhere", "user").client_context()


def test_a_connection_may_be_given_up_at_any_moment_of_its_making(
    material: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """None of those that end in their handshake is reported as an error that nobody caught."""
    context = tls.Bundle.of(material, "broker").server_context()
    own = tls.Bundle.of(material, "user").client_context()

    async def give_up(port: int) -> None:
        for number in range(1000):
            making = asyncio.ensure_future(connect(f"127.0.0.1:{port}", own))
            await asyncio.wait({making}, timeout=0.001 * (number % 6))
            making.cancel()
            for made in await asyncio.gather(making, return_exceptions=True):
                if isinstance(made, Connection):
                    made.close()

    async def close(server: asyncio.Server) -> None:
        server.close()
        await server.wait_closed()

    theirs, ours = Loop(), Loop()
    try:
        make = partial(Connection, {}, server=True)
        server, port = theirs.run(serve("127.0.0.1", 0, context, make))
        ours.run(give_up(port))
        theirs.run(close(server))
    finally:
        ours.stop()
        theirs.stop()
    assert not [record for record in caplog.records if record.exc_info]
