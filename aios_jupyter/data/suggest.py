"""A recipe for a table that nobody has written one for. A leaf module: it imports pandas."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..errors import UsageError
from .recipe_columns import Frame, is_date, is_number, is_text
from .recipe_text import Step
from .tables import LABELS

_ROWS = 100_000
# This part of the text of a column has to be numbers (or dates) for the column to be made such.
_MOST = 0.95
_FEW_VALUES = 20
_WORDS = 4
_WIDTH = 64.0


def steps(frame: Frame, kind: str, label: str = "") -> list[Step]:
    """Steps that suit a table, by what its first rows look like.

    Parameters
    ----------
    kind
        `clean`: text without spaces around it and read as numbers or dates where it is that, no row
        twice. `features`: numbers alone, without missing ones.
    label
        A column to leave alone, besides those named like one.

    Raises
    ------
    UsageError
        There is nothing to do.
    """
    frame = frame.head(_ROWS)
    names = [str(name) for name in frame.columns if name != label and not is_apart(str(name))]
    found = _cleaning(frame, names) if kind == "clean" else _features(frame, names)
    if not found:
        raise UsageError("There is no column to make a feature of; write the steps with --steps.")
    return found


def is_apart(name: str) -> bool:
    """Labels and ids are not made features of."""
    return name in LABELS or name == "id" or name.endswith("_id")


def _cleaning(frame: Frame, names: list[str]) -> list[Step]:
    texts = tuple(name for name in names if is_text(frame[name]))
    numbers = tuple(name for name in texts if _reads(frame[name], _as_numbers))
    dates = tuple(name for name in texts if name not in numbers and _reads(frame[name], _as_dates))
    kinds = (("strip", texts), ("number", numbers), ("date", dates))
    return [*(Step(name, own) for name, own in kinds if own), Step("drop_duplicates", ())]


def _features(frame: Frame, names: list[str]) -> list[Step]:
    found: list[Step] = []
    scaled = []
    for name in names:
        series = frame[name]
        if is_date(series):
            found.append(Step("date_parts", (name,)))
        elif pd.api.types.is_bool_dtype(series.dtype):
            found += [Step("fill", (name,), (0.0,))] if series.isna().any() else []
        elif is_number(series):
            found += [Step("fill", (name,), ("median",))] if series.notna().any() else []
            scaled.append(name)
        else:
            found.append(_for_text(series, name))
    usable = tuple(name for name in scaled if frame[name].notna().any())
    return [*found, *([Step("scale", usable)] if usable else [])]


def _for_text(series: Any, name: str) -> Step:
    values = series.dropna().astype("str")
    if values.nunique() <= _FEW_VALUES:
        return Step("onehot", (name,), (float(_FEW_VALUES),))
    words = values.str.count(r"\w+").mean()
    return Step("hash_text", (name,), (_WIDTH,)) if words >= _WORDS else Step("frequency", (name,))


def _reads(series: Any, read: Any) -> bool:
    values = series.dropna().astype("str").str.strip()
    values = values[values != ""]
    return len(values) > 0 and float(read(values).notna().mean()) >= _MOST


def _as_numbers(values: Any) -> Any:
    return pd.to_numeric(values, errors="coerce")


def _as_dates(values: Any) -> Any:
    # Only what is written like 2024-01-31: other text that pandas takes for a date is often none.
    dated = values.where(values.str.match(r"\d{4}-\d\d-\d\d"))
    return pd.to_datetime(dated, errors="coerce", format="ISO8601", utc=True)
