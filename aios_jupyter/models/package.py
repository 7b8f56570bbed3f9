"""Turn a model into files that open without the code that made it.

A torch module becomes ONNX, with a free batch size, beside its weights as safetensors, a Keras model
beside itself in Keras's format; what it computes is compared with the model's own output before
anything is published. Other objects are pickled only where the user says so. A leaf module: it
imports numpy, and torch, onnx and cloudpickle where a model needs them.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace

from ..errors import UsageError
from .example import save_row
from .keras_export import columns_taken, export_keras, is_keras
from .onnx_files import save_and_open, save_example
from .predictor import (
    ONNX_MODEL,
    PICKLED_MODEL,
    OnnxPredictor,
    PickledPredictor,
    first_line,
    named_inputs,
    plain,
    signature_of,
)
from .signature import Signature
from .variants import Optimized

if TYPE_CHECKING:
    from .predictor import Predictor
    from .prepared import Ahead, RowRecipe

PROFILE_ROWS = 10_000
"""Samples of the training data that a profile is made of at most."""


@dataclass(frozen=True)
class Built:
    """A model ready to be stored: `model` is an ONNX model or the object to pickle.

    `rows` is the recipe that runs in front of it, where there is one.
    """

    framework: str
    main: str
    signature: Signature
    model: Any
    rows: RowRecipe | None = None

    @property
    def takes(self) -> Signature:
        """What a client sends: with a recipe, raw rows."""
        if self.rows is None:
            return self.signature
        return replace(self.signature, inputs=tuple(field.tensor for field in self.rows.fields))


def build_with(
    recipe: Ahead, model: Any, extras: Path, input_example: Any, *, allow_pickle: bool = False
) -> Built:
    """`build`, with a recipe in front of the model.

    Without an example that the model takes, it is raw rows that the recipe has prepared.

    Raises
    ------
    UsageError
        The recipe does not make what the model takes.
    """
    from .prepared import raw_rows, write

    if input_example is None or raw_rows(input_example) is not None:
        # What networks train with; of a table other libraries take numbers as they are.
        input_example = None
        if not _is_onnx(model):
            several = columns_taken(model) if is_keras(model) else None
            network = _is_torch(model) or is_keras(model)
            input_example = recipe.example("float32" if network else "float64", several)
    built = build(model, extras, input_example, allow_pickle=allow_pickle)
    rows = recipe.rows_for(built.signature)
    write(rows, extras)
    prepared = dataclasses.replace(built, rows=rows)
    save_row(prepared.takes, recipe.row(), extras)
    return prepared


def _is_torch(model: Any) -> bool:
    torch = sys.modules.get("torch")  # a torch module cannot exist where torch was not imported
    return torch is not None and isinstance(model, torch.nn.Module)


def _is_onnx(model: Any) -> bool:
    return isinstance(model, str | Path | Optimized) or type(model).__name__ == "ModelProto"


def build(model: Any, extras: Path, input_example: Any, *, allow_pickle: bool = False) -> Built:
    """Make the stored form of `model`, and check that it computes the same.

    Parameters
    ----------
    model
        A torch module (also wrapped by DDP or `torch.compile`), a Keras model, what `optimize` gave,
        an ONNX model or its path, or with `allow_pickle` any object with `predict`.
    extras
        An empty directory that receives the files to be stored beside the model.
    input_example
        Samples as the model takes them, with the batch as first dimension: an array or tensor, or
        for several inputs a tuple (in order) or a dict (by name).

    Raises
    ------
    UsageError
        The model cannot be stored in this way, or fails on the example.
    """
    if is_keras(model):
        signature, proto = export_keras(model, extras, input_example)
        return Built("keras", ONNX_MODEL, signature, proto)
    if _is_torch(model):
        from .torch_export import export_torch

        signature, proto = export_torch(model, extras, input_example)
        return Built("torch", ONNX_MODEL, signature, proto)
    if isinstance(model, Optimized):
        given = model.example if input_example is None else input_example
        built = _build_onnx(model.model(), extras, given)
        return dataclasses.replace(built, framework=model.framework)
    if isinstance(model, str | Path) or type(model).__name__ == "ModelProto":
        return _build_onnx(model, extras, input_example)
    if not callable(getattr(model, "predict", None)):
        raise UsageError(
            f"A {type(model).__name__} cannot be published; give a torch module, a Keras model, an "
            "ONNX model or its path, or an object with predict()."
        )
    if not allow_pickle:
        raise UsageError(
            f"A {type(model).__name__} can only be stored as a pickle, which runs code when it is "
            "opened; pass allow_pickle=True (--allow-pickle), or publish it as ONNX."
        )
    return _build_pickle(model, extras, input_example)


def _build_onnx(model: Any, extras: Path, input_example: Any) -> Built:
    import onnx

    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix != ".onnx" or not path.is_file():
            raise UsageError(f"{path} is not an ONNX file; give the path of one ending in .onnx.")
        try:
            model = onnx.load(os.fspath(path))
        except Exception as error:  # protobuf raises classes of its own
            raise UsageError(f"{path} is not an ONNX model: {first_line(error)}.") from error
    predictor = save_and_open(model, extras)
    if input_example is not None:
        inputs = named_inputs(predictor.signature, input_example)
        predictor.run(inputs)
        save_example(inputs, extras)
    return Built("onnx", ONNX_MODEL, predictor.signature, model)


def _build_pickle(model: Any, extras: Path, input_example: Any) -> Built:
    if input_example is None:
        raise UsageError("Publishing a pickled model needs an input example: pass x[:2].")
    example = np.asarray(plain(input_example))
    try:
        output = np.asarray(model.predict(example))
    except Exception as error:  # the user's predict() may raise anything
        raise UsageError(
            f"The model's predict() fails on the input example ({first_line(error)}); pass samples "
            "as it takes them."
        ) from error
    if not example.ndim or not output.ndim or len(output) != len(example):
        raise UsageError("predict() must give one row for each row of the input example.")
    signature = signature_of(example, output)
    (extras / "signature.json").write_bytes(msgspec.json.encode(signature))
    save_example({"input": example}, extras)
    framework = "sklearn" if type(model).__module__.startswith("sklearn.") else "python"
    return Built(framework, PICKLED_MODEL, signature, model)


def save_profile(built: Built, extras: Path, samples: Any) -> None:
    """Keep how the training data and the model's answers to it are distributed.

    Raises
    ------
    UsageError
        They are not what the model takes, or too few.
    """
    from .profile import FILE, profile
    from .trial import batches

    inputs = named_inputs(built.takes, samples)
    rows = len(next(iter(inputs.values())))
    step = -(-rows // PROFILE_ROWS)
    some = {name: array[::step] for name, array in inputs.items()}
    predictor = _reopened(built, extras)
    parts = [predictor.run(part) for part in batches(some)]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    (extras / FILE).write_bytes(msgspec.json.encode(profile(some, outputs)))


def _reopened(built: Built, extras: Path) -> Predictor:
    """What was built, as it will answer."""
    model: Predictor
    if built.main == ONNX_MODEL:
        model = OnnxPredictor(os.fspath(extras / ONNX_MODEL))
    else:
        model = PickledPredictor(built.model, built.signature)
    if built.rows is None:
        return model
    from .prepared import PreparedPredictor

    return PreparedPredictor(model, built.rows)
