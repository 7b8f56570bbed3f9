"""What goes wrong around an endpoint and its registry: each is a status or an error with a sentence.

The other tests of bad input: wrong shapes and types, garbage, unknown names and versions, and huge
bodies in `test_serve.py` (`test_bad_requests_have_a_status_and_a_sentence`,
`test_compressed_and_oversize_requests_are_refused`) and `test_fuzz_http.py`; changed files and a port
that is taken there too; an alias that moves, also to what cannot be served, in `test_replicas.py`; a
registry that is not there in `test_registry.py`; raw rows in `test_prepared.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from clusters import until

from aios_jupyter.errors import ConflictError, NotFoundError, UsageError
from aios_jupyter.models import connection, fetch, gate, load, publish
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.connection import Connection
from aios_jupyter.models.registry import resolve
from aios_jupyter.models.service import Service

from .conftest import TOKEN, Served
from .test_serve import ask, refused

HEAD = f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
WHOLE = f'{HEAD}Content-Length: 20\r\n\r\n{{"inputs": [[1, 2]]}}'


# --- slow clients


@contextlib.contextmanager
def hosted(ref: str) -> Iterator[int]:
    """The port of a service in this process."""
    service = Service(load(ref), ref, "1", TOKEN)
    config = uvicorn.Config(
        service.app(),
        http=Connection,
        lifespan="off",
        log_config=None,
        port=0,
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the service")
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def hasty(line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A service that waits for its clients for half a second."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    line("hasty")
    with hosted("hasty") as port:
        yield port


def talk(port: int, *parts: str) -> bytes:
    """All that is answered until the server ends the connection; each part waits for its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        found = b""
        for number, part in enumerate(parts):
            if number:
                found += client.recv(65536)
            client.sendall(part.encode())
        while more := client.recv(65536):
            found += more
        return found


@pytest.mark.parametrize(
    ("parts", "statuses"),
    [
        ((), []),
        (("POST /pred",), [408]),
        ((HEAD,), [408]),
        ((f"{HEAD}Content-Length: 20\r\n\r\n{{",), [408]),
        ((WHOLE, "POST /"), [200, 408]),
        ((WHOLE, "\r\n"), [200]),  # nothing that is a request
    ],
)
def test_a_client_that_does_not_go_on_is_let_go(
    hasty: int, parts: tuple[str, ...], statuses: list[int]
) -> None:
    found = talk(hasty, *parts)
    assert [int(text[:3]) for text in found.decode().split("HTTP/1.1 ")[1:]] == statuses
    if 408 in statuses:
        assert "did not arrive within" in json.loads(found.rpartition(b"\r\n\r\n")[2])["error"]


def test_slow_clients_do_not_keep_others_waiting(hasty: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", hasty), timeout=60) for _ in range(50)]
    for client in slow:
        client.sendall(HEAD.encode())
    with EndpointClient(f"http://127.0.0.1:{hasty}", TOKEN) as quick:
        assert quick.infer([[1, 2]]).tolist() == [[1, 2]]
    for client in slow:
        assert client.recv(12) == b"HTTP/1.1 408"
        client.close()


# --- numbers that are none


def test_nan_goes_in_and_comes_out_as_null(line: Callable[..., Any]) -> None:
    line("overflow", 10.0)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3e38, 1]}
    with hosted("overflow") as port:
        with EndpointClient(f"http://127.0.0.1:{port}", TOKEN) as client:
            given = client.infer([[math.nan, math.inf]])
            np.testing.assert_array_equal(given, [[math.nan, math.inf]])
            assert all(math.isfinite(x) for values in client.window().values() for x in values)
        served = Served(None, f"http://127.0.0.1:{port}")  # type: ignore[arg-type]
        for text in ("NaN", "Infinity", "1e999"):  # none of them is JSON, or a number
            status, reply = ask(served, "POST", "/predict", f'{{"inputs": [[{text}, 1]]}}')
            assert status == 400, (text, reply)
            assert reply["error"]
        body = json.dumps({"inputs": [tensor]})
        status, reply = ask(served, "POST", "/v2/models/overflow/infer", body)
        assert (status, reply["outputs"][0]["data"]) == (200, [None, 10.0])


# --- files


FULL = """
import resource, sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from aios_jupyter.errors import ConflictError
from aios_jupyter.models import publish
weights = numpy_helper.from_array(np.ones((2, 2_000_000), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "wide",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2_000_000])], [weights],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
most = 4_000_000  # bytes of one file: as on a disk that is full, a write fails in its middle
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try:
    publish(model, "too-big")
except ConflictError as error:
    sys.exit(f"said: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_full_disk_leaves_no_version_and_no_files(
    line: Callable[..., Any], state_dir: Path
) -> None:
    line("before-full")
    before = sorted(path for path in state_dir.rglob("*.onnx"))
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "said: There is no room for the model 'too-big'" in done.stderr.splitlines()[-1]
    with pytest.raises(NotFoundError):
        resolve("too-big")
    assert sorted(path for path in state_dir.rglob("*.onnx")) == before


def test_a_store_that_is_full_keeps_nothing_of_it(
    line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    line("half")
    written: list[Path] = []

    def half(client: MlflowClient, model_id: str, local_dir: str) -> None:
        place = Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
        place.mkdir(parents=True)
        shutil.copy(Path(local_dir) / "model.onnx", place)
        written.append(place)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", half)
    with pytest.raises(ConflictError, match=r"no room for the model 'half' .*make some"):
        line("half")
    assert resolve("half").version == 1
    assert not written[0].exists()


def test_a_model_whose_code_is_gone_says_so(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "class Doubles:\n    def predict(self, x):\n        return x * 2\n"
    (tmp_path / "gone_tomorrow.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import gone_tomorrow  # type: ignore[import-not-found]

    publish(gone_tomorrow.Doubles(), "code", input_example=np.ones((1, 2)), allow_pickle=True)
    assert load("code", allow_pickle=True).predict([[1.0, 2]]).tolist() == [[2, 4]]
    monkeypatch.delitem(sys.modules, "gone_tomorrow")
    (tmp_path / "gone_tomorrow.py").unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(UsageError, match=r"No module named 'gone_tomorrow'.*install what it was"):
        load("code", allow_pickle=True)
    assert "install what it was made with" in refused(tmp_path, "--model", "code", "--allow-pickle")


def test_files_that_are_gone_or_cut_short(line: Callable[..., Any], tmp_path: Path) -> None:
    line("cut")
    package = fetch("cut")
    model = Path(package.path) / package.main
    model.write_bytes(model.read_bytes()[:20])
    with pytest.raises(ConflictError, match="was changed after it was published"):
        load("cut")
    model.unlink()
    with pytest.raises(ConflictError, match=r"lacks its file model\.onnx"):
        load("cut")
    shutil.rmtree(package.path)
    assert "are gone from" in refused(tmp_path, "--model", "cut")


def test_a_port_that_is_taken_on_all_addresses(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert "take another port" in refused(tmp_path, "--model", "anything", "--port", port)
