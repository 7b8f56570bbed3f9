"""The relay of an endpoint (`relay.py`), kept going and told of the replicas. Light."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Iterable

import msgspec

from .relay import Order

log = logging.getLogger(__name__)

_BACKLOG = 1024
_PAUSE = 0.1
_PATIENCE = 2.0


class RelayProcess:
    """One relay on a listening socket.

    Parameters
    ----------
    on_wait
        Called when somebody has connected and there is no replica.
    """

    def __init__(self, listener: socket.socket, on_wait: Callable[[], None]) -> None:
        self._listener = listener
        self._on_wait = on_wait
        self._process: asyncio.subprocess.Process | None = None
        self._upstreams: tuple[str, ...] = ()
        self._open = self._closed = False
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Keep a relay, until this is cancelled."""
        try:
            while True:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "aios_jupyter.models.relay",
                    str(self._listener.fileno()),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    pass_fds=[self._listener.fileno()],
                )
                self._write(Order(upstreams=self._upstreams, closed=self._closed))
                assert self._process.stdout is not None
                while await self._process.stdout.readline():
                    self._on_wait()
                status = await self._process.wait()
                if self._ending.is_set():
                    return
                log.warning("the relay ended with status %s; it is started again", status)
                await asyncio.sleep(_PAUSE)
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    def tell(self, upstreams: Iterable[str], gone: Iterable[str] = ()) -> None:
        """These replicas take connections; of those that are `gone` the connections are over."""
        self._upstreams = tuple(upstreams)
        if self._upstreams and not self._open:
            # From now on nobody is refused, also while the relay has still to start.
            self._listener.listen(_BACKLOG)
            self._open = True
        self._write(Order(upstreams=self._upstreams, gone=tuple(gone), closed=self._closed))

    async def end(self) -> None:
        """End it once it has passed on what the replicas have said."""
        self._ending.set()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _PATIENCE)

    def close(self) -> None:
        """Take no new connections."""
        self._closed = True
        self._write(Order(upstreams=self._upstreams, closed=True))

    def _write(self, order: Order) -> None:
        if self._process is None or self._process.stdin is None:
            return  # it is told at its start
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
