"""The HTTP surface of one model: Open Inference Protocol v2, plain JSON, MLflow's, Prometheus.

    GET  /v2/health/live, /v2/health/ready, /ping     no token; 200 or 503
    GET  /v2, /v2/models/NAME[/versions/V][/ready]     metadata, readiness
    POST /v2/models/NAME[/versions/V]/infer            v2, JSON or binary tensors
    POST /predict                                      {"inputs": …} (or a v2 binary body)
    POST /invocations                                  as MLflow's clients send it
    GET  /metrics, /monitor, /openapi.json

Every route but health needs `Authorization: Bearer TOKEN`. Whatever is refused is a status with
`{"error": sentence}`. A leaf module: it imports starlette and numpy, never torch or MLflow.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Scope

from .._version import __version__
from ..errors import AiosError, NotFoundError, UsageError
from ..schema import Struct
from .batching import Arrays, Batcher, OverloadedError
from .forms import from_json, mlflow_inputs, plain, read_json
from .gate import JSON, Gate, Rate, RefusedError, Reply, Shortcuts, http_error
from .openapi import document
from .plan import MAX_BODY
from .predictor import Predictor
from .profile import Window
from .protocol_v2 import HEADER, decode_request, dump, encode_response
from .signature import Signature
from .telemetry import Telemetry

log = logging.getLogger(__name__)

_HEADER = HEADER.lower().encode()

MOST_COPIES = 64
"""Copies of requests that a shadow may have in hand; more are dropped."""


class Limits(Struct, frozen=True):
    """What an endpoint takes.

    Attributes
    ----------
    max_body
        Bytes of a request at most.
    max_rows
        Samples in one batch at most; 1 turns batching off.
    rate
        Requests a second, None for any number.
    max_seconds
        What a request may take; one that would wait for longer is refused. None for any time.
    """

    max_body: int = MAX_BODY
    max_rows: int = 64
    rate: float | None = None
    max_seconds: float | None = None


class Deployed:
    """One version that is open: its model, its batches, its numbers."""

    def __init__(
        self, predictor: Predictor, version: str, telemetry: Telemetry, limits: Limits
    ) -> None:
        self.signature: Signature = predictor.signature
        self.version = version
        self.counted = telemetry.version(version)
        self.window = Window()
        self.batcher = Batcher(
            predictor.run,
            batched=self.signature.batched and limits.max_rows > 1,
            max_rows=limits.max_rows,
            max_seconds=limits.max_seconds,
            on_batch=self.counted.batch,
        )

    async def retire(self) -> None:
        """End once the requests that came for it are answered."""
        await self.batcher.drained()
        self.batcher.close()


class Service:
    """A model behind HTTP: one version, and perhaps others beside it.

    A canary answers a share of the requests. A shadow gets a copy of each; nobody gets its answers,
    which are compared with those that were given.

    Parameters
    ----------
    predictor, version
        The open model.
    name
        What it is called in URLs and replies.
    token
        What a client must send.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        version: str,
        token: str,
        limits: Limits = Limits(),  # noqa: B008  # frozen
    ) -> None:
        self.name = name
        self.limits = limits
        self.telemetry = Telemetry(name)
        self._main = self.deployed(predictor, version)
        self._canary: Deployed | None = None
        self._shadow: Deployed | None = None
        self._share = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._copies = 0
        self.draining = False
        self._gate = Gate(token, limits.max_body, self._count, Rate(limits.rate))

    @property
    def version(self) -> str:
        """The version that answers (most) requests."""
        return self._main.version

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self._main.signature

    def deployed(self, predictor: Predictor, version: str) -> Deployed:
        """A version of this model, ready to be put in place."""
        return Deployed(predictor, version, self.telemetry, self.limits)

    def put(
        self,
        main: Deployed,
        canary: Deployed | None = None,
        share: float = 0.0,
        shadow: Deployed | None = None,
    ) -> None:
        """From now on these answer; requests in flight are finished by what they came for."""
        kept = {id(main), id(canary), id(shadow)}
        old = [one for one in (*self.open(), self._shadow) if one is not None]
        self._main, self._canary, self._share, self._shadow = main, canary, share, shadow
        for one in old:
            if id(one) not in kept:
                self._beside(one.retire())

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def open(self) -> tuple[Deployed, Deployed | None]:
        """The versions that answer."""
        return self._main, self._canary

    def loaded(self) -> list[Deployed]:
        """All versions in place."""
        return [one for one in (self._main, self._canary, self._shadow) if one is not None]

    def limit(self, rate: float) -> None:
        """Let so many requests a second through from now on."""
        self._gate.let_through(Rate(rate))

    def shed(self, connections: int | None) -> None:
        """Let go of so many kept connections, each with its next reply; None: of all."""
        self._gate.shed(connections)

    @property
    def shedding(self) -> int | None:
        """Replies that are still to end their connection; None: all."""
        return self._gate.closing

    async def close(self) -> None:
        """Finish what runs."""
        for one in self.loaded():
            await one.retire()

    def _count(self, answered_by: Deployed | None, status: int, seconds: float) -> None:
        self.telemetry.request((answered_by or self._main).counted, status, seconds)

    def _chosen(self, version: str | None = None) -> Deployed:
        """What answers a request: the version it names, or one by lot."""
        if self._canary is None:
            return self._main
        if version is not None:
            return self._canary if version == self._canary.version else self._main
        return self._canary if random.random() < self._share else self._main  # noqa: S311

    def app(self) -> ASGIApp:
        """The ASGI application."""
        whole = Starlette(routes=self._routes(), exception_handlers={HTTPException: http_error})
        asked = ("/predict", "/invocations", f"/v2/models/{self.name}/infer")
        return Shortcuts(whole, asked)

    def _routes(self) -> list[BaseRoute]:
        route = self._gate.route
        routes: list[BaseRoute] = [
            route("/v2/health/live", "GET", self._live, public=True),
            route("/v2/health/ready", "GET", self._ready, public=True),
            route("/ping", "GET", self._ready, public=True),
        ]
        models = "/v2/models/{name}"
        for base in (models, models + "/versions/{version}"):
            routes += [
                route(base + "/infer", "POST", self._infer, counted=True),
                route(base + "/ready", "GET", self._model_ready),
                route(base, "GET", self._metadata),
            ]
        return [
            *routes,
            route("/predict", "POST", self._predict, counted=True),
            route("/invocations", "POST", self._invocations, counted=True),
            route("/v2", "GET", self._server),
            route("/metrics", "GET", self._metrics),
            route("/monitor", "GET", self._monitor),
            route("/openapi.json", "GET", self._document),
        ]

    async def _run(self, model: Deployed, inputs: Arrays) -> Arrays:
        if self.draining:
            raise RefusedError(
                503, "The endpoint is stopping; ask again in a moment.", connection="close"
            )
        try:
            outputs = await model.batcher.submit(inputs)
        except OverloadedError:
            raise RefusedError(
                503,
                "Too many requests wait already; ask again in a moment.",
                **{"retry-after": "1"},
            ) from None
        except AiosError:
            raise
        except Exception as error:  # the model itself, on inputs that match its signature
            log.warning("the model failed on a request", exc_info=True)
            line = str(error).strip().splitlines()
            raise RefusedError(
                422, f"The model failed on this input ({line[0] if line else error!r})."
            ) from error
        model.window.add(inputs, outputs)
        if self._shadow is not None:
            self._copy(self._shadow, inputs, outputs)
        return outputs

    def _copy(self, shadow: Deployed, inputs: Arrays, given: Arrays) -> None:
        """Ask the shadow too, where it is not behind already: it must slow nobody down."""
        if self._copies >= MOST_COPIES or shadow.signature.inputs != self.signature.inputs:
            shadow.counted.shadow("dropped").inc()
            return
        self._copies += 1
        self._beside(self._compare(shadow, inputs, given))

    async def _compare(self, shadow: Deployed, inputs: Arrays, given: Arrays) -> None:
        try:
            answer = agreement(given, await shadow.batcher.submit(inputs))
        except OverloadedError:
            answer = "dropped"
        except Exception:  # the model itself: what it does is what the shadow is there to show
            log.warning("the shadow failed on a request", exc_info=True)
            answer = "failed"
        finally:
            self._copies -= 1
        shadow.counted.shadow(answer).inc()

    # --- handlers ---------------------------------------------------------------------------------

    async def _live(self, scope: Scope, body: bytes) -> Reply:
        return Reply(dump({"live": True}))

    async def _ready(self, scope: Scope, body: bytes) -> Reply:
        ready = not self.draining
        return Reply(dump({"ready": ready}), status=200 if ready else 503)

    async def _server(self, scope: Scope, body: bytes) -> Reply:
        return Reply(
            dump(
                {
                    "name": "aios-jupyter",
                    "version": __version__,
                    "extensions": ["binary_tensor_data"],
                    "model": self._description(),
                }
            )
        )

    async def _model_ready(self, scope: Scope, body: bytes) -> Reply:
        self._this_model(scope)
        ready = not self.draining
        return Reply(dump({"name": self.name, "ready": ready}), status=200 if ready else 503)

    async def _metadata(self, scope: Scope, body: bytes) -> Reply:
        self._this_model(scope)
        return Reply(dump(self._description()))

    def _description(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [one.version for one in self.open() if one is not None],
            "platform": "onnxruntime_onnx",
            **msgspec.to_builtins(self.signature),
        }

    async def _infer(self, scope: Scope, body: bytes) -> Reply:
        self._this_model(scope)
        return await self._infer_v2(scope, body)

    async def _infer_v2(self, scope: Scope, body: bytes) -> Reply:
        model = self._chosen(scope["path_params"].get("version"))
        request = decode_request(body, _json_length(scope), model.signature)
        outputs = await self._run(model, request.inputs)
        content, length = encode_response(
            self.name, model.version, request.id, outputs, request.outputs
        )
        kind = JSON if length is None else b"application/octet-stream"
        return Reply(content, length, kind, answered_by=model)

    async def _predict(self, scope: Scope, body: bytes) -> Reply:
        if _json_length(scope) is not None:
            return await self._infer_v2(scope, body)
        given = read_json(body)
        if not isinstance(given, dict) or "inputs" not in given:
            raise UsageError('Send {"inputs": [[…], …]} with one entry for each sample.')
        model = self._chosen()
        outputs = await self._run(model, from_json(given["inputs"], model.signature))
        reply = {"outputs": plain(outputs), "model": self.name, "version": model.version}
        return Reply(dump(reply), answered_by=model)

    async def _invocations(self, scope: Scope, body: bytes) -> Reply:
        given = read_json(body)
        if not isinstance(given, dict):
            raise UsageError(
                "Send an object with inputs, instances, dataframe_split or dataframe_records."
            )
        model = self._chosen()
        values = mlflow_inputs(given, model.signature)
        outputs = await self._run(model, from_json(values, model.signature))
        return Reply(dump({"predictions": plain(outputs)}), answered_by=model)

    async def _metrics(self, scope: Scope, body: bytes) -> Reply:
        content, kind = self.telemetry.text()
        return Reply(content, content_type=kind)

    async def _monitor(self, scope: Scope, body: bytes) -> Reply:
        main = self._main
        return Reply(dump({"version": main.version, "features": main.window.values()}))

    async def _document(self, scope: Scope, body: bytes) -> Reply:
        return Reply(dump(document(self.name, self.version, self.signature, __version__)))

    def _this_model(self, scope: Scope) -> None:
        asked = scope["path_params"]
        if asked["name"] != self.name:
            raise NotFoundError(
                f"There is no model {asked['name']!r} here; this endpoint serves {self.name!r}."
            )
        here = [one.version for one in self.open() if one is not None]
        if asked.get("version", here[0]) not in here:
            raise NotFoundError(
                f"Version {asked['version']} is not served here; this is version "
                f"{' and '.join(here)}."
            )


def agreement(given: Arrays, answered: Arrays) -> str:
    """Whether two versions answer the "same": the same classes, or nearly the same numbers."""
    for name, array in given.items():
        other = answered.get(name)
        if other is None or other.shape != array.shape:
            return "different"
        if array.dtype.kind != "f":
            same = np.array_equal(array, other)
        elif array.ndim == 2 and array.shape[1] > 1:  # scores of classes
            same = np.array_equal(array.argmax(1), other.argmax(1))
        else:
            same = np.allclose(array, other, rtol=0.01, atol=1e-6, equal_nan=True)
        if not same:
            return "different"
    return "same"


def _json_length(scope: Scope) -> str | None:
    for key, value in scope["headers"]:
        if key == _HEADER:
            return str(value, "latin-1")
    return None
