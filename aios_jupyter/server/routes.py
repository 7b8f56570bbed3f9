"""REST under `aios/`: what the sidebar asks and does. Every route is authenticated and authorized.

GET    aios/snapshot?stream=&seq=   the whole state, or `unchanged` when the caller has it already
POST   aios/cluster                 start the embedded cluster; body {"simulate_gpus": N}, optional
DELETE aios/leases/ID               release a lease
DELETE aios/queue/ID                cancel a request
POST   aios/runs/ID/stop            stop a run
GET    aios/models                  models of the registry

`watching.py`, `acting.py`, `datasets.py` and `trying.py` have further ones, `telling.py` those for
programs; `openapi.yaml` describes all. Who asks too often gets 429.

An error is `{"message": SENTENCE}` with the status that `STATUS` gives its class.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from .. import errors
from .stream import Stream

STATUS: dict[type[errors.AiosError], int] = {
    errors.UsageError: 400,
    errors.AccessError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.AllocationError: 409,
    errors.RunError: 409,
    errors.MissingExtraError: 501,
    errors.ClusterError: 503,
    errors.AiosError: 500,
}
# Where the server's settings have the `Limits`.
LIMITS = "aios_limits"


class AiosHandler(APIHandler):
    """Base of the routes: the stream, and the one place where errors become answers."""

    auth_resource = "aios"

    def initialize(self, stream: Stream) -> None:
        """Take the stream that the extension made."""
        self.stream = stream

    def skip_check_origin(self) -> bool:
        """A page of another origin gets nothing, also one that has a token (`allow_origin` may)."""
        return False

    async def prepare(self) -> None:  # type: ignore[override]
        """Refuse who asks too often."""
        await super().prepare()
        user, limits = self.current_user, self.settings.get(LIMITS)
        if user is None or limits is None or self._finished:
            return
        # Jupyter makes up a new user for each request that comes with the server's own token.
        who = "token" if self.token_authenticated else user.username
        write = self.request.method not in ("GET", "HEAD", "OPTIONS")
        wait = limits.wait(who, write=write, now=time.monotonic())
        if wait:
            self.set_header("Retry-After", str(math.ceil(wait)))
            sentence = f"That was asked too often; try again in {math.ceil(wait)} s."
            self.answer({"message": sentence}, 429)

    def answer(self, body: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.finish(json.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer an `AiosError` with its sentence and the status of its class."""
        error = kwargs.get("exc_info", (None, None))[1]
        if not isinstance(error, errors.AiosError):
            super().write_error(status_code, **kwargs)
            return
        status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
        self.answer({"message": str(error)}, status)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A user's mistake is not a failure of the server: no traceback in its log."""
        if not isinstance(value, errors.AiosError):
            super().log_exception(typ, value, tb)

    def whole_number(self, name: str, default: int | None, *, most: int) -> int | None:
        """Read a query argument that is a count.

        Raises
        ------
        UsageError
            It is not a whole number from 0 to `most`.
        """
        text = self.get_query_argument(name, "")
        if not text:
            return default
        if not text.isdecimal() or int(text) > most:
            raise errors.UsageError(f"{name}={text!r} is not a whole number from 0 to {most}.")
        return int(text)


class SnapshotHandler(AiosHandler):
    """The whole state."""

    _track_activity = False  # a poll is not a person: the hub may still cull an idle server

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the state, or with `unchanged` for a caller who is up to date."""
        current = self.stream.mirror.current()
        known = (self.get_query_argument("stream", ""), self.get_query_argument("seq", ""))
        if known == (current["stream"], str(current["seq"])):
            current = {key: current[key] for key in ("stream", "seq", "time")} | {"unchanged": True}
        self.answer(current)


class ClusterHandler(AiosHandler):
    """The cluster as a whole."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Start the embedded cluster, wait until it is in view, and answer with the state."""
        simulate = (self.get_json_body() or {}).get("simulate_gpus")
        if simulate is not None and (type(simulate) is not int or simulate < 0):
            raise errors.UsageError("simulate_gpus must be a whole number, 0 or more.")
        await asyncio.to_thread(_start, simulate)
        await self.stream.started(timeout=20)
        self.answer(self.stream.mirror.current(), 201)


class LeaseHandler(AiosHandler):
    """One lease."""

    @web.authenticated
    @authorized
    async def delete(self, lease: str) -> None:
        """Release it."""
        await self.stream.call("release", {"id": lease})
        self.answer({"released": lease})


class RequestHandler(AiosHandler):
    """One request in the queue."""

    @web.authenticated
    @authorized
    async def delete(self, request: str) -> None:
        """Cancel it."""
        await self.stream.call("cancel", {"id": request})
        self.answer({"cancelled": request})


class StopRunHandler(AiosHandler):
    """The end of a run."""

    @web.authenticated
    @authorized
    async def post(self, run: str) -> None:
        """Stop it: SIGTERM, grace, SIGKILL."""
        await self.stream.call("run.stop", {"id": run})
        self.answer({"stopping": run}, 202)


class ModelsHandler(AiosHandler):
    """The model registry."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the models, their versions and aliases."""
        self.answer({"models": await asyncio.to_thread(_models)})


def handlers(stream: Stream) -> list[tuple[str, type[AiosHandler], dict[str, Any]]]:
    """The routes, for `ExtensionApp.handlers`."""
    one = r"([^/]+)"
    routes: list[tuple[str, type[AiosHandler]]] = [
        (r"/aios/snapshot", SnapshotHandler),
        (r"/aios/cluster", ClusterHandler),
        (rf"/aios/leases/{one}", LeaseHandler),
        (rf"/aios/queue/{one}", RequestHandler),
        (rf"/aios/runs/{one}/stop", StopRunHandler),
        (r"/aios/models", ModelsHandler),
    ]
    return [(pattern, handler, {"stream": stream}) for pattern, handler in routes]


def _start(simulate_gpus: int | None) -> None:
    from ..session import connect

    connect(simulate_gpus=simulate_gpus, passive=True, label="server").close()


def _models() -> list[dict[str, Any]]:
    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        models: list[dict[str, Any]] = session.models()
        return models
