"""`data clean|features|split`: tables prepared by a recipe, and datasets divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .base import as_json, echo_json
from .data import dataset_card
from .host import Host
from .views import Column, Table, number, plural

if TYPE_CHECKING:
    from ..data.catalog import Entry
    from ..data.prepare import Numbers, Prepared

STEPS = (Column("step", "step"), Column("changed", "changed", right=True))
COLUMNS = (
    Column("name", "column"),
    Column("kind", "holds"),
    Column("missing", "missing", right=True),
    Column("low", "least", right=True),
    Column("mean", "mean", right=True),
    Column("high", "most", right=True),
)
PARTS = (
    Column("name", "dataset"),
    Column("rows", "rows", right=True),
    Column("share", "share", right=True),
    Column("version", "version"),
)
# Of columns, in the table of what has changed.
MOST_COLUMNS = 30

_output = click.option("-o", "--output", required=True, metavar="NEW", help="Name of the result.")
_steps = click.option(
    "--steps",
    metavar="RECIPE",
    help='What is done: "drop_missing(age), clip(income, 1%, 99%)". Without it, what suits the data.',
)
_like = click.option(
    "--like", metavar="DATASET", help="Apply the recipe of this dataset, as it has learned there."
)
_label = click.option("--label", default="", metavar="COLUMN", help="Leave this column alone.")


@click.command("clean")
@click.argument("dataset")
@_output
@_steps
@_like
@_label
@as_json
@click.pass_obj
def data_clean(host: Host, /, **flags: Any) -> Any:
    """Clean a table: types, missing values, duplicates, outliers.

    The recipe is kept with the result, for other data (--like) and for serving:
    Recipe.load("NEW").transform(frame). 'aios data steps' lists all steps.
    """
    return _prepared(host, "clean", **flags)


@click.command("features")
@click.argument("dataset")
@_output
@_steps
@_like
@_label
@as_json
@click.pass_obj
def data_features(host: Host, /, **flags: Any) -> Any:
    """Make features of a table: scales, encodings, bins, dates.

    The recipe is kept with the result, as that of 'data clean' is; it takes the same steps.
    """
    return _prepared(host, "features", **flags)


@click.command("steps")
@as_json
@click.pass_obj
def data_steps(host: Host, json_: bool) -> Any:
    """List the steps of which recipes are made."""
    from ..data.recipe_text import FORMS

    rows = [{"usage": form.usage, "meaning": form.meaning} for form in FORMS.values()]
    if json_:
        return echo_json(rows)
    columns = (Column("usage", "step"), Column("meaning", "what it does"))
    return host.show(
        Table(
            columns, rows, empty="", title='steps of a recipe, like "fill(age, median), scale(*)"'
        )
    )


@click.command("split")
@click.argument("dataset")
@click.option(
    "--parts",
    default="train=0.8,val=0.1,test=0.1",
    show_default=True,
    metavar="NAME=SHARE,…",
    help="What there will be: DATASET-train and so on.",
)
@click.option(
    "--stratify", default="", metavar="COLUMN", help="Its values have these shares in every part."
)
@click.option("--by", default="", metavar="COLUMN", help="Rows with the same value stay together.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S")
@click.option(
    "-o", "--output", default="", metavar="STEM", help="STEM-train in place of DATASET-train."
)
@as_json
@click.pass_obj
def data_split(
    host: Host,
    dataset: str,
    parts: str,
    stratify: str,
    by: str,
    seed: int,
    output: str,
    json_: bool,
) -> Any:
    """Divide a dataset for training, validation and testing.

    By a hash of each row: the division stays when data is added, and equal rows are never on two
    sides.
    """
    from ..session.tables import split

    made = split(dataset, parts, stratify=stratify, by=by, seed=seed, to=output)
    return echo_json(made) if json_ else host.show(parts_table(made), made)


def _prepared(
    host: Host,
    kind: str,
    *,
    dataset: str,
    output: str,
    steps: str | None,
    like: str | None,
    label: str,
    json_: bool,
) -> Any:
    session = host.session(start=True)
    with host.progress(f"preparing {dataset}") as advance:
        found = session.prepare(
            dataset, output, steps, like=like, kind=kind, label=label, on_progress=advance
        )
    if json_:
        return echo_json({"dataset": found.entry, "recipe": found.recipe.to_json()})
    host.show(dataset_card(found.entry))
    host.show(steps_table(found))
    return host.show(columns_table(found), found.entry)


def steps_table(found: Prepared) -> Table:
    """How many values or rows each step changed."""
    rows = [
        {"step": str(step), "changed": _changed(step.name, count)}
        for step, count in zip(found.recipe.steps, found.changes.counts, strict=True)
    ]
    before, after = found.changes.rows
    return Table(STEPS, rows, empty="", title=f"{before:,} rows before, {after:,} after")


def _changed(name: str, count: int) -> str:
    if name in {"drop_missing", "drop_outside", "drop_duplicates"}:
        return f"{plural(count, 'row')} dropped"
    if name in {"drop", "keep", "rename"}:
        return plural(count, "column")
    ends = {"number": "now missing", "date": "now missing", "fill": "filled", "clip": "pulled in"}
    return f"{count:,} {ends[name]}" if name in ends else plural(count, "value")


def columns_table(found: Prepared) -> Table:
    """Each column as it is now, and as it was."""
    before, after = found.changes.before, found.changes.after
    gone = [name for name in before if name not in after]
    rows = [_column_row(name, before.get(name), own) for name, own in after.items()]
    title = (
        f"without the columns {', '.join(gone[:8])}{', …' if len(gone) > 8 else ''}" if gone else ""
    )
    if len(rows) > MOST_COLUMNS:
        title = f"{title or 'the first'} ({MOST_COLUMNS} of {len(rows)} columns)"
    return Table(COLUMNS, rows[:MOST_COLUMNS], empty="", title=title)


def _column_row(name: str, old: Numbers | None, new: Numbers) -> dict[str, Any]:
    def both(read: Any) -> str:
        now = read(new)
        was = now if old is None else read(old)
        return str(now) if was == now else f"{was or '-'} → {now or '-'}"

    def figure(read: Any) -> str:
        return both(lambda numbers: number(read(numbers)) if numbers.low <= numbers.high else "")

    return {
        "name": name if old is not None else f"{name} (new)",
        "kind": both(lambda numbers: numbers.kind),
        "missing": both(lambda numbers: f"{numbers.missing:,}"),
        "low": figure(lambda numbers: numbers.low),
        "mean": figure(lambda numbers: numbers.total / numbers.count),
        "high": figure(lambda numbers: numbers.high),
    }


def parts_table(made: Mapping[str, Entry]) -> Table:
    """The parts of a dataset."""
    total = sum(entry.rows for entry in made.values())
    rows = [
        {
            "name": entry.name,
            "rows": f"{entry.rows:,}",
            "share": f"{entry.rows / total:.1%}",
            "version": entry.version,
        }
        for entry in made.values()
    ]
    return Table(PARTS, rows, empty="")
