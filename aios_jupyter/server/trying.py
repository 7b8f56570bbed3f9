"""REST under `aios/` for trying an endpoint of this server's user; its token stays on the server.

GET  aios/endpoints/NAME           what it takes, with an example where its version has one
POST aios/endpoints/NAME/predict   its answer to {"inputs": …}, as it would give to a program
"""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from .routes import AiosHandler
from .stream import Stream

MOST_BODY = 8 << 20
# A slow endpoint must not keep the threads from the other routes.
AT_ONCE = 2


class AskingHandler(AiosHandler):
    """Base of the routes for which an endpoint is asked."""

    def initialize(self, stream: Stream, turn: asyncio.Semaphore) -> None:  # type: ignore[override]
        """Take whose turn it is to ask an endpoint."""
        super().initialize(stream)
        self.turn = turn


class EndpointHandler(AskingHandler):
    """What an endpoint takes."""

    @web.authenticated
    @authorized
    async def get(self, name: str) -> None:
        """Answer with its signature and an example."""
        async with self.turn:
            self.answer(await asyncio.to_thread(_form, name))


class PredictHandler(AskingHandler):
    """What an endpoint answers."""

    @web.authenticated
    @authorized
    async def post(self, name: str) -> None:
        """Pass the body on, and the answer back."""
        body = self.request.body
        if len(body) > MOST_BODY:
            sentence = f"That is more than {MOST_BODY >> 20} MB; ask the endpoint with a program."
            self.answer({"message": sentence}, 413)
            return
        async with self.turn:
            self.finish(await asyncio.to_thread(_answer, name, body))


def handlers(stream: Stream) -> list[tuple[str, type[AiosHandler], dict[str, Any]]]:
    """The routes, for `ExtensionApp.handlers`."""
    known = {"stream": stream, "turn": asyncio.Semaphore(AT_ONCE)}
    return [
        (r"/aios/endpoints/([^/]+)", EndpointHandler, known),
        (r"/aios/endpoints/([^/]+)/predict", PredictHandler, known),
    ]


def _form(name: str) -> dict[str, Any]:
    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        return session.endpoint_form(name)


def _answer(name: str, body: bytes) -> bytes:
    """As JSON, for the outputs come as such."""
    import msgspec

    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        return msgspec.json.encode(session.try_endpoint(name, body))
