"""A stream of bytes through a node's port, beside the frames that others speak there.

Who asks for it names the protocol `PROTOCOL` in the TLS handshake. Then each side sends one line of
JSON, `Head` there and `Answer` back, and from then on bytes pass as they are. With the channel of a
kernel (`CHANNELS`) they are what its front ends and it say to each other. With `LENT` the stream is
for the kernel's own calls to the cluster: the answer comes when it makes one, then a line that says
where to, and so a kernel on somebody else's machine needs no key of its user's. Dask's workers it
calls itself, with the key of the node that it runs on, where that has one: the line `TASKS` asks
whether its user may, and where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from ..errors import AccessError, AiosError, ClusterError, from_kind
from ..schema import Struct
from ..tls import SERVER_ROLES, Bundle, peer
from ..units import split_address

PROTOCOL = "aios-tunnel/1"
# In the order in which a connection file names their ports.
CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
LENT = "lent"
# What a lent stream may be for, besides the address of a node.
SESSION, BROKER, TASKS = "session", "broker", "tasks"
# Names the socket by which a kernel finds lent streams.
VARIABLE = "AIOS_FORWARD"
# Names the folder of the node's certificates, where it does data tasks.
KEYS = "AIOS_NODE_KEYS"
LONGEST_LINE = 4096
CHUNK = 256 * 1024
ANSWER_TIMEOUT = 30.0

log = logging.getLogger("aios.tunnel")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Head(Struct, frozen=True, kw_only=True):
    """What a stream is for."""

    run: str
    channel: str


class Answer(Struct, frozen=True, kw_only=True):
    """Go on; or with `kind`, a class of `errors.py`, a refusal."""

    kind: str = ""
    message: str = ""


class Standing(Struct, frozen=True, kw_only=True):
    """The session of a kernel that is far from whoever started it."""

    secret: str


class Tasks(Struct, frozen=True, kw_only=True):
    """Where Dask's scheduler is; with `refused`, why its user may not use it."""

    address: str = ""
    refused: str = ""


async def dial(address: str, bundle: Bundle, head: Head, wait: float = ANSWER_TIMEOUT) -> Stream:
    """Open a stream at the agent at `address`.

    Raises
    ------
    AiosError
        The agent has refused it.
    ClusterError
        Nobody answers there within `wait` seconds, or not as a node of this cluster.
    """
    reader, writer = await connect(address, bundle, PROTOCOL)
    try:
        send(writer, head)
        async with asyncio.timeout(wait):
            answer = await receive(reader, Answer)
    except TimeoutError:
        writer.close()
        raise ClusterError(f"The node at {address} does not answer.") from None
    except BaseException:
        writer.close()
        raise
    if answer.kind:
        writer.close()
        raise from_kind(answer.kind, answer.message)
    return reader, writer


async def connect(address: str, bundle: Bundle, protocol: str = "") -> Stream:
    """Open TLS to a broker or node, for whatever is to be spoken.

    Raises
    ------
    ClusterError
        There is none.
    """
    context = bundle.client_context()
    if protocol:
        context.set_alpn_protocols([protocol])
    host, port = split_address(address)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        raise ClusterError(f"The cluster at {address} does not answer ({error}).") from None
    _, role, _ = peer(writer.transport)
    if role not in SERVER_ROLES:
        writer.close()
        raise ClusterError(f"The other side at {address} is a {role}, not a broker or node.")
    return reader, writer


def send(writer: asyncio.StreamWriter, line: Struct) -> None:
    """Write one line."""
    writer.write(msgspec.json.encode(line) + b"\n")


def refuse(writer: asyncio.StreamWriter, error: AiosError) -> None:
    """Answer with a refusal, and close."""
    send(writer, Answer(kind=error.kind, message=str(error)))
    writer.close()


async def receive(reader: asyncio.StreamReader, kind: Any) -> Any:
    """Read one line.

    Raises
    ------
    ClusterError
        The other side has closed, or says something else.
    """
    try:
        return msgspec.json.decode(await reader.readline(), type=kind)
    except (msgspec.MsgspecError, ValueError, OSError):
        raise ClusterError(
            "The other side speaks no tunnel; install the same version of aios-jupyter there."
        ) from None


async def join(one: Stream, other: Stream) -> None:
    """Pass bytes both ways until one side ends; then both are closed."""
    tasks = [
        asyncio.create_task(_copy(one[0], other[1])),
        asyncio.create_task(_copy(other[0], one[1])),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for _, writer in (one, other):
            writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # One of the two may be killed at any time: that ends the stream, and no more.
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


# --- in a kernel that is far from whoever started it


def forwarded() -> Forward | None:
    """The way to the cluster that this kernel has been given."""
    path = os.environ.get(VARIABLE)
    return Forward(Path(path)) if path else None


class Forward:
    """The cluster, by way of whoever started this kernel; it stands where a `Bundle` does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def client_context(self) -> Path:
        """What `broker.protocol.connect` takes: the socket that leads there."""
        return self.path

    def standing(self) -> Standing:
        """Which session this kernel belongs to.

        Raises
        ------
        ClusterError
            Whoever started this kernel is gone.
        """
        standing: Standing = self._asked(SESSION, Standing)
        return standing

    def tasks(self) -> str:
        """Where Dask's scheduler is.

        Raises
        ------
        AccessError
            It is not for this kernel's user.
        ClusterError
            Whoever started this kernel is gone.
        """
        tasks: Tasks = self._asked(TASKS, Tasks)
        if tasks.refused:
            raise AccessError(tasks.refused)
        return tasks.address

    def _asked(self, what: str, kind: Any) -> Any:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
                opened.settimeout(ANSWER_TIMEOUT)
                opened.connect(str(self.path))
                opened.sendall(f"{what}\n".encode())
                with opened.makefile("rb") as file:
                    return msgspec.json.decode(file.readline(LONGEST_LINE), type=kind)
        except (OSError, msgspec.MsgspecError) as error:
            raise ClusterError(
                f"Whoever started this kernel does not answer ({error}); restart the kernel."
            ) from None
