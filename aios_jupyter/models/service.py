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
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import Scope

from .._version import __version__
from ..errors import AiosError, NotFoundError, UsageError
from ..schema import Struct
from .batching import Batcher, OverloadedError
from .gate import JSON, Gate, Rate, RefusedError, Reply, http_error
from .openapi import document
from .predictor import Predictor
from .profile import Window
from .protocol_v2 import HEADER, decode_request, dump, encode_response, json_ready
from .signature import Signature, Tensor, as_input
from .supervisor import MAX_BODY
from .telemetry import Telemetry

log = logging.getLogger(__name__)

_HEADER = HEADER.lower().encode()


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
    """A model behind HTTP: one version, and perhaps a second that gets a share of the requests.

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
        self._share = 0.0
        self._retiring: set[asyncio.Task[None]] = set()
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

    def put(self, main: Deployed, canary: Deployed | None = None, share: float = 0.0) -> None:
        """From now on these answer; requests in flight are finished by what they came for."""
        kept = {id(main), id(canary)}
        old = [one for one in (self._main, self._canary) if one is not None]
        self._main, self._canary, self._share = main, canary, share
        for one in old:
            if id(one) not in kept:
                task = asyncio.get_running_loop().create_task(one.retire())
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

    def open(self) -> tuple[Deployed, Deployed | None]:
        """The versions in place."""
        return self._main, self._canary

    async def close(self) -> None:
        """Finish what runs."""
        for one in (self._main, self._canary):
            if one is not None:
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

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=self._routes(), exception_handlers={HTTPException: http_error})

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

    async def _run(
        self, model: Deployed, inputs: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
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
        return outputs

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
        given = _json(body)
        if not isinstance(given, dict) or "inputs" not in given:
            raise UsageError('Send {"inputs": [[…], …]} with one entry for each sample.')
        model = self._chosen()
        outputs = await self._run(model, _from_json(given["inputs"], model.signature))
        reply = {"outputs": _plain(outputs), "model": self.name, "version": model.version}
        return Reply(dump(reply), answered_by=model)

    async def _invocations(self, scope: Scope, body: bytes) -> Reply:
        given = _json(body)
        if not isinstance(given, dict):
            raise UsageError(
                "Send an object with inputs, instances, dataframe_split or dataframe_records."
            )
        model = self._chosen()
        values = _mlflow_inputs(given, model.signature)
        outputs = await self._run(model, _from_json(values, model.signature))
        return Reply(dump({"predictions": _plain(outputs)}), answered_by=model)

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


def _from_json(values: Any, signature: Signature) -> dict[str, np.ndarray]:
    """Inputs of a model from plain JSON: a list, or an object by input name."""
    if isinstance(values, dict):
        named = {signature.input(name).name: value for name, value in values.items()}
    elif len(signature.inputs) == 1:
        named = {signature.inputs[0].name: values}
    else:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise UsageError(f"The model takes several inputs; send an object with {names}.")
    arrays = {name: as_input(signature.input(name), value) for name, value in named.items()}
    signature.check(arrays)
    return arrays


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"The body is not JSON ({error}); send a JSON object.") from None


def _json_length(scope: Scope) -> str | None:
    for key, value in scope["headers"]:
        if key == _HEADER:
            return str(value, "latin-1")
    return None


def _plain(outputs: Mapping[str, np.ndarray]) -> Any:
    if len(outputs) == 1:
        return json_ready(next(iter(outputs.values())))
    return {name: json_ready(array) for name, array in outputs.items()}


def _mlflow_inputs(given: dict[str, Any], signature: Signature) -> Any:
    """The four forms of MLflow's scoring protocol as `_from_json` takes them."""
    for key in ("inputs", "instances"):
        if key in given:
            return given[key]
    try:
        if "dataframe_split" in given:
            frame = given["dataframe_split"]
            columns, rows = list(frame.get("columns", [])), list(frame["data"])
        elif "dataframe_records" in given:
            records = list(given["dataframe_records"])
            columns = list(records[0])
            rows = [[record[column] for column in columns] for record in records]
        else:
            raise UsageError("Send one of inputs, instances, dataframe_split or dataframe_records.")
        names = {tensor.name for tensor in signature.inputs}
        if names.issubset(columns):
            at = {name: columns.index(name) for name in names}
            return {
                tensor.name: _column([row[at[tensor.name]] for row in rows], tensor)
                for tensor in signature.inputs
            }
    except (TypeError, KeyError, IndexError, AttributeError):
        raise UsageError(
            "The data frame is not complete; send columns and data, each row with every column."
        ) from None
    return rows


def _column(values: list[Any], tensor: Tensor) -> list[Any]:
    """One number a row becomes a row of one where the model wants a matrix."""
    flat = not values or not isinstance(values[0], list)
    return [[value] for value in values] if flat and len(tensor.shape) == 2 else values
