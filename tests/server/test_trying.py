"""The routes on which an endpoint is tried: a real endpoint is in `tests/session/test_trying.py`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import msgspec
import pytest
from tornado.httpclient import HTTPClientError

from aios_jupyter import session
from aios_jupyter.errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError
from aios_jupyter.models import client
from aios_jupyter.server import trying
from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.limits import Limits
from aios_jupyter.server.routes import LIMITS

from .test_openapi import schema
from .test_routes import answer, refusal

PREDICT = "aios/endpoints/digits/predict"
COLUMNS = [
    {"name": "age", "datatype": "FP64", "shape": [-1], "missing": True},
    {"name": "city", "datatype": "BYTES", "shape": [-1]},
]


class Tried:
    """What the routes use of a session; `refuses` what it is asked with that error."""

    asked: list[tuple[str, bytes]] = []
    refuses: AiosError | None = None

    def __init__(self, **options: Any) -> None:
        assert options == {"start": False, "passive": True, "label": "server"}

    def __enter__(self) -> Tried:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def endpoint_form(self, name: str) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
        about = {"name": name, "model": "people", "versions": ("3", "4"), "note": ""}
        example = {"age": [None], "city": ["Ulm"]}
        return {**about, "inputs": COLUMNS, "outputs": outputs, "example": example}

    def try_endpoint(self, name: str, body: bytes) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append((name, body))
        outputs = msgspec.Raw(b'[[1,18446744073709551615,null,"</script>"]]')
        return {"outputs": outputs, "version": "4", "milliseconds": 1.5}


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> type[Tried]:
    monkeypatch.setattr(session, "connect", Tried)
    monkeypatch.setattr(Tried, "asked", [])
    monkeypatch.setattr(Tried, "refuses", None)
    return Tried


async def test_a_form_is_as_described(jp_fetch: Any, server: AiosApp) -> None:
    got = answer(await jp_fetch("aios/endpoints/digits"))
    jsonschema.validate(got, schema("/aios/endpoints/{name}", "get", "200"))
    assert (got["inputs"], got["example"]) == (COLUMNS, {"age": [None], "city": ["Ulm"]})


async def test_what_is_sent_reaches_the_endpoint_and_its_answer_comes_back_as_it_is(
    jp_fetch: Any, server: AiosApp, tried: type[Tried]
) -> None:
    body = '{"inputs": {"age": [9007199254740993], "city": ["<b>"]}}'
    response = await jp_fetch("aios/endpoints/two words/predict", method="POST", body=body)
    assert tried.asked == [("two words", body.encode())]
    assert b'"outputs":[[1,18446744073709551615,null,"</script>"]]' in response.body
    assert response.headers["Content-Type"].startswith("application/json")
    jsonschema.validate(answer(response), schema("/aios/endpoints/{name}/predict", "post", "200"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (
            AccessError("The endpoint 'digits' belongs to bob, who alone has its token; ask them."),
            403,
        ),
        (NotFoundError("No endpoint 'digits' is live; 'aios endpoints' lists them."), 404),
        (UsageError("Input 'x' is ragged: make every inner list the same length."), 400),
        (ConflictError("Too many requests wait already; ask again in a moment."), 409),
    ],
)
async def test_a_refusal_is_the_sentence_of_who_refuses(
    jp_fetch: Any, server: AiosApp, monkeypatch: pytest.MonkeyPatch, error: AiosError, status: int
) -> None:
    monkeypatch.setattr(Tried, "refuses", error)
    for path, options in ((PREDICT[:-8], {}), (PREDICT, {"method": "POST", "body": "{}"})):
        with pytest.raises(HTTPClientError) as caught:
            await jp_fetch(path, **options)
        assert refusal(caught) == (status, str(error))


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 429, 500, 503])
def test_each_status_of_an_endpoint_keeps_its_sentence(status: int) -> None:
    error = client._error(status, b'{"error": "A sentence."}', "http://e")
    assert str(error) == "A sentence."


async def test_a_body_that_is_too_large_is_not_sent_on(
    jp_fetch: Any, server: AiosApp, tried: type[Tried]
) -> None:
    body = b"[" * (trying.MOST_BODY + 1)
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch(PREDICT, method="POST", body=body)
    assert refusal(caught) == (413, "That is more than 8 MB; ask the endpoint with a program.")
    assert tried.asked == []


async def test_whoever_tries_too_often_waits(
    jp_fetch: Any, server: AiosApp, jp_serverapp: Any, tried: type[Tried]
) -> None:
    jp_serverapp.web_app.settings[LIMITS] = Limits(reads=0, writes=0.001, burst=2000)
    for _ in range(2):
        await jp_fetch(PREDICT, method="POST", body="{}")
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch(PREDICT, method="POST", body="{}")
    assert refusal(caught)[0] == 429
    assert len(tried.asked) == 2


async def test_a_slow_endpoint_leaves_threads_to_the_other_routes(
    jp_fetch: Any, server: AiosApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    release, at_work, most, lock = threading.Event(), 0, 0, threading.Lock()

    def slow(name: str, body: bytes) -> bytes:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        assert release.wait(60)
        with lock:
            at_work -= 1
        return json.dumps({"outputs": [], "version": "1", "milliseconds": 1}).encode()

    monkeypatch.setattr(trying, "_answer", slow)
    calls = [asyncio.ensure_future(jp_fetch(PREDICT, method="POST", body="{}")) for _ in range(6)]
    try:
        while at_work < trying.AT_ONCE:  # noqa: ASYNC110  # a thread says so
            await asyncio.sleep(0.01)
        assert (await jp_fetch("aios/snapshot")).code == 200
    finally:
        release.set()
    assert [one.code for one in await asyncio.gather(*calls)] == [200] * 6
    assert most == trying.AT_ONCE
