"""A replica as the process behind the endpoint sees it, here or on another machine. Light."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from ..schema import Struct

_REPORT_SECONDS = 5.0
"""What a replica said longer ago is not its load any more."""

COMMAND = (sys.executable, "-m", "aios_jupyter.models.replica")


class Said(Struct, frozen=True):
    """What a replica says: that these versions answer now, that it cannot, or how much it did."""

    serving: str = ""
    refused: str = ""
    kind: str = ""
    metrics: dict[str, float] = {}


class ReplicaProcess:
    """One process that takes orders and says how it is.

    Attributes
    ----------
    host, device
        Where it is: "" for this machine, and for the devices that it was given.
    fd
        The listening socket, as the process knows it.
    address
        `host:port` where a relay finds it; "" where clients come to it by themselves.
    lost
        Its machine is about to go, or out of reach.
    """

    def __init__(self, host: str, device: str, *, fd: int, address: str = "") -> None:
        self.host = host
        self.device = device
        self.fd = fd
        self.address = address
        self.started = time.monotonic()
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.metrics: dict[str, float] = {}
        self.said = 0.0
        self.leaving = False
        self.lost = False

    @property
    def answers(self) -> bool:
        """Whether it has come up and is to stay."""
        up = self.ready.done() and not self.ready.cancelled() and not self.ready.exception()
        return up and not self.leaving and not self.lost

    def in_hand(self, now: float) -> float:
        """Requests in hand, on average over its last report."""
        return self.metrics.get("in_hand", 0.0) if now - self.said < _REPORT_SECONDS else 0.0

    def order(self, order: dict[str, Any]) -> None:
        """Tell it something (`replica.Order`; at first `replica.Replica`)."""
        raise NotImplementedError

    def signal(self, number: int) -> None:
        """Send it a signal; one that has ended takes none."""
        raise NotImplementedError

    def lines(self) -> AsyncIterator[bytes]:
        """What it says (`Said`), until its end."""
        raise NotImplementedError

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        raise NotImplementedError


class LocalReplica(ReplicaProcess):
    """One on this machine: its standard input takes orders, its standard output says how it is."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        device: str,
        listener: socket.socket,
        address: str = "",
    ) -> None:
        super().__init__("", device, fd=listener.fileno(), address=address)
        self.process = process

    @classmethod
    async def start(cls, device: str, listener: socket.socket, address: str = "") -> LocalReplica:
        """Start one that answers on `listener`."""
        return cls(await spawned(device, listener), device, listener, address)

    def order(self, order: dict[str, Any]) -> None:
        write(self.process, order)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def lines(self) -> AsyncIterator[bytes]:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            yield line

    async def wait(self) -> int:
        return await self.process.wait()


async def spawned(device: str, listener: socket.socket) -> asyncio.subprocess.Process:
    """The process of a replica, which has inherited `listener` and waits for its first order."""
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env={**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device else {})},
    )


def write(process: asyncio.subprocess.Process, order: dict[str, Any]) -> None:
    """Write an order to a process of `spawned`; nobody may be there any more."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(msgspec.json.encode(order) + b"\n")


def inner_listener(host: str) -> tuple[socket.socket, str]:
    """A socket for one replica behind a relay, and where it is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.set_inheritable(True)
    port = listener.getsockname()[1]
    return listener, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
