"""REST under `aios/` for what people do with leases and models in the sidebar.

POST aios/leases/ID/extend          have a lease end {"time": SECONDS} from now
POST aios/queue/ID/priority         have a request that waits go by {"priority": N} from now on
POST aios/batches/ID/stop           end a batch of notebooks
PUT  aios/models/NAME/aliases/ALIAS  have an alias stand for {"version": N}, or {"back": true}
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ..errors import UsageError
from .routes import AiosHandler
from .stream import Stream


class ExtendHandler(AiosHandler):
    """The end of a lease."""

    @web.authenticated
    @authorized
    async def post(self, lease: str) -> None:
        """Move it."""
        time: Any = (self.get_json_body() or {}).get("time")
        if type(time) not in (int, float) or not (math.isfinite(time) and time > 0):
            raise UsageError("time must be a number of seconds, more than 0.")
        await self.stream.call("extend", {"id": lease, "time": float(time)})
        self.answer({"extended": lease})


class PriorityHandler(AiosHandler):
    """The priority of a request that waits."""

    @web.authenticated
    @authorized
    async def post(self, request: str) -> None:
        """Change it."""
        priority: Any = (self.get_json_body() or {}).get("priority")
        if type(priority) is not int:
            raise UsageError("priority must be a whole number.")
        await self.stream.call("reprioritize", {"id": request, "priority": priority})
        self.answer({"reprioritized": request})


class StopBatchHandler(AiosHandler):
    """The end of a batch."""

    @web.authenticated
    @authorized
    async def post(self, batch: str) -> None:
        """Have whoever runs it end it, with its notebooks that are at work."""
        await self.stream.call("batch.stop", {"id": batch})
        self.answer({"stopping": batch}, 202)


class AliasHandler(AiosHandler):
    """An alias of a model."""

    @web.authenticated
    @authorized
    async def put(self, name: str, alias: str) -> None:
        """Move it to a version, or back to the one that it named before."""
        body = self.get_json_body() or {}
        if body.get("back") is True:
            self.answer(await asyncio.to_thread(_rollback, name, alias))
            return
        version = body.get("version")
        if type(version) is not int or version < 1:
            raise UsageError("version must be a whole number, 1 or more.")
        self.answer(await asyncio.to_thread(_promote, f"{name}/{version}", alias))


def handlers(stream: Stream) -> list[tuple[str, type[AiosHandler], dict[str, Any]]]:
    """The routes, for `ExtensionApp.handlers`."""
    one = r"([^/]+)"
    return [
        (rf"/aios/leases/{one}/extend", ExtendHandler, {"stream": stream}),
        (rf"/aios/queue/{one}/priority", PriorityHandler, {"stream": stream}),
        (rf"/aios/batches/{one}/stop", StopBatchHandler, {"stream": stream}),
        (rf"/aios/models/{one}/aliases/{one}", AliasHandler, {"stream": stream}),
    ]


def _promote(ref: str, alias: str) -> dict[str, Any]:
    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        return _moved(session.promote(ref, alias))


def _rollback(name: str, alias: str) -> dict[str, Any]:
    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        return _moved(session.rollback(name, alias))


def _moved(version: Any) -> dict[str, Any]:
    return {"name": version.name, "version": version.version, "aliases": list(version.aliases)}
