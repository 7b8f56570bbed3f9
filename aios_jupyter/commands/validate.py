"""`data validate`: a table held against a schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConflictError, UsageError
from .base import as_json, echo_json
from .host import Host
from .views import Column, Table, plural

if TYPE_CHECKING:
    from ..data.validation import Failed, Validated

CHECKS = (
    Column("column", "column"),
    Column("check", "check"),
    Column("count", "rows", right=True),
    Column("values", "such as"),
)
SHOWN, MOST_COLUMNS = 10, 12


@click.command("validate")
@click.argument("dataset")
@click.option(
    "--schema",
    metavar="SCHEMA",
    help="A schema of pandera's: its YAML or JSON file; in a notebook also a variable.",
)
@click.option(
    "--infer",
    metavar="FILE",
    help="Write a schema that DATASET passes as it is, to narrow by hand.",
)
@as_json
@click.pass_obj
def data_validate(
    host: Host, dataset: str, schema: str | None, infer: str | None, json_: bool
) -> Any:
    """Hold a table against a schema, and show the rows that fail.

    It fails when any does, so that a notebook or a script ends there.
    """
    if (schema is None) == (infer is None):
        raise UsageError(
            "Give one of --schema, to hold DATASET against, and --infer, to write one."
        )
    from ..data import validation

    if infer is not None:
        path = validation.infer(dataset, Path(infer).expanduser())
        host.say(f"A schema of {dataset} is in {path}; narrow it, and give it to --schema.")
        return path
    assert schema is not None
    given = schema if schema not in host.variables else host.value(schema)
    found = validation.validate(dataset, given)
    if json_:
        echo_json(_plain(found))
    elif not found.passed:
        host.show(checks_table(found))
        if len(found.rows):
            host.show(rows_table(found))
    if found.passed:
        return None if json_ else host.show(_passed(found), found)
    raise ConflictError(failure_text(found, schema))


def failure_text(found: Validated, schema: str) -> str:
    """`3 of 1,000 rows of orders@1f… do not pass 2 checks of schema.yaml.`"""
    checks = plural(len(found.failed), "check")
    what = f"{found.entry.ref or found.entry.url} does"
    if len(found.rows):
        few = "does" if len(found.rows) == 1 else "do"
        what = f"{len(found.rows):,} of {found.count:,} rows of {found.entry.ref} {few}"
    return f"{what} not pass {checks} of {schema}; mend them with 'aios data clean', or the schema."


def checks_table(found: Validated) -> Table:
    """The checks that do not hold, and some of what is there instead."""
    rows = [
        {
            "column": each.column,
            "check": each.check,
            "count": f"{len(each.rows):,}" if each.rows else None,
            "values": _some(each),
        }
        for each in found.failed
    ]
    return Table(CHECKS, rows, empty="All checks hold.")


def rows_table(found: Validated) -> Table:
    """The first rows that fail, under their numbers."""
    names = [str(name) for name in found.rows.columns[:MOST_COLUMNS]]
    columns = (Column("#", "#", right=True), *(Column(name, name) for name in names))
    first = found.rows.iloc[:SHOWN, : len(names)].astype(object)
    rows = [
        {"#": f"{number:,}", **dict(zip(names, map(str, values), strict=True))}
        for number, values in zip(first.index, first.to_numpy(), strict=True)
    ]
    more = f" (the first {SHOWN} of {len(found.rows):,})" if len(found.rows) > SHOWN else ""
    return Table(columns, rows, empty="", title=f"rows that fail{more}")


def _some(each: Failed) -> str:
    values = list(dict.fromkeys(each.values))
    more = ", …" if len(values) > 3 else ""
    return ", ".join(values[:3]) + more


def _passed(found: Validated) -> Table:
    return Table(CHECKS, [], empty=f"All {found.count:,} rows of {found.entry.ref} pass.")


def _plain(found: Validated) -> dict[str, Any]:
    return {
        "dataset": found.entry.ref,
        "rows": found.count,
        "failing": [int(number) for number in found.rows.index],
        "failed": list(found.failed),
    }
