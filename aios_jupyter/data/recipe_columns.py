"""The columns that a step of a recipe is about, as numbers and as text. Imports pandas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import UsageError
from .recipe_text import Step

Frame = Any  # pandas has no types here


def columns_of(step: Step, frame: Frame) -> list[str]:
    """The columns of a frame that a step is about; `*` is every one that it can take.

    Raises
    ------
    UsageError
        The frame has no such column.
    """
    have = list(map(str, frame.columns))
    if len(set(have)) < len(have):
        double = next(name for name in have if have.count(name) > 1)
        raise UsageError(f"There are two columns '{double}'; rename one of them.")
    if step.columns == ("*",):
        takes = _takes(step)
        return [name for name in have if takes(frame[name])]
    missing = next((name for name in step.columns if name not in have), None)
    if missing is not None:
        raise UsageError(f"There is no column '{missing}' for {step}; there are {_listed(have)}.")
    return list(step.columns)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def is_number(series: Any) -> bool:
    """Whether a column holds numbers (or is true and false)."""
    return bool(pd.api.types.is_numeric_dtype(series.dtype))


def is_date(series: Any) -> bool:
    """Whether a column holds dates."""
    return bool(pd.api.types.is_datetime64_any_dtype(series.dtype))


def is_text(series: Any) -> bool:
    """Whether a column holds neither."""
    return not is_number(series) and not is_date(series)


def _any(_: Any) -> bool:
    return True


def _takes(step: Step) -> Callable[[Any], bool]:
    if step.name != "fill" or step.values[0] == "most":
        return _TAKES.get(step.name, _any)
    number = step.values[0] in {"mean", "median"} or isinstance(step.values[0], float)
    return is_number if number else is_text


_TAKES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("log", "scale", "minmax", "robust", "clip", "drop_outside", "bins", "cut"), is_number),
    **dict.fromkeys(("strip", "lower", "onehot", "ordinal", "frequency", "hash_text", "embed", "number"), is_text),
    "date_parts": is_date,
}  # fmt: skip


def numbers(series: Any, step: Step) -> NDArray[np.float64]:
    """A column as numbers, missing ones as NaN.

    Raises
    ------
    UsageError
        A value is no number.
    """
    if is_number(series):
        return np.asarray(series.to_numpy(dtype="float64", na_value=np.nan))
    found = pd.to_numeric(series, errors="coerce") if is_text(series) else series * np.nan
    wrong = series[(found.isna() & series.notna()).to_numpy()]
    if len(wrong):
        name = series.name
        raise UsageError(
            f"{step}: the column '{name}' has {str(wrong.iloc[0])!r}, which is no number; put "
            f"number({name}) before it, which makes such values missing."
        )
    return np.asarray(found.to_numpy(dtype="float64", na_value=np.nan))


def labels(series: Any) -> NDArray[Any]:
    """A column's values as text, None where it is missing; 1 and 1.0 are the same."""
    try:
        codes, values = pd.factorize(series, use_na_sentinel=True)
    except TypeError:
        # Lists and dictionaries.
        texts = series.map(str).where(series.notna(), None)
        codes, values = pd.factorize(texts, use_na_sentinel=True)
    texts = np.array([*map(label, values), None], dtype=object)
    return np.asarray(texts[codes])


def label(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value)


def row_hashes(frame: Frame, step: Step) -> Any:
    """128 bits of each row's values in the step's columns (all where it names none)."""
    part = frame[columns_of(step, frame)] if step.columns else frame
    keys = ("aios-recipe-rows", "rows-recipe-aios")
    return pd.DataFrame({key: hashes(part, key) for key in keys})


def hashes(frame: Frame, key: str) -> Any:
    """64 bits of each row, by a key of 16 characters."""
    try:
        return pd.util.hash_pandas_object(frame, index=False, hash_key=key)
    except TypeError:
        # Lists and dictionaries.
        texts = {name: labels(frame[name]) for name in frame.columns if is_text(frame[name])}
        return pd.util.hash_pandas_object(frame.assign(**texts), index=False, hash_key=key)
