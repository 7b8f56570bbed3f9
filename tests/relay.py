"""A TCP relay that treats connections badly: it drops, delays, half-closes, truncates, falls silent.

What befalls a connection is drawn from a seeded generator when it is opened, in the order in which
connections come. The bytes that it carries are TLS: it can spoil them and not read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field

FAULTS = {"none": 3, "dropped": 3, "delayed": 3, "half-closed": 3, "truncated": 3, "silent": 1}
CHUNK = 65536


@dataclass
class Fate:
    """What happens to a connection, and after how many seconds; a delay is for each chunk."""

    fault: str
    after: float
    delay: float
    upstream: bool


@dataclass
class Relay:
    """Listens on loopback and carries to `target`, `host:port`, which may change.

    Attributes
    ----------
    happened
        Faults by kind that have befallen a connection.
    calm
        Nothing more is done to anybody.
    """

    seed: int
    target: str = ""
    calm: bool = False
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def close(self) -> None:
        """Stop, with every connection."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """End every connection; new ones may come."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])

    async def _listen(self) -> str:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fate(self) -> Fate:
        (fault,) = self._chance.choices(list(FAULTS), list(FAULTS.values()))
        return Fate(
            fault=fault,
            after=self._chance.uniform(0.0, 8.0),
            delay=self._chance.uniform(0.05, 2.0),
            upstream=self._chance.random() < 0.5,
        )

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._carry(reader, writer, self._fate())
        finally:
            self._tasks.discard(task)
            _reset(writer)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: Fate
    ) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        begun = self._loop.time()
        ways = [
            self._pump(reader, back, fate, begun, struck=fate.upstream),
            self._pump(there, writer, fate, begun, struck=not fate.upstream),
        ]
        pumps = [asyncio.ensure_future(way) for way in ways]
        strike = asyncio.ensure_future(self._strike(fate))
        try:
            # One side that has ended leaves the other way open, as TCP does.
            both = asyncio.gather(*pumps, return_exceptions=True)
            await asyncio.wait([strike, both], return_when="FIRST_COMPLETED")
        finally:
            for each in (*pumps, strike):
                each.cancel()
            await asyncio.gather(*pumps, strike, return_exceptions=True)
            _reset(back)

    async def _strike(self, fate: Fate) -> None:
        """The end of a connection that is dropped; of all others this does not return."""
        await asyncio.sleep(fate.after)
        if fate.fault != "dropped" or self.calm:
            await asyncio.Event().wait()
        self.happened["connections dropped"] += 1

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fate: Fate,
        begun: float,
        *,
        struck: bool,
    ) -> None:
        noted = False
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                due = self._loop.time() - begun >= fate.after and struck and not self.calm
                if due and fate.fault not in ("none", "dropped") and not noted:
                    noted = True
                    self.happened[f"connections {fate.fault}"] += 1
                if due and fate.fault == "delayed":
                    await asyncio.sleep(fate.delay)
                elif due and fate.fault == "silent":
                    continue
                elif due and fate.fault == "half-closed":
                    break
                elif due and fate.fault == "truncated":
                    writer.write(data[: len(data) // 2])
                    break
                writer.write(data)
                await writer.drain()
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as a machine that has lost its memory does."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
