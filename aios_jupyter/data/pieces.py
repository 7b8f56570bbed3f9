"""Tables of the catalogue: read in parts as DataFrames, written in parts, kept as one Parquet file.

A leaf module: it imports pandas and pyarrow, and is imported only where tables are read or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ..errors import UsageError
from . import cache, credentials, dialect, formats, layout, near, storage, upkeep
from .catalog import Catalog, Entry, readable

# So many rows make a part, where the file's row groups allow.
PART_ROWS = 250_000
# What DuckDB reads for us.
FILES = {"csv": "read_csv", "jsonl": "read_json", "parquet": "read_parquet"}


@dataclass(frozen=True)
class Part:
    """Some row groups of a Parquet file.

    Attributes
    ----------
    url, name
        The dataset, and the file in it; "" where it is one file.
    groups
        Which row groups.
    version
        Of a remote dataset: who has a copy reads that.
    span
        From which byte of the file to which they are.
    """

    url: str
    groups: tuple[int, ...]
    name: str = ""
    version: str = ""
    span: tuple[int, int] = (0, 0)

    def nearest(self) -> str:
        """The file to read: that of a copy on this machine, if there is one."""
        return storage.joined(cache.nearest(self.url, self.version), self.name)

    def reads(self) -> list[near.Span]:
        """See `near.Task`."""
        return [near.Span(storage.joined(self.url, self.name), *self.span)]


def keep(
    aside: Path, name: str, catalog: Catalog, *, made_from: Iterable[Entry] = (), how: str = ""
) -> Entry:
    """Make a finished Parquet file the newest version of `name`.

    Parameters
    ----------
    aside
        From `storage.scratch`; it is moved to where the data of `name` is kept.
    made_from, how
        Lineage.
    """
    with storage.writing():
        path, content = layout.adopt(aside, name, ".parquet")
        found = formats.describe(str(path), "parquet")
        return catalog.put(
            Entry(
                name=name,
                url=str(path),
                format="parquet",
                version=content.version,
                rows=found.rows,
                size=content.size,
                schema=found.schema,
                classes=tuple(found.classes),
                counts=tuple(found.classes.values()),
                fields=found.fields,
                made_from=tuple(entry.ref for entry in made_from),
                how=how,
            ),
            content.files,
        )


def parts(entry: Entry, room: Path) -> list[Part]:
    """A dataset in parts that do not depend on who reads them.

    Parameters
    ----------
    room
        A directory for a Parquet copy of what is not Parquet.

    Raises
    ------
    UsageError
        It is no table, or cannot be read.
    """
    upkeep.check_unchanged(readable(entry))
    version = near.remote_version(entry)
    if entry.format == "parquet":
        place = cache.nearest(entry.url, version)
        return [
            replace(part, url=entry.url, name=name, version=version)
            for name in _files(place)
            for part in _groups(storage.joined(place, name))
        ]
    entry = msgspec.structs.replace(entry, url=cache.nearest(entry.url, version))
    if entry.format in FILES:
        return _groups(_from_text(entry, room))
    if entry.format in {"npz", "zarr"}:
        return _groups(_from_arrays(entry, room))
    if entry.format == layout.DATABASE:
        from . import attached

        copy = room / "source.parquet"
        parquet.write_table(attached.table(entry.url), copy, row_group_size=PART_ROWS // 2)
        return _groups(str(copy))
    raise UsageError(f"'{entry.name or entry.url}' is {entry.format}, which is no table.")


def read(part: Part) -> Any:
    """A part as a DataFrame whose types are the same for each part of a file."""
    url = part.nearest()
    fs, path = storage.locate(url)
    with storage.reading(url), fs.open(path, "rb") as file:
        table = parquet.ParquetFile(file).read_row_groups(list(part.groups))
    return as_frame(table)


def as_frame(table: pa.Table) -> Any:
    """An Arrow table as pandas has it, with whole numbers that stay whole where some are missing."""
    return table.to_pandas(types_mapper=_TYPES.get)


_TYPES: dict[Any, Any] = {
    **{getattr(pa, f"{kind}{bits}")(): getattr(pd, f"{name}{bits}Dtype")()
       for kind, name in (("int", "Int"), ("uint", "UInt")) for bits in (8, 16, 32, 64)},
    pa.bool_(): pd.BooleanDtype(),
}  # fmt: skip


def write(frame: Any, path: Path) -> None:
    """One part, as a file; `join` makes one file of them."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    parquet.write_table(table.replace_schema_metadata(None), path)


def join(files: Sequence[Path], aside: Path) -> int:
    """One Parquet file of several, in their order; gives the number of rows."""
    schemas = [parquet.read_schema(file) for file in files]
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    rows = 0
    with parquet.ParquetWriter(aside, schema) as writer:
        for file in files:
            table = parquet.read_table(file, partitioning=None).cast(schema)
            if table.num_rows:
                writer.write_table(table)
            rows += table.num_rows
    return rows


def scan(entry: Entry, more: str = "") -> str:
    """How DuckDB reads a dataset of files, in SQL: as the catalogue says that they are.

    Parameters
    ----------
    more
        Further arguments.
    """
    reader = FILES[entry.format]
    if entry.format != "csv":
        return f"{reader}({_pattern(entry)}{more})"
    fs, path = storage.locate(entry.url)
    folder = fs.isdir(path)
    first = layout.list_files(entry.url, "csv")[0] if folder else ""
    with storage.reading(entry.url):
        found = dialect.sniffed(fs, storage.joined(path, first))
    # Files of a folder may have their columns in another order.
    more += ", union_by_name = true" if folder else ""
    return f"{reader}({_pattern(entry)}{dialect.for_duckdb(found, entry.schema)}{more})"


def scannable(entry: Entry) -> Entry:
    """The dataset where DuckDB can read it: in the cache, where its storage tells no times (HTTP)."""
    if not storage.is_remote(entry.url):
        return entry
    fs, path = storage.locate(entry.url)
    try:
        with storage.reading(entry.url):
            if not fs.isdir(path):
                fs.modified(path)
    except UsageError:
        # Fsspec has an error of its own for what a file system has not.
        return cache.local(entry)
    return entry


def _pattern(entry: Entry) -> str:
    """The file, or a list of those of a folder, quoted."""
    fs, path = storage.locate(entry.url)
    names = layout.list_files(entry.url, entry.format) if fs.isdir(path) else [""]
    # The file system that DuckDB is given has the credentials that the URL names.
    root = credentials.resolve(entry.url)[0] if storage.is_remote(entry.url) else entry.url
    places = (storage.joined(root, name).replace("'", "''") for name in names)
    return "[" + ", ".join(f"'{place}'" for place in places) + "]"


def _files(url: str) -> list[str]:
    """The files of a folder; "" for what is one file."""
    fs, path = storage.locate(url)
    if not fs.isdir(path):
        return [""]
    root = path.rstrip("/") + "/"
    names = sorted(found.removeprefix(root) for found in fs.find(path))
    return [name for name in names if name.endswith((".parquet", ".pq"))]


def _groups(url: str) -> list[Part]:
    fs, path = storage.locate(url)
    with storage.reading(url), fs.open(path, "rb") as file:
        metadata = parquet.ParquetFile(file).metadata
    found: list[Part] = []
    groups: list[int] = []
    rows = 0
    for number in range(metadata.num_row_groups):
        groups.append(number)
        rows += metadata.row_group(number).num_rows
        if rows >= PART_ROWS or number == metadata.num_row_groups - 1:
            found.append(Part(url, tuple(groups), span=_span(metadata, groups)))
            groups, rows = [], 0
    if not found:
        raise UsageError(f"{url} has no rows; there is nothing to prepare.")
    return found


def _span(metadata: Any, groups: Sequence[int]) -> tuple[int, int]:
    """Where row groups that follow each other begin and end in their file."""
    first = metadata.row_group(groups[0]).column(0)
    start = min(first.data_page_offset, first.dictionary_page_offset or first.data_page_offset)
    # Pages of all columns lie one after the other.
    size = sum(
        metadata.row_group(group).column(column).total_compressed_size
        for group in groups
        for column in range(metadata.num_columns)
    )
    return start, start + size


def _from_text(entry: Entry, room: Path) -> str:
    """A Parquet copy of a CSV or JSON lines file, its types found by looking at all of it."""
    import duckdb

    entry = scannable(entry)
    copy = room / "source.parquet"
    with duckdb.connect() as connection:
        if storage.is_remote(entry.url):
            connection.register_filesystem(storage.locate(entry.url)[0])
        try:
            connection.sql(
                f"SELECT * FROM {scan(entry, ', sample_size = -1')}"  # noqa: S608
            ).write_parquet(str(copy), row_group_size=PART_ROWS // 2)
        except duckdb.Error as error:
            raise storage.unreadable(entry.url, ValueError(str(error).split("\n")[0])) from None
    return str(copy)


def _from_arrays(entry: Entry, room: Path) -> str:
    x, y = Catalog().load(entry)
    if x.ndim > 2:
        raise UsageError(
            f"'{entry.name or entry.url}' has rows of shape {x.shape[1:]}, which are no table; "
            "'aios augment' prepares images."
        )
    names = list(entry.schema)
    columns = (
        {names[0]: x} if x.ndim == 1 else {f"{names[0]}{n}": x[:, n] for n in range(x.shape[1])}
    )
    if y is not None:
        columns[names[1]] = y
    copy = room / "source.parquet"
    parquet.write_table(pa.table(columns), copy, row_group_size=PART_ROWS // 2)
    return str(copy)
