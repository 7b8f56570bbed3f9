"""What data looks like, in a few numbers for each feature: at training, and as requests bring it.

A leaf module: it imports numpy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..schema import Struct

FILE = "profile.json"
MOST_COLUMNS = 32
_BINS = 10
_KEPT = 200
LEAST_ROWS = 50
WINDOW = 2000
_EVERY = 0.02


class Feature(Struct, frozen=True):
    """How a feature is distributed.

    Attributes
    ----------
    edges, shares
        Inner borders of its bins, and the share of the rows in each bin.
    values
        Quantiles, evenly spaced: as good as a sample.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    values: tuple[float, ...]


class Profile(Struct, frozen=True):
    """A model's inputs and outputs on the data of its training."""

    rows: int
    features: dict[str, Feature]


def features(
    inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One number for each sample and feature.

    Columns of a table are features; of larger things (images, sound) there are mean, spread, least
    and largest value. Of class scores there are the class and its score.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in inputs.items():
        found |= _columns(name, array)
    for name, array in outputs.items():
        if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f":
            found[f"{name}: class"] = array.argmax(1).astype(float)
            found[f"{name}: score"] = array.max(1).astype(float)
        else:
            found |= _columns(name, array)
    return found


def _columns(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    if array.dtype.kind not in "fiub":
        return {}
    flat = array.reshape(len(array), -1).astype(np.float32)
    if flat.shape[1] == 1:
        return {name: flat[:, 0]}
    if flat.shape[1] <= MOST_COLUMNS:
        return {f"{name}[{index}]": flat[:, index] for index in range(flat.shape[1])}
    return {
        f"{name}: mean": flat.mean(1),
        f"{name}: spread": flat.std(1),
        f"{name}: least": flat.min(1),
        f"{name}: largest": flat.max(1),
    }


def profile(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Profile:
    """The profile of data that a model was trained on.

    Raises
    ------
    UsageError
        There are too few rows to compare anything with.
    """
    rows = len(next(iter(inputs.values())))
    if rows < LEAST_ROWS:
        raise UsageError(f"A profile of {rows} samples says too little; give {LEAST_ROWS} or more.")
    found = {name: _feature(values) for name, values in features(inputs, outputs).items()}
    return Profile(rows=rows, features=found)


def _feature(values: np.ndarray) -> Feature:
    values = values[np.isfinite(values)].astype(float)
    if not len(values):
        return Feature(edges=(), shares=(1.0,), values=())
    distinct = np.unique(values)
    if len(distinct) <= 2 * _BINS:  # classes, flags: a bin for each
        edges = (distinct[:-1] + distinct[1:]) / 2
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    kept = np.quantile(values, np.linspace(0, 1, min(_KEPT, len(values))), method="nearest")
    return Feature(
        edges=tuple(map(float, edges)),
        shares=tuple(map(float, shares(values, edges))),
        values=tuple(map(float, kept)),
    )


def shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of `values` in each bin."""
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return np.asarray(counts / max(1, len(values)))


class Window:
    """The last samples that an endpoint answered: some of them, so that it costs next to nothing."""

    def __init__(self) -> None:
        self._rows: dict[str, deque[float]] = {}
        self._next = 0.0

    def add(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Note the samples of a request, at most fifty times a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        some = {name: array[:64] for name, array in inputs.items()}
        given = {name: np.asarray(array[:64]) for name, array in outputs.items() if array.ndim}
        for name, values in features(some, given).items():
            kept = values[np.isfinite(values)]  # what is missing is in no distribution
            self._rows.setdefault(name, deque(maxlen=WINDOW)).extend(map(float, kept))

    def values(self) -> dict[str, list[float]]:
        """What was noted, by feature."""
        return {name: list(rows) for name, rows in self._rows.items()}
