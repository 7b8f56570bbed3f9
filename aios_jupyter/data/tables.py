"""Tables of the catalogue: how they are kept.

A leaf module: it imports pyarrow, and is imported only where tables are read or written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from . import formats, storage
from .catalog import Catalog, Entry


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
    path, version, size = storage.adopt(aside, name, ".parquet")
    found = formats.describe(str(path), "parquet")
    return catalog.put(
        Entry(
            name=name,
            url=str(path),
            format="parquet",
            version=version,
            rows=found.rows,
            size=size,
            schema=found.schema,
            classes=found.classes,
            made_from=tuple(entry.ref for entry in made_from),
            how=how,
        )
    )
