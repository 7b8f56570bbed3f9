"""The routes: what they answer, how they refuse, and that strangers get nothing."""

from __future__ import annotations

import json
import math
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from tornado.httpclient import HTTPClientError

from aios_jupyter import errors
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.data.description import Field
from aios_jupyter.data.entries import Entry
from aios_jupyter.models.registry import ModelVersion
from aios_jupyter.runs.messages import Frame, RankStacks, Stack
from aios_jupyter.server import datasets, routes
from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.stream import Stream
from aios_jupyter.session.assets import AssetVerbs

from .conftest import eventually
from .test_openapi import schema

RESULTS = schema("/aios/batches/{batch}/results", "get", "200")

ROUTES = [
    ("GET", "aios/snapshot"),
    ("POST", "aios/cluster"),
    ("DELETE", "aios/leases/l-7c1"),
    ("DELETE", "aios/queue/q-a1"),
    ("POST", "aios/runs/r-digits-cnn/stop"),
    ("GET", "aios/runs/r-digits-cnn/logs"),
    ("GET", "aios/runs/r-digits-cnn/metrics"),
    ("GET", "aios/runs/r-digits-cnn/stacks"),
    ("GET", "aios/runs/r-digits-cnn/profile"),
    ("GET", "aios/history"),
    ("GET", "aios/kernels"),
    ("POST", "aios/leases/l-7c1/extend"),
    ("POST", "aios/queue/q-a1/priority"),
    ("POST", "aios/batches/batch-9c/stop"),
    ("GET", "aios/batches/batch-9c/results"),
    ("PUT", "aios/models/digits/aliases/champion"),
    ("GET", "aios/models"),
    ("GET", "aios/endpoints/digits"),
    ("POST", "aios/endpoints/digits/predict"),
    ("GET", "aios/datasets"),
    ("GET", "aios/datasets/mnist"),
    ("GET", "aios/datasets/mnist/picture"),
    ("GET", "aios/events"),
    ("GET", "aios/metrics"),
    ("GET", "aios/me"),
]


def body_of(method: str) -> dict[str, Any]:
    return {"method": method, **({"body": "{}"} if method in ("POST", "PUT") else {})}


def answer(response: Any) -> Any:
    return json.loads(response.body)


def refusal(error: pytest.ExceptionInfo[HTTPClientError]) -> tuple[int, str]:
    response = error.value.response
    assert response is not None
    return error.value.code, json.loads(response.body)["message"]


def test_the_list_of_routes_is_complete(server: AiosApp) -> None:
    ours = [
        (pattern, found)
        for pattern, found, *_ in server.handlers
        if issubclass(found, routes.AiosHandler)
    ]
    for method, path in ROUTES:
        (handler,) = [found for pattern, found in ours if re.fullmatch(pattern, f"/{path}")]
        assert method.lower() in vars(handler)
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
    sections = {"nodes", "devices", "queue", "leases", "reservations", "runs", "batches"}
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
        ("POST", "aios/batches/batch-9c/stop", ("batch.stop", {"id": "batch-9c"})),
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

    def stacks(self, run: str, rank: int | None) -> list[RankStacks]:
        call = Frame(function="step", file="train.py", line=1)
        return [RankStacks(rank=rank or 0, threads=(Stack(name="main", frames=(call,)),))]

    def profile(self, run: str, to: Path, rank: int) -> Path:
        to.write_text(json.dumps({"traceEvents": [rank]}))
        return to

    def promote(self, ref: str, alias: str) -> ModelVersion:
        name, _, version = ref.partition("/")
        return ModelVersion(name=name, version=int(version), aliases=(alias,))

    def rollback(self, name: str, alias: str) -> ModelVersion:
        return ModelVersion(name=name, version=1, aliases=(alias,))

    def models(self) -> list[dict[str, Any]]:
        return [{"name": "digits"}]

    def datasets(self) -> list[Entry]:
        return Catalog().list()

    def data_versions(self, name: str) -> list[Entry]:
        return AssetVerbs.data_versions(self, name)  # type: ignore[arg-type]


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    from aios_jupyter import session

    monkeypatch.setattr(session, "connect", FakeSession)
    monkeypatch.setattr(FakeSession, "opened", [])
    return FakeSession


async def test_log_has_numbered_lines_and_where_to_go_on(jp_fetch: Any, server: AiosApp) -> None:
    got = answer(await jp_fetch("aios/runs/r-digits-cnn/logs", params={"rank": "1"}))
    assert got["lines"][0] == "[1] step 0: loss 2.3000"
    assert got["numbers"][:2] == [2, 4]
    assert (got["next"], got["dropped"], got["complete"]) == (401, 0, True)
    rest = {"after": "399", "search": "STEP"}
    more = answer(await jp_fetch("aios/runs/r-digits-cnn/logs", params=rest))
    assert more["lines"] == ["[0] step 199: loss 0.0115", "[1] step 199: loss 0.0115"]


async def test_log_gives_the_last_lines(jp_fetch: Any, server: AiosApp) -> None:
    got = answer(await jp_fetch("aios/runs/r-digits-cnn/logs", params={"tail": "2"}))
    assert got["ranks"] == [0, 1]
    assert got["complete"]


async def test_metrics_have_steps_times_and_values(jp_fetch: Any, server: AiosApp) -> None:
    got = answer(await jp_fetch("aios/runs/r-digits-cnn/metrics"))
    loss = got["metrics"]["loss"]
    assert loss["step"][:3] == [0, 1, 2]
    assert loss["value"][0] == 2.3
    assert len(loss["time"]) == 200


async def test_history_has_what_the_stream_has_told(jp_fetch: Any, server: AiosApp) -> None:
    got = answer(await jp_fetch("aios/history"))
    assert got["devices"]["GPU-ada-01-0"]["utilization"] == [82.0]
    assert got["runs"]["r-digits-cnn"]["loss"]["y"] == [0.4127]


async def test_stacks_come_from_the_session(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    got = answer(await jp_fetch("aios/runs/r-digits-cnn/stacks", params={"rank": "1"}))
    (rank,) = got["ranks"]
    assert (rank["rank"], rank["threads"][0]["frames"][0]["function"]) == (1, "step")


async def test_a_profile_is_a_file_to_keep(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    response = await jp_fetch("aios/runs/r-digits-cnn/profile", params={"rank": "1"})
    assert answer(response) == {"traceEvents": [1]}
    name = 'attachment; filename="r-digits-cnn-rank-1.trace.json"'
    assert response.headers["Content-Disposition"] == name


async def test_kernels_are_told_by_process(
    jp_fetch: Any, server: AiosApp, jp_serverapp: Any
) -> None:
    kernels = jp_serverapp.kernel_manager
    kernel = await kernels.start_kernel()
    try:
        got = answer(await jp_fetch("aios/kernels"))["kernels"]
        process = kernels.get_kernel(kernel).provisioner
        assert got == {kernel: {"host": socket.gethostname(), "pid": process.pid, "lease": ""}}
    finally:
        await kernels.shutdown_kernel(kernel, now=True)


async def test_a_lease_is_extended(jp_fetch: Any, server: AiosApp, cluster: Any) -> None:
    await jp_fetch("aios/leases/l-7c1/extend", method="POST", body='{"time": 7200}')
    assert cluster.upstream.calls == [("extend", {"id": "l-7c1", "time": 7200.0})]


@pytest.mark.parametrize("time", ["0", "-5", "true", '"2h"', "null", "1e999", "NaN"])
async def test_a_lease_is_not_extended_by_what_is_no_time(
    jp_fetch: Any, server: AiosApp, cluster: Any, time: str
) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/leases/l-7c1/extend", method="POST", body=f'{{"time": {time}}}')
    assert refusal(error)[0] == 400
    assert cluster.upstream.calls == []


async def test_a_request_is_given_another_priority(
    jp_fetch: Any, server: AiosApp, cluster: Any
) -> None:
    await jp_fetch("aios/queue/q-a1/priority", method="POST", body='{"priority": -2}')
    assert cluster.upstream.calls == [("reprioritize", {"id": "q-a1", "priority": -2})]
    for wrong in ("{}", '{"priority": "high"}', '{"priority": 1.5}', '{"priority": true}'):
        with pytest.raises(HTTPClientError) as error:
            await jp_fetch("aios/queue/q-a1/priority", method="POST", body=wrong)
        assert refusal(error)[0] == 400


@pytest.fixture
def results(tmp_path: Path, jp_serverapp: Any, cluster: Any) -> Callable[[Path], None]:
    """Say where the results of ada's batch are."""

    def lie_in(directory: Path) -> None:
        row = cluster.upstream.view["batches"]["batch-9c"]
        cluster.upstream.change("batches", {"batch-9c": {**row, "directory": str(directory)}})

    return lie_in


async def test_the_results_of_a_batch_are_found_among_the_contents(
    jp_fetch: Any, server: AiosApp, results: Callable[[Path], None], jp_root_dir: Path
) -> None:
    directory = jp_root_dir / "sweeps" / "grid batch"
    directory.mkdir(parents=True)
    (directory / "results.csv").touch()
    results(directory)
    path = "aios/batches/batch-9c/results"
    found = {"batch": "batch-9c", "folder": "sweeps/grid batch", "table": ""}
    assert answer(await jp_fetch(path)) == found
    (directory / "results.csv").write_text("lr\n0.1\n")
    found["table"] = "sweeps/grid batch/results.csv"
    assert answer(await jp_fetch(path)) == found
    jsonschema.validate(answer(await jp_fetch(path)), RESULTS)


async def test_results_that_jupyter_does_not_serve_are_told_by_their_place(
    jp_fetch: Any, server: AiosApp, results: Callable[[Path], None], tmp_path: Path,
    jp_root_dir: Path,
) -> None:  # fmt: skip
    (jp_root_dir / "link").symlink_to(tmp_path)
    for directory, sentence in (
        (tmp_path / "elsewhere", "on ada-01, which this Jupyter server does not see"),
        (tmp_path, "outside of the folders that JupyterLab shows"),
        (jp_root_dir / "link", "outside of the folders that JupyterLab shows"),
    ):
        results(directory)
        with pytest.raises(HTTPClientError) as error:
            await jp_fetch("aios/batches/batch-9c/results")
        code, message = refusal(error)
        assert code == 404
        assert sentence in message
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/batches/batch-5e/results")
    assert refusal(error) == (403, "Batch batch-5e belongs to bob, and so do its results.")


async def test_an_alias_is_moved(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    path = "aios/models/digits/aliases/champion"
    got = answer(await jp_fetch(path, method="PUT", body='{"version": 2}'))
    assert got == {"name": "digits", "version": 2, "aliases": ["champion"]}
    got = answer(await jp_fetch(path, method="PUT", body='{"back": true}'))
    assert got == {"name": "digits", "version": 1, "aliases": ["champion"]}


@pytest.mark.parametrize("version", ["0", '"2"', "1.5", "true", "null"])
async def test_an_alias_is_not_moved_to_what_is_no_version(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], version: str
) -> None:
    path = "aios/models/digits/aliases/champion"
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(path, method="PUT", body=f'{{"version": {version}}}')
    assert refusal(error)[0] == 400
    assert fake_session.opened == []


@pytest.mark.parametrize("query", [{"rank": "first"}, {"after": "-1"}, {"tail": "99999999"}])
async def test_log_refuses_a_count_that_is_none(
    jp_fetch: Any, server: AiosApp, query: dict[str, str]
) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/runs/r-digits-cnn/logs", params=query)
    assert refusal(error)[0] == 400


async def test_log_of_an_unknown_run_is_404(jp_fetch: Any, server: AiosApp) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/runs/r-none/logs")
    assert refusal(error)[0] == 404


async def test_models_come_from_the_session(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    assert answer(await jp_fetch("aios/models")) == {"models": [{"name": "digits"}]}


async def test_datasets_are_those_of_the_catalogue(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession]
) -> None:
    got = answer(await jp_fetch("aios/datasets"))
    jsonschema.validate(got, schema("/aios/datasets", "get", "200"))
    digits = next(row for row in got["datasets"] if row["name"] == "mnist")
    assert (digits["name"], digits["rows"], "fields" in digits) == ("mnist", 10_000, False)
    got = answer(await jp_fetch("aios/datasets/mnist"))
    jsonschema.validate(got, schema("/aios/datasets/{name}", "get", "200"))
    assert [field["name"] for field in got["versions"][0]["fields"]] == ["x", "y"]


async def test_statistics_that_are_not_finite_are_none(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    field = Field(name="x", kind="double", least=-math.inf, mean=math.nan, most=1.0)
    entry = msgspec.structs.replace(Catalog().get("mnist"), fields=(field,))
    monkeypatch.setattr(FakeSession, "data_versions", lambda self, name: [entry])
    (version,) = answer(await jp_fetch("aios/datasets/mnist"))["versions"]
    found = version["fields"][0]
    assert (found["least"], found["mean"], found["most"]) == (None, None, 1.0)


async def test_a_dataset_is_drawn_once_by_a_process_of_its_own(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = await jp_fetch("aios/datasets/mnist/picture")
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.body.startswith(b"\x89PNG")
    monkeypatch.setattr(datasets, "AIOS", ("false",))
    assert (await jp_fetch("aios/datasets/mnist/picture")).body == picture.body


@pytest.mark.parametrize(
    "path", ["none", "none/picture", "mnist@0/picture", "%2Fetc%2Fpasswd/picture"]
)
async def test_what_the_catalogue_does_not_have_is_404(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], path: str
) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(f"aios/datasets/{path}")
    code, message = refusal(error)
    assert code == 404
    assert message.startswith("There is no dataset")


async def test_what_cannot_be_drawn_is_told_by_who_tried(
    jp_fetch: Any, server: AiosApp, fake_session: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", "raise SystemExit('It has no columns.')")
    monkeypatch.setattr(datasets, "AIOS", command)
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/datasets/mnist/picture")
    assert refusal(error) == (404, "It has no columns.")
    monkeypatch.setattr(datasets, "AIOS", (sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(datasets, "PATIENCE", 0.1)
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("aios/datasets/mnist/picture")
    assert refusal(error)[0] == 409


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
