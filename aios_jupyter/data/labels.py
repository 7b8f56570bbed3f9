"""Whether labels are what a training can use: one for each row, a number or a class that is known.

A leaf module: it imports numpy. Data with other labels may be looked at, queried and cleaned; it is
refused where it is fed to ranks or augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConflictError, UsageError
from .entries import Entry

Array = NDArray[Any]

_SHOWN = 5


def check_usable(y: Array | None, where: Callable[[int], str], mend: str = "") -> None:
    """Raise `UsageError` for labels that are missing, NaN or infinite.

    Parameters
    ----------
    where
        Names a row, with its file, at the beginning of a sentence; called for the first wrong one.
    mend
        What to do about missing ones, where there is a verb for it.
    """
    wrong = np.empty(0, np.intp) if y is None else _unusable(y)
    if y is None or not len(wrong):
        return
    first = int(wrong[0])
    value = str(y[first] if y.ndim == 1 else y[first][~np.isfinite(y[first])].flat[0])
    missing = value in {"None", "nan", "NaT", "<NA>"}
    advice = mend if missing and mend else "repair such rows, or leave them out"
    has = "no label" if missing and mend else f"the label {value}"
    raise UsageError(
        f"{where(first)} has {has} ({len(wrong):,} of {len(y):,} rows have none that can be used); "
        f"{advice}."
    )


def _unusable(y: Array) -> NDArray[np.intp]:
    """The rows whose label is none; of several labels a row, one of them."""
    if y.dtype.kind == "f":
        wrong = ~np.isfinite(y)
    elif y.dtype.kind in "OMm":
        import pandas as pd

        wrong = pd.isna(y)
    else:
        return np.empty(0, np.intp)
    return np.flatnonzero(wrong.any(axis=tuple(range(1, y.ndim))) if y.ndim > 1 else wrong)


def check_known(
    entry: Entry, rows: int, y: Array | None, where: Callable[[int], str] = str
) -> None:
    """Raise `ConflictError` where a dataset has other rows or classes than the catalogue knows.

    Parameters
    ----------
    entry
        As it was added.
    rows, y, where
        What there is now; labels as they stand in the data, before they are numbered.
    """
    place = entry.url
    if rows != entry.rows:
        raise ConflictError(
            f"{place} has {rows:,} rows, but had {entry.rows:,} when it was added; add it again."
        )
    strange = None if y is None else _strange(y, entry.classes)
    if strange is None or y is None:
        return
    shown = ", ".join(entry.classes[:_SHOWN]) + (", …" if len(entry.classes) > _SHOWN else "")
    raise ConflictError(
        f"{where(strange)} has the label {y[strange]}, which is none of the classes that there were "
        f"when it was added ({shown}); repair it, or add the dataset again."
    )


def _strange(y: Array, classes: Sequence[str]) -> int | None:
    """The first row whose label is none of the classes, which are text; none: any label will do."""
    if not classes or y.ndim != 1 or y.dtype.kind not in "biuUSO":
        return None
    plain = np.array([str(value) for value in y]) if y.dtype == object else y
    values, first = np.unique(plain, return_index=True)
    known: set[Any] = set(classes)
    words: list[Any] = [str(value) for value in values]
    if y.dtype.kind in "iu" and all(name.removeprefix("-").isdecimal() for name in classes):
        # A shard may say 007.
        known, words = {int(name) for name in classes}, values.tolist()
    rows = [int(row) for word, row in zip(words, first, strict=True) if word not in known]
    return min(rows, default=None)


def numbered(y: Array) -> Array:
    """Labels that are text as their places among the classes."""
    if y.dtype == object:
        y = y.astype(str)
    if y.dtype.kind not in "US":
        return y.astype(np.int64) if y.dtype.kind in "iub" else y
    return np.searchsorted(np.unique(y), y)
