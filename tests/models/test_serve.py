from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from aios_jupyter.errors import AccessError, ConflictError, NotFoundError, UsageError
from aios_jupyter.models import load, publish
from aios_jupyter.models.client import EndpointClient, infer
from aios_jupyter.models.protocol_v2 import HEADER, encode_request

from .conftest import TOKEN, Served


@pytest.fixture
def client(endpoint: Served) -> Iterator[EndpointClient]:
    with EndpointClient(endpoint.url, TOKEN) as client:
        yield client


def ask(
    endpoint: Served,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: dict[str, str] | None = None,
    token: str | None = TOKEN,
) -> tuple[int, Any]:
    """Status and decoded body."""
    connection = http.client.HTTPConnection(endpoint.address, timeout=20)
    send = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body, send | (headers or {}))
        reply = connection.getresponse()
        content = reply.read()
        if reply.headers.get_content_type() == "application/json":
            return reply.status, json.loads(content)
        return reply.status, content
    finally:
        connection.close()


def test_a_served_prediction_is_the_models_own(
    endpoint: Served, published: Any, digits: Any
) -> None:
    given = infer(endpoint.url, TOKEN, digits.x)
    np.testing.assert_allclose(given, load("digits@champion").predict(digits.x), atol=1e-5)
    assert given.dtype == np.float32
    given[0] = 0  # it is the caller's own array


def test_the_official_triton_client_speaks_with_it(endpoint: Served, digits: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")

    def headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}  # the client writes into what it is given

    client = triton.InferenceServerClient(endpoint.address)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits", headers=headers())
        assert client.is_model_ready("digits", "1", headers=headers())
        metadata = client.get_model_metadata("digits", headers=headers())
        assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        expected = load("digits@champion").predict(digits.x[:3])
        for binary in (True, False):
            tensor = triton.InferInput("input", [3, 1, 8, 8], "FP32")
            tensor.set_data_from_numpy(digits.x[:3], binary_data=binary)
            wanted = [triton.InferRequestedOutput("output", binary_data=binary)]
            reply = client.infer(
                "digits", [tensor], outputs=wanted, request_id="r1", headers=headers()
            )
            np.testing.assert_allclose(reply.as_numpy("output"), expected, atol=1e-5)
            assert reply.get_response()["id"] == "r1"
        with pytest.raises(triton.InferenceServerException, match="no model 'other'"):
            client.infer("other", [tensor], headers=headers())
    finally:
        client.close()


def test_plain_json_and_mlflows_forms(endpoint: Served, digits: Any) -> None:
    x = digits.x[:2].tolist()
    expected = load("digits@champion").predict(digits.x[:2])
    status, reply = ask(endpoint, "POST", "/predict", json.dumps({"inputs": x}))
    assert status == 200
    assert (reply["model"], reply["version"]) == ("digits", "1")
    np.testing.assert_allclose(reply["outputs"], expected, atol=1e-4)
    for form in (
        {"inputs": x},
        {"instances": x},
        {"inputs": {"input": x}},
        {"dataframe_split": {"columns": ["input"], "data": [[row] for row in x]}},
        {"dataframe_records": [{"input": row} for row in x]},
    ):
        status, reply = ask(endpoint, "POST", "/invocations", json.dumps(form))
        assert status == 200, reply
        np.testing.assert_allclose(reply["predictions"], expected, atol=1e-4)


def test_concurrent_requests_are_batched_and_each_gets_its_own(
    endpoint: Served, digits: Any
) -> None:
    expected = load("digits@champion").predict(digits.x)

    def some(worker: int) -> None:
        with EndpointClient(endpoint.url, TOKEN) as client:
            for i in range(worker, 240, 12):
                rows = 1 + i % 3
                given = client.infer(digits.x[i : i + rows])
                np.testing.assert_allclose(given, expected[i : i + rows], atol=1e-4)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(some, range(12)))


def test_what_waits_for_a_slow_model_runs_together(
    serve: Callable[..., Served], slow_model: str
) -> None:
    served = serve(slow_model, "--allow-pickle")
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda i: infer(served.url, TOKEN, np.full((1, 3), float(i))), range(8))
        )
    assert [r.tolist() for r in results] == [[[2.0 * i] * 3] for i in range(8)]
    assert time.monotonic() - started < 6, "eight requests of a second each ran one by one"
    assert served.stop() == 0


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/digits", "/metrics", "/openapi.json", "/v2/models/digits/ready"]
)
def test_every_route_but_health_needs_the_token(endpoint: Served, path: str) -> None:
    for token in (None, "wrong", "", TOKEN + "x"):
        status, reply = ask(endpoint, "GET", path, token=token)
        assert status == 401
        assert "oken" in reply["error"]
    assert ask(endpoint, "GET", path)[0] == 200


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/digits/infer"])
def test_nothing_is_computed_without_the_token(endpoint: Served, path: str) -> None:
    status, reply = ask(endpoint, "POST", path, b"{}", token="wrong")
    assert status == 401
    assert "token" in reply["error"]
    assert ask(endpoint, "POST", path, b"{}", {"Authorization": TOKEN}, token=None)[0] == 401


def test_health_needs_no_token(endpoint: Served) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/ping"):
        assert ask(endpoint, "GET", path, token=None)[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/predict", b"", 400, "not JSON"),
        ("/predict", b"{", 400, "not JSON"),
        ("/predict", b"[1]", 400, "inputs"),
        ("/predict", b'{"inputs": [[1, 2]]}', 400, "has shape [1, 2]"),
        ("/predict", b'{"inputs": [[1], [1, 2]]}', 400, "ragged"),
        ("/predict", b'{"inputs": "text"}', 400, "not text"),
        ("/predict", b'{"inputs": {"z": [1]}}', 400, "no input 'z'"),
        ("/predict", b"[" * 100_000, 400, "not JSON"),
        ("/predict", b"\x00\xff\xfe", 400, "not JSON"),
        ("/invocations", b"{}", 400, "inputs, instances"),
        ("/invocations", b'{"dataframe_split": 1}', 400, "data frame"),
        ("/invocations", b'{"dataframe_records": []}', 400, "data frame"),
        ("/v2/models/digits/infer", b"{}", 400, "not an inference request"),
        ("/v2/models/nope/infer", b"{}", 404, "no model 'nope'"),
        ("/v2/models/digits/versions/9/infer", b"{}", 404, "version 1"),
        ("/nowhere", b"{}", 404, "nothing at /nowhere"),
        ("/metrics", b"{}", 405, "POST is not possible"),
    ],
)
def test_bad_requests_have_a_status_and_a_sentence(
    endpoint: Served, path: str, body: bytes, status: int, says: str
) -> None:
    answered, reply = ask(endpoint, "POST", path, body)
    assert answered == status
    assert says in reply["error"]
    assert "\n" not in reply["error"]
    assert ask(endpoint, "GET", "/v2/health/ready")[0] == 200


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/digits/infer"])
def test_what_is_posted_to_cannot_be_got(endpoint: Served, path: str) -> None:
    """The paths that are found without a search have no other method, as the rest of them."""
    for method in ("GET", "PUT"):
        status, reply = ask(endpoint, method, path, b"{}")
        assert (status, reply["error"]) == (
            405, f"{method} is not possible at {path}; see /openapi.json."
        )  # fmt: skip
    assert ask(endpoint, "POST", f"{path}/", b"{}")[0] in {307, 404}
    assert ask(endpoint, "POST", path, b"")[0] == 400


def test_a_binary_request_with_a_wrong_length_is_refused(endpoint: Served, digits: Any) -> None:
    body, length = encode_request({"input": digits.x[:1]})
    path = "/v2/models/digits/infer"
    assert ask(endpoint, "POST", path, body, {HEADER: str(length)})[0] == 200
    for header in ("0", str(length - 1), str(len(body) + 1), "x"):
        assert ask(endpoint, "POST", path, body, {HEADER: header})[0] == 400
    assert ask(endpoint, "POST", path, body[:-4], {HEADER: str(length)})[0] == 400


def test_compressed_and_oversize_requests_are_refused(
    serve: Callable[..., Served], published: Any
) -> None:
    served = serve("digits@champion", "--max-body", "10000", "--name", "small")
    status, reply = ask(served, "POST", "/predict", b"x" * 10_001)
    assert status == 413
    assert "10000 bytes" in reply["error"]
    connection = http.client.HTTPConnection(served.address, timeout=20)
    connection.request(
        "POST", "/predict", iter([b"x" * 6000] * 3), {"Authorization": f"Bearer {TOKEN}"},
        encode_chunked=True,
    )  # fmt: skip
    assert connection.getresponse().status == 413
    connection.close()
    gzip = {"Content-Encoding": "gzip"}
    assert ask(served, "POST", "/predict", b"{}", gzip)[0] == 415
    assert ask(served, "GET", "/v2/models/small")[0] == 200
    assert served.stop() == 0


def test_the_client_raises_our_errors(client: EndpointClient, endpoint: Served) -> None:
    with pytest.raises(UsageError, match="has shape"):
        client.infer(np.ones((1, 3)))
    with pytest.raises(AccessError, match="token"):
        infer(endpoint.url, "wrong", np.ones((1, 1, 8, 8)))
    with pytest.raises(UsageError, match="is no endpoint"):
        infer("nonsense", TOKEN, [1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(NotFoundError, match="No endpoint answers"):
            infer(url, TOKEN, [1])


def test_prometheus_reads_the_metrics(client: EndpointClient, endpoint: Served) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def totals() -> dict[str, float]:
        families = text_string_to_metric_families(client.metrics())
        return {
            sample.name + sample.labels.get("code", ""): sample.value
            for family in families
            for sample in family.samples
            if sample.labels.get("model") == "digits" and "le" not in sample.labels
        }

    client.infer(np.zeros((2, 1, 8, 8)))
    before = totals()
    client.infer(np.zeros((2, 1, 8, 8)))
    ask(endpoint, "POST", "/predict", b"{")
    after = totals()
    assert after["aios_endpoint_requests_total200"] == before["aios_endpoint_requests_total200"] + 1
    bad = "aios_endpoint_requests_total400"
    assert after[bad] == before.get(bad, 0) + 1
    assert after["aios_endpoint_batch_rows_sum"] == before["aios_endpoint_batch_rows_sum"] + 2


def test_the_openapi_document_names_the_routes_that_exist(endpoint: Served) -> None:
    status, document = ask(endpoint, "GET", "/openapi.json")
    assert status == 200
    for path, operations in document["paths"].items():
        for method in operations:
            answered, _ = ask(endpoint, method.upper(), path, b"" if method == "post" else None)
            assert answered in (200, 400), (path, method, answered)


def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(
    serve: Callable[..., Served], slow_model: str
) -> None:
    served = serve(slow_model, "--allow-pickle")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with EndpointClient(served.url, TOKEN) as first, EndpointClient(served.url, TOKEN) as idle:
            first.signature()
            idle.signature()
            in_flight = pool.submit(first.infer, np.ones((1, 3)))
            time.sleep(0.4)
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert not in_flight.done()
            with pytest.raises((NotFoundError, ConflictError)):
                idle.infer(np.ones((1, 3)))
            assert in_flight.result(10).tolist() == [[2, 2, 2]]
    assert served.process.wait(10) == 0


def test_the_process_holds_neither_torch_nor_mlflow(endpoint: Served) -> None:
    [replica] = psutil.Process(endpoint.process.pid).children()
    maps = Path(f"/proc/{replica.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    loaded = maps.read_text()
    assert "onnxruntime" in loaded
    assert not re.search(r"libtorch|_sqlite3|pandas", loaded)
    assert replica.memory_info().rss < 200e6
    watching = Path(f"/proc/{endpoint.process.pid}/maps").read_text()
    assert not re.search(r"libtorch|pandas|onnxruntime", watching)


def refused(tmp_path: Path, *options: str, token: str = "t", mode: int = 0o600) -> str:
    """What an endpoint that cannot start says."""
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-m", "aios_jupyter.models.serve", *options],
        env={**os.environ, "AIOS_ENDPOINT_TOKEN_FILE": str(path)},
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_an_endpoint_that_cannot_start_says_why(
    published: Any, tmp_path: Path, slow_model: str, endpoint: Served
) -> None:
    assert "did you mean digits" in refused(tmp_path, "--model", "digit")
    assert "no alias 'nobody'" in refused(tmp_path, "--model", "digits@nobody")
    assert "--allow-pickle" in refused(tmp_path, "--model", slow_model)
    port = endpoint.url.rpartition(":")[2]
    assert "Cannot listen" in refused(tmp_path, "--model", "digits", "--port", port)
    assert "chmod 600" in refused(tmp_path, "--model", "digits", mode=0o644)
    assert "is empty" in refused(tmp_path, "--model", "digits", token="")


def test_a_changed_model_is_not_served(state_dir: Path, digits: Any, tmp_path: Path) -> None:
    from aios_jupyter.models import fetch

    publish(digits.net, "touched", input_example=digits.x[:1])
    path = Path(fetch("touched").path) / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "was changed after it was published" in refused(tmp_path, "--model", "touched")


def test_as_a_rank_it_reports_on_the_event_channel(
    state_dir: Path, published: Any, tmp_path: Path
) -> None:
    from aios_jupyter.runs.events import EndpointReady, Frames, MetricsMade

    token = tmp_path / "token"
    token.write_text("t")
    token.chmod(0o600)
    reading, writing = os.pipe()
    as_a_rank = (
        "import runpy, sys; from aios_jupyter.runs.events import open_channel\n"
        f"open_channel({writing}); sys.argv[1:] = ['--model', 'digits', '--name', 'n']\n"
        "runpy.run_module('aios_jupyter.models.serve', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", as_a_rank],
        env={**os.environ, "AIOS_ENDPOINT_TOKEN_FILE": str(token)},
        pass_fds=[writing],
        stdout=subprocess.PIPE,
    )
    os.close(writing)
    frames, said = Frames(), []
    try:
        said += frames.feed(_some(reading))
        ready = said[0]
        assert isinstance(ready, EndpointReady)
        assert (ready.model, ready.version) == ("digits", "1")
        infer(ready.url, "t", np.zeros((1, 1, 8, 8)))
        while not any(isinstance(event, MetricsMade) for event in said):
            said += frames.feed(_some(reading))
        values = said[1].values
        assert values["requests"] == 1
        assert values["errors"] == 0
        assert values["p95_ms"] > 0
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        os.close(reading)
    assert process.returncode == 0
    assert output == b"", "in a run, the address goes through the channel alone"


def _some(fd: int) -> bytes:
    assert select.select([fd], [], [], 60)[0], "nothing was said for 60 s"
    data = os.read(fd, 65536)
    assert data, "the process ended"
    return data
