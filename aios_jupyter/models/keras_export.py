"""A Keras model (Keras 3, or `tf_keras`) as ONNX with a free batch size, checked against itself.

A leaf module: it imports numpy; Keras is there where a model of it is, and tf2onnx comes when one is
exported. The model is also kept in Keras's own format, for those who go on with it (`litert.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError, UsageError
from .onnx_files import EXPORT_ROWS, compare, save_and_open, save_example
from .predictor import OnnxPredictor, first_line, plain
from .quiet import quiet, silent
from .signature import Signature, Tensor, datatype

if TYPE_CHECKING:
    import onnx

KERAS_MODEL = "model.keras"
CHATTY = ("tf2onnx", "tensorflow", "absl")

# What Keras and TensorFlow put around the sentence that says what is wrong.
_AROUND = re.compile(
    r"^Exception encountered when calling.*$|\x1b\[\d*m|\{\{.*?\}\}|\[Op:.*$", re.MULTILINE
)


def is_keras(model: Any) -> bool:
    """Whether it is a network of Keras; it cannot be where Keras was not imported."""
    return any(
        isinstance(model, found)
        for name in ("keras", "tf_keras")
        if isinstance(found := getattr(sys.modules.get(name), "Model", None), type)
    )


def columns_taken(model: Any) -> Signature | None:
    """The inputs of a model that takes several, as those of a table are: by name. None of others."""
    tensors = _input_tensors(model)
    if len(tensors) < 2:
        return None
    return Signature(
        inputs=tuple(
            Tensor(
                name=_plain_name(tensor.name),
                datatype=datatype(np.dtype(_type_of(tensor))),
                shape=tuple(-1 if size is None else int(size) for size in tensor.shape),
            )
            for tensor in tensors
        ),
        outputs=(),
    )


def export_keras(model: Any, extras: Path, input_example: Any) -> tuple[Signature, onnx.ModelProto]:
    """Export `model` and compare; the model in Keras's format and the example go into `extras`.

    Raises
    ------
    UsageError
        There is no example, the model fails on it, cannot be exported, or the export differs.
    MissingExtraError
        The exporter is not installed.
    """
    net = KerasNet(model, input_example)
    proto = net.export()
    predictor = save_and_open(proto, extras)
    net.compare(predictor)
    with quiet(*CHATTY):
        model.save(os.fspath(extras / KERAS_MODEL))
    save_example(net.inputs, extras)
    return predictor.signature, proto


class KerasNet:
    """A network and an example of what it takes.

    Attributes
    ----------
    model
        The network itself.
    inputs
        The example by the names that its inputs have outside: "input" where there is one.
    """

    def __init__(self, model: Any, example: Any) -> None:
        self.model = model
        three = getattr(sys.modules.get("keras"), "Model", None)
        self._three = isinstance(three, type) and isinstance(model, three)
        tensors = _input_tensors(model)
        self._names = ["input"] if len(tensors) == 1 else [_plain_name(t.name) for t in tensors]
        shape = getattr(model, "input", None) if len(tensors) > 1 else None
        # Where it takes a dict: the key of each input, in their order.
        self._keys = (
            [key for tensor in tensors for key, value in shape.items() if value is tensor]
            if isinstance(shape, Mapping)
            else None
        )
        self.inputs = self._arrays(tensors, example)
        self._outputs = self._run(self.inputs)

    def _arrays(self, tensors: Sequence[Any], example: Any) -> dict[str, np.ndarray]:
        if example is None:
            raise UsageError(
                "A Keras model needs an input example: pass input_example=x[:1] with a sample as "
                "the model takes it."
            )
        if isinstance(example, Mapping):
            given = [example.get(name) for name in self._names]
        else:
            given = list(example) if isinstance(example, tuple) else [example]
        if len(given) != len(self._names) or any(value is None for value in given):
            raise UsageError(
                f"The model takes {', '.join(self._names)}; give an input example of each, as a "
                "dict by these names or a tuple in this order."
            )
        arrays = {}
        for name, tensor, value in zip(self._names, tensors, given, strict=True):
            array = np.asarray(plain(value))
            array = array if array.dtype == object else array.astype(_type_of(tensor))
            arrays[name] = array[:EXPORT_ROWS] if array.ndim else array
        sizes = {len(array) if array.ndim else 0 for array in arrays.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise UsageError(
                "Each array of input_example needs the same number of samples, at least one, as "
                "its first dimension; pass x[:1] rather than x[0]."
            )
        return arrays

    def _run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What the model itself gives, flat."""
        try:
            found = self.model(self._as_taken(list(inputs.values())), training=False)
        except Exception as error:  # the user's call() may raise anything
            shapes = [list(array.shape) for array in inputs.values()]
            raise UsageError(
                f"The model fails on the input example of shape {shapes} ({_reason(error)}); "
                "pass samples as the model takes them, with the batch first."
            ) from error
        return [np.asarray(plain(leaf)) for leaf in _leaves(found)]

    def named_outputs(self, *given: Any) -> dict[str, Any]:
        """What the model gives by the names that its outputs have outside, for tensors in order."""
        found = _leaves(self.model(self._as_taken(given), training=False))
        return dict(zip(_output_names(len(found)), found, strict=True))

    def _as_taken(self, given: Sequence[Any]) -> Any:
        if self._keys is not None:
            return dict(zip(self._keys, given, strict=True))
        return given[0] if len(given) == 1 else list(given)

    # --- export

    def export(self) -> onnx.ModelProto:
        """The model in ONNX, with names of ours."""
        import onnx

        try:
            with (
                tempfile.TemporaryDirectory(prefix="aios-keras-") as scratch,
                quiet(*CHATTY),
                silent(),
            ):
                path = os.fspath(Path(scratch) / "model.onnx")
                if self._three:
                    self.model.export(path, format="onnx", verbose=False)
                    proto = onnx.load(path)
                if not self._three or len(proto.graph.input) > len(self._names):
                    proto = self._traced(path)
        except ImportError as error:
            raise MissingExtraError(f"ONNX export ({error.name or error})", "tensorflow") from error
        except Exception as error:  # the exporter raises whatever a part of it or of the model does
            raise UsageError(
                f"This model cannot be exported to ONNX ({_reason(error)}); use layers that "
                "TensorFlow can trace, or publish an ONNX file of your own."
            ) from error
        _rename(proto, self._names, len(self._outputs))
        return proto

    def _traced(self, path: str) -> onnx.ModelProto:
        """The model through TensorFlow's trace of it, which every Keras has there.

        Tensors that a layer holds beside its variables (`Normalization` does) would be inputs of the
        ONNX model; they become constants.
        """
        import onnx
        import tensorflow as tf
        import tf2onnx

        specs = [
            tf.TensorSpec((None, *array.shape[1:]), array.dtype, name=name)
            for name, array in self.inputs.items()
        ]
        function = tf.function(
            lambda *given: self.model(self._as_taken(given), training=False), input_signature=specs
        )
        captured = function.get_concrete_function().graph.captures
        tf2onnx.convert.from_function(function, input_signature=specs, output_path=path)
        proto = onnx.load(path)
        held = {own.name: tensor for tensor, own in captured if own.dtype != tf.resource}
        for value in [value for value in proto.graph.input if value.name in held]:
            constant = onnx.numpy_helper.from_array(held[value.name].numpy(), value.name)
            proto.graph.initializer.append(constant)
            proto.graph.input.remove(value)
        return proto

    def compare(self, predictor: OnnxPredictor) -> None:
        """Refuse an export that computes something else."""

        def case(count: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
            some = {name: _take(array, count) for name, array in self.inputs.items()}
            return some, self._run(some)

        compare(predictor, len(next(iter(self.inputs.values()))), case)


def _input_tensors(model: Any) -> list[Any]:
    """What a model says of its inputs; of one that has a `call` of its own there is one."""
    with contextlib.suppress(AttributeError, ValueError):
        if model.inputs:
            return list(model.inputs)
    return [None]


def _type_of(tensor: Any) -> str:
    wanted = getattr(tensor, "dtype", None) or "float32"
    return str(getattr(wanted, "name", wanted))


def _reason(error: BaseException) -> str:
    """What a layer says of what it was given, in one line."""
    said = ValueError(_AROUND.sub("", str(error)))
    return first_line(said if str(said).strip() else error)


def _plain_name(name: str) -> str:
    return name.partition(":")[0]


def _leaves(found: Any) -> list[Any]:
    if isinstance(found, Mapping):
        return [leaf for value in found.values() for leaf in _leaves(value)]
    if isinstance(found, list | tuple):
        return [leaf for value in found for leaf in _leaves(value)]
    return [found]


def _output_names(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _take(array: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([array, array])[:count] if count > len(array) else array[:count]


def _rename(proto: onnx.ModelProto, names: Sequence[str], outputs: int) -> None:
    """Inputs are called as outside, outputs "output" or "output_0" and so on."""
    given = [value.name for value in proto.graph.input]
    by_name = {_plain_name(name): name for name in given}
    if by_name.keys() == set(names):
        given = [by_name[name] for name in names]
    new = dict(zip(given, names, strict=True))
    ends = [value.name for value in proto.graph.output]
    new |= zip(ends, _output_names(outputs), strict=True)
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new[value.name]
    for node in proto.graph.node:
        for field in (node.input, node.output):
            field[:] = [new.get(name, name) for name in field]
    del proto.graph.value_info[:]
