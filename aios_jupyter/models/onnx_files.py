"""How an ONNX model is put into files, also one that is larger than protobuf allows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .predictor import ONNX_MODEL, OnnxPredictor

if TYPE_CHECKING:
    import onnx

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they lie beside the ONNX file (protobuf ends at 2 GB)."""


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
    """Keep the first sample beside the model."""
    first = {name: array[:1] for name, array in inputs.items()}
    np.savez_compressed(directory / "input_example.npz", **first)  # type: ignore[arg-type]
