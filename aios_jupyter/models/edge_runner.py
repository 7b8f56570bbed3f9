"""Run the model beside this file. Needs what is in requirements.txt, nothing else.

python run.py INPUT.npy [-o OUTPUT.npy]     what the model gives; .npz for several inputs
python run.py --speed                       how quick it is here

from run import Model
Model().predict(x)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TYPES = {
    "BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "object",
    **{f"{kind}{bits}": f"{kind}{bits}".lower() for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class Onnx:
    """An ONNX model in ONNX Runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, names: list[str], arrays: dict[str, Any]) -> list[Any]:
        """The outputs of these names."""
        return list(self._session.run(names, arrays))


class LiteRt:
    """A LiteRT model."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
        self._call = self._interpreter.get_signature_runner("serving_default")

    def run(self, names: list[str], arrays: dict[str, Any]) -> list[Any]:
        """The outputs of these names."""
        found = self._call(**arrays)
        return [found[name] for name in names]


class Model:
    """The model, opened after its files were compared with their hashes.

    Parameters
    ----------
    folder
        Where model.json is.
    threads
        Threads of the model; 0 takes all processors.
    """

    def __init__(self, folder: str | Path = HERE, threads: int = 0) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads((self.folder / "model.json").read_text("utf-8"))
        for name, expected in self.about["files"].items():
            if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != expected:
                raise SystemExit(
                    f"{name} was changed after it was exported; export the model again."
                )
        kind = LiteRt if self.about["main"].endswith(".tflite") else Onnx
        self._session = kind(self.folder / self.about["main"], threads)
        self.outputs = [output["name"] for output in self.about["signature"]["outputs"]]

    def predict(self, x: Any) -> Any:
        """The output for `x`: an array, or a dict of arrays by input name; the batch is first."""
        inputs = self.about["signature"]["inputs"]
        if not isinstance(x, dict):
            if len(inputs) > 1:
                raise SystemExit(f"Give a dict with {', '.join(i['name'] for i in inputs)}.")
            x = {inputs[0]["name"]: x}
        arrays = {}
        for wanted in inputs:
            if wanted["name"] not in x:
                raise SystemExit(f"The input {wanted['name']!r} is missing.")
            array = np.asarray(x[wanted["name"]]).astype(TYPES[wanted["datatype"]], copy=False)
            fits = len(array.shape) == len(wanted["shape"]) and all(
                size in (-1, have) for size, have in zip(wanted["shape"], array.shape, strict=True)
            )
            if not fits:
                raise SystemExit(
                    f"The input {wanted['name']!r} has shape {list(array.shape)}; the model takes "
                    f"{wanted['shape']} (-1 is any size)."
                )
            arrays[wanted["name"]] = array
        values = self._session.run(self.outputs, arrays)
        return values[0] if len(values) == 1 else dict(zip(self.outputs, values, strict=True))

    def speed(self, seconds: float = 2.0) -> dict[str, float]:
        """Milliseconds for one sample of zeros (or ones in a free size), and bytes of the model."""
        zeros = {
            i["name"]: np.zeros([abs(size) for size in i["shape"]], TYPES[i["datatype"]])
            for i in self.about["signature"]["inputs"]
        }
        self.predict(zeros)
        taken: list[float] = []
        until = time.perf_counter() + seconds
        while not taken or time.perf_counter() < until:
            started = time.perf_counter()
            self.predict(zeros)
            taken.append((time.perf_counter() - started) * 1000)
        size = sum((self.folder / name).stat().st_size for name in self.about["files"])
        return {
            "bytes": size,
            "p50_ms": float(np.percentile(taken, 50)),
            "p95_ms": float(np.percentile(taken, 95)),
        }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", nargs="?", help="a .npy or .npz file")
    parser.add_argument("-o", "--output", help="write a .npy or .npz file")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    model = Model(threads=options.threads)
    if options.speed:
        print(json.dumps(model.speed()))  # noqa: T201  # this is a command line
        return 0
    if not options.input:
        parser.error("name an input file, or give --speed")
    try:
        loaded = np.load(options.input, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{options.input} cannot be read: {error}") from None
    given = model.predict(dict(loaded) if hasattr(loaded, "files") else loaded)
    if options.output:
        if isinstance(given, dict):
            np.savez(options.output, **given)
        else:
            np.save(options.output, given)
        return 0
    several = given if isinstance(given, dict) else {model.outputs[0]: given}
    print(json.dumps({name: array.tolist() for name, array in several.items()}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
