"""How a CSV file is written: what separates its values, how decimals look, what stands for none.

Arrow and DuckDB both read such files, and would guess differently. A leaf module.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import packed

_SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 64 * 2**10
_POINT = re.compile(r"-?\d+\.\d+")
_COMMA = re.compile(r"-?\d+,\d+")
# Arrow's names of the types that it finds in text, and DuckDB's.
_TYPES = {
    "string": "VARCHAR",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "date32[day]": "DATE",
    "timestamp[s]": "TIMESTAMP",
    "timestamp[ns]": "TIMESTAMP_NS",
}
# Values that are missing ones: what Arrow takes for such.
MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
)


@dataclass(frozen=True)
class Dialect:
    """What separates values, and what stands before the decimals of a number."""

    separator: str = ","
    decimal: str = "."


def sniffed(fs: Any, path: str) -> Dialect:
    """The dialect of a file of a file system of fsspec's, by its beginning.

    Raises
    ------
    UnicodeDecodeError
        It is not UTF-8.
    """
    # A bucket's file would read 50 MB ahead; that of HDFS takes no such word.
    ahead = {"block_size": _SAMPLE} if "s3" in fs.protocol else {}
    with fs.open(path, "rb", **ahead) as file:
        sample = packed.opened(file, path).read(_SAMPLE)
    # The last character may be cut off.
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    return of(decoder.decode(sample, final=len(sample) < _SAMPLE))


def of(sample: str) -> Dialect:
    """The dialect of the beginning of a file.

    What separates is what the first line has most of, and the second as often.
    """
    lines = [line for line in sample.splitlines() if line.strip()]
    if not lines:
        return Dialect()
    first, second = lines[0], lines[1] if len(lines) > 1 else ""
    # A value that goes on in another line leaves a quote open.
    checked = second and second.count('"') % 2 == 0
    counts = {
        mark: count
        for mark in _SEPARATORS
        if (count := len(_split(first, mark)) - 1)
        and (not checked or len(_split(second, mark)) - 1 == count)
    }
    separator = max(counts, key=lambda mark: counts[mark], default=",")
    if separator == ",":
        return Dialect()
    # The last line may be cut off.
    values = [value for line in lines[1:-1] or lines[1:] for value in _split(line, separator)]
    commas, points = (any(map(kind.fullmatch, values)) for kind in (_COMMA, _POINT))
    return Dialect(separator, "," if commas and not points else ".")


def _split(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def for_duckdb(dialect: Dialect, schema: Mapping[str, str]) -> str:
    """Further arguments of DuckDB's `read_csv`, so that it finds what the catalogue says.

    Parameters
    ----------
    schema
        Column to type, as Arrow calls it.
    """
    # DuckDB takes spaces from both ends of names.
    types = {name.strip(): _TYPES[kind] for name, kind in schema.items() if kind in _TYPES}
    pairs = ", ".join(f"{_text(name)}: {_text(kind)}" for name, kind in types.items())
    given = {
        "header": "true",
        "delim": _text(dialect.separator),
        "decimal_separator": _text(dialect.decimal),
        "quote": _text('"'),
        "escape": _text('"'),
        "nullstr": f"[{', '.join(map(_text, MISSING))}]",
        **({"types": f"{{{pairs}}}"} if pairs else {}),
    }
    return "".join(f", {name} = {value}" for name, value in given.items())


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
