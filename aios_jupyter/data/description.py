"""What is known of a dataset without reading it again: rows, columns, statistics. A light module."""

from __future__ import annotations

from dataclasses import dataclass

from ..schema import Struct

# Labels with more values than this are a quantity rather than classes.
MOST_CLASSES = 10_000


class Field(Struct, frozen=True, kw_only=True):
    """A column, an array, or another quantity of each row.

    Attributes
    ----------
    name, kind
        What it is called, and its type as text.
    missing
        How many rows have none, or a NaN; of an array, how many numbers are NaN.
    least, mean, most, deviation
        Of numbers that are there; None where it has none.
    example
        The first values, as text.
    """

    name: str
    kind: str
    missing: int = 0
    least: float | None = None
    mean: float | None = None
    most: float | None = None
    deviation: float | None = None
    example: str = ""


@dataclass(frozen=True)
class Description:
    """What is in a dataset.

    Attributes
    ----------
    rows
        How many.
    schema
        Column or array to type.
    classes
        The labels that occur, in order, as text, and how many rows have each; empty for a quantity or
        no labels.
    fields
        What is known of each column.
    """

    rows: int
    schema: dict[str, str]
    classes: dict[str, int]
    fields: tuple[Field, ...] = ()


class Tally:
    """Statistics of numbers that come in blocks."""

    def __init__(self) -> None:
        self.count = self.missing = 0
        self.least, self.most = float("inf"), float("-inf")
        self._mean = self._squares = 0.0

    def add(self, block: object) -> None:
        """Count a block of numbers, an array of numpy; NaN is missing."""
        import numpy as np

        values = np.asarray(block).ravel()
        if values.dtype.kind == "f":
            there = values[~np.isnan(values)]
            self.missing += len(values) - len(there)
            # Infinite ones have no mean; they show as the least or the most.
            finite = there[np.isfinite(there)]
        else:
            there = finite = values
        if len(there):
            self.least = min(self.least, float(there.min()))
            self.most = max(self.most, float(there.max()))
        if not len(finite):
            return
        # Chan's rule for two parts, which does not lose digits as sums of squares do.
        count, mean = len(finite), float(finite.mean(dtype=np.float64))
        squares = float(finite.var(dtype=np.float64)) * count
        total, apart = self.count + count, mean - self._mean
        self._squares += squares + apart * apart * self.count * count / total
        self._mean += apart * count / total
        self.count = total

    def field(self, name: str, kind: str, example: str = "", missing: int = 0) -> Field:
        """What was found."""
        known = self.count > 0
        return Field(
            name=name,
            kind=kind,
            missing=missing + self.missing,
            least=self.least if self.least <= self.most else None,
            most=self.most if self.least <= self.most else None,
            mean=self._mean if known else None,
            deviation=(self._squares / self.count) ** 0.5 if known else None,
            example=example,
        )
