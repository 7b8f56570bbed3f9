"""A recipe: steps that prepare a table, fitted once and applied the same way ever after.

    recipe = Recipe("fill(age, median), clip(income, 1%, 99%), scale(age, income), onehot(city)")
    ready = recipe.fit_transform(train)
    recipe.save("recipe.json")
    ...
    Recipe.load("recipe.json").transform(rows)     # when the model serves

A leaf module: it imports pandas.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import ConflictError, NotFoundError, UsageError
from . import recipe_learn, recipe_steps
from .recipe_columns import Frame, columns_of
from .recipe_learn import Learned, looks_at
from .recipe_text import Percent, Step, parse

_FORMAT = "aios-recipe/1"
_SUFFIX = ".recipe.json"
_Result = TypeVar("_Result")

# For each step, what it has learned about each of its columns.
Lessons = list[dict[str, Learned]]


class Parts(Protocol):
    """Data in parts that are looked at in several places."""

    def map(self, function: Callable[[Frame, int], _Result]) -> list[_Result]:
        """The function's result for each part (with its number), in order."""


class Whole:
    """A frame in one part."""

    def __init__(self, frame: Frame) -> None:
        self._frame = named(frame)

    def map(self, function: Callable[[Frame, int], _Result]) -> list[_Result]:
        """See `Parts`."""
        return [function(self._frame, 0)]


def named(frame: Frame) -> Frame:
    """The frame with names of columns that are text, as every file has them."""
    if all(isinstance(name, str) for name in frame.columns):
        return frame
    return frame.rename(columns=str)


class DaskParts:
    """The partitions of a Dask DataFrame."""

    def __init__(self, frame: Any) -> None:
        self._partitions = frame.to_delayed()

    def map(self, function: Callable[[Frame, int], _Result]) -> list[_Result]:
        """See `Parts`."""
        import dask

        work = dask.delayed(function, pure=False)
        return list(dask.compute(*(work(p, n) for n, p in enumerate(self._partitions))))


class Recipe:
    """Steps, and what they have learned.

    Parameters
    ----------
    steps
        As text: `"drop_missing(age), scale(income, age)"`. `recipe_text.FORMS` has all steps.

    Raises
    ------
    UsageError
        The text does not parse; the sentence points at the place.
    """

    def __init__(self, steps: str | Sequence[Step]) -> None:
        self.steps: tuple[Step, ...] = parse(steps) if isinstance(steps, str) else tuple(steps)
        self.learned: Lessons | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps))

    def __repr__(self) -> str:
        return f"Recipe({str(self)!r}{'' if self.learned is None else ', fitted'})"

    def __add__(self, other: Recipe) -> Recipe:
        """This recipe and then the other."""
        both = Recipe((*self.steps, *other.steps))
        if self.learned is not None and other.learned is not None:
            both.learned = [*self.learned, *other.learned]
        return both

    def fit(self, frame: Any) -> Recipe:
        """Learn from a pandas or Dask DataFrame; gives this recipe back.

        Raises
        ------
        UsageError
            A step does not fit the data.
        """
        self.learned = learn(self.steps, _parts(frame))
        return self

    def transform(self, frame: Any) -> Any:
        """A new frame, prepared; its index says which rows are left. A Dask one stays lazy.

        Raises
        ------
        ConflictError
            The recipe has not been fitted.
        UsageError
            The data does not fit the recipe.
        """
        learned = self._fitted()
        if not hasattr(frame, "dask"):
            frame = named(frame)
            for step, lesson in zip(self.steps, learned, strict=True):
                frame, _ = recipe_steps.apply(frame, step, lesson)
            return frame
        whole = next((step for step in self.steps if over_all(step)), None)
        if whole is not None:
            raise UsageError(
                f"{whole} needs all rows at once: compute() the Dask DataFrame first, or use "
                "'aios data clean'."
            )
        return frame.map_partitions(self.transform, meta=self.transform(frame._meta_nonempty)[:0])

    def fit_transform(self, frame: Any) -> Any:
        """`fit`, then `transform`."""
        return self.fit(frame).transform(frame)

    # --- as a file

    def save(self, path: str | Path) -> Path:
        """Write the recipe, with what it has learned, as JSON: nothing in it is ever executed."""
        place = Path(path).expanduser()
        aside = place.with_name(f".{place.name}.{os.getpid()}.partial")
        aside.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n", "utf-8")
        aside.replace(place)
        return place

    def to_json(self) -> dict[str, Any]:
        """What `save` writes. Numbers are written so that they are read as the same."""
        steps = [
            {"step": step.name, "columns": list(step.columns), "values": [_plain(v) for v in step.values],
             "learned": lesson}
            for step, lesson in zip(self.steps, self._fitted(), strict=True)
        ]  # fmt: skip
        return {"format": _FORMAT, "recipe": str(self), "steps": steps}

    @classmethod
    def from_json(cls, found: Any, where: str = "this") -> Recipe:
        """What `to_json` gave."""
        try:
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is {found['format']!r}")
            steps = [
                Step(one["step"], tuple(one["columns"]), tuple(map(_value, one["values"])))
                for one in found["steps"]
            ]
            parse(", ".join(map(str, steps)))
            recipe = cls(steps)
            recipe.learned = [dict(one["learned"]) for one in found["steps"]]
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise UsageError(f"{where} is not a recipe that can be read: {error}.") from None
        return recipe

    @classmethod
    def load(cls, ref: str | Path, *, whole: bool = True) -> Recipe:
        """The recipe of a dataset (`name`, `name@version`), or of a file.

        Parameters
        ----------
        whole
            With the recipes of the datasets that it was made from: all that lies between raw rows
            and this dataset.

        Raises
        ------
        NotFoundError
            There is none.
        UsageError
            It is not a recipe.
        """
        path = Path(ref).expanduser()
        if path.suffix == ".json":
            return _read(path)
        from .catalog import Catalog

        catalog = Catalog()
        entry = catalog.get(str(ref))
        while not beside(entry.url).exists() and entry.made_from and _same_columns(entry.how):
            entry = catalog.get(entry.made_from[0])
        file = beside(entry.url)
        if not file.exists():
            raise NotFoundError(f"'{ref}' was not made by a recipe; give a dataset that was.")
        recipe = _read(file)
        if whole and entry.made_from:
            try:
                return cls.load(entry.made_from[0]) + recipe
            except NotFoundError:
                pass
        return recipe

    def _fitted(self) -> Lessons:
        if self.learned is None:
            raise ConflictError("The recipe has learned from no data yet; call fit(frame) first.")
        return self.learned


def beside(url: str) -> Path:
    """Where the recipe of a dataset that lies at `url` is."""
    place = Path(url)
    # Hidden, so that nobody takes it for data.
    return place.with_name(f".{place.stem}{_SUFFIX}")


def _same_columns(how: str) -> bool:
    """Whether a dataset has the columns of what it was made from: its part, or its encrypted copy."""
    return how.partition(":")[0] in {"split", "encrypt", "decrypt"}


def _read(path: Path) -> Recipe:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"There is no recipe at {path}; check the path.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a recipe that can be read: {error}.") from None
    return Recipe.from_json(found, str(path))


def _plain(value: Any) -> Any:
    return {"percent": value.of_100} if isinstance(value, Percent) else value


def _value(found: Any) -> Any:
    return Percent(float(found["percent"])) if isinstance(found, dict) else found


def _parts(frame: Any) -> Parts:
    return DaskParts(frame) if hasattr(frame, "dask") else Whole(frame)


# --- learning


def over_all(step: Step) -> bool:
    """Whether a step compares rows with each other."""
    return step.name in {"drop_duplicates", "check_unique"}


def passes(steps: Sequence[Step]) -> Iterator[tuple[int, list[int]]]:
    """Which steps can learn in one pass over the data: (steps done before it, those that learn).

    A later step learns in the same pass where nothing between has touched its columns, or the rows.
    """
    learners = [n for n, step in enumerate(steps) if looks_at(step)]
    while learners:
        first = learners[0]
        group = [n for n in learners if n == first or _undisturbed(steps, first, n)]
        yield first, group
        learners = [n for n in learners if n not in group]


_CHANGES_ROWS = {"drop_missing", "drop_outside", "drop_duplicates"}


def _undisturbed(steps: Sequence[Step], first: int, later: int) -> bool:
    own, between = steps[later].columns, steps[first:later]
    if "*" in own or any("*" in step.columns for step in between):
        return False
    # A new column's name begins with that which it was made of, or is a value (`rename`).
    touched = tuple(str(name) for step in between for name in (*step.columns, *step.values))
    return not any(name.startswith(touched) for name in own) and not any(
        step.name in _CHANGES_ROWS for step in between
    )


def learn(steps: Sequence[Step], parts: Parts) -> Lessons:
    """What each step learns, in as few passes over the data as it takes."""
    lessons: Lessons = [{} for _ in steps]
    for first, group in passes(steps):
        before = [(n, steps[n], lessons[n]) for n in range(first)]
        look = Look(before, masks(before, parts), [steps[n] for n in group])
        states = parts.map(look)
        for place, n in enumerate(group):
            lessons[n] = recipe_learn.merge(steps[n], [state[place] for state in states])
    return lessons


# What has been done before: number of the step, the step, what it has learned.
Done = list[tuple[int, Step, dict[str, Learned]]]
# For each step that compares all rows: for each part, which of its rows stay.
Masks = dict[int, list[Any]]


class Look:
    """What one part tells the steps that learn, once others are done. Travels to workers."""

    def __init__(self, before: Done, kept: Masks, learners: list[Step]) -> None:
        self.before, self.kept, self.learners = before, kept, learners

    def __call__(self, frame: Frame, number: int) -> list[dict[str, Any]]:
        for _, changed, _, _ in changes(frame, number, self.before, self.kept):
            frame = changed
        return [recipe_learn.look(frame, step) for step in self.learners]


def changes(
    frame: Frame, number: int, done: Done, kept: Masks
) -> Iterator[tuple[int, Frame, int, Frame]]:
    """Apply steps to part `number`: for each the step's number, the frame, changes, and the old one."""
    for n, step, lesson in done:
        old = frame
        if n in kept:
            mask = kept[n][number]
            frame, count = frame[mask], int(len(mask) - mask.sum())
        elif recipe_steps.is_check(step):
            # Whoever runs this refuses the data when all parts have been looked at.
            count = int(recipe_steps.failing(frame, step).sum())
        else:
            frame, count = recipe_steps.apply(frame, step, lesson)
        yield n, frame, count, old


def masks(steps: Done, parts: Parts) -> Masks:
    """Which rows stay after each step that compares all rows; a row that is refused is an error."""
    kept: Masks = {}
    for place, (n, step, _) in enumerate(steps):
        if over_all(step):
            hashes = parts.map(Hashes(steps[:place], dict(kept), step))
            kept[n] = _firsts(step, hashes)
    return kept


class Hashes:
    """The rows of one part as hashes, once other steps are done. Travels to workers."""

    def __init__(self, before: Done, kept: Masks, step: Step) -> None:
        self.before, self.kept, self.step = before, kept, step

    def __call__(self, frame: Frame, number: int) -> tuple[Any, Frame]:
        from .recipe_columns import row_hashes

        for _, changed, _, _ in changes(frame, number, self.before, self.kept):
            frame = changed
        shown = frame[columns_of(self.step, frame)] if self.step.name == "check_unique" else None
        return row_hashes(frame, self.step), shown


def _firsts(step: Step, found: list[tuple[Any, Frame]]) -> list[Any]:
    import numpy as np
    import pandas as pd

    hashes = pd.concat([one for one, _ in found], ignore_index=True)
    ends = np.cumsum([len(one) for one, _ in found])[:-1]
    if step.name == "drop_duplicates":
        return list(np.split(~hashes.duplicated().to_numpy(), ends))
    wrong = hashes.duplicated(keep=False).to_numpy()
    if wrong.any():
        rows = pd.concat([shown for _, shown in found], ignore_index=True)[wrong]
        raise recipe_steps.refused(step, int(wrong.sum()), rows)
    return list(np.split(~wrong, ends))
