"""The OpenAPI document of an endpoint, made from its model's signature. Pure."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from .signature import Signature, Tensor


def document(name: str, version: str, signature: Signature, software: str) -> dict[str, Any]:
    """OpenAPI 3.1 for one model."""
    model = f"/v2/models/{name}"
    infer = _post(
        "Infer (Open Inference Protocol v2)", _v2_request(signature), _v2_reply(signature)
    )
    plain = _post("Predict", _wrapped("inputs", _inputs(signature)), _predict_reply(signature))
    mlflow = _post(
        "Predict as MLflow's clients do",
        _wrapped("inputs", _inputs(signature)),
        _wrapped("predictions", _plain(signature.outputs, given=True)),
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{name} (version {version})", "version": software},
        "security": [{"token": []}],
        "paths": {
            "/v2/health/live": {"get": {**_get("Live"), "security": []}},
            "/v2/health/ready": {"get": {**_get("Ready"), "security": []}},
            "/ping": {"get": {**_get("Ready"), "security": []}},
            "/v2": {"get": _get("Server metadata")},
            model: {"get": _get("Model metadata")},
            f"{model}/ready": {"get": _get("Model readiness")},
            f"{model}/infer": {"post": infer},
            f"{model}/versions/{version}": {"get": _get("Model metadata")},
            f"{model}/versions/{version}/ready": {"get": _get("Model readiness")},
            f"{model}/versions/{version}/infer": {"post": infer},
            "/predict": {"post": plain},
            "/invocations": {"post": mlflow},
            "/metrics": {"get": _get("Prometheus metrics", "text/plain")},
            "/monitor": {"get": _get("Features of the samples answered last")},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _wrapped("error", {"type": "string"})},
        },
    }


_ERRORS = {
    "400": "The request does not match the model's signature.",
    "401": "The token is missing or wrong.",
    "404": "There is no such model or version here.",
    "408": "The request did not arrive in time.",
    "413": "The request is too large.",
    "415": "The request is compressed.",
    "429": "More requests come than are let through.",
    "422": "The model failed on this input.",
    "503": "The endpoint is stopping or overloaded.",
}


def _responses(ok: dict[str, Any]) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Error"}}
    refused = {
        code: {"description": words, "content": {"application/json": schema}}
        for code, words in _ERRORS.items()
    }
    return {"200": {"description": "As asked.", "content": ok}, **refused}


def _get(summary: str, content: str = "application/json") -> dict[str, Any]:
    return {"summary": summary, "responses": _responses({content: {}})}


def _post(summary: str, request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request}},
        },
        "responses": _responses({"application/json": {"schema": reply}}),
    }


def _wrapped(key: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [key], "properties": {key: schema}}


def _json_type(tensor: Tensor) -> str:
    if tensor.datatype == "BYTES":
        return "string"
    if tensor.datatype == "BOOL":
        return "boolean"
    return "number" if tensor.datatype.startswith("FP") else "integer"


def _nested(tensor: Tensor, *, given: bool = False) -> dict[str, Any]:
    """Lists in lists down to the values, with the sizes that are fixed.

    `given` by the model: JSON has no infinity and no NaN, for which there is null.
    """
    kind = _json_type(tensor)
    null = tensor.missing or (given and kind == "number")
    schema: dict[str, Any] = {"type": [kind, "null"] if null else kind}
    for size in reversed(tensor.shape):
        limits = {"minItems": size, "maxItems": size} if size > 0 else {"minItems": 1}
        schema = {"type": "array", "items": schema, **limits}
    return schema


def _plain(tensors: tuple[Tensor, ...], *, given: bool = False) -> dict[str, Any]:
    if len(tensors) == 1:
        return _nested(tensors[0], given=given)
    return {
        "type": "object",
        "required": [tensor.name for tensor in tensors],
        "properties": {tensor.name: _nested(tensor, given=given) for tensor in tensors},
        **({} if given else {"additionalProperties": False}),
    }


def _inputs(signature: Signature) -> dict[str, Any]:
    """All values of each input, or where they are columns an object for each row."""
    columns = _plain(signature.inputs)
    if not signature.of_rows:
        return columns
    fields = {tensor.name: _nested(replace(tensor, shape=())) for tensor in signature.inputs}
    row = {"type": "object", "required": list(fields), "properties": fields}
    return {"anyOf": [{"type": "array", "items": row, "minItems": 1}, columns]}


def _predict_reply(signature: Signature) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["outputs", "model", "version"],
        "properties": {
            "outputs": _plain(signature.outputs, given=True),
            "model": {"type": "string"},
            "version": {"type": "string"},
        },
    }


def _v2_tensors(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    item = {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"enum": [tensor.name for tensor in tensors]},
            "datatype": {"enum": sorted({tensor.datatype for tensor in tensors})},
            "shape": _shapes(tensors),
            "data": {"type": "array", "minItems": 1},
        },
    }
    return {"type": "array", "items": item, "minItems": 1}


def _shapes(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """Sizes along each dimension, as far as one schema can say it for all tensors."""
    ranks = [len(tensor.shape) for tensor in tensors]
    sizes = {"type": "integer", "minimum": 1}
    return {"type": "array", "items": sizes, "minItems": min(ranks), "maxItems": max(ranks)}


def _v2_request(signature: Signature) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {"id": {"type": "string"}, "inputs": _v2_tensors(signature.inputs)},
    }


def _v2_reply(signature: Signature) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "outputs": _v2_tensors(signature.outputs),
        },
    }
