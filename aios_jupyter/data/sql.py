"""SQL over datasets, the notebook's variables and attached databases, by DuckDB in this process.

A leaf module: it imports DuckDB and pyarrow. Nothing is loaded beforehand: the query is bound, and
each table that it misses is looked up and given to DuckDB as it lies (Parquet and CSV as files,
arrays and DataFrames by their memory), until it binds.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
from pyarrow import parquet

from ..errors import NotFoundError, UsageError
from . import attached, cache, layout, near, storage, upkeep
from .catalog import Catalog, Entry, check_name, readable
from .engine import Engine, engine
from .pieces import FILES, keep, scan, scannable

# The schema in which a dataset is found also where a variable has its name.
DATASETS = "data"
_ROWS_AT_ONCE = 1 << 16
_PART = r'\s*("(?:[^"]|"")+"|[^\s".]+)\s*'
_NAME = re.compile(rf"(?:{_PART}\.)?{_PART}")


@dataclass
class Tables:
    """Where a query's tables are looked for.

    Attributes
    ----------
    variables
        DataFrames and the like, by name; numbers and text among them are `$name` in a query.
    catalog
        Its datasets, after the variables; as `data.NAME` also where a variable has that name.
    databases
        Schema to the path of an SQLite file, or to an SQLAlchemy URL.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=Catalog)
    databases: Mapping[str, str] = field(default_factory=dict)


def frame(query: str, tables: Tables) -> Any:
    """The answer as a pandas DataFrame.

    Raises
    ------
    UsageError
        The query fails; the sentence names the line, and a line below points at the place.
    NotFoundError
        There is no table of that name.
    """
    with _answered(query, tables, lazily=False) as (duck, answer, _), _told(query):
        return duck.interruptible(answer.df)


def store(query: str, name: str, tables: Tables) -> Entry:
    """Keep the answer as the Parquet file of dataset `name`, with the datasets it was made from.

    Raises
    ------
    UsageError, NotFoundError
        As `frame`; also where the answer has no rows, or two columns of one name.
    """
    check_name(name)
    answered, scratch = _answered(query, tables, lazily=True), storage.scratch(name)
    with answered as (duck, answer, used), scratch as aside:
        with _told(query):
            rows = duck.interruptible(lambda: _write(answer, aside))
        if not rows:
            raise UsageError(f"The query has no rows as its answer, so that '{name}' is not made.")
        how = "sql: " + " ".join(query.split())
        return keep(aside, name, tables.catalog, made_from=used, how=how)


def _write(answer: Any, aside: Path) -> int:
    reader = answer.to_arrow_reader(_ROWS_AT_ONCE)
    names = reader.schema.names
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UsageError(f"The answer has two columns '{double}'; name one of them with AS.")
    rows = 0
    with parquet.ParquetWriter(aside, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


@contextlib.contextmanager
def _answered(
    query: str, tables: Tables, *, lazily: bool
) -> Iterator[tuple[Engine, Any, list[Entry]]]:
    """What gives the answer's rows, and the datasets that are used; lazily, they are never all held."""
    # No dataset's name begins with a dot.
    with engine(storage.data_dir() / ".spill") as duck:
        lookup = _Lookup(duck, tables, query)
        with _told(query):
            statements = duck.connection.extract_statements(query)
        if not statements:
            raise UsageError("The query is empty; write one like: SELECT count(*) FROM mnist")
        duck.changed = any(one.type != duckdb.StatementType.SELECT for one in statements)
        answer = None
        for statement in statements:
            answer = lookup.answer(statement, lazily)
        kinds = statements[-1].expected_result_type
        if answer is None or duckdb.ExpectedResultType.QUERY_RESULT not in kinds:
            raise UsageError("The query has no answer; end it with a SELECT.")
        yield duck, answer, lookup.used


class _Lookup:
    """Executes statements, giving DuckDB each table when it is missed."""

    def __init__(self, duck: Engine, tables: Tables, query: str) -> None:
        self.used: list[Entry] = []
        self._duck = duck
        self._connection = duck.connection
        self._tables = tables
        self._query = query
        self._given: set[tuple[str, str]] = set()
        for schema in (DATASETS, *tables.databases):
            if not schema.isidentifier():
                raise UsageError(f"'{schema}' is no name for a database; use letters and digits.")
            self._connection.execute(f"CREATE SCHEMA {_quoted(schema)}")

    def answer(self, statement: Any, lazily: bool) -> Any:
        """The relation that a statement describes, or its result, once all its tables are there."""
        # Of other statements only a relation tells whether they have an answer.
        lazily = lazily or statement.type != duckdb.StatementType.SELECT
        values = {name: self._value(name) for name in statement.named_parameters} or None
        while True:
            try:
                return self._bound(statement, values, lazily)
            except duckdb.CatalogException as error:
                if not self._supply(error):
                    raise _sentence(error, self._query, self._known()) from None
            except duckdb.Error as error:
                raise _sentence(error, self._query) from None

    def _bound(self, statement: Any, values: dict[str, Any] | None, lazily: bool) -> Any:
        try:
            if lazily:
                return self._connection.sql(statement, params=values)
        except duckdb.Error as error:
            if "exception_message" in str(error):
                raise
        # A relation's errors do not say where in the query they are; a statement's do.
        return self._duck.interruptible(lambda: self._connection.execute(statement, values))

    def _value(self, name: str) -> Any:
        if name not in self._tables.variables:
            raise NotFoundError(f"The query has ${name}, but there is no variable '{name}'.")
        return self._tables.variables[name]

    def _supply(self, error: duckdb.Error) -> bool:
        """Give DuckDB the table that it misses; False where there is none."""
        found = _details(error)
        if found.get("type") != "Table" or found.get("error_subtype") != "MISSING_ENTRY":
            return False
        schema, name = _missed(found, self._query)
        if (schema, name) in self._given:
            return False
        self._given.add((schema, name))
        if schema in self._tables.databases:
            self._register(attached.read(self._tables.databases[schema], name), schema, name)
            return True
        if schema == "" and name in self._tables.variables:
            value = _tabular(self._tables.variables[name], name)
            self._connection.register(name, value)
            return True
        if schema in {"", DATASETS}:
            return self._supply_dataset(schema, name)
        return False

    def _supply_dataset(self, schema: str, name: str) -> bool:
        versions = self._tables.catalog.versions(name.partition("@")[0])
        if not versions:
            return False
        entry = readable(self._tables.catalog.get(name) if "@" in name else versions[-1])
        upkeep.check_unchanged(entry, self._tables.catalog)
        self.used.append(entry)
        # What has been verified on its way here is read first; it may be older than what is there now.
        place = cache.nearest(entry.url, near.remote_version(entry))
        entry = msgspec.structs.replace(entry, url=place)
        if entry.format not in FILES:
            self._register(_arrow(entry), schema, name)
            return True
        entry = scannable(entry)
        if storage.is_remote(entry.url):
            fs, _ = storage.locate(entry.url)
            self._connection.register_filesystem(fs)
            self._duck.changed = True
        with _told(self._query):
            self._connection.execute(
                f"CREATE VIEW {_target(schema, name)} AS SELECT * FROM {scan(entry)}"  # noqa: S608
            )
        return True

    def _register(self, table: Any, schema: str, name: str) -> None:
        held = f"aios {len(self._given)}"
        self._connection.register(held, table)
        self._connection.execute(
            f"CREATE TEMP VIEW {_quoted(name)} AS SELECT * FROM {_quoted(held)}"  # noqa: S608
            if not schema
            else f"CREATE VIEW {_target(schema, name)} AS SELECT * FROM {_quoted(held)}"  # noqa: S608
        )

    def _known(self) -> list[str]:
        """What a table can be called, for a suggestion."""
        frames = [name for name, value in self._tables.variables.items() if _is_table(value)]
        datasets = [entry.name for entry in self._tables.catalog.list()]
        inside = [
            f"{schema}.{name}"
            for schema, place in self._tables.databases.items()
            for name in attached.names(place)
        ]
        return list(dict.fromkeys([*frames, *datasets, *inside]))


def _arrow(entry: Entry) -> pa.Table:
    """Arrays as columns without a copy: each row of an array with more than one axis is a list."""
    if entry.format == layout.DATABASE:
        return attached.table(entry.url)
    if entry.format == "folder":
        files = layout.list_images(entry.url)
        labels = {"label": [name.split("/")[0] for name in files]} if entry.classes else {}
        return pa.table({"file": files, **labels})
    if entry.format not in {"npz", "zarr"}:
        raise UsageError(f"'{entry.name}' is {entry.format}, which has no table to query.")
    names = list(entry.schema)
    arrays = [array for array in Catalog().load(entry) if array is not None]
    columns = {}
    for name, array in zip(names, arrays, strict=True):
        column = pa.array(array.reshape(-1))
        if array.ndim > 1:
            column = pa.FixedSizeListArray.from_arrays(column, array[0].size)
        columns[name] = column
    return pa.table(columns)


def _is_table(value: Any) -> bool:
    return hasattr(value, "__arrow_c_stream__") or type(value).__name__ == "DataFrame"


def _tabular(value: Any, name: str) -> Any:
    """A variable as what DuckDB reads without a copy where it can."""
    import numpy as np
    import pandas as pd

    if hasattr(value, "dask"):
        raise UsageError(f"'{name}' is a Dask collection; give its result: {name}.compute().")
    if isinstance(value, pd.Series):
        return value.to_frame(name if value.name is None else str(value.name))
    if _is_table(value):
        return value
    try:
        if isinstance(value, np.ndarray) and value.ndim in {1, 2}:
            table = pd.DataFrame(value)
            return table.set_axis(["x"] if value.ndim == 1 else _numbered(table), axis=1)
        if isinstance(value, dict | list):
            return pd.DataFrame(value)
    except ValueError as error:
        raise UsageError(f"'{name}' does not make a table: {error}.") from None
    raise UsageError(
        f"'{name}' is a {type(value).__name__}, which is no table; give a DataFrame, an Arrow "
        f"table, a dictionary of columns or an array, or write ${name} for its value."
    )


def _numbered(table: Any) -> list[str]:
    return [f"x{number}" for number in range(table.shape[1])]


# --- names and errors


def _missed(found: Mapping[str, Any], query: str) -> tuple[str, str]:
    """Schema ("" for none) and name of the table that DuckDB misses."""
    name = str(found["name"])
    span = _span(found)
    if span is not None:
        start, length = span
        match = _NAME.match(query.encode()[start : start + length].decode(errors="replace"))
        if match and match[1]:
            return match[1].strip('"').replace('""', '"'), name
    return "", name


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _target(schema: str, name: str) -> str:
    return f"{_quoted(schema)}.{_quoted(name)}" if schema else _quoted(name)


def _details(error: duckdb.Error) -> dict[str, Any]:
    """What DuckDB says as JSON after the kind of its error."""
    text = str(error)
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        return {"exception_message": text}
    return found if isinstance(found, dict) else {"exception_message": text}


def _span(found: Mapping[str, Any]) -> tuple[int, int] | None:
    """Where in the query it is, as an offset and length in bytes."""
    try:
        start, length = json.loads(str(found.get("location", "")))
    except ValueError:
        return None
    return int(start), int(length)


@contextlib.contextmanager
def _told(query: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise _sentence(error, query) from None


def _sentence(error: duckdb.Error, query: str, known: list[str] | None = None) -> UsageError:
    """One sentence, and below it the line of the query with a mark under the place."""
    found = _details(error)
    message = str(found.get("exception_message", error))
    if found.get("type") == "Table":
        what = _no_table(found, query, known or [])
    elif found.get("error_subtype") == "COLUMN_NOT_FOUND" and found.get("candidates"):
        columns = str(found["candidates"]).split(",")
        what = f"there is no column '{found['name']}'; {_meant(str(found['name']), columns)}"
    else:
        what = _plain(message)
    span = _span(found)
    if span is None:
        return UsageError(f"In the query: {what}")
    line, column, text = _place(query, span[0])
    return UsageError(f"In the query at line {line}: {what}\n    {text}\n    {' ' * column}^")


def _no_table(found: Mapping[str, Any], query: str, known: list[str]) -> str:
    schema, name = _missed(found, query)
    wanted = f"{schema}.{name}" if schema else name
    return f"there is no table '{wanted}'; {_meant(wanted, known)}"


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    listed = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f"there are {listed or 'none'}."


def _plain(message: str) -> str:
    """DuckDB's own words as the rest of a sentence."""
    first = re.split(r"\n\s*\n|\nTry |\nPlease ", message)[0]
    text = " ".join(first.split()).rstrip(".!")
    if re.match(r"syntax error at end of input", text):
        text = "it ends too early"
    hint = ""
    if text == 'syntax error at or near "-"':
        hint = '; names with a hyphen are quoted, like "mnist-aug"'
    if "requires the extension" in text:
        hint = "; add the file to the catalog with 'aios data add' and query it by name"
    return f"{text[:1].lower()}{text[1:]}{hint}."


def _place(query: str, offset: int) -> tuple[int, int, str]:
    """Line and column (from 1 and 0) of a byte of the query, and that line."""
    before = query.encode()[:offset].decode(errors="replace")
    rest = query[len(before) :]
    before += rest[: len(rest) - len(rest.lstrip())]
    lines = query.split("\n")
    line = min(before.count("\n"), len(lines) - 1)
    return line + 1, len(before.rpartition("\n")[2]), lines[line].replace("\t", " ")
