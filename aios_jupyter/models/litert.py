"""A Keras model as LiteRT (once TensorFlow Lite), for phones and small boards.

In float32, or with weights and activations in 8 bits, whose ranges are taken from samples. A leaf
module: it imports numpy, TensorFlow where a model is converted, and LiteRT where one is run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, UsageError
from .keras_export import CHATTY, KERAS_MODEL, KerasNet
from .predictor import first_line, named_inputs
from .quiet import quiet, silent
from .signature import Signature

CALIBRATION = 256
"""Samples that ranges are taken from at most."""

ENTRY = "serving_default"
"""The signature by whose names a model is called."""


def convert(net: KerasNet, ranges: Mapping[str, np.ndarray] | None = None) -> bytes:
    """The network as a LiteRT file; with `ranges` in int8, inputs and outputs as they were.

    Raises
    ------
    UsageError
        It has an operation that LiteRT does not.
    MissingExtraError
        TensorFlow is not installed.
    """
    try:
        with quiet(*CHATTY):
            import tensorflow as tf
    except ImportError as error:
        raise MissingExtraError("LiteRT", "tensorflow") from error
    with (
        tempfile.TemporaryDirectory(prefix="aios-litert-") as scratch,
        quiet(*CHATTY),
        silent(),
    ):
        module = tf.Module()
        # So that its weights become constants; Keras 3 has TensorFlow's variables in its own.
        module.weights = [getattr(v, "value", v) for v in net.model.variables]
        specs = [
            tf.TensorSpec((None, *array.shape[1:]), array.dtype, name=name)
            for name, array in net.inputs.items()
        ]
        entry = tf.function(net.named_outputs, input_signature=specs)
        try:
            tf.saved_model.save(module, scratch, signatures=entry.get_concrete_function())
            converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
            if ranges is not None:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = _one_by_one(ranges)
            return bytes(converter.convert())
        except Exception as error:  # the converter raises whatever a part of it does
            raise UsageError(
                f"This model cannot become LiteRT ({first_line(error)}); use layers that it has, or "
                "export it with --to edge."
            ) from error


def _one_by_one(
    ranges: Mapping[str, np.ndarray],
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    def samples() -> Iterator[dict[str, np.ndarray]]:
        for row in range(len(next(iter(ranges.values())))):
            yield {name: array[row : row + 1] for name, array in ranges.items()}

    return samples


def reopened(folder: Path, example: Mapping[str, np.ndarray]) -> KerasNet:
    """The network that was kept beside a published model.

    Raises
    ------
    UsageError
        None was, or it has code of its own that is not known here.
    """
    path = folder / KERAS_MODEL
    if not path.is_file():
        raise UsageError(
            "LiteRT is made from Keras models, and this one was not published as one; export it "
            "with --to edge."
        )
    try:
        with quiet(*CHATTY):
            import keras
    except ImportError as error:
        raise MissingExtraError("LiteRT", "tensorflow") from error
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"LiteRT is made with TensorFlow, and Keras runs on {keras.backend.backend()} here; "
            "export it in a shell with KERAS_BACKEND=tensorflow."
        )
    try:
        with quiet(*CHATTY):
            model = keras.saving.load_model(os.fspath(path), compile=False, safe_mode=True)
    except Exception as error:  # a layer's own from_config() may raise anything
        raise UsageError(
            f"The Keras model cannot be opened here ({first_line(error)}); register its layers with "
            "keras.saving.register_keras_serializable, and export it where they are defined."
        ) from error
    return KerasNet(model, dict(example))


class LiteRtPredictor:
    """A LiteRT model that is open."""

    def __init__(self, content: bytes, signature: Signature, *, threads: int = 1) -> None:
        with quiet(*CHATTY), silent():
            try:
                from ai_edge_litert.interpreter import Interpreter
            except ImportError as error:
                raise MissingExtraError("LiteRT", "tensorflow") from error
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
            self._run = self._interpreter.get_signature_runner(ENTRY)
        self.signature = signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name."""
        found = self._run(**inputs)
        return {output.name: found[output.name] for output in self.signature.outputs}

    def predict(self, x: Any) -> Any:
        """As other predictors."""
        outputs = self.run(named_inputs(self.signature, x))
        return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)
