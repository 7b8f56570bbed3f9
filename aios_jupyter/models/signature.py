"""What a model takes and gives, in the words of the Open Inference Protocol v2, and the checks.

Pure. A leaf module: it imports numpy and is itself imported only by what serves, loads or asks a
model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import UsageError
from ..schema import Struct

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
_DATATYPES = {dtype: name for name, dtype in NUMPY.items()}
_JSON_KINDS = {"b": "b", "u": "ui", "i": "ui", "f": "fui", "O": "US"}


class Tensor(Struct, omit_defaults=True):
    """One input or output: `shape` has -1 where any size goes, `datatype` is v2's word.

    With `missing` a value may be null (in numbers NaN too).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    missing: bool = False


class Signature(Struct):
    """What a model takes and gives. `batched`: the first dimension of all of them is free."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batched(self) -> bool:
        """Whether several requests can be laid together along the first dimension."""
        return all(t.shape and t.shape[0] == -1 for t in (*self.inputs, *self.outputs))

    @property
    def of_rows(self) -> bool:
        """Whether each input is one value of each sample, as a table's columns are."""
        return all(len(tensor.shape) == 1 for tensor in self.inputs)

    def input(self, name: str) -> Tensor:
        """The input called `name`; "" names the only input of a model that has one."""
        if not name and len(self.inputs) == 1:
            return self.inputs[0]
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        raise UsageError(f"The model has no input {name!r}; it takes {listed(self.inputs)}.")

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse arrays that the model does not take.

        Raises
        ------
        UsageError
            An input is missing, has another type or shape, or no samples.
        """
        for tensor in self.inputs:
            array = arrays.get(tensor.name)
            if array is None:
                raise UsageError(
                    f"Input {tensor.name!r} is missing; the model takes {listed(self.inputs)}."
                )
            check_tensor(tensor, array)
        sizes = {len(arrays[t.name]) for t in self.inputs} if self.batched else set()
        if len(sizes) > 1:
            raise UsageError(
                f"The inputs have different numbers of samples ({sorted(sizes)}); give each the "
                "same."
            )


def check_tensor(tensor: Tensor, array: np.ndarray) -> None:
    """Refuse an array whose type or shape `tensor` does not allow."""
    if datatype(array.dtype) != tensor.datatype:
        raise UsageError(
            f"Input {tensor.name!r} is {datatype(array.dtype)}; the model takes {tensor.datatype}."
        )
    shape = array.shape
    if len(shape) != len(tensor.shape) or any(
        want not in (-1, have) for want, have in zip(tensor.shape, shape, strict=True)
    ):
        raise UsageError(
            f"Input {tensor.name!r} has shape {list(shape)}; the model takes "
            f"{list(tensor.shape)} (-1 is any size)."
        )
    if 0 in shape:
        raise UsageError(f"Input {tensor.name!r} is empty (shape {list(shape)}); give it samples.")


def datatype(dtype: np.dtype[Any]) -> str:
    """v2's word for a numpy type.

    Raises
    ------
    UsageError
        v2 has none (complex numbers, dates).
    """
    if dtype.kind in "US":
        return "BYTES"
    try:
        return _DATATYPES[dtype]
    except KeyError:
        raise UsageError(f"Arrays of type {dtype} cannot be sent; convert to numbers.") from None


def as_input(tensor: Tensor, values: Any) -> np.ndarray:
    """`values` (nested lists, numbers, an array) as an array of the tensor's type, not its shape.

    Numbers are converted where nothing is lost but a float's precision.

    Raises
    ------
    UsageError
        Ragged lists, text for numbers, fractions for integers, numbers out of range.
    """
    target = NUMPY[tensor.datatype]
    try:
        array = np.asarray(values)
        if target.kind == "O" and array.dtype.kind == "U":
            array = np.asarray(values, object)  # numbers beside text have become text above
    except (ValueError, OverflowError):
        raise UsageError(
            f"Input {tensor.name!r} is ragged: make every inner list the same length."
        ) from None
    if tensor.missing and array.dtype.kind == "O":
        array = _with_missing(array, np.nan if target.kind == "f" else None)
    if target.kind == "O" and array.dtype.kind == "O":
        if not all(
            isinstance(v, str | bytes) or (tensor.missing and v is None) for v in array.flat
        ):
            raise UsageError(f"Input {tensor.name!r} must hold text alone.")
        return array
    if array.dtype == target:
        return array
    if array.dtype.kind not in _JSON_KINDS[target.kind]:
        raise UsageError(
            f"Input {tensor.name!r} must hold {tensor.datatype} values alone, not "
            f"{_kind(array.dtype)}."
        )
    if target.kind in "ui" and array.size:
        limits = np.iinfo(target)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(
                f"Input {tensor.name!r} has numbers outside {limits.min} to {limits.max}; use "
                f"{tensor.datatype} values."
            )
    with np.errstate(over="ignore"):  # a number beyond the type's range is an infinity, as in JSON
        return array.astype(target)


def _with_missing(array: np.ndarray, missing: float | None) -> np.ndarray:
    """`array` with one value for what is missing, as numbers where it holds nothing else."""
    values = [
        missing if value is None or (isinstance(value, float) and math.isnan(value)) else value
        for value in array.flat
    ]
    if missing is None:
        found = np.empty(len(values), object)
        found[:] = values
    else:
        found = np.asarray(values)
    return found.reshape(array.shape)


def _kind(dtype: np.dtype[Any]) -> str:
    words = {"U": "text", "S": "text", "f": "fractions", "b": "true/false", "O": "mixed values"}
    return words.get(dtype.kind, str(dtype))


def listed(tensors: Iterable[Tensor]) -> str:
    """Tensors as a sentence names them."""
    return ", ".join(f"{t.name!r} {t.datatype} {list(t.shape)}" for t in tensors)


def by_column(rows: Any, signature: Signature) -> Any:
    """Rows (a data frame, or a list of dicts) as a dict of columns; anything else as it is.

    Only for a model whose inputs are columns. What it does not take is left out.

    Raises
    ------
    UsageError
        A row lacks a value.
    """
    if isinstance(rows, list) and not (rows and isinstance(rows[0], Mapping)):
        return rows  # numbers: most requests
    if not signature.of_rows:
        return rows
    names = [tensor.name for tensor in signature.inputs]
    if hasattr(rows, "columns") and hasattr(rows, "isna"):
        lost = [name for name in names if name not in rows.columns]
        if lost:
            raise UsageError(
                f"The data has no column {lost[0]!r}; the model takes {_words(names)}."
            )
        return {name: _values(rows[name]) for name in names}
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return rows
    for number, row in enumerate(rows):
        lost = [name for name in names if name not in row]
        if lost:
            raise UsageError(
                f"Row {number} has no {lost[0]!r}; the model takes {_words(names)} (null where one is "
                "missing)."
            )
    return {name: [row[name] for row in rows] for name in names}


def _words(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def _values(series: Any) -> list[Any]:
    """A column of pandas as plain values, None where one is missing."""
    found = series.astype(object).where(series.notna(), None).tolist()
    return [value.isoformat() if hasattr(value, "isoformat") else value for value in found]
