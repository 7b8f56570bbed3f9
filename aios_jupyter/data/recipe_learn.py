"""What a step of a recipe learns from data. Imports pandas.

A step learns a state from each part of the data (`look`) and merges these to numbers and text that
JSON can hold (`merge`): exactly, so that the result does not depend on how the data is divided.
Medians and other quantiles gather their column: 8 bytes a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .recipe_columns import Frame, columns_of, labels, numbers
from .recipe_text import Percent, Step

Learned = Mapping[str, Any]

MOST_VALUES = 1000


def _finite(series: Any, step: Step) -> NDArray[np.float64]:
    found = numbers(series, step)
    return found[np.isfinite(found)]


def _moments(series: Any, step: Step) -> tuple[int, float, float, float, float]:
    found = _finite(series, step)
    if not len(found):
        return 0, 0.0, 0.0, np.inf, -np.inf
    mean = float(found.mean())
    return (
        len(found),
        mean,
        float(((found - mean) ** 2).sum()),
        float(found.min()),
        float(found.max()),
    )


def _counts(series: Any, _: Step) -> Counter[str]:
    return Counter(value for value in labels(series) if value is not None)


def looks_at(step: Step) -> str:
    """What of its columns a step learns from: `moments`, `values`, `counts`, or "" for nothing."""
    first = step.values[0] if step.values else None
    if step.name == "fill":
        return {"mean": "moments", "median": "values", "most": "counts"}.get(str(first), "")
    if step.name in {"clip", "drop_outside"}:
        return "values" if first == "iqr" or isinstance(first, Percent) else ""
    if step.name == "ordinal" and step.values:
        return ""
    kinds = {"scale": "moments", "minmax": "moments", "robust": "values", "bins": "values",
             "onehot": "counts", "ordinal": "counts", "frequency": "counts"}  # fmt: skip
    return kinds.get(step.name, "")


def look(frame: Frame, step: Step) -> dict[str, Any]:
    """What one part of the data tells a step, for each of its columns."""
    take = {"moments": _moments, "values": _finite, "counts": _counts}[looks_at(step)]
    return {name: take(frame[name], step) for name in columns_of(step, frame)}


def merge(step: Step, states: Sequence[dict[str, Any]]) -> dict[str, Learned]:
    """What a step has learned from all parts, for each of its columns."""
    names = dict.fromkeys(name for state in states for name in state)
    return {name: _merge_one(step, name, [s[name] for s in states if name in s]) for name in names}


def _merge_one(step: Step, name: str, states: list[Any]) -> Learned:
    kind = looks_at(step)
    if kind == "counts":
        return _from_counts(step, name, sum(states, Counter()))
    if kind == "moments":
        count, mean, squares, low, high = states[0]
        for n, other_mean, other_squares, other_low, other_high in states[1:]:
            total = count + n
            if n:
                gap = other_mean - mean
                squares += other_squares + gap * gap * count * n / total
                mean += gap * n / total
            count, low, high = total, min(low, other_low), max(high, other_high)
        _some(count, step, name)
        if step.name == "fill":
            return {"with": mean}
        deviation = (squares / count) ** 0.5
        return (
            {"mean": mean, "std": deviation} if step.name == "scale" else {"low": low, "high": high}
        )
    values = np.concatenate(states)
    _some(len(values), step, name)
    return _from_values(step, values)


def _some(count: int, step: Step, name: str) -> None:
    if not count:
        raise UsageError(f"{step} cannot learn from '{name}': the column has no values.")


def _from_values(step: Step, values: NDArray[np.float64]) -> Learned:
    def quantiles(*parts: float) -> list[float]:
        return [float(x) for x in np.quantile(values, parts)]

    first = step.values[0] if step.values else None
    if step.name == "fill":
        return {"with": quantiles(0.5)[0]}
    if step.name == "robust":
        low, middle, high = quantiles(0.25, 0.5, 0.75)
        return {"median": middle, "iqr": high - low}
    if step.name == "bins":
        parts = np.linspace(0, 1, int(float(str(first))) + 1)[1:-1]
        return {"edges": sorted(set(quantiles(*parts)))}
    if first == "iqr":
        low, high = quantiles(0.25, 0.75)
        return {"low": low - 1.5 * (high - low), "high": high + 1.5 * (high - low)}
    bounds = [value.of_100 / 100 for value in step.values if isinstance(value, Percent)]
    low, high = quantiles(*bounds)
    return {"low": low, "high": high}


def _from_counts(step: Step, name: str, counts: Counter[str]) -> Learned:
    total = sum(counts.values())
    _some(total, step, name)
    # Ties in order of the text, so that the order of the parts does not matter.
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    if step.name == "fill":
        return {"with": ranked[0]}
    if step.name == "frequency":
        return {"parts": {value: counts[value] / total for value in ranked}}
    most = int(float(str(step.values[0]))) if step.name == "onehot" and step.values else None
    if most is None and len(ranked) > MOST_VALUES:
        raise UsageError(
            f"{step}: '{name}' has {len(ranked):,} different values; use frequency({name}), or "
            f"onehot({name}, 100) for the commonest."
        )
    return {"values": sorted(ranked[:most], key=_natural)}


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by size, then text."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
