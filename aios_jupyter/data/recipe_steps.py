"""What each step of a recipe does to a frame, with what it has learned. Imports pandas."""

# The functions in a table have one shape, whether they need all of it or not.
# ruff: noqa: ARG001

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UsageError
from .recipe_columns import (
    Frame,
    columns_of,
    is_date,
    is_number,
    is_text,
    label,
    labels,
    numbers,
    row_hashes,
)
from .recipe_learn import Learned
from .recipe_text import Percent, Step

Apply = Callable[[Frame, Step, Sequence[str], Mapping[str, Learned]], tuple[Frame, int]]

_SHOWN = 5
_PARTS = {"year": "year", "month": "month", "day": "day", "weekday": "day_of_week", "hour": "hour"}


def apply(frame: Frame, step: Step, learned: Mapping[str, Learned]) -> tuple[Frame, int]:
    """A new frame, and how many values (or rows) are not what they were."""
    columns = columns_of(step, frame) if step.columns != ("*",) or not learned else list(learned)
    lost = [name for name in columns if name not in frame.columns]
    if lost:
        raise UsageError(f"There is no column '{lost[0]}' for {step}, which has learned from it.")
    return _APPLY[step.name](frame, step, columns, learned)


def _each(change: Callable[[Any, Step, Learned], tuple[Any, int]]) -> Apply:
    """Changes columns one by one, in place of themselves."""

    def run(
        frame: Frame, step: Step, columns: Sequence[str], learned: Mapping[str, Learned]
    ) -> tuple[Frame, int]:
        found, changed = {}, 0
        for name in columns:
            found[name], count = change(frame[name], step, learned.get(name, {}))
            changed += count
        return frame.assign(**found), changed

    return run


def _rows(keep: Callable[[Frame, Step, Sequence[str], Mapping[str, Learned]], Any]) -> Apply:
    """Drops the rows for which `keep` is False."""

    def run(
        frame: Frame, step: Step, columns: Sequence[str], learned: Mapping[str, Learned]
    ) -> tuple[Frame, int]:
        kept = np.asarray(keep(frame, step, columns, learned))
        return frame[kept], int(len(kept) - kept.sum())

    return run


def _wider(make: Callable[[Any, Step, Learned], dict[str, Any]]) -> Apply:
    """Puts several columns in the place of one."""

    def run(
        frame: Frame, step: Step, columns: Sequence[str], learned: Mapping[str, Learned]
    ) -> tuple[Frame, int]:
        pieces: list[Any] = []
        for name in frame.columns:
            if name not in columns:
                pieces.append(frame[name])
                continue
            made = make(frame[name], step, learned.get(name, {}))
            pieces.append(
                pd.DataFrame({f"{name}{end}": v for end, v in made.items()}, index=frame.index)
            )
        wide = pd.concat(pieces, axis=1)
        double = wide.columns[wide.columns.duplicated()]
        if len(double):
            raise UsageError(
                f"{step} makes a column '{double[0]}', which is there already; rename it first."
            )
        return wide, len(frame) * len(columns)

    return run


def _number(series: Any, step: Step, _: Learned) -> tuple[Any, int]:
    if is_number(series):
        return series, 0
    # As text, since dates would become nanoseconds.
    found = pd.to_numeric(series.astype("str").where(series.notna()), errors="coerce").astype(
        "float64"
    )
    return found, int((found.isna() & series.notna()).sum())


def _text(series: Any, step: Step, _: Learned) -> tuple[Any, int]:
    return pd.Series(labels(series), index=series.index, dtype="str"), int(series.notna().sum())


def _date(series: Any, step: Step, _: Learned) -> tuple[Any, int]:
    if is_date(series):
        return series, 0
    if is_number(series):
        raise UsageError(
            f"{step}: '{series.name}' has numbers, which are no dates; use text({series.name}) first."
        )
    found = pd.to_datetime(series, errors="coerce", format="mixed", utc=True).dt.tz_localize(None)
    return found.astype("datetime64[us]"), int((found.isna() & series.notna()).sum())


def _strip(series: Any, step: Step, _: Learned) -> tuple[Any, int]:
    return _worded(series, lambda text: text.strip() or None)


def _lower(series: Any, step: Step, _: Learned) -> tuple[Any, int]:
    return _worded(series, str.lower)


def _worded(series: Any, change: Callable[[str], str | None]) -> tuple[Any, int]:
    """Text changed value by value; what is no text stays."""
    if not is_text(series):
        return series, 0
    old = series.astype(object).where(series.notna(), None).to_numpy()
    new = np.array([change(v) if isinstance(v, str) else v for v in old] or [None], dtype=object)
    new = new[: len(old)]
    changed = sum(a is not b and a != b for a, b in zip(old, new, strict=True))
    return pd.Series(new, index=series.index, dtype=series.dtype), changed


def _fill(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
    value = learned.get("with", step.values[0])
    missing = int(series.isna().sum())
    if isinstance(value, Percent):
        raise UsageError(f"{step}: a percentage is no value; write fill({series.name}, 0.5).")
    if is_number(series) or isinstance(value, float):
        try:
            value = float(value)
        except ValueError:
            raise UsageError(
                f"{step}: '{series.name}' has numbers, and '{value}' is none."
            ) from None
        if pd.api.types.is_bool_dtype(series.dtype):
            return series.astype("boolean").fillna(bool(value)), missing
        return pd.Series(numbers(series, step), index=series.index).fillna(value), missing
    if is_date(series):
        return series.fillna(pd.Timestamp(str(value))), missing
    return series.where(series.notna(), label(value)), missing


def _bounds(step: Step, learned: Learned) -> tuple[float, float]:
    found = (learned["low"], learned["high"]) if learned else step.values
    low, high = (float(str(bound)) for bound in found)
    return low, high


def _clip(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
    low, high = _bounds(step, learned)
    values = numbers(series, step)
    return np.clip(values, low, high), int(((values < low) | (values > high)).sum())


def _inside(
    frame: Frame, step: Step, columns: Sequence[str], learned: Mapping[str, Learned]
) -> Any:
    keep = np.ones(len(frame), bool)
    for name in columns:
        low, high = _bounds(step, learned.get(name, {}))
        values = numbers(frame[name], step)
        keep &= ~((values < low) | (values > high))
    return keep


def _log(series: Any, step: Step, _: Learned) -> tuple[Any, int]:
    values = numbers(series, step)
    if (values <= -1).any():
        raise UsageError(
            f"{step}: '{series.name}' has {values.min():g}, and 1 + x must be above 0."
        )
    return np.log1p(values), len(values)


def _shifted(middle: str, width: str) -> Callable[[Any, Step, Learned], tuple[Any, int]]:
    def run(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
        values = numbers(series, step)
        return (values - learned[middle]) / (learned[width] or 1.0), len(values)

    return run


def _minmax(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
    values = numbers(series, step)
    return (values - learned["low"]) / ((learned["high"] - learned["low"]) or 1.0), len(values)


def _binned(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
    values = numbers(series, step)
    edges = learned["edges"] if learned else [float(str(edge)) for edge in step.values]
    found = np.searchsorted(np.asarray(edges), values, side="right").astype("float64")
    return np.where(np.isnan(values), np.nan, found), len(values)


def _onehot(series: Any, step: Step, learned: Learned) -> dict[str, Any]:
    found = labels(series)
    return {f"={value}": (found == value).astype("int8") for value in learned["values"]}


def _ordinal(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
    order = learned["values"] if learned else [label(value) for value in step.values]
    places = {value: place for place, value in enumerate(order)}
    return np.array([places.get(value, -1) for value in labels(series)], dtype="int64"), len(series)


def _frequency(series: Any, step: Step, learned: Learned) -> tuple[Any, int]:
    parts = learned["parts"]
    return np.array([parts.get(value, 0.0) for value in labels(series)], dtype="float64"), len(
        series
    )


def _date_parts(series: Any, step: Step, _: Learned) -> dict[str, Any]:
    if not is_date(series):
        raise UsageError(
            f"{step}: '{series.name}' has no dates; put date({series.name}) before it."
        )
    return {f"_{end}": getattr(series.dt, part).astype("Int64") for end, part in _PARTS.items()}


def _hash_text(series: Any, step: Step, _: Learned) -> dict[str, Any]:
    width = int(float(str(step.values[0])))
    found = np.zeros((len(series), width), dtype="float32")
    for row, text in enumerate(labels(series)):
        for word in re.findall(r"\w+", (text or "").lower()):
            found[row, zlib.crc32(word.encode()) % width] += 1
    return {f"_h{place}": found[:, place] for place in range(width)}


def _embed(series: Any, step: Step, _: Learned) -> dict[str, Any]:
    from .embeddings import embed

    found = embed(str(step.values[0]), [text or "" for text in labels(series)])
    return {f"_e{place}": found[:, place] for place in range(found.shape[1])}


def _flag(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> tuple[Frame, int]:
    flags = {f"{name}_missing": frame[name].isna().astype("int8") for name in columns}
    return frame.assign(**flags), sum(int(flag.sum()) for flag in flags.values())


def _present(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> Any:
    return frame[list(columns)].notna().all(axis=1)


def _first(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> Any:
    return ~row_hashes(frame, step).duplicated()


def _dropped(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> tuple[Frame, int]:
    return frame.drop(columns=list(columns)), len(columns)


def _kept(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> tuple[Frame, int]:
    return frame[list(columns)], len(frame.columns) - len(columns)


def _renamed(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> tuple[Frame, int]:
    name = str(step.values[0])
    if name in frame.columns:
        raise UsageError(f"{step}: there is a column '{name}' already; drop it first.")
    return frame.rename(columns={columns[0]: name}), 1


# --- checks


def is_check(step: Step) -> bool:
    """Whether a step refuses data rather than change it."""
    return step.name.startswith("check_")


def failing(frame: Frame, step: Step) -> Any:
    """True for each row that a check refuses."""
    wrong = np.zeros(len(frame), bool)
    for name in columns_of(step, frame):
        series = frame[name]
        if step.name == "check_present":
            wrong |= series.isna().to_numpy()
        elif step.name == "check_range":
            low, high = _bounds(step, {})
            values = numbers(series, step)
            wrong |= (values < low) | (values > high)
        elif step.name == "check_values":
            allowed = {label(value) for value in step.values}
            wrong |= np.array([v is not None and v not in allowed for v in labels(series)], bool)
        elif step.name == "check_matches":
            pattern = re.compile(str(step.values[0]))
            wrong |= np.array(
                [v is not None and not pattern.fullmatch(v) for v in labels(series)], bool
            )
    if step.name == "check_unique":
        wrong = row_hashes(frame, step).duplicated(keep=False).to_numpy()
    return wrong


def refused(step: Step, count: int, rows: Frame) -> UsageError:
    """The error for rows that a check refuses, with the first of them."""
    table = rows.head(_SHOWN).to_string(max_cols=12)
    few = "this row does" if count == 1 else f"these {count:,} rows do"
    more = f"\n(and {count - _SHOWN:,} more)" if count > _SHOWN else ""
    return UsageError(f"The data does not pass {step}: {few} not.\n{table}{more}")


def _check(frame: Frame, step: Step, columns: Sequence[str], _: Any) -> tuple[Frame, int]:
    wrong = failing(frame, step)
    if wrong.any():
        raise refused(step, int(wrong.sum()), frame[wrong])
    return frame, 0


_APPLY: dict[str, Apply] = {
    "number": _each(_number),
    "text": _each(_text),
    "date": _each(_date),
    "strip": _each(_strip),
    "lower": _each(_lower),
    "rename": _renamed,
    "drop": _dropped,
    "keep": _kept,
    "drop_missing": _rows(_present),
    "flag_missing": _flag,
    "fill": _each(_fill),
    "drop_duplicates": _rows(_first),
    "clip": _each(_clip),
    "drop_outside": _rows(_inside),
    "log": _each(_log),
    "scale": _each(_shifted("mean", "std")),
    "minmax": _each(_minmax),
    "robust": _each(_shifted("median", "iqr")),
    "bins": _each(_binned),
    "cut": _each(_binned),
    "onehot": _wider(_onehot),
    "ordinal": _each(_ordinal),
    "frequency": _each(_frequency),
    "date_parts": _wider(_date_parts),
    "hash_text": _wider(_hash_text),
    "embed": _wider(_embed),
    **dict.fromkeys(
        ("check_present", "check_unique", "check_range", "check_values", "check_matches"), _check
    ),
}
