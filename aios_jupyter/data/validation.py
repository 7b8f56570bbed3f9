"""Tables held against a schema of pandera's (https://pandera.readthedocs.io), and the rows that fail.

A leaf module: it imports pandas and pandera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConflictError, MissingExtraError, UsageError
from .catalog import Catalog
from .entries import Entry
from .storage import unreadable, written_aside

if TYPE_CHECKING:
    import pandas as pd

EXTRA = "schemas"
ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Failed:
    """A check that did not hold.

    Attributes
    ----------
    column
        Of which column; "" for the table as a whole.
    check
        What was to hold, as pandera calls it: `in_range(0, 120)`, `not_nullable`.
    rows
        Rows that fail, numbered from 0 in the order of the dataset; () where it is not of rows: a
        column that is missing, a type.
    values
        What stands there, as text, one for each row, or the one thing that is wrong.
    """

    column: str
    check: str
    rows: tuple[int, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Validated:
    """What came of a validation.

    Attributes
    ----------
    entry
        The dataset.
    count
        How many rows it has.
    failed
        The checks that did not hold; () where all did.
    rows
        The rows that fail, by their numbers.
    """

    entry: Entry
    count: int
    failed: tuple[Failed, ...]
    rows: pd.DataFrame

    @property
    def passed(self) -> bool:
        """Whether all checks held."""
        return not self.failed


def validate(ref: str | Path | Entry, schema: Any, catalog: Catalog | None = None) -> Validated:
    """Hold a table against a schema; all checks are made, whatever fails.

    Parameters
    ----------
    schema
        A `pandera.pandas.DataFrameSchema`, a `DataFrameModel`, or the path of a YAML or JSON file that
        one of them was written to (`schema.to_yaml`).

    Raises
    ------
    UsageError
        It is no table, or that is no schema.
    MissingExtraError
        pandera is not installed.
    """
    pandera = _pandera()
    catalog = catalog or Catalog()
    checked = schema_of(schema)
    frame = catalog.frame(ref)
    failed: tuple[Failed, ...] = ()
    try:
        checked.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        failed = _failed(error.failure_cases)
    except pandera.errors.SchemaDefinitionError as error:
        raise UsageError(f"The schema makes no sense for this table: {_line(error)}.") from None
    rows = sorted({row for each in failed for row in each.rows})
    return Validated(catalog.get(ref), len(frame), failed, frame.iloc[rows])


def infer(ref: str | Path | Entry, target: Path, catalog: Catalog | None = None) -> Path:
    """Write a schema that the table passes as it is now, to be narrowed by hand; gives its path.

    Raises
    ------
    UsageError
        It is no table, or the path does not end in one of `ENDINGS`.
    ConflictError
        The file exists.
    MissingExtraError
        pandera is not installed.
    """
    pandera = _pandera()
    _check_ending(target)
    if target.exists():
        raise ConflictError(f"{target} exists; remove it, or write the schema elsewhere.")
    found = pandera.infer_schema((catalog or Catalog()).frame(ref))
    # Rows are numbered, which says nothing of them.
    schema = pandera.DataFrameSchema(found.columns, coerce=True)
    text = schema.to_json(indent=2) if target.suffix == ".json" else schema.to_yaml()
    with written_aside(str(target)) as file:
        file.write(text.encode())
    return target


def schema_of(schema: Any) -> Any:
    """The pandera schema that something is, or names.

    Raises
    ------
    UsageError
        It is none.
    """
    pandera = _pandera()
    if isinstance(schema, pandera.DataFrameSchema):
        return schema
    if isinstance(schema, type) and issubclass(schema, pandera.DataFrameModel):
        model: Any = schema
        return model.to_schema()
    if isinstance(schema, str | Path):
        return _read(pandera, Path(schema).expanduser())
    raise UsageError(
        f"A {type(schema).__name__} is no schema; give a pandera DataFrameSchema, a DataFrameModel, or "
        "the file that one was written to."
    )


def _read(pandera: Any, path: Path) -> Any:
    _check_ending(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(str(path), error) from None
    try:
        read = pandera.DataFrameSchema.from_json
        schema = (read if path.suffix == ".json" else pandera.DataFrameSchema.from_yaml)(text)
    # What a file can make it raise is nowhere said.
    except Exception as error:
        raise UsageError(f"{path} is not a schema of pandera's: {_line(error)}.") from error
    if not (schema.columns or schema.checks):
        raise UsageError(f"{path} is not a schema of pandera's: it names no column and no check.")
    return schema


def _check_ending(path: Path) -> None:
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path} does not end in {', '.join(ENDINGS)}, as a schema's file does.")


def _failed(cases: pd.DataFrame) -> tuple[Failed, ...]:
    """Pandera's failure cases, one for each value, by column and check."""
    found: dict[tuple[str, str], list[tuple[int | None, str]]] = {}
    for case in cases.to_dict("records"):
        column = case["column"] or ""
        if case["check"] == "column_in_dataframe":
            column = case["failure_case"]
        key, index = (str(column), str(case["check"])), case["index"]
        # What is wrong with a column as a whole has none; pandas makes it NaN beside others.
        row = None if index is None or math.isnan(index) else int(index)
        found.setdefault(key, []).append((row, str(case["failure_case"])))
    return tuple(_one(column, check, each) for (column, check), each in found.items())


def _one(column: str, check: str, cases: list[tuple[int | None, str]]) -> Failed:
    by_row = {row: value for row, value in cases if row is not None}
    values = by_row.values() if by_row else dict.fromkeys(value for _, value in cases)
    return Failed(column, check, tuple(by_row), tuple(values))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _pandera() -> Any:
    try:
        import pandera.pandas
    except ImportError as error:
        raise MissingExtraError("pandera", EXTRA) from error
    return pandera.pandas
