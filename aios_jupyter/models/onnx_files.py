"""How an ONNX model is put into files, also one that is larger than protobuf allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .predictor import ONNX_MODEL, OnnxPredictor, first_line
from .protocol_v2 import json_ready

if TYPE_CHECKING:
    import onnx

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they lie beside the ONNX file (protobuf ends at 2 GB)."""

EXAMPLE = "input_example.npz"
"""The first sample of the input example, beside the model."""

EXPORT_ROWS = 4
"""Samples of the input example that an export is compared on."""

TOLERANCE = 1e-3
"""Largest difference between ONNX and the model, over the largest output (or 1)."""


def save_and_open(model: onnx.ModelProto, directory: Path) -> OnnxPredictor:
    """Write `model` into `directory` as it will be stored, and open it from there.

    Large weights go beside the file, and out of `model`, which then only refers to them.

    Raises
    ------
    UsageError
        ONNX Runtime does not take it.
    """
    import onnx

    path = os.fspath(directory / ONNX_MODEL)
    size = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if size <= EXTERNAL_ABOVE:
        onnx.save_model(model, path)
    else:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{ONNX_MODEL}.data")
    return OnnxPredictor(path)


def save_example(inputs: Mapping[str, np.ndarray], directory: Path) -> None:
    """Keep the first sample beside the model. Text is kept as such: objects would be pickled."""
    first = {name: array[:1] for name, array in inputs.items()}
    plain = {
        n: np.asarray(json_ready(a), str) if a.dtype.kind in "OS" else a for n, a in first.items()
    }
    np.savez_compressed(directory / EXAMPLE, **plain)  # type: ignore[arg-type]


def compare(
    predictor: OnnxPredictor,
    rows: int,
    case: Callable[[int], tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]],
) -> None:
    """Refuse an export that computes something else, at one sample, `rows`, and one more.

    Parameters
    ----------
    case
        Gives inputs of so many samples, and what the model itself makes of them.

    Raises
    ------
    UsageError
        It fails, or differs.
    """
    for count in sorted({1, rows, rows + 1}):
        inputs, expected = case(count)
        try:
            given = predictor.run(inputs)
        except Exception as error:  # ONNX Runtime has a class for each kind, without a common base
            raise UsageError(
                f"The exported model fails with {count} samples ({first_line(error)}); make the "
                "model independent of the batch size."
            ) from error
        for want, have in zip(expected, given.values(), strict=True):
            check_same(want, have, count)


def check_same(want: np.ndarray, have: np.ndarray, count: int) -> None:
    """Refuse an export whose output differs from the model's own on `count` samples."""
    if want.shape != have.shape:
        apart = f"in shape ({list(want.shape)}, {list(have.shape)})"
    else:
        a, b = want.astype(float), have.astype(float)
        scale = max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
        if np.allclose(a, b, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            return
        apart = f"by {float(np.abs(a - b).max()):.3g}"
    raise UsageError(
        f"The exported model differs from the model itself {apart} on {count} samples of the "
        "input example; make it deterministic where it is not being trained."
    )
