"""Datasets prepared by a recipe: parts on the cluster's workers, the result one Parquet file.

A leaf module: it imports pandas, and `distributed` where a client is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from ..errors import ClusterError, UsageError
from . import near, pieces, recipe_steps, storage, suggest
from .catalog import Catalog, Entry, check_name
from .recipe import Done, Masks, Recipe, beside, changes, learn, masks
from .recipe_columns import Frame, is_date, is_number

if TYPE_CHECKING:
    from distributed import Client

Progress = Callable[[int, int], None]
_Result = TypeVar("_Result")


@dataclass
class Numbers:
    """What is known of a column: `count` values that are there, and of numbers more."""

    kind: str
    missing: int = 0
    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, other: Numbers) -> None:
        """Take in another part's."""
        self.missing += other.missing
        self.count += other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class Changes:
    """What a recipe did to a dataset.

    Attributes
    ----------
    rows
        Before and after.
    counts
        For each step how many values or rows it changed.
    before, after
        For each column what is known of it.
    """

    rows: tuple[int, int] = (0, 0)
    counts: list[int] = field(default_factory=list)
    before: dict[str, Numbers] = field(default_factory=dict)
    after: dict[str, Numbers] = field(default_factory=dict)
    refused: dict[int, Any] = field(default_factory=dict)

    def add(self, other: Changes) -> None:
        """Take in another part's."""
        self.rows = (self.rows[0] + other.rows[0], self.rows[1] + other.rows[1])
        pairs = zip(self.counts or [0] * len(other.counts), other.counts, strict=True)
        self.counts = [a + b for a, b in pairs]
        for own, more in ((self.before, other.before), (self.after, other.after)):
            for name, numbers in more.items():
                own.setdefault(name, Numbers(numbers.kind)).add(numbers)
        for n, rows in other.refused.items():
            self.refused.setdefault(n, rows)


@dataclass(frozen=True)
class Prepared:
    """A dataset that a recipe has made."""

    entry: Entry
    recipe: Recipe
    changes: Changes


def prepare(
    src: str | Entry,
    dst: str,
    steps: str | Recipe | None = None,
    *,
    suggested: str = "clean",
    label: str = "",
    client: Client | None = None,
    on_progress: Progress | None = None,
    catalog: Catalog | None = None,
) -> Prepared:
    """Make dataset `dst` from `src` by a recipe, which is kept beside it.

    Parameters
    ----------
    steps
        A recipe as text, which learns from `src`; one that has learned already, which is applied as
        it is; None for one that `suggest` finds (`suggested`: "clean" or "features").
    label
        A column that such a suggestion leaves alone, besides those named like a label.
    client
        Of the cluster whose workers do it; None: this process.
    on_progress
        Is told how many parts are done, of how many.

    Raises
    ------
    UsageError, NotFoundError
        The recipe does not parse or fit, a check refuses rows, or `src` is no table.
    ClusterError
        The cluster lost the work.
    """
    check_name(dst)
    catalog = catalog or Catalog()
    recipe = Recipe(steps) if isinstance(steps, str) else steps
    entry = catalog.get(src)
    with storage.scratch(dst) as room, storage.scratch(dst) as aside:
        room.mkdir()
        found = pieces.parts(entry, room)
        if recipe is None:
            recipe = Recipe(suggest.steps(pieces.read(found[0]), suggested, label))
        if label and label not in pieces.read(found[0]).columns:
            raise UsageError(f"There is no column '{label}' for --label in '{entry.name}'.")
        parts = FileParts(found, client, on_progress)
        if recipe.learned is None:
            recipe.learned = learn(recipe.steps, parts)
        made = _run(recipe, parts, room)
        files = [room / f"part-{n:06}.parquet" for n in range(len(found))]
        if not pieces.join(files, aside):
            raise UsageError(f"No row of '{entry.name}' is left after {recipe}.")
        new = pieces.keep(aside, dst, catalog, made_from=[entry], how=f"{suggested}: {recipe}")
    recipe.save(beside(new.url))
    return Prepared(new, recipe, made)


def _run(recipe: Recipe, parts: FileParts, room: Path) -> Changes:
    assert recipe.learned is not None
    done: Done = list(zip(range(len(recipe.steps)), recipe.steps, recipe.learned, strict=True))
    whole = Changes()
    for part in parts.map(Write(done, masks(done, parts), str(room))):
        whole.add(part)
    for n, rows in whole.refused.items():
        raise recipe_steps.refused(recipe.steps[n], whole.counts[n], rows)
    return whole


class Write:
    """Prepares one part and writes it; gives what has changed. Travels to workers."""

    def __init__(self, done: Done, kept: Masks, room: str) -> None:
        self.done, self.kept, self.room = done, kept, room

    def __call__(self, frame: Frame, number: int) -> Changes:
        made = Changes(before=_numbers(frame))
        before = len(frame)
        for n, changed, count, old in changes(frame, number, self.done, self.kept):
            made.counts.append(count)
            step = self.done[n][1]
            if count and recipe_steps.is_check(step):
                made.refused[n] = old[recipe_steps.failing(old, step)].head()
            frame = changed
        made.rows = (before, len(frame))
        made.after = _numbers(frame)
        try:
            pieces.write(frame, Path(self.room) / f"part-{number:06}.parquet")
        except OSError as error:
            raise storage.unwritable(self.room, error) from None
        return made


def _numbers(frame: Frame) -> dict[str, Numbers]:
    found = {}
    for name in frame.columns:
        series = frame[name]
        there = series.dropna()
        numbers = Numbers(_kind(series), int(series.isna().sum()), len(there))
        if is_number(series) and len(there):
            values = there.to_numpy("float64")
            numbers.total, numbers.low, numbers.high = map(
                float, (values.sum(), values.min(), values.max())
            )
        found[str(name)] = numbers
    return found


def _kind(series: Any) -> str:
    if pd.api.types.is_bool_dtype(series.dtype):
        return "true/false"
    if is_number(series):
        return "whole" if pd.api.types.is_integer_dtype(series.dtype) else "number"
    return "date" if is_date(series) else "text"


# --- on the cluster


class FileParts:
    """Parts of files, read by whoever looks at them: the cluster's workers, or this process."""

    def __init__(
        self, found: Sequence[pieces.Part], client: Client | None, progress: Progress | None
    ) -> None:
        self._found = found
        self._client = client
        self._progress = progress or (lambda done, total: None)

    def map(self, function: Callable[[Frame, int], _Result]) -> list[_Result]:
        """See `recipe.Parts`."""
        total = len(self._found)
        if self._client is not None and total > 1:
            return _on_workers(self._client, function, self._found, self._progress)
        results = []
        for number, part in enumerate(self._found):
            results.append(_look(part, number, function))
            self._progress(number + 1, total)
        return results


def _look(part: pieces.Part, number: int, function: Callable[[Frame, int], _Result]) -> _Result:
    return function(pieces.read(part), number)


def _on_workers(
    client: Client,
    function: Callable[[Frame, int], Any],
    found: Sequence[pieces.Part],
    progress: Progress,
) -> list[Any]:
    from distributed import as_completed
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    lost = (KilledWorker, FutureCancelledError, ClosedClientError, CommClosedError, TimeoutError)
    try:
        # Once to the cluster, not with every task: it has what was learned and which rows stay.
        work = client.scatter(function, hash=False)
        futures = near.submit(client, _look, found, range(len(found)), key="prepare", function=work)
        try:
            for done, future in enumerate(as_completed(futures, loop=client.loop), 1):
                if future.cancelled():
                    raise FutureCancelledError(future.key, "cancelled")
                if future.status == "error":
                    future.result()
                progress(done, len(found))
            return list(client.gather(futures))
        finally:
            with contextlib.suppress(ClosedClientError):
                client.cancel([future for future in futures if not future.done()])
    except lost as error:
        raise ClusterError(
            f"The cluster lost the preparation ({type(error).__name__}); run it again."
        ) from error
