"""A real MLflow tracking server as the registry, by its address: ours beside MLflow's own client."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import until

from aios_jupyter.errors import ClusterError, ConflictError, NotFoundError
from aios_jupyter.models import fetch, load
from aios_jupyter.models.aliases import rollback, set_alias, tag
from aios_jupyter.models.card import card
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.registry import resolve, versions

from .conftest import TOKEN, Served

X = np.array([[1, 2], [3, 4]], np.float32)

THEIRS = """
import sys
import mlflow, numpy as np, onnx
from mlflow import MlflowClient
mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
x = np.array([[1, 2], [3, 4]], np.float32)

# What we have published, as MLflow sees it.
version = client.get_model_version_by_alias("remote", "champion")
assert version.version == "2" and version.tags["color"] == "blue", version
run = client.get_run(version.run_id)
assert run.data.metrics["accuracy"] == 0.5, run.data
found = mlflow.pyfunc.load_model("models:/remote@champion").predict(x)
assert (found["y"] == 3 * x).all(), found

# And one of its own.
model = onnx.load(sys.argv[2])
mlflow.onnx.log_model(model, name="m", registered_model_name="theirs", pip_requirements=["onnx"])
client.set_registered_model_alias("theirs", "champion", "1")
client.set_registered_model_alias("remote", "theirs", "1")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """`mlflow server` with a store and artifacts of its own; `args[-1]` is its address."""
    room = tmp_path_factory.mktemp("mlflow-server")
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", "0", "--backend-store-uri", f"sqlite:///{room}/m.db"),
            *("--artifacts-destination", str(room / "artifacts")),
        ],
        env={
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not (found := re.search(r"running on (http://[\d.:]+)", said)):
            assert selector.select(120), f"the server said nothing more:\n{said}"
            line = process.stdout.readline()
            assert line, f"the server has ended:\n{said}"
            said += line
    process.args = [found[1]]
    yield process
    end(process)
    process.stdout.close()


def end(process: subprocess.Popen[str]) -> None:
    """The server and its worker, which are a group of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.fixture
def uri(server: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> str:
    """Its address, which is the registry's."""
    [address] = server.args
    monkeypatch.setenv("AIOS_REGISTRY_URI", str(address))
    return str(address)


def test_everything_of_a_models_life_is_on_the_server(
    server: subprocess.Popen[str],
    uri: str,
    line: Callable[..., Any],
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Publish: versions, aliases, tags, card.
    with pytest.raises(NotFoundError, match="no model 'remote'"):
        resolve("remote")
    line("remote", 2.0, alias="champion", lineage={"run": "run-7"})
    line("remote", 3.0, metrics={"accuracy": 0.5}, params={"lr": 0.1})
    assert [row["ref"] for row in versions("remote")] == ["remote/2", "remote/1"]
    assert set_alias("remote/2", "champion").version == 2
    assert rollback("remote", "champion").version == 1
    assert set_alias("remote/2", "champion").aliases == ("champion",)
    assert tag("remote/2", {"color": "blue"}).tags["color"] == "blue"
    found = card("remote@champion")
    assert (found.intact, found.version.metrics) == (True, {"accuracy": 0.5})
    assert ("run run-7", "remote/1") in card("remote/1").edges

    # Load: from the cache from the second time on, and still compared with the hashes.
    np.testing.assert_array_equal(load("remote@champion").predict(X), 3 * X)
    place = Path(fetch("remote/2").path)
    assert place.is_relative_to(os.environ["AIOS_STATE_DIR"])
    content = (place / "model.onnx").read_bytes()
    (place / "model.onnx").write_bytes(content + b"\0")
    with pytest.raises(ConflictError, match="was changed"):
        load("remote@champion")
    (place / "model.onnx").write_bytes(content)

    # MLflow's own client sees all that, and we what it adds.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", THEIRS, uri, str(place / "model.onnx")],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert resolve("remote@theirs").version == 1
    np.testing.assert_array_equal(load("theirs@champion").predict(X), 3 * X)

    # Serve, and follow an alias; an endpoint goes on when the server has gone.
    served = serve("remote@champion")
    with EndpointClient(served.url, TOKEN) as client:
        assert client.infer(X).tolist() == (3 * X).tolist()
        set_alias("remote/1", "champion")
        until(lambda: client.infer(X).tolist() == (2 * X).tolist(), "the other version", 60)
        end(server)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(ClusterError, match="AIOS_REGISTRY_URI"):
            resolve("remote")
        assert client.infer(X).tolist() == (2 * X).tolist()
    assert served.stop() == 0
