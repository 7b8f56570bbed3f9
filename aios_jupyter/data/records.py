"""What the catalogue stores, in one SQLite file. A light module: every kernel may import it."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..config import settings
from ..errors import AiosError, ConflictError
from ..schema import Struct
from ..units import format_size
from .entries import ENCRYPTED, Entry, check_name

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
    "CREATE TABLE IF NOT EXISTS quotas (owner TEXT PRIMARY KEY, size INTEGER)",
    # Names whose new versions have to be encrypted.
    "CREATE TABLE IF NOT EXISTS sealed (name TEXT PRIMARY KEY)",
)
# Whose quota it is that all owners share.
EVERYBODY = "*"


class Quota(Struct, frozen=True, kw_only=True):
    """How much data of the catalogue's own somebody has, and may have.

    Attributes
    ----------
    owner
        A user, or `*` for all together.
    used, limit
        Bytes; no limit is None.
    """

    owner: str
    used: int
    limit: int | None


class Records:
    """Entries, hashes of their files, other copies of them, and rules of retention."""

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = Path(path) if path is not None else _default_path()

    def put(self, entry: Entry, checks: Iterable[FileCheck] = ()) -> Entry:
        """Store an entry as the newest version of its name; the time is set here.

        Parameters
        ----------
        entry
            One without an owner becomes this user's; the tags of the version before are its, too.
        checks
            Hashes of its files, for `checks`.

        Raises
        ------
        ConflictError
            It is more than a quota allows, or has to be encrypted and is not. Data of the
            catalogue's own is removed then.
        """
        check_name(entry.name)
        entry = msgspec.structs.replace(
            entry, created=time.time(), owner=entry.owner or getpass.getuser()
        )
        try:
            if entry.format != ENCRYPTED and entry.name in self.sealed():
                raise ConflictError(
                    f"New versions of '{entry.name}' have to be encrypted; give another name and "
                    f"then 'aios data encrypt', or allow it with 'aios data require {entry.name} "
                    "--remove'."
                )
            if is_own(entry.url):
                self.check_room(entry.size, entry.owner, spare=entry.url)
        except ConflictError:
            self._discard(entry)
            raise
        with self._open() as database:
            # Others add at the same time, and no tag is lost.
            database.execute("BEGIN IMMEDIATE")
            before = database.execute(
                "SELECT body FROM entries WHERE name = ? ORDER BY number DESC LIMIT 1",
                (entry.name,),
            ).fetchone()
            if before:
                tags = {*entry.tags, *msgspec.msgpack.decode(before[0], type=Entry).tags}
                entry = msgspec.structs.replace(entry, tags=tuple(sorted(tags)))
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

    def mark(self, entry: Entry, checks: Iterable[FileCheck]) -> None:
        """Keep the times that the files of an entry have now, with the same hashes."""
        with self._open() as database:
            database.execute(
                "UPDATE checks SET body = ? WHERE name = ? AND version = ?",
                (msgspec.msgpack.encode(tuple(checks)), entry.name, entry.version),
            )

    def has(self, entry: Entry) -> bool:
        """Whether this is where the catalogue says that the data of a version is."""
        known = (row for row in self._rows(entry.name) if row.version == entry.version)
        return any(row.url == entry.url for row in known)

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

    def seal(self, name: str, required: bool = True) -> None:
        """Say whether new versions of a dataset have to be encrypted."""
        check_name(name)
        with self._open() as database:
            if required:
                database.execute("INSERT OR IGNORE INTO sealed VALUES (?)", (name,))
            else:
                database.execute("DELETE FROM sealed WHERE name = ?", (name,))

    def sealed(self) -> set[str]:
        """The names whose new versions have to be encrypted."""
        if not self._path.exists():
            return set()
        with self._open() as database:
            return {name for (name,) in database.execute("SELECT name FROM sealed")}

    def set_quota(self, owner: str, size: int | None) -> None:
        """Say how many bytes of the catalogue's own data somebody may have.

        Parameters
        ----------
        owner
            A user; `*` for all together.
        size
            None takes the limit away.
        """
        with self._open() as database:
            database.execute("DELETE FROM quotas WHERE owner = ?", (owner,))
            if size is not None:
                database.execute("INSERT INTO quotas VALUES (?, ?)", (owner, size))

    def quotas(self) -> list[Quota]:
        """What each owner has and may have; all together first."""
        limits, used = self._limits(), self._used()
        everybody = sum(used.values())
        owners = sorted((limits.keys() | used.keys()) - {EVERYBODY})
        return [
            Quota(owner=owner, used=have, limit=limits.get(owner))
            for owner, have in [(EVERYBODY, everybody), *((o, used.get(o, 0)) for o in owners)]
        ]

    def check_room(self, size: int, owner: str = "", *, spare: str = "") -> None:
        """Raise `ConflictError` where so many more bytes pass a quota.

        Parameters
        ----------
        owner
            This user by default.
        spare
            A URL that does not count: what is new takes its place.
        """
        if not (limits := self._limits()):
            return
        owner = owner or getpass.getuser()
        used = self._used(spare)
        for whose, have in ((owner, used.get(owner, 0)), (EVERYBODY, sum(used.values()))):
            if whose in limits and have + size > limits[whose]:
                who = f"'{owner}'" if whose == owner else "all users together"
                raise ConflictError(
                    f"The datasets of {who} take {format_size(have)} here, and "
                    f"{format_size(size)} more would pass the quota of "
                    f"{format_size(limits[whose])}; forget some with 'aios data rm' and 'aios data "
                    "gc', or raise it with 'aios data quota'."
                )

    def _limits(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        with self._open() as database:
            return dict(database.execute("SELECT owner, size FROM quotas").fetchall())

    def _used(self, spare: str = "") -> dict[str, int]:
        """Bytes of the catalogue's own data, by owner; what several entries share counts once."""
        found: dict[str, tuple[str, int]] = {}
        for entry in self._rows():
            if entry.url != spare and is_own(entry.url):
                found.setdefault(entry.url, (entry.owner, entry.size))
        used: dict[str, int] = {}
        for owner, size in found.values():
            used[owner] = used.get(owner, 0) + size
        return used

    def _discard(self, entry: Entry) -> None:
        """Remove data of the catalogue's own, unless an entry refers to it."""
        if not is_own(entry.url) or any(known.url == entry.url for known in self._rows()):
            return
        place = Path(entry.url)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

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
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise
            raise AiosError(
                f"{self._path} cannot be written ({error}); check the space there."
            ) from None
        finally:
            database.close()


def is_own(url: str) -> bool:
    """Whether data lies where this catalogue keeps what it makes."""
    return url.startswith(f"{settings().state_dir / 'data'}/")


def _default_path() -> Path:
    return settings().state_dir / "data" / "catalog.sqlite"
