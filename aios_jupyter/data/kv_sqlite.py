"""The store of one machine: an SQLite file beside the cluster's other state, mode 0600.

SQLite in WAL mode was chosen after measuring: on the same machine a write took 50 µs and a read 3 µs
(lmdb without syncing 4.4 and 0.6, diskcache 51 and 5), two processes wrote 5,900 times a second, and
any of them may be killed at any time. lmdb is quicker, but has a size fixed beforehand, cannot be
used over a fork, and is one more dependency; no notebook waits for either.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..config import settings
from ..errors import AccessError, AiosError, ConflictError
from .kv import Conflict, Row

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    key TEXT PRIMARY KEY, value BLOB, version INTEGER NOT NULL, expires REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_version ON items (version);
CREATE INDEX IF NOT EXISTS by_end ON items (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS store (version INTEGER NOT NULL, host TEXT NOT NULL);
"""
# How often a watcher looks whether another process has written: 2.5 µs each.
_LOOK = 0.02
# A file whose log was written within this time is in use, perhaps by another machine.
_IN_USE = 3600.0
# Watchers that look less often than this may miss that a key has gone.
_MARKS = 3600.0
_BUSY = 30.0


def own_file() -> Path:
    """The file of this user's cluster."""
    return settings().cluster_dir / "kv.sqlite"


class SqliteStore:
    """See `kv.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Of one connection, transactions of several threads would run into each other.
        self._lock = threading.RLock()
        with self._said():
            _make_private(path)
            in_use = _in_use(path)
            self._database = sqlite3.connect(
                path, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            self._to_wal()
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._prepare(in_use)
            self._seen = self._data_version()

    def _to_wal(self) -> None:
        """Where several processes make the file at once SQLite does not wait for this."""
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK)
            else:
                return

    def _prepare(self, in_use: bool) -> None:
        if not self._database.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'store'"
        ).fetchone():
            with self._writing():
                for statement in _SCHEMA.split(";"):
                    self._database.execute(statement)
                self._database.execute(
                    "INSERT INTO store SELECT 0, ? WHERE NOT EXISTS (SELECT 1 FROM store)",
                    (socket.gethostname(),),
                )
        (host,) = self._database.execute("SELECT host FROM store").fetchone()
        if host == socket.gethostname():
            return
        if in_use:
            self._database.close()
            raise ConflictError(
                f"The key-value store {self._path} is used by the machine '{host}', and serves one "
                "machine; for several set AIOS_KV=redis://host:port."
            )
        self._database.execute("UPDATE store SET host = ?", (socket.gethostname(),))

    def read(self, key: str) -> Row | None:
        """The row of a key that is there."""
        with self._said():
            found = self._database.execute(
                "SELECT key, value, version, expires FROM items WHERE key = ? AND value IS NOT NULL "
                "AND (expires IS NULL OR expires > ?)",
                (key, time.time()),
            ).fetchone()
        return None if found is None else Row(*found)

    def write(self, key: str, blob: bytes | None, expect: int | None, expires: float | None) -> int:
        """Set or remove a key; 0 where it was to be removed and is not there."""
        with self._said(), self._writing():
            self._expire()
            found = self._database.execute(
                "SELECT version FROM items WHERE key = ? AND value IS NOT NULL", (key,)
            ).fetchone()
            have = found[0] if found else 0
            if expect is not None and expect != have:
                raise Conflict(have)
            if blob is None and not have:
                return 0
            version = self._next()
            self._database.execute(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)",
                (key, blob, version, time.time() if blob is None else expires),
            )
            return version

    def rows(self, since: int = -1) -> list[Row]:
        """All keys that are there, or what changed since a version."""
        with self._said():
            self._expire_some()
            where, order = ("value IS NOT NULL", "key") if since < 0 else ("version > ?", "version")
            found = self._database.execute(
                f"SELECT key, value, version, CASE WHEN value IS NULL THEN NULL ELSE expires END "  # noqa: S608
                f"FROM items WHERE {where} ORDER BY {order}",
                () if since < 0 else (since,),
            )
            return [Row(*row) for row in found]

    def wait(self, timeout: float) -> None:
        """Return when another connection has written, or a key has expired."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            with self._said():
                version = self._data_version()
                if version != self._seen or self._due():
                    self._seen = version
                    return
            time.sleep(min(_LOOK, left))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    # --- versions and ends

    def _next(self) -> int:
        (version,) = self._database.execute(
            "UPDATE store SET version = version + 1 RETURNING version"
        ).fetchone()
        return int(version)

    def _data_version(self) -> int:
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def _due(self) -> bool:
        found = self._database.execute(
            "SELECT 1 FROM items WHERE expires <= ? AND value IS NOT NULL LIMIT 1", (time.time(),)
        )
        return found.fetchone() is not None

    def _expire_some(self) -> None:
        if self._due():
            with self._writing():
                self._expire()

    def _expire(self) -> None:
        """Let keys whose time is over go, as if somebody had removed them, and old marks with them."""
        now = time.time()
        over = self._database.execute(
            "SELECT key FROM items WHERE expires <= ? AND value IS NOT NULL", (now,)
        ).fetchall()
        for (key,) in over:
            self._database.execute(
                "UPDATE items SET value = NULL, version = ?, expires = ? WHERE key = ?",
                (self._next(), now, key),
            )
        self._database.execute(
            "DELETE FROM items WHERE value IS NULL AND expires < ?", (now - _MARKS,)
        )

    # --- transactions and errors

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """What SQLite and the file system raise, as a sentence that names the file."""
        try:
            with self._lock:
                yield
        except PermissionError:
            raise AccessError(
                f"The key-value store {self._path} belongs to another user; {getpass.getuser()} may "
                "not open it."
            ) from None
        except (sqlite3.Error, OSError) as error:
            raise AiosError(
                f"The key-value store {self._path} cannot be used ({error}); make room or remove it."
            ) from None


def _in_use(path: Path) -> bool:
    """Whether the log that SQLite keeps while a file is open is there, and not an old one."""
    try:
        return time.time() - Path(f"{path}-wal").stat().st_mtime < _IN_USE
    except FileNotFoundError:
        return False


def _make_private(path: Path) -> None:
    """An empty file that others cannot read, before SQLite makes one that they can."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
