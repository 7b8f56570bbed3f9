"""The routes: what they answer, how they refuse, and that strangers get nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from aios_jupyter import errors
from aios_jupyter.server import routes
from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.stream import Stream

from .conftest import eventually

ROUTES = [
    ("GET", "aios/snapshot"),
    ("POST", "aios/cluster"),
    ("DELETE", "aios/leases/l-7c1"),
    ("DELETE", "aios/queue/q-a1"),
    ("POST", "aios/runs/r-digits-cnn/stop"),
    ("GET", "aios/runs/r-digits-cnn/logs"),
    ("GET", "aios/models"),
    ("GET", "aios/events"),
    ("GET", "aios/metrics"),
    ("GET", "aios/me"),
]


def body_of(method: str) -> dict[str, Any]:
    return {"method": method, **({"body": "{}"} if method == "POST" else {})}


def answer(response: Any) -> Any:
    return json.loads(response.body)


def refusal(error: pytest.ExceptionInfo[HTTPClientError]) -> tuple[int, str]:
    response = error.value.response
    assert response is not None
    return error.value.code, json.loads(response.body)["message"]


def test_the_list_of_routes_is_complete(server: AiosApp) -> None:
    handlers = [found for _, found, *_ in server.handlers]
    ours = [found for found in handlers if issubclass(found, routes.AiosHandler)]
    assert len(ours) == len(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_who_is_not_authenticated(
    jp_fetch: Any, server: AiosApp, cluster: Any, method: str, path: str
) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(path, headers={"Authorization": "token wrong"}, **body_of(method))
    assert error.value.code == 403
    assert cluster.upstream.calls == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_who_is_not_authorized(
    jp_fetch: Any, server: AiosApp, cluster: Any, jp_serverapp: Any, method: str, path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = []

    def refuse(handler: Any, user: Any, action: str, resource: str) -> bool:
        asked.append(resource)
        return False

    monkeypatch.setattr(jp_serverapp.authorizer, "is_authorized", refuse)
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(path, **body_of(method))
    assert error.value.code == 403
    assert asked == ["aios"]
    assert cluster.upstream.calls == []


async def test_snapshot_has_every_section(jp_fetch: Any, server: AiosApp) -> None:
    got = answer(await jp_fetch("aios/snapshot"))
    sections = {"nodes", "devices", "queue", "leases", "reservations", "runs"}
    assert set(got["snapshot"]) == {"cluster", *sections}
    assert got["snapshot"]["devices"]["GPU-ada-01-0"]["holder"]["user"] == "ada"
    assert got["seq"] == 1


async def test_snapshot_is_not_sent_twice_to_who_has_it(jp_fetch: Any, server: AiosApp) -> None:
    first = answer(await jp_fetch("aios/snapshot"))
    known = {"stream": first["stream"], "seq": first["seq"]}
    again = answer(await jp_fetch("aios/snapshot", params=known))
    assert again["unchanged"] is True
    assert "snapshot" not in again


async def test_snapshot_says_that_there_is_no_cluster(
    jp_fetch: Any, server: AiosApp, cluster: Any
) -> None:
    upstream, cluster.upstream = cluster.upstream, None
    upstream.closed.set()
    await eventually(lambda: not server.stream.mirror.online)
    got = answer(await jp_fetch("aios/snapshot"))
    assert "aios up" in got["offline"]
    assert got["kind"] == "no-cluster"


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("DELETE", "aios/leases/l-7c1", ("release", {"id": "l-7c1"})),
        ("DELETE", "aios/queue/q-a1", ("cancel", {"id": "q-a1"})),
        ("POST", "aios/runs/r-digits-cnn/stop", ("run.stop", {"id": "r-digits-cnn"})),
    ],
)
async def test_an_action_is_passed_on_to_the_broker(
    jp_fetch: Any, server: AiosApp, cluster: Any, method: str, path: str, call: Any
) -> None:
    response = await jp_fetch(path, **body_of(method))
    assert response.code in (200, 202)
    assert cluster.upstream.calls == [call]


async def test_what_belongs_to_somebody_else_is_403_with_the_sentence(
    jp_fetch: Any, server: AiosApp
) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/leases/l-b44", method="DELETE")
    assert refusal(error) == (403, "Lease l-b44 belongs to bob, not to you.")


async def test_what_does_not_exist_is_404_with_the_sentence(jp_fetch: Any, server: AiosApp) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/leases/l-none", method="DELETE")
    assert refusal(error) == (404, "There is no lease 'l-none'; 'aios leases' lists them.")


async def test_an_action_without_a_cluster_is_503_and_says_what_to_type(
    jp_fetch: Any, server: AiosApp, cluster: Any
) -> None:
    upstream, cluster.upstream = cluster.upstream, None
    upstream.closed.set()
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/leases/l-7c1", method="DELETE")
    code, message = refusal(error)
    assert code == 503
    assert "aios up" in message


@pytest.mark.parametrize(
    ("error_class", "status"), [(cls, status) for cls, status in routes.STATUS.items()]
)
async def test_every_error_of_the_package_becomes_its_status(
    jp_fetch: Any, server: AiosApp, monkeypatch: pytest.MonkeyPatch,
    error_class: type[errors.AiosError], status: int,
) -> None:  # fmt: skip
    if error_class is errors.MissingExtraError:
        error: errors.AiosError = errors.MissingExtraError("torch", "torch")
    else:
        error = error_class("A sentence.")

    async def fail(self: Stream, op: str, body: Any = None) -> None:
        raise error

    monkeypatch.setattr(Stream, "call", fail)
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch("aios/leases/l-7c1", method="DELETE")
    assert refusal(caught) == (status, str(error))


class FakeSession:
    """What the routes use of `session.Session`."""

    opened: list[dict[str, Any]] = []

    def __init__(self, **options: Any) -> None:
        self.opened.append(options)

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.opened.append({"closed": True})

    def logs(self, run: str, rank: int | None = None) -> Iterator[str]:
        yield "epoch 1\nepo"
        yield "ch 2\n"
        yield f"rank {rank}"

    def models(self) -> list[dict[str, Any]]:
        return [{"name": "digits"}]


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    from aios_jupyter import session

    monkeypatch.setattr(session, "connect", FakeSession)
    monkeypatch.setattr(FakeSession, "opened", [])
    return FakeSession


async def test_log_joins_pieces_to_lines_and_closes_its_session(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    got = answer(await jp_fetch("aios/runs/r-digits-cnn/logs", params={"rank": "1"}))
    assert got == {
        "run": "r-digits-cnn",
        "rank": 1,
        "lines": ["epoch 1", "epoch 2", "rank 1"],
    }
    assert fake_session.opened == [
        {"start": False, "passive": True, "label": "server"},
        {"closed": True},
    ]


async def test_log_gives_the_last_lines(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    got = answer(await jp_fetch("aios/runs/r-digits-cnn/logs", params={"tail": "2"}))
    assert got["lines"] == ["epoch 2", "rank None"]


@pytest.mark.parametrize("query", [{"rank": "first"}, {"rank": "-1"}, {"tail": "99999999"}])
async def test_log_refuses_a_count_that_is_none(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], query: dict[str, str]
) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/runs/r-digits-cnn/logs", params=query)
    assert refusal(error)[0] == 400
    assert fake_session.opened == []


async def test_log_of_an_unknown_run_is_404(jp_fetch: Any, server: AiosApp) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/runs/r-none/logs")
    assert refusal(error)[0] == 404


async def test_models_come_from_the_session(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    assert answer(await jp_fetch("aios/models")) == {"models": [{"name": "digits"}]}


async def test_start_opens_a_session_and_answers_with_the_state(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    body = json.dumps({"simulate_gpus": 2})
    response = await jp_fetch("aios/cluster", method="POST", body=body)
    assert response.code == 201
    assert "snapshot" in answer(response)
    assert fake_session.opened[0] == {"simulate_gpus": 2, "passive": True, "label": "server"}


@pytest.mark.parametrize("wrong", [-1, "two", True, 1.5])
async def test_start_refuses_a_number_of_gpus_that_is_none(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], wrong: Any
) -> None:
    body = json.dumps({"simulate_gpus": wrong})
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/cluster", method="POST", body=body)
    assert refusal(error)[0] == 400
    assert fake_session.opened == []
