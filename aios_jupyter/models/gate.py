"""What every request to an endpoint goes through: token, limits, and errors made into statuses.

A leaf module: it imports starlette.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError
from .protocol_v2 import HEADER, dump

log = logging.getLogger(__name__)

BODY_SECONDS = 30.0
"""A client has so long to send its request."""

JSON = b"application/json"

_STATUS = {UsageError: 400, AccessError: 401, NotFoundError: 404, ConflictError: 409}


class RefusedError(Exception):
    """A request that is answered with `status` and a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers


@dataclass
class Reply:
    """What a handler gives back. `json_length` is set where raw tensors follow the JSON."""

    body: bytes
    json_length: int | None = None
    content_type: bytes = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    answered_by: Any = None
    """What is counted as having answered; None where it is not known."""


class Rate:
    """So many requests a second on average, and as many at once (a token bucket).

    Parameters
    ----------
    per_second
        None for any number.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second or 0.0)
        self._left = self._most
        self._at = time.monotonic()

    def take(self) -> float:
        """0 where there is room for a request, else the seconds until there is."""
        if self._per_second is None:
            return 0.0
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._per_second


Handler = Callable[[Scope, bytes], Awaitable[Reply]]


class Gate:
    """Makes routes out of handlers.

    Parameters
    ----------
    token
        What clients must send as `Authorization: Bearer TOKEN`.
    max_body
        Bytes of a request at most.
    on_request
        Called with what answered, status and seconds of each counted request.
    rate
        Counted requests that are let through.

    Attributes
    ----------
    closing
        How many replies are still to end their connection; None: all.
    """

    def __init__(
        self,
        token: str,
        max_body: int,
        on_request: Callable[[Any, int, float], None],
        rate: Rate | None = None,
    ) -> None:
        self._rate = rate or Rate(None)
        self._authorization = f"Bearer {token}".encode()
        self._max_body = max_body
        self.on_request = on_request
        self.closing: int | None = 0

    def let_through(self, rate: Rate) -> None:
        """Counted requests that are let through from now on."""
        self._rate = rate

    def shed(self, replies: int | None) -> None:
        """End the connection with each of the next so many replies; None: with all."""
        self.closing = replies

    def closes(self) -> bool:
        """Whether the next reply is to end its connection."""
        if not self.closing:
            return self.closing is None
        self.closing -= 1
        return True

    def route(
        self,
        path: str,
        method: str,
        handler: Handler,
        *,
        public: bool = False,
        counted: bool = False,
    ) -> Route:
        """A route; `public` needs no token, `counted` is part of the request metrics."""
        operation = _Operation(self, handler, public=public, counted=counted)
        return Route(path, operation, methods=[method])

    def authorize(self, scope: Scope) -> None:
        """Refuse a request without the token."""
        for key, value in scope["headers"]:
            if key == b"authorization":
                if hmac.compare_digest(value, self._authorization):
                    return
                raise RefusedError(
                    401, "The token is not this endpoint's; send the one it was made with."
                )
        raise RefusedError(
            401,
            "A token is needed; send the header Authorization: Bearer TOKEN.",
            **{"www-authenticate": "Bearer"},
        )

    def limit(self) -> None:
        """Refuse a request that is one too many."""
        if wait := self._rate.take():
            raise RefusedError(
                429,
                "More requests come than this endpoint lets through; ask again in a moment.",
                **{"retry-after": str(math.ceil(wait))},
            )

    async def body(self, scope: Scope, receive: Receive) -> bytes:
        """The body, within the limits of size and time."""
        for key, value in scope["headers"]:
            if key == b"content-length" and int(value) > self._max_body:
                raise self._too_large()
            if key == b"content-encoding" and value.lower() != b"identity":
                raise RefusedError(415, "Compressed requests are not read; send the body as it is.")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(receive)
        except TimeoutError:
            raise RefusedError(
                408,
                f"The request did not arrive within {BODY_SECONDS:.0f} s; send it faster.",
                connection="close",
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, f"The request is larger than {self._max_body} bytes; send fewer samples at once."
        )


class _Operation:
    """One route as an ASGI application; the only place where errors become statuses."""

    def __init__(self, gate: Gate, handler: Handler, *, public: bool, counted: bool) -> None:
        self._gate = gate
        self._handler = handler
        self._public = public
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            reply = await self._reply(scope, receive)
        except ConnectionResetError:
            return  # the client went away before its request was complete
        if self._counted:
            self._gate.on_request(reply.answered_by, reply.status, time.perf_counter() - started)
        head = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            *reply.headers,
        ]
        if self._gate.closes():
            head.append((b"connection", b"close"))
        if reply.json_length is not None:
            head.append((HEADER.lower().encode(), b"%d" % reply.json_length))
        await send({"type": "http.response.start", "status": reply.status, "headers": head})
        await send({"type": "http.response.body", "body": reply.body})

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        try:
            if not self._public:
                self._gate.authorize(scope)
            if self._counted:
                self._gate.limit()
            body = await self._gate.body(scope, receive)
            return await self._handler(scope, body)
        except RefusedError as error:
            headers = tuple((k.encode(), v.encode()) for k, v in error.headers.items())
            return _refusal(error.status, str(error), headers)
        except AiosError as error:
            return _refusal(_STATUS.get(type(error), 500), str(error))
        except ConnectionResetError:
            raise
        except Exception:
            log.exception("a request failed")
            return _refusal(500, "The endpoint failed on this request; its log has the details.")


class Shortcuts:
    """An application whose busiest paths are found by their name alone.

    Starlette's middleware and its search for a path take a fifth of the time of a small model's request.
    What its routes lead to answers its own errors, and needs nothing of either.

    Parameters
    ----------
    application
        What answers all other requests.
    paths
        Paths of its routes that are posted to.
    """

    def __init__(self, application: Starlette, paths: Iterable[str]) -> None:
        self._application = application
        self._operations = {path: _route_of(application, path) for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._operations.get(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        operation, scope["path_params"] = found
        await operation(scope, receive, send)


def _route_of(application: Starlette, path: str) -> tuple[ASGIApp, dict[str, str]]:
    """What answers a POST to a path, and the values of the path's parameters."""
    for route in application.routes:
        match, found = route.matches({"type": "http", "method": "POST", "path": path})
        if match is Match.FULL and isinstance(route, Route):
            return route.app, found["path_params"]
    raise LookupError(path)


def _refusal(status: int, sentence: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    return Reply(dump({"error": sentence}), status=status, headers=headers)


def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method) in our form."""
    assert isinstance(error, HTTPException)
    sentences = {
        404: f"There is nothing at {request.url.path}; see /openapi.json.",
        405: f"{request.method} is not possible at {request.url.path}; see /openapi.json.",
    }
    sentence = sentences.get(error.status_code, error.detail)
    return Response(
        dump({"error": sentence}), error.status_code, error.headers, media_type="application/json"
    )
