"""Tables: CSV, JSON lines and Parquet, one file or a folder of parts; and those of databases.

A leaf module: it imports pyarrow, and is imported only where tables are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from pyarrow import csv, dataset
from pyarrow import fs as arrow_fs

from ..errors import UsageError
from . import dialect
from .description import MOST_CLASSES, Description, Tally
from .entries import packing
from .layout import DATABASE, list_files
from .packed import Unpacking
from .storage import joined, locate, reading, unreadable

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("label", "y", "class", "target")
_EXAMPLES = 3
_LONGEST_EXAMPLE = 24
_READERS = {"jsonl": dataset.JsonFileFormat, "parquet": dataset.ParquetFileFormat}


def describe(url: str, form: str) -> Description:
    """Rows, columns with their statistics, and the classes of the label column."""
    with reading(url):
        source = _open_text(url) if form == "csv" else _open(url, form)
        columns = [_Tallied(field) for field in source.schema]
        label = next((c for name in LABELS for c in columns if c.name == name), None)
        rows = 0
        for batch in _batches(source, url):
            rows += batch.num_rows
            for column, values in zip(columns, batch.columns, strict=True):
                column.add(values, classes=column is label)
    if rows == 0:
        raise UsageError(f"{url} has no rows; there is nothing to use.")
    return Description(
        rows,
        {column.name: str(column.type) for column in columns},
        label.classes() if label else {},
        tuple(column.field() for column in columns),
    )


def frame(url: str, form: str) -> pd.DataFrame:
    """The whole table, as pandas has it."""
    with reading(url):
        return _whole(_open(url, form), url).to_pandas()


def head(url: str, form: str, rows: int) -> pa.Table:
    """The first rows, for who only wants to look at some."""
    with reading(url):
        return _open(url, form).head(rows, batch_readahead=1, fragment_readahead=1)


def part_of(url: str, form: str, row: int) -> tuple[str, int]:
    """The file of a folder ("" where the table is one file) that has a row, and its place there."""
    fs, path = locate(url)
    if not fs.isdir(path):
        return "", row
    with reading(url):
        for name in list_files(url, form):
            part = f"{path.rstrip('/')}/{name}"
            rows = _dataset(part, form, fs).count_rows()
            if row < rows:
                return name, row
            row -= rows
    raise AssertionError("the row is one of the table's")


def load(url: str, form: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The columns of numbers as rows of an array, and the label column."""
    table = frame(url, form)
    label = next((name for name in LABELS if name in table.columns), None)
    rest = table.drop(columns=[label]) if label else table
    words = [name for name in rest.columns if rest[name].dtype.kind not in "biuf"]
    if words or rest.empty:
        raise UsageError(
            f"{url} is a table with columns that are no numbers ({', '.join(words[:5])}); "
            "Catalog().frame(…) gives it as a table of pandas."
        )
    y = None if label is None else table[label].to_numpy()
    return rest.to_numpy(), y


def _open(url: str, form: str) -> Any:
    if form == DATABASE:
        from . import attached

        return dataset.dataset(attached.table(url))
    fs, path = locate(url)
    files: Any = path
    if fs.isdir(path):
        names = list_files(url, form)
        files = [f"{path.rstrip('/')}/{name}" for name in names]
    try:
        return _dataset(files, form, fs)
    except (pa.ArrowInvalid, OSError) as error:
        if not _of_content(error):
            raise
        # It looks at the first file alone.
        raise unreadable(url if files is path else joined(url, names[0]), _plain(error)) from None


def _open_text(url: str) -> Any:
    """`_open` of a CSV file that has to be text; later it is known to be."""
    try:
        source = _open(url, "csv")
    except UnicodeDecodeError:
        raise _no_text(url, "at its beginning") from None
    odd = [column.name for column in source.schema if pa.types.is_binary(column.type)]
    if odd:
        raise _no_text(url, f"in the column '{odd[0]}'")
    return source


def _no_text(url: str, where: str) -> UsageError:
    return UsageError(
        f"{url} is not UTF-8 text ({where}); convert it first, as with: iconv -f WINDOWS-1252 -t UTF-8."
    )


def _dataset(files: str | list[str], form: str, fs: Any) -> Any:
    names = [files] if isinstance(files, str) else files
    reads = _csv_format(fs, names[0]) if form == "csv" else _READERS[form]()
    # Local files Arrow reads by itself, unless it does not know what they are compressed with.
    if not isinstance(fs, LocalFileSystem) or any(packing(name) == "zstd" for name in names):
        fs = arrow_fs.PyFileSystem(Unpacking(fs))
    return dataset.dataset(files, format=reads, filesystem=fs)


def _csv_format(fs: Any, path: str) -> dataset.CsvFileFormat:
    found = dialect.sniffed(fs, path)
    return dataset.CsvFileFormat(
        parse_options=csv.ParseOptions(delimiter=found.separator),
        convert_options=csv.ConvertOptions(
            strings_can_be_null=True, null_values=dialect.MISSING, decimal_point=found.decimal
        ),
    )


def _batches(source: Any, url: str) -> Iterator[pa.RecordBatch]:
    """All rows, few at a time: a table may be larger than memory."""
    for part in source.get_fragments():
        try:
            yield from part.to_batches(schema=source.schema, batch_readahead=2)
        except (pa.ArrowInvalid, OSError) as error:
            if not _of_content(error):
                raise
            name = part.path.removeprefix(locate(url)[1].rstrip("/")).lstrip("/")
            raise unreadable(joined(url, name), _plain(error)) from None


def _of_content(error: Exception) -> bool:
    """Whether Arrow says that what it read is wrong, not the storage that it cannot be read."""
    return not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)


def _plain(error: Exception) -> ValueError:
    """Arrow's error without which file it was, which it may say three times before the reason."""
    reason = str(error).rpartition("': ")[2].rpartition("Invalid: ")[2].rpartition("IOError: ")[2]
    if "straddl" in reason:
        reason = "it has a row longer than a MiB"
    return ValueError(reason.split("\n")[0].rstrip("."))


def _whole(source: Any, url: str) -> pa.Table:
    """All rows in memory, if they fit: a compressed file may be small and its table is not."""
    import psutil

    # pandas has them once more.
    free, batches, size = psutil.virtual_memory().available / 2, [], 0
    for batch in source.scanner().to_batches():
        batches.append(batch)
        size += batch.nbytes
        if size > free:
            raise UsageError(
                f"{url} unpacks to more than {free / 2**30:.1f} GiB, half of the memory that is free; "
                "ask for a part of it with 'aios sql', or use a machine with more."
            )
    return pa.Table.from_batches(batches, source.schema)


class _Tallied:
    """What is found out about a column as its blocks come."""

    def __init__(self, field: pa.Field) -> None:
        self.name, self.type = field.name, field.type
        self._numeric = pa.types.is_integer(self.type) or pa.types.is_floating(self.type)
        self._tally = Tally()
        self._missing = 0
        self._examples: list[str] = []
        self._values: Counter[Any] = Counter()

    def add(self, values: pa.Array, *, classes: bool) -> None:
        self._missing += values.null_count
        if len(self._examples) < _EXAMPLES:
            self._examples += [_text(v) for v in values[:_EXAMPLES].to_pylist() if v is not None]
        there = values.drop_null() if values.null_count else values
        if self._numeric:
            self._tally.add(there.to_numpy(zero_copy_only=False))
        if classes and not pa.types.is_floating(self.type) and len(self._values) <= MOST_CLASSES:
            found = pc.value_counts(there)
            values, counts = (found.field(name).to_pylist() for name in ("values", "counts"))
            self._values.update(dict(zip(values, counts, strict=True)))

    def classes(self) -> dict[str, int]:
        if len(self._values) > MOST_CLASSES:
            return {}
        return {str(value): self._values[value] for value in sorted(self._values)}

    def field(self) -> Any:
        example = ", ".join(self._examples[:_EXAMPLES])
        return self._tally.field(self.name, str(self.type), example, self._missing)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONGEST_EXAMPLE else text[: _LONGEST_EXAMPLE - 1] + "…"


def as_labels(values: NDArray[Any]) -> NDArray[Any]:
    """Labels as an array that numpy can compare."""
    return values.astype(str) if values.dtype == object else np.asarray(values)
