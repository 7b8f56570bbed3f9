"""A table's columns as a model's inputs. A leaf module: it imports numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .signature import Signature, as_input, check_tensor


def chosen(have: Sequence[str], signature: Signature, label: str | None = None) -> list[str]:
    """The columns that a model takes: those of its inputs' names, or all but the label.

    Raises
    ------
    UsageError
        One of several inputs has no column.
    """
    names = [tensor.name for tensor in signature.inputs]
    if set(names) <= set(have):
        return names
    if len(names) > 1:
        absent = ", ".join(name for name in names if name not in have)
        raise UsageError(f"The model takes {', '.join(names)}; the data has no column {absent}.")
    from ..data.tables import LABELS  # with pyarrow, which an exported endpoint has not

    return [name for name in have if name not in LABELS and name != label]


def as_inputs(frame: Any, signature: Signature, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """These columns of a frame as the model takes them: each an input, or all of them the only one.

    Raises
    ------
    UsageError
        A column holds no numbers, or the model takes others.
    """
    names = [tensor.name for tensor in signature.inputs]
    if set(names) <= set(columns):
        found = {}
        for tensor in signature.inputs:
            values = as_input(tensor, _numbers(frame[tensor.name], tensor.name))
            found[tensor.name] = values[:, None] if len(tensor.shape) == 2 else values
        return found
    tensor = signature.inputs[0]
    rows = np.stack([_numbers(frame[name], name) for name in columns], 1)
    array = as_input(tensor, rows if len(tensor.shape) == 2 else rows[:, 0])
    check_tensor(tensor, array)
    return {tensor.name: array}


def _numbers(series: Any, name: str) -> Any:
    if str(series.dtype) in ("object", "string", "str"):
        return series.to_numpy(object)
    try:
        if series.isna().any():
            return series.to_numpy("float64", na_value=np.nan)
        return series.to_numpy(getattr(series.dtype, "numpy_dtype", series.dtype))
    except (TypeError, ValueError):
        raise UsageError(f"Column '{name}' holds no numbers; prepare it first.") from None
