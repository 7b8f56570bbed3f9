"""The OpenAPI file says what the handlers do, no more and no less."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tornado.httpclient import HTTPClientError

import aios_jupyter.server
from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.routes import AiosHandler

FILE = Path(aios_jupyter.server.__file__).parent / "openapi.yaml"
SPEC: dict[str, Any] = yaml.safe_load(FILE.read_text())
METHODS = ("get", "post", "put", "patch", "delete")


def described() -> dict[str, set[str]]:
    return {path: set(item) & set(METHODS) for path, item in SPEC["paths"].items()}


def schema(path: str, method: str, status: str) -> dict[str, Any]:
    """What an answer has to look like; references are within the document."""
    answer = SPEC["paths"][path][method]["responses"][status]
    found = answer["content"]["application/json"]["schema"]
    return {**found, "components": SPEC["components"]}


REFUSAL = {"$ref": "#/components/schemas/Refusal", "components": SPEC["components"]}


def test_every_route_of_the_extension_is_described(server: AiosApp) -> None:
    handled = {}
    for pattern, handler, *_ in server.handlers:
        if issubclass(handler, AiosHandler):
            overridden = {m for m in METHODS if m in vars(handler)}
            handled[re.sub(r"\([^)]*\)", "{}", pattern.rstrip("$"))] = overridden
    written = {re.sub(r"\{[^}]*\}", "{}", path): methods for path, methods in described().items()}
    assert handled == written, "server/openapi.yaml has to be brought in line with the handlers"


@pytest.mark.parametrize("path", SPEC["paths"])
def test_each_operation_names_its_path_and_says_what_a_refusal_is(path: str) -> None:
    for method in described()[path]:
        operation = SPEC["paths"][path][method]
        named = [one["name"] for one in operation.get("parameters", []) if one.get("in") == "path"]
        assert named == re.findall(r"\{([^}]*)\}", path)
        assert operation["responses"]["default"] == {"$ref": "#/components/responses/Refusal"}
        assert operation["summary"].endswith(".")


@pytest.mark.parametrize(
    ("path", "method", "status", "asked"),
    [
        ("/aios/snapshot", "get", "200", "aios/snapshot"),
        ("/aios/events", "get", "200", "aios/events"),
        ("/aios/me", "get", "200", "aios/me"),
        ("/aios/leases/{lease}", "delete", "200", "aios/leases/l-7c1"),
        ("/aios/queue/{request}", "delete", "200", "aios/queue/q-a1"),
        ("/aios/runs/{run}/stop", "post", "202", "aios/runs/r-digits-cnn/stop"),
        ("/aios/batches/{batch}/stop", "post", "202", "aios/batches/batch-9c/stop"),
        ("/aios/runs/{run}/logs", "get", "200", "aios/runs/r-digits-cnn/logs"),
        ("/aios/runs/{run}/metrics", "get", "200", "aios/runs/r-digits-cnn/metrics"),
        ("/aios/history", "get", "200", "aios/history"),
        ("/aios/kernels", "get", "200", "aios/kernels"),
    ],
)
async def test_answers_are_as_described(
    server: AiosApp, jp_fetch: Any, path: str, method: str, status: str, asked: str
) -> None:
    body = {"body": "{}"} if method == "post" else {}
    response = await jp_fetch(asked, method=method.upper(), **body)
    assert str(response.code) == status
    jsonschema.validate(json.loads(response.body), schema(path, method, status))


async def test_a_state_that_is_known_is_as_described(server: AiosApp, jp_fetch: Any) -> None:
    first = json.loads((await jp_fetch("aios/snapshot")).body)
    known = {"stream": first["stream"], "seq": str(first["seq"])}
    again = json.loads((await jp_fetch("aios/snapshot", params=known)).body)
    jsonschema.validate(again, schema("/aios/snapshot", "get", "200"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**again, "unchanged": False}, schema("/aios/snapshot", "get", "200"))


@pytest.mark.parametrize("asked", ["aios/leases/l-none", "aios/leases/l-b44"])
async def test_refusals_are_as_described(server: AiosApp, jp_fetch: Any, asked: str) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(asked, method="DELETE")
    assert refused.value.response is not None
    jsonschema.validate(json.loads(refused.value.response.body), REFUSAL)
