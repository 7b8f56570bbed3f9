"""`sql`. It needs no cluster."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .base import as_json, echo_json, pairs
from .data import dataset_card
from .host import Host
from .views import Card

# How many rows a shell prints.
MOST_ROWS = 40
_FILES = {".csv": "to_csv", ".parquet": "to_parquet", ".json": "to_json", ".jsonl": "to_json"}


@click.command()
@click.argument("query", nargs=-1, metavar="[QUERY|-]")
@click.option(
    "-o",
    "--output",
    metavar="NAME",
    help="Variable for the answer, a DataFrame; or a .csv, .parquet, .json or .jsonl file.",
)
@click.option("--to", metavar="DATASET", help="Keep the answer as this dataset.")
@click.option(
    "--attach",
    multiple=True,
    metavar="NAME=DB",
    help="Tables NAME.x of an SQLite file or of a database by its SQLAlchemy URL.",
)
@as_json
@click.pass_obj
def sql(
    host: Host,
    query: Sequence[str],
    output: str | None,
    to: str | None,
    attach: Sequence[str],
    json_: bool,
) -> Any:
    """Ask datasets in SQL.

    aios sql "SELECT y, count(*) FROM mnist GROUP BY y"

    A query names datasets ("with-a-hyphen" in double quotes), files in single quotes, tables of
    attached databases, and in a notebook variables: DataFrames as tables, numbers and text as $name.
    %%aios sql takes it from the cell, 'aios sql -' from the standard input.
    """
    from ..session.tables import sql as ask

    if to and output:
        raise UsageError("Give --to or -o, not both: a dataset is loaded by its name.")
    text = _query(host, query)
    databases = {name: str(place) for name, place in pairs(attach, "attach", host.value).items()}
    answer: Any = ask(text, host.variables, to=to, attach=databases)
    if to:
        return host.show(dataset_card(answer), answer)
    if output:
        return _put(host, output, answer)
    if json_:
        return echo_json(answer.to_dict("records"))
    import pandas as pd

    width = shutil.get_terminal_size().columns
    with pd.option_context(
        "display.max_rows", MOST_ROWS, "display.width", width, "display.max_columns", None
    ):
        return host.result(answer)


def _query(host: Host, words: Sequence[str]) -> str:
    if host.cell is not None:
        if words:
            raise UsageError("The cell is the query; leave out what follows the flags.")
        return host.cell
    if len(words) != 1:
        raise UsageError('Put the query in quotes: sql "SELECT count(*) FROM mnist"')
    return sys.stdin.read() if words[0] == "-" else words[0]


def _put(host: Host, output: str, answer: Any) -> Any:
    rows, columns = answer.shape
    suffix = Path(output).suffix.lower()
    if suffix in _FILES:
        options: dict[str, Any] = {} if suffix == ".json" else {"index": False}
        if suffix.startswith(".json"):
            options = {"orient": "records", "lines": suffix == ".jsonl"}
        try:
            getattr(answer, _FILES[suffix])(Path(output).expanduser(), **options)
        except OSError as error:
            raise UsageError(f"{output} cannot be written: {error.strerror or error}.") from None
    else:
        host.assign(output, answer)
    card = Card(output, fields=(("rows", f"{rows:,}"), ("columns", _listed(answer, columns))))
    return host.show(card, answer)


def _listed(answer: Any, columns: int) -> str:
    names = ", ".join(map(str, answer.columns[:12]))
    return f"{names}, … ({columns} columns)" if columns > 12 else names
