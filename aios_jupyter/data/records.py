"""What the catalogue stores, in one SQLite file. A light module: every kernel may import it."""

from __future__ import annotations

import contextlib
import getpass
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..config import settings
from .entries import Entry, check_name

if TYPE_CHECKING:
    from .layout import FileCheck

_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (name, version)
)
"""
_MORE_TABLES = (
    # Hashes of an entry's files and their blocks, apart from it: they may be many.
    """CREATE TABLE IF NOT EXISTS checks (
        name TEXT NOT NULL, version TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (name, version)
    )""",
    # Other places where the same content is.
    "CREATE TABLE IF NOT EXISTS copies (version TEXT, url TEXT, UNIQUE (version, url))",
    "CREATE TABLE IF NOT EXISTS retention (name TEXT PRIMARY KEY, versions INTEGER, days REAL)",
)


class Records:
    """Entries, hashes of their files, other copies of them, and rules of retention."""

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = Path(path) if path is not None else _default_path()

    def put(self, entry: Entry, checks: Iterable[FileCheck] = ()) -> Entry:
        """Store an entry as the newest version of its name; the time is set here.

        Parameters
        ----------
        entry
            One without an owner becomes this user's.
        checks
            Hashes of its files, for `checks`.
        """
        check_name(entry.name)
        entry = msgspec.structs.replace(
            entry, created=time.time(), owner=entry.owner or getpass.getuser()
        )
        with self._open() as database:
            key = (entry.name, entry.version)
            database.execute(
                "INSERT OR REPLACE INTO entries (name, version, body) VALUES (?, ?, ?)",
                (*key, msgspec.msgpack.encode(entry)),
            )
            if checks := tuple(checks):
                database.execute(
                    "INSERT OR REPLACE INTO checks (name, version, body) VALUES (?, ?, ?)",
                    (*key, msgspec.msgpack.encode(checks)),
                )
        return entry

    def checks(self, entry: Entry) -> tuple[FileCheck, ...]:
        """The hashes of an entry's files as they were when it was added; none if unknown."""
        from .layout import FileCheck

        if not self._path.exists():
            return ()
        with self._open() as database:
            found = database.execute(
                "SELECT body FROM checks WHERE name = ? AND version = ?",
                (entry.name, entry.version),
            ).fetchone()
        return msgspec.msgpack.decode(found[0], type=tuple[FileCheck, ...]) if found else ()

    def copies(self, entry: Entry) -> tuple[str, ...]:
        """Other places where the same content is, or was."""
        same = [
            e.url for e in self._rows() if (e.version, e.format) == (entry.version, entry.format)
        ]
        with self._open() as database:
            found = database.execute("SELECT url FROM copies WHERE version = ?", (entry.version,))
            same += [url for (url,) in found]
        return tuple(dict.fromkeys(url for url in same if url != entry.url))

    def retention(self) -> dict[str, tuple[int, float]]:
        """The rules of `keep`: name to versions and days."""
        with self._open() as database:
            found = database.execute("SELECT name, versions, days FROM retention").fetchall()
        return {name: (versions, days) for name, versions, days in found}

    def _rows(self, name: str | None = None) -> list[Entry]:
        if not self._path.exists():
            return []
        where, values = ("", ()) if name is None else ("WHERE name = ?", (name,))
        with self._open() as database:
            found = database.execute(f"SELECT body FROM entries {where} ORDER BY number", values)  # noqa: S608
            return [msgspec.msgpack.decode(body, type=Entry) for (body,) in found]

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=30)
        try:
            with database:
                database.execute(_TABLE)
                for table in _MORE_TABLES:
                    database.execute(table)
                yield database
        finally:
            database.close()


def _default_path() -> Path:
    return settings().state_dir / "data" / "catalog.sqlite"
