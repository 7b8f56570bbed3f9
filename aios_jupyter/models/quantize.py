"""ONNX models in int8, with scales calibrated on samples: ONNX Runtime's own tools, kept quiet.

A leaf module: it imports onnx and ONNX Runtime's quantization.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from ..errors import UsageError
from .predictor import first_line
from .quiet import quiet
from .trial import batches

_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")


@dataclass(frozen=True)
class Recipe:
    """A way to quantize; `text` is what it is called beside "int8"."""

    text: str = ""
    method: CalibrationMethod = CalibrationMethod.MinMax
    float_last: bool = False
    dynamic: bool = False


RECIPES = (
    Recipe(),
    Recipe("percentile", CalibrationMethod.Percentile),
    Recipe("last layer float", float_last=True),
    Recipe("dynamic", dynamic=True),
)
"""Tried in this order, until one holds: most often the first does."""


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model has been quantized already."""
    kinds = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
    return any(node.op_type in kinds for node in model.graph.node)


def can_shrink(model: onnx.ModelProto) -> bool:
    """Whether there is a layer whose weights can be int8."""
    return any(node.op_type in _WEIGHTED for node in model.graph.node)


def prepare(source: Path, target: Path) -> None:
    """Fold and infer what quantization needs to know; done once for all recipes.

    Raises
    ------
    UsageError
        ONNX Runtime cannot do it with this model.
    """
    try:
        with _kept_quiet():
            quant_pre_process(os.fspath(source), os.fspath(target), skip_symbolic_shape=True)
    except Exception as error:  # protobuf, onnx and ONNX Runtime each raise classes of their own
        raise UsageError(
            f"This model cannot be prepared for int8 ({first_line(error)}); export it again with a "
            "newer opset (17 or higher)."
        ) from error


def quantize(
    prepared: Path, target: Path, samples: Mapping[str, np.ndarray], recipe: Recipe
) -> bool:
    """Write `prepared` in int8 to `target`; False where the recipe is not for this model.

    Parameters
    ----------
    samples
        What typical inputs are: the ranges of all values between layers are taken from them.

    Raises
    ------
    UsageError
        ONNX Runtime cannot do it.
    """
    model = onnx.load(os.fspath(prepared), load_external_data=False)
    weighted = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    if recipe.dynamic and any("Conv" in node.op_type for node in weighted):
        return False  # its convolutions are slower than float's
    if recipe.float_last and len(weighted) < 2:
        return False
    try:
        with _kept_quiet():
            if recipe.dynamic:
                quantize_dynamic(
                    os.fspath(prepared),
                    os.fspath(target),
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                )
            else:
                quantize_static(
                    os.fspath(prepared),
                    os.fspath(target),
                    _Samples(samples),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=recipe.method,
                    nodes_to_exclude=[weighted[-1].name] if recipe.float_last else [],
                )
    except Exception as error:  # see prepare
        raise UsageError(f"This model cannot be made int8 ({first_line(error)}).") from error
    return True


class _Samples(CalibrationDataReader):
    """Samples in batches, as ONNX Runtime asks for them."""

    def __init__(self, samples: Mapping[str, np.ndarray]) -> None:
        self._parts = batches(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        return next(self._parts, None)


@contextlib.contextmanager
def _kept_quiet() -> Iterator[None]:
    """ONNX Runtime's tools speak through the root logger, and print."""
    root = logging.getLogger()
    silent = logging.NullHandler()  # with none, logging.warning() would set one up for good
    root.addHandler(silent)
    try:
        with quiet("", "onnxruntime"), contextlib.redirect_stdout(None):
            yield
    finally:
        root.removeHandler(silent)
