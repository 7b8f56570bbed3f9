"""A registry of its own, a small model trained on real digits in it, and an endpoint for it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter.config import settings

TOKEN = "a token for the tests"
SLOW = """
import time
class Slow:
    def predict(self, x):
        time.sleep(1.0)
        return x * 2
"""


def shell(*arguments: str) -> int:
    """The exit status of the console script."""
    from aios_jupyter.commands import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def run_bare(python: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python without what this environment says to others."""
    options.setdefault("cwd", python.parent)  # not here: what lies here can be imported
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "AIOS_"))}
    return subprocess.run(
        [str(python), *arguments],
        capture_output=True, text=True, timeout=60, env=environment, **options,
    )  # fmt: skip


@pytest.fixture(scope="package")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Make an environment with what a requirements.txt names and nothing else; its Python.

    The packages are those of this environment, by links: no index is asked.
    """

    def make(requirements: Path) -> Path:
        folder = tmp_path_factory.mktemp("clean")
        venv.create(folder, symlinks=True, with_pip=False)
        site = next(folder.glob("lib/python*/site-packages"))
        for line in requirements.read_text().splitlines():
            name, _, version = line.partition("==")
            distribution = importlib.metadata.distribution(name)
            assert distribution.version.partition("+")[0] == version
            for path in {Path(file).parts[0] for file in distribution.files or ()} - {".."}:
                source = Path(str(distribution.locate_file(path)))
                if source.exists() and not (site / path).exists():
                    (site / path).symlink_to(source)
        return folder / "bin" / "python"

    return make


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the registry of these tests is."""
    directory = tmp_path_factory.mktemp("models-state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_STATE_DIR", str(directory))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings.cache_clear()
        yield directory
    settings.cache_clear()


@dataclass
class Digits:
    """A trained network and the digits it has not seen."""

    net: Any
    x: np.ndarray
    y: np.ndarray
    accuracy: float


@pytest.fixture(scope="session")
def digits() -> Digits:
    """A convolutional network after a few epochs on scikit-learn's 8 by 8 digits."""
    import torch
    from sklearn.datasets import load_digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other take minutes on a busy machine
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Dropout(0.1),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 4 * 4, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(3):
        for start in range(0, 1500, 50):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                net(x[start : start + 50]), y[start : start + 50]
            )
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        accuracy = float((net(x[1500:]).argmax(1) == y[1500:]).float().mean())
    net.train()
    torch.set_num_threads(threads)
    return Digits(net, x[1500:].numpy(), y[1500:].numpy(), accuracy)


@pytest.fixture(scope="package")
def published(state_dir: Path, digits: Digits) -> Any:
    """The digits network as "digits", with the alias "champion"."""
    from aios_jupyter.models import publish

    return publish(
        digits.net,
        "digits",
        alias="champion",
        metrics={"accuracy": digits.accuracy},
        params={"lr": 0.01, "epochs": 3},
        input_example=digits.x[:2],
        lineage={"lease": "lease-1", "run": "run-1", "notebook": "a.ipynb", "data": "digits@1"},
    )


@pytest.fixture(scope="package")
def line(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Publish a version of a small linear model."""
    import onnx
    from onnx import TensorProto, helper

    from aios_jupyter.models import publish

    folder = tmp_path_factory.mktemp("line")

    def make(name: str, slope: float = 1.0, **facts: Any) -> Any:
        node = helper.make_node("Mul", ["x", "slope"], ["y"])
        graph = helper.make_graph(
            [node],
            "line",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor("slope", TensorProto.FLOAT, [1], [slope])],
        )
        path = folder / "line.onnx"
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            str(path),
        )
        return publish(str(path), name, **facts)

    return make


@pytest.fixture(scope="package")
def slow_model(state_dir: Path) -> str:
    """A model of arbitrary Python that takes a second for each call."""
    from aios_jupyter.models import publish

    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(SLOW, namespace)
    publish(namespace["Slow"](), "slow", input_example=np.ones((2, 3)), allow_pickle=True)
    return "slow"


@dataclass
class Served:
    """An endpoint process."""

    process: subprocess.Popen[str]
    url: str

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="package")
def serve(
    state_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Served]]:
    """Start endpoints; they are stopped at the end, and must end well."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    started: list[Served] = []

    def start(model: str, *options: str) -> Served:
        process = subprocess.Popen(
            [sys.executable, "-m", "aios_jupyter.models.serve", "--model", model, *options],
            env={**os.environ, "AIOS_ENDPOINT_TOKEN_FILE": str(token)},
            stdout=subprocess.PIPE,
            text=True,
        )
        served = Served(process, "")
        started.append(served)
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(90), "the endpoint did not answer in 90 s"
        served.url = json.loads(process.stdout.readline())["url"]
        return served

    yield start
    codes = []
    for served in started:
        if served.process.poll() is None:
            codes.append(served.stop())
        assert served.process.stdout is not None
        served.process.stdout.close()
    assert not any(codes), codes


@pytest.fixture(scope="package")
def endpoint(serve: Callable[..., Served], published: Any) -> Served:
    """The digits model, served."""
    return serve("digits@champion")
