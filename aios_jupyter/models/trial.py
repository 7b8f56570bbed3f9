"""Measure variants of one model side by side, and choose among them.

Variants take turns, so that what else this machine does hits all alike, and a gain is the median of
the ratios of one turn each. What is not clearly outside the spread of those ratios is no gain.
A leaf module: it imports numpy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..schema import Struct
from .predictor import Predictor

Score = Callable[[Any, Any], float]

TURNS = 9
TURN_SECONDS = 0.06
BATCH = 32
CLEAR = 1.05
"""A ratio of speeds below which two variants count as equally quick."""


class Speed(Struct):
    """How quick a variant is: milliseconds for one sample, samples a second in batches.

    `gain` is how many times quicker than the first variant it is for one sample, `clear` whether
    three of four turns say so.
    """

    p50_ms: float
    p95_ms: float
    per_second: float
    gain: float = 1.0
    clear: bool = False


class Row(Struct):
    """One variant: bytes as stored, score on the data, speed; `loss` is what its score is lower.

    `holds` says that the loss is within what was allowed, `stored` that it can be published,
    `note` what else is to be known.
    """

    name: str
    size: int
    score: float
    loss: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    per_second: float = 0.0
    gain: float = 1.0
    clear: bool = False
    holds: bool = True
    stored: bool = True
    note: str = ""


def speeds(
    variants: Mapping[str, Predictor],
    inputs: Mapping[str, np.ndarray],
    *,
    baseline: str,
    turns: int = TURNS,
    seconds: float = TURN_SECONDS,
) -> dict[str, Speed]:
    """Time each variant on single samples and on batches of `inputs`, in turns.

    Parameters
    ----------
    baseline
        The variant that gains are over.
    turns, seconds
        So many turns of each, each of about so long.
    """
    one = {name: array[:1] for name, array in inputs.items()}
    batch = {name: array[:BATCH] for name, array in inputs.items()}
    rows = len(next(iter(batch.values())))
    for predictor in variants.values():  # the first calls allocate
        predictor.run(one)
        predictor.run(batch)
    single: dict[str, list[list[float]]] = {name: [] for name in variants}
    together: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, predictor in variants.items():
            single[name].append(_timed(predictor, one, seconds))
        for name, predictor in variants.items():
            together[name].append(statistics.median(_timed(predictor, batch, seconds / 2)))
    base = [statistics.median(turn) for turn in single[baseline]]
    found = {}
    for name, taken in single.items():
        all_of_them = [value for turn in taken for value in turn]
        ratios = [b / statistics.median(turn) for b, turn in zip(base, taken, strict=True)]
        found[name] = Speed(
            p50_ms=float(np.percentile(all_of_them, 50)) * 1000,
            p95_ms=float(np.percentile(all_of_them, 95)) * 1000,
            per_second=rows / statistics.median(together[name]),
            gain=statistics.median(ratios),
            clear=is_clear(ratios),
        )
    return found


def is_clear(ratios: Sequence[float]) -> bool:
    """Whether three quarters of the turns say that a variant is quicker than the first."""
    return float(np.percentile(ratios, 25)) > CLEAR


def _timed(predictor: Predictor, inputs: Mapping[str, np.ndarray], seconds: float) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        predictor.run(inputs)
        taken.append(time.perf_counter() - started)
    return taken


def batches(inputs: Mapping[str, np.ndarray], size: int = 64) -> Iterator[dict[str, np.ndarray]]:
    """`inputs` in parts of `size` samples."""
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


def outputs_of(predictor: Predictor, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The model's first output for all samples."""
    name = predictor.signature.outputs[0].name
    return np.concatenate([predictor.run(part)[name] for part in batches(inputs)])


# --- how good --------------------------------------------------------------------------------------


def scoring(outputs: np.ndarray, labels: np.ndarray | None) -> tuple[str, Score]:
    """What to judge variants by, from the original's outputs and the labels: its name and measure.

    accuracy
        Class scores and integer labels (or one-hot rows), or one score and labels 0 and 1.
    R²
        Numbers.
    agreement
        Without labels: how often a variant says what the original says (the class, or R² of
        numbers).

    Raises
    ------
    UsageError
        The labels do not belong to these outputs.
    """
    if labels is None:
        if _has_classes(outputs):
            return "agreement", lambda given, _: _share(given.argmax(1) == outputs.argmax(1))
        return "agreement", lambda given, _: _r_squared(given, outputs)
    if len(labels) != len(outputs):
        raise UsageError(
            f"There are {len(outputs)} samples and {len(labels)} labels; give one for each."
        )
    if _has_classes(outputs):
        classes = _classes(labels, outputs.shape[1])
        if classes is not None:
            return "accuracy", lambda given, _: _share(given.argmax(1) == classes)
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] == 1 and labels.size == len(labels) and set(np.unique(labels)) <= {0, 1}:
        middle = 0.5 if flat.min() >= 0 and flat.max() <= 1 else 0.0
        truth = labels.reshape(-1).astype(bool)
        return "accuracy", lambda given, _: _share((given.reshape(-1) > middle) == truth)
    if labels.size != outputs.size or labels.dtype.kind not in "fiub":
        raise UsageError(
            f"Labels of shape {list(labels.shape)} ({labels.dtype}) do not belong to outputs of "
            f"shape {list(outputs.shape)}; give classes as whole numbers, numbers in the outputs' "
            "shape, or a score of your own."
        )
    return "R²", lambda given, _: _r_squared(given, labels.reshape(outputs.shape))


def _has_classes(outputs: np.ndarray) -> bool:
    return outputs.ndim == 2 and outputs.shape[1] > 1


def _classes(labels: np.ndarray, count: int) -> np.ndarray | None:
    """Labels as class numbers; None where they are none."""
    if labels.shape == (len(labels), count) and np.array_equal(labels.sum(1), np.ones(len(labels))):
        return np.asarray(labels.argmax(1))
    flat = labels.reshape(-1)
    if labels.dtype.kind not in "iub" or len(flat) != len(labels):
        return None
    if int(flat.min()) < 0 or int(flat.max()) >= count:
        raise UsageError(
            f"The labels go from {flat.min()} to {flat.max()}, but the model tells {count} classes "
            f"apart (0 to {count - 1}); renumber them."
        )
    return flat


def _share(right: np.ndarray) -> float:
    return float(np.mean(right))


def _r_squared(given: np.ndarray, wanted: np.ndarray) -> float:
    given, wanted = given.astype(float), wanted.astype(float)
    spread = float(((wanted - wanted.mean(0)) ** 2).sum())
    error = float(((wanted - given) ** 2).sum())
    return 1.0 - error / spread if spread else float(error == 0)


# --- choice ----------------------------------------------------------------------------------------


def judged(rows: Sequence[Row], baseline: str, most: float) -> list[Row]:
    """The rows with their losses, and whether these are within `most`."""
    import msgspec

    base = next(row for row in rows if row.name == baseline).score
    found = []
    for row in rows:
        loss = base - row.score
        found.append(msgspec.structs.replace(row, loss=loss, holds=within(loss, most)))
    return found


def within(loss: float, most: float) -> bool:
    """Whether a loss is allowed; one that is not a number never is."""
    return loss <= most + 1e-9


def choose(rows: Sequence[Row], baseline: str) -> Row:
    """The smallest that holds; of two as small the quicker. The baseline where nothing is smaller.

    A variant as large as the baseline is taken only for a speed that is clear.
    """
    base = next(row for row in rows if row.name == baseline)
    better = [
        row
        for row in rows
        if row.holds
        and row.stored
        and (row.size < base.size or (row.size == base.size and row.clear))
    ]
    return min([*better, base], key=lambda row: (row.size, row.p50_ms))
