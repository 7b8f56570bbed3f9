"""The HTTP surface of one model: Open Inference Protocol v2, plain JSON, MLflow's, Prometheus.

    GET  /v2/health/live, /v2/health/ready, /ping     no token; 200 or 503
    GET  /v2, /v2/models/NAME[/versions/V][/ready]     metadata, readiness
    POST /v2/models/NAME[/versions/V]/infer            v2, JSON or binary tensors
    POST /predict                                      {"inputs": …} (or a v2 binary body)
    POST /invocations                                  as MLflow's clients send it
    GET  /metrics, /openapi.json

Every route but health needs `Authorization: Bearer TOKEN`. Whatever is refused is a status with
`{"error": sentence}`. A leaf module: it imports starlette and numpy, never torch or MLflow.
"""

from __future__ import annotations

import logging
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
from .batching import Batcher, OverloadedError
from .gate import JSON, Gate, RefusedError, Reply, http_error
from .openapi import document
from .predictor import Predictor
from .protocol_v2 import HEADER, decode_request, dump, encode_response, json_ready
from .signature import Signature, Tensor, as_input
from .telemetry import Telemetry

log = logging.getLogger(__name__)

MAX_BODY = 64 << 20
"""Bytes of a request at most, unless told otherwise."""

_HEADER = HEADER.lower().encode()


class Service:
    """One model behind HTTP.

    Parameters
    ----------
    predictor
        The open model.
    name, version
        What it is called in URLs and replies.
    token
        What a client must send.
    max_body
        Bytes of a request at most.
    max_rows
        Samples in one batch at most; 1 turns batching off.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        version: str,
        token: str,
        *,
        max_body: int = MAX_BODY,
        max_rows: int = 64,
    ) -> None:
        self.signature: Signature = predictor.signature
        self.name = name
        self.version = version
        self.telemetry = Telemetry(name, version)
        self.batcher = Batcher(
            predictor.run,
            batched=self.signature.batched and max_rows > 1,
            max_rows=max_rows,
            on_batch=self.telemetry.batch,
        )
        self.draining = False
        self._gate = Gate(token, max_body, self.telemetry.request)
        self._openapi = dump(document(name, version, self.signature, __version__))

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
            route("/openapi.json", "GET", self._document),
        ]

    async def _run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if self.draining:
            raise RefusedError(
                503, "The endpoint is stopping; ask again in a moment.", connection="close"
            )
        try:
            return await self.batcher.submit(inputs)
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
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            **msgspec.to_builtins(self.signature),
        }

    async def _infer(self, scope: Scope, body: bytes) -> Reply:
        self._this_model(scope)
        return await self._infer_v2(scope, body)

    async def _infer_v2(self, scope: Scope, body: bytes) -> Reply:
        request = decode_request(body, _json_length(scope), self.signature)
        outputs = await self._run(request.inputs)
        content, length = encode_response(
            self.name, self.version, request.id, outputs, request.outputs
        )
        return Reply(content, length, JSON if length is None else b"application/octet-stream")

    async def _predict(self, scope: Scope, body: bytes) -> Reply:
        if _json_length(scope) is not None:
            return await self._infer_v2(scope, body)
        given = _json(body)
        if not isinstance(given, dict) or "inputs" not in given:
            raise UsageError('Send {"inputs": [[…], …]} with one entry for each sample.')
        outputs = await self._run(self._from_json(given["inputs"]))
        reply = {"outputs": _plain(outputs), "model": self.name, "version": self.version}
        return Reply(dump(reply))

    async def _invocations(self, scope: Scope, body: bytes) -> Reply:
        given = _json(body)
        if not isinstance(given, dict):
            raise UsageError(
                "Send an object with inputs, instances, dataframe_split or dataframe_records."
            )
        outputs = await self._run(self._from_json(_mlflow_inputs(given, self.signature)))
        return Reply(dump({"predictions": _plain(outputs)}))

    async def _metrics(self, scope: Scope, body: bytes) -> Reply:
        content, kind = self.telemetry.text()
        return Reply(content, content_type=kind)

    async def _document(self, scope: Scope, body: bytes) -> Reply:
        return Reply(self._openapi)

    def _this_model(self, scope: Scope) -> None:
        asked = scope["path_params"]
        if asked["name"] != self.name:
            raise NotFoundError(
                f"There is no model {asked['name']!r} here; this endpoint serves {self.name!r}."
            )
        if asked.get("version", self.version) != self.version:
            raise NotFoundError(
                f"Version {asked['version']} is not served here; this is version {self.version}."
            )

    def _from_json(self, values: Any) -> dict[str, np.ndarray]:
        """Inputs of the model from plain JSON: a list, or an object by input name."""
        signature = self.signature
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
