"""The part of a recipe that a model's answer depends on, for rows that come one by one.

In training a recipe sees whole datasets, their label too. Where the model serves there is no label,
and rows are not compared with each other. Imports pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NotFoundError, UsageError
from . import recipe_steps
from .recipe import Recipe, over_all
from .recipe_columns import Frame, columns_of
from .recipe_text import FORMS, Step

if TYPE_CHECKING:
    from .catalog import Entry

_SELECTS = ("drop", "keep")
Taught = tuple[Step, Mapping[str, Any]]


def source(ref: str) -> Entry:
    """The dataset that all recipes behind `ref` started from: its columns are the raw ones.

    Raises
    ------
    NotFoundError
        It, or one between, is no longer in the catalogue.
    """
    from .catalog import Catalog

    catalog = Catalog()
    entry = catalog.get(ref)
    while entry.made_from:
        try:
            Recipe.load(entry.ref, whole=False)
        except NotFoundError:
            break
        entry = catalog.get(entry.made_from[0])
    return entry


def for_columns(
    recipe: Recipe, frame: Frame, wanted: Iterable[str]
) -> tuple[Recipe | None, list[str]]:
    """What of a fitted recipe the columns `wanted` depend on, and the raw columns that it needs.

    Steps that compare rows with each other (`drop_duplicates`, `check_unique`) are left out: what
    comes in one request says nothing about its rows. None where no step is left.

    Parameters
    ----------
    frame
        Some raw rows.

    Raises
    ------
    UsageError
        The recipe does not fit these rows, or does not make those columns.
    """
    passed = _passed(recipe, frame)
    needed = set(wanted)
    absent = sorted(needed - set(passed[-1][2] if passed else frame.columns))
    if absent:
        raise UsageError(f"The recipe makes no column '{absent[0]}', which the model takes.")
    kept: list[Taught] = []
    for (step, learned), columns, after in reversed(passed):
        before_it, needed = _needed(step, columns, after, needed)
        if before_it:
            kept[:0] = _narrowed(step, learned, before_it)
    raw = [str(name) for name in frame.columns if name in needed]
    steps = _selecting(kept, frame[raw])
    if not steps:
        return None, raw
    narrow = Recipe([step for step, _ in steps])
    narrow.learned = [dict(learned) for _, learned in steps]
    return narrow, raw


def _passed(recipe: Recipe, frame: Frame) -> list[tuple[Taught, list[str], list[str]]]:
    """Each step that looks at one row at a time, the columns it is about, and those after it."""
    assert recipe.learned is not None
    found: list[tuple[Taught, list[str], list[str]]] = []
    for step, learned in zip(recipe.steps, recipe.learned, strict=True):
        if over_all(step):
            continue
        whole = step.columns == ("*",) and learned
        columns = list(learned) if whole else columns_of(step, frame)
        frame, _ = recipe_steps.apply(frame, step, learned)
        found.append(((step, learned), columns, list(map(str, frame.columns))))
    return found


def _needed(
    step: Step, columns: Sequence[str], after: Sequence[str], needed: set[str]
) -> tuple[list[str], set[str]]:
    """The columns for which a step is needed, and the columns that are needed before it. Pure."""
    if step.name in _SELECTS:
        return list(columns), needed
    if step.name == "rename":
        new = str(step.values[0])
        return (list(columns), needed - {new} | {columns[0]}) if new in needed else ([], needed)
    own, before = [], set(needed)
    for name in columns:
        if name in after:
            made = {f"{name}_missing"} if step.name == "flag_missing" else {name}
        else:
            made = {one for one in after if one.startswith((f"{name}=", f"{name}_"))}
        if made & needed:
            own.append(name)
            before = before - made | {name}
    return own, before


def _narrowed(step: Step, learned: Mapping[str, Any], columns: Sequence[str]) -> list[Taught]:
    """The step for these of its columns: several where its form takes one."""
    groups = [[name] for name in columns] if FORMS[step.name].one_column else [list(columns)]
    return [
        (
            Step(step.name, tuple(group), step.values),
            {name: learned[name] for name in group if name in learned},
        )
        for group in groups
    ]


def _selecting(steps: Sequence[Taught], frame: Frame) -> list[Taught]:
    """`drop` and `keep` are about those columns alone that are there."""
    found: list[Taught] = []
    for step, learned in steps:
        if step.name in _SELECTS:
            columns = tuple(name for name in step.columns if name in frame.columns)
            if not columns:
                continue
            step = Step(step.name, columns)  # noqa: PLW2901
        frame, _ = recipe_steps.apply(frame, step, learned)
        found.append((step, learned))
    return found


def leaves_out(recipe: Recipe, frame: Frame) -> tuple[Step, int] | None:
    """The first step that drops a row, and that row's number; None where all stay."""
    assert recipe.learned is not None
    frame = frame.reset_index(drop=True)
    for step, learned in zip(recipe.steps, recipe.learned, strict=True):
        after, _ = recipe_steps.apply(frame, step, learned)
        if len(after) < len(frame):
            return step, int(frame.index.difference(after.index)[0])
        frame = after
    return None
