"""Run the model beside this file. Needs what is in requirements.txt, nothing else.

python run.py INPUT.npy [-o OUTPUT.npy]     what the model gives; .npz for several inputs
python run.py ROWS.csv                      the same for rows, where a recipe prepares them; .json too
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


class Alone:
    """The model itself, as what prepares rows for it asks it."""

    def __init__(self, session: Onnx | LiteRt, about: dict[str, Any]) -> None:
        import msgspec

        from aios_jupyter.models.signature import Signature

        self.signature = msgspec.convert(
            {name: about[name] for name in ("inputs", "outputs")}, Signature
        )
        self._session = session

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        names = [output.name for output in self.signature.outputs]
        return dict(zip(names, self._session.run(names, arrays), strict=True))


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
        self._rows = self._opened_recipe() if "prepared" in self.about else None

    def _opened_recipe(self) -> Any:
        sys.path.insert(0, str(self.folder / "app"))
        try:
            from aios_jupyter.models.prepared import PreparedPredictor, read
        finally:
            sys.path.pop(0)
        alone: Any = Alone(self._session, self.about["prepared"])
        return PreparedPredictor(alone, read(self.folder / "recipe.json"))

    def predict(self, x: Any) -> Any:
        """The output for `x`: an array, or a dict of arrays by input name; the batch is first.

        With a recipe `x` is rows: a data frame, a list of dicts, or a dict of columns.
        """
        if self._rows is not None:
            from aios_jupyter.errors import UsageError

            try:
                return self._rows.predict(x)
            except UsageError as error:
                raise SystemExit(str(error)) from None
        inputs = self._inputs
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

    def read(self, path: str) -> Any:
        """What a file holds: arrays, or rows."""
        if self._rows is None or path.endswith((".npy", ".npz")):
            loaded = np.load(path, allow_pickle=False)
            return dict(loaded) if hasattr(loaded, "files") else loaded
        if path.endswith(".json"):
            return json.loads(Path(path).read_text("utf-8"))
        import pandas as pd

        texts = [i["name"] for i in self._inputs if i["datatype"] == "BYTES"]
        return pd.read_csv(path, dtype=dict.fromkeys(texts, "str"))

    @property
    def _inputs(self) -> list[dict[str, Any]]:
        return list(self.about["signature"]["inputs"])

    def _sample(self) -> Any:
        if self._rows is None:
            return {
                i["name"]: np.zeros([abs(size) for size in i["shape"]], TYPES[i["datatype"]])
                for i in self._inputs
            }
        if "row" not in self.about:
            raise SystemExit("No row was kept with the model; time predict() with one of yours.")
        return self.about["row"]

    def speed(self, seconds: float = 2.0) -> dict[str, float]:
        """Milliseconds for one sample, and bytes of the model.

        The sample is zeros (ones in a free size), or the row that was kept; preparing it counts.
        """
        sample = self._sample()
        self.predict(sample)
        taken: list[float] = []
        until = time.perf_counter() + seconds
        while not taken or time.perf_counter() < until:
            started = time.perf_counter()
            self.predict(sample)
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
    parser.add_argument("input", nargs="?", help="a .npy or .npz file; of rows .csv or .json")
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
        loaded = model.read(options.input)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{options.input} cannot be read: {error}") from None
    given = model.predict(loaded)
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
