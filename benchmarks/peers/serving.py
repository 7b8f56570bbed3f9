"""Other servers for ONNX models, each as its documentation has it, batching where it can.

Each has an interpreter of its own (`serving.sh` makes them), which runs this file:
`python serving.py NAME MODEL PORT FOLDER` starts one. What each is asked is the same sample in the
JSON of its own protocol.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_ROWS, WAIT_SECONDS = 16, 0.002


@dataclass(frozen=True)
class Peer:
    """How a server is asked; `key` is what the sample stands under in its JSON, or "v2"."""

    path: str
    ready: str
    key: str


PEERS = {
    "litserve": Peer("/predict", "/health", "input"),
    "mlserver": Peer("/v2/models/small/infer", "/v2/health/ready", "v2"),
    "bentoml": Peer("/predict", "/readyz", "input"),
    "mlflow": Peer("/invocations", "/ping", "inputs"),
}


def version(python: str, name: str) -> str:
    """The version of a peer that an interpreter has."""
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    done = subprocess.run([python, "-c", code, name], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def command(python: str, name: str, model: Path, port: int, scratch: Path) -> list[str]:
    """What starts a peer for an ONNX file."""
    return [python, str(Path(__file__).resolve()), name, str(model), str(port), str(scratch)]


def body_of(name: str, sample: Any) -> bytes:
    """The sample (one row, as nested lists) in the JSON that a peer takes."""
    key = PEERS[name].key
    if key == "v2":
        flat = json.loads(json.dumps(sample))
        shape = []
        while isinstance(flat, list):
            shape.append(len(flat))
            flat = flat[0]
        tensor = {"name": "input", "shape": shape, "datatype": "FP32", "data": sample}
        return json.dumps({"inputs": [tensor]}).encode()
    return json.dumps({key: sample}).encode()


# --- run by the peers' interpreter


def litserve(model: str, port: int, scratch: Path) -> None:
    program = scratch / "lit.py"  # a file of its own: its workers import it again
    program.write_text(_LITSERVE.format(model=model, port=port, rows=MOST_ROWS, wait=WAIT_SECONDS))
    os.execv(sys.executable, [sys.executable, str(program)])


_LITSERVE = """
import litserve as ls
import numpy as np
import onnxruntime


class Api(ls.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({model!r}, options)

    def decode_request(self, request):
        return np.array(request["input"][0], np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.session.run(None, {{"input": x}})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {{"output": output.tolist()}}


if __name__ == "__main__":
    api = Api(max_batch_size={rows}, batch_timeout={wait})
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port={port}, host="127.0.0.1", generate_client_file=False, log_level="warning")
"""


def mlserver(model: str, port: int, scratch: Path) -> None:
    folder = scratch / "mlserver"
    folder.mkdir(exist_ok=True)
    (folder / "onnx_runtime.py").write_text(_MLSERVER.format(model=model))
    settings = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "debug": False,
                "host": "127.0.0.1", "parallel_workers": 0}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    about = {"name": "small", "implementation": "onnx_runtime.Onnx",
             "max_batch_size": MOST_ROWS, "max_batch_time": WAIT_SECONDS}  # fmt: skip
    (folder / "model-settings.json").write_text(json.dumps(about))
    os.environ["PYTHONPATH"] = str(folder)
    os.execv(sys.executable, [sys.executable, "-m", "mlserver.cli.main", "start", str(folder)])


_MLSERVER = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({model!r}, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        y = self.session.run(None, {{"input": x}})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", y)])
"""


def bentoml(model: str, port: int, scratch: Path) -> None:
    folder = scratch / "bento"
    folder.mkdir(exist_ok=True)
    (folder / "service.py").write_text(_BENTOML.format(model=model, rows=MOST_ROWS))
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder)}
    os.execv(
        sys.executable,
        [sys.executable, "-m", "bentoml", "serve", "service:Small", "--port", str(port), "--host",
         "127.0.0.1", "--working-dir", str(folder)],
    )  # fmt: skip


_BENTOML = """
from __future__ import annotations
import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Small:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({model!r}, options)

    @bentoml.api(batchable=True, max_batch_size={rows}, max_latency_ms=1000)
    def predict(self, input: np.ndarray) -> np.ndarray:
        return self.session.run(None, {{"input": input.astype("float32")}})[0]
"""


def mlflow(model: str, port: int, scratch: Path) -> None:
    folder = Path(model).parent  # as it was published: MLflow's own form
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/flow.db",
        # It starts uvicorn by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    os.execv(
        sys.executable,
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "-p", str(port),
         "-h", "127.0.0.1", "--env-manager", "local", "-w", "1"],
    )  # fmt: skip


if __name__ == "__main__":
    name, model, port, scratch = sys.argv[1:]
    globals()[name](model, int(port), Path(scratch))
