"""One connection to an endpoint, which slow clients do not hold for ever.

uvicorn waits for the head of a request as long as it takes. A leaf module: it imports uvicorn.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .protocol_v2 import dump

HEAD_SECONDS = 30.0
"""A client has so long to send its request's head; `gate.BODY_SECONDS` is for the rest."""


class Connection(HttpToolsProtocol):
    """Ends with 408 when a request has begun and its head does not come to its end."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Whatever this was, it has ended uvicorn's own patience with a kept connection.
        if self._timer is None and self._answered() and not self.transport.is_closing():
            self._wait()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_head and self._answered():
            said = f"The request did not arrive within {HEAD_SECONDS:.0f} s; send it faster."
            body = dump({"error": said})
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()
