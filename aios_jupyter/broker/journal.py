"""The broker's memory on disk: one SQLite file with the state's records and the audit trail.

Actions are gathered and written in one transaction by `commit`, which is called before anything
that follows from them leaves the broker (group commit). The file is locked for as long as it is
open: two brokers on one journal would grant the same device twice. A checked copy of it is kept
beside it (`snapshots.py`), to go on from where the file was damaged.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import ClusterError, UsageError
from ..schema import Booking, Lease, Node, Owner, Request, Run
from . import events as ev
from . import snapshots, wal

T = TypeVar("T")
_json = msgspec.json.Encoder().encode

VERSION = 2
SYNC = ("OFF", "NORMAL", "FULL", "EXTRA")
AUDIT_KEPT = 100_000
LOCK_WAIT = 5.0
# Pages of the log before they are moved into the file, which takes a wait for the disk.
LOG_PAGES = 4000
# A commit that is just being written by another broker looks damaged for a moment.
LOOKS, LOOK_AGAIN = 3, 0.05

_TYPES: dict[str, type[Any]] = {
    "booking": Booking,
    "counter": int,
    "hour": ev.Hour,
    "foretold": ev.Foretold,
    "history": ev.Lasted,
    "hits": ev.Hits,
    "lease": Lease,
    "node": Node,
    "queue-usage": ev.Used,
    "quota": ev.Quota,
    "request": Request,
    "run": Run,
    "session": Owner,
    "setting": ev.Choice,
    "unconfirmed": ev.Unconfirmed,
    "usage": ev.Used,
}
# The rowid keeps the order in which ids were first put: requests come back in their order. Which
# id has which rowid is known in memory, as an index on disk would double what a commit writes.
_RECORDS = "CREATE TABLE records (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL)"
_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    _RECORDS,
    "CREATE TABLE audit (time REAL NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL, detail TEXT)",
    "INSERT INTO meta VALUES ('schema', '2')",
)
# What turns the format of each older version into that of the next one.
_MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE records RENAME TO records_1",
        _RECORDS,
        "INSERT INTO records (rowid, kind, id, body) SELECT rowid, kind, id, body FROM records_1",
        "DROP TABLE records_1",
    ),
}
_DROP = "DELETE FROM records WHERE rowid = ?"
_PUT = "INSERT OR REPLACE INTO records (rowid, kind, id, body) VALUES (?, ?, ?, ?)"


class Journal:
    """Keeps what the broker promised.

    Parameters
    ----------
    path
        The file; it is made, readable by its owner alone, where there is none.
    sync
        SQLite's `synchronous`: `NORMAL` survives a crash of the broker, `FULL` one of the machine.

    Attributes
    ----------
    commits
        How many there were.
    failure
        Why the last commit failed; None while all is written.

    Raises
    ------
    ClusterError
        The file is damaged, was written by a newer version, or is in use by another broker. It is
        left as it is.
    UsageError
        `sync` is not a value that SQLite knows.
    """

    def __init__(self, path: Path | str, sync: str = "NORMAL") -> None:
        if sync.upper() not in SYNC:
            raise UsageError(
                f"AIOS_JOURNAL_SYNC={sync!r} is not one of {', '.join(SYNC)}; correct or unset it."
            )
        self.commits = 0
        self.failure: ClusterError | None = None
        self._path = Path(path)
        # What to write, by rowid; None: the row goes.
        self._changes: dict[int, tuple[str, str, ev.Record] | None] = {}
        self._notes: list[tuple[float, str, str, str]] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._copying = threading.Lock()
        self._check_log()
        self._guarded(self._inspect)
        self._database = self._guarded(lambda: self._connect(sync.upper()))
        self._rows: dict[str, dict[str, int]] = {kind: {} for kind in _TYPES}
        self._guarded(self._find_rows)

    def load(self) -> list[tuple[str, str, ev.Record]]:
        """Every record as (kind, id, record), in the order in which the ids were first put.

        Raises
        ------
        ClusterError
            A record cannot be read.
        """
        decoders = {kind: msgspec.msgpack.Decoder(record) for kind, record in _TYPES.items()}
        rows = self._guarded(
            lambda: self._database.execute(
                "SELECT kind, id, body FROM records ORDER BY rowid"
            ).fetchall()
        )
        try:
            return [(kind, id, decoders[kind].decode(body)) for kind, id, body in rows]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise self._damaged(f"a record cannot be read, {error}") from error

    def apply(self, actions: Iterable[ev.Action], now: float) -> None:
        """Take in what is to be kept of these actions; it is on disk after the next `commit`."""
        for action in actions:
            if isinstance(action, ev.Put):
                rows = self._rows[action.kind]
                row = rows.get(action.id)
                if row is None:
                    self._last += 1
                    row = rows[action.id] = self._last
                self._changes[row] = (action.kind, action.id, action.record)
            elif isinstance(action, ev.Drop):
                row = self._rows[action.kind].pop(action.id)
                if row > self._written:
                    self._changes.pop(row, None)
                else:
                    self._changes[row] = None
            elif isinstance(action, ev.Audit):
                detail = _json(action.detail).decode()
                self._notes.append((now, action.what, action.who, detail))

    def durable(self, kind: str, id: str) -> bool:
        """Whether a record of that id was there at the last commit."""
        return self._rows[kind].get(id, self._written + 1) <= self._written

    def commit(self) -> None:
        """Write all that was applied, in one transaction.

        Raises
        ------
        ClusterError
            It could not be written; it is kept, and tried again by the next commit.
        """
        if not self._changes and not self._notes:
            return
        try:
            self._guarded(self._write)
        except ClusterError as error:
            self.failure = error
            raise
        self.failure = None
        self._written = self._last
        self.commits += 1
        self._changes.clear()
        self._notes.clear()

    def audit(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` audit records, the newest first: time, what, who and detail."""
        self.commit()
        rows = self._guarded(
            lambda: self._database.execute(
                "SELECT time, what, who, detail FROM audit ORDER BY rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        )
        return [
            {"time": time, "what": what, "who": who, "detail": json.loads(detail)}
            for time, what, who, detail in rows
        ]

    def snapshot(self) -> None:
        """Replace the snapshot by a copy of what is written; for a thread of its own.

        Raises
        ------
        ClusterError
            It could not be written, or the copy is damaged: the earlier snapshot stays.
        """
        with self._copying:
            self._guarded(lambda: snapshots.take(self._database, self._path))

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        with self._copying:
            self._database.close()

    def _check_log(self) -> None:
        """Refuse a log of which SQLite would drop commits; before it is opened, which empties it."""
        log = self._path.with_name(f"{self._path.name}-wal")
        for look in range(LOOKS):
            how = self._guarded(lambda: wal.damage(log))
            if not how:
                return
            if look:
                time.sleep(LOOK_AGAIN)
        raise self._damaged(how)

    def _inspect(self) -> None:
        """Refuse what is damaged or newer; read-only, as closing it would else empty its log."""
        if not self._path.exists() or not self._path.stat().st_size:
            return
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, timeout=LOCK_WAIT, uri=True)) as database:
            (report,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if report != "ok":
                raise self._damaged(report.splitlines()[-1])
            self._version(database)

    def _connect(self, sync: str) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        # A snapshot is taken by another thread; SQLite sees to it that the two take turns.
        database = sqlite3.connect(
            self._path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute(f"PRAGMA synchronous = {sync}")
            database.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
            database.execute("BEGIN IMMEDIATE")
            # Left by the inspection; who has the file to himself uses none.
            self._path.with_name(f"{self._path.name}-shm").unlink(missing_ok=True)
            self._migrate(database)
            database.execute(
                "DELETE FROM audit WHERE rowid <= (SELECT MAX(rowid) FROM audit) - ?", (AUDIT_KEPT,)
            )
            database.execute("COMMIT")
            # Last, as it changes the file: one that is not ours stays as it was.
            database.execute("PRAGMA journal_mode = WAL")
        except BaseException:
            database.close()
            raise
        return database

    def _version(self, database: sqlite3.Connection) -> int:
        """The format of the file, 0 for one that is new."""
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not tables:
            return 0
        if "meta" not in tables:
            raise self._damaged("it is not a journal")
        row = database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        if row is None or not row[0].isdigit():
            raise self._damaged("it does not say which version wrote it")
        version = int(row[0])
        if version > VERSION:
            raise ClusterError(
                f"The broker's journal {self._path} was written by a newer version of aios-jupyter "
                f"(format {version}, this one reads {VERSION}); upgrade aios-jupyter, or move the "
                "file away to start anew."
            )
        if version < min(_MIGRATIONS, default=VERSION):
            raise self._damaged(f"there never was a format {version}")
        return version

    def _migrate(self, database: sqlite3.Connection) -> None:
        """Bring the file to this format: within the open transaction, as a whole or not at all."""
        version = self._version(database)
        steps = [_MIGRATIONS[older] for older in range(version, VERSION)] if version else [_SCHEMA]
        for statement in (statement for step in steps for statement in step):
            database.execute(statement)
        database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(VERSION),))

    def _find_rows(self) -> None:
        """Which id has which row."""
        self._last = 0
        for row, kind, id in self._database.execute("SELECT rowid, kind, id FROM records"):
            self._rows.setdefault(kind, {})[id] = self._last = max(row, self._last)
        self._written = self._last

    def _write(self) -> None:
        drops, puts = [], []
        for row, change in self._changes.items():
            if change is None:
                drops.append((row,))
            else:
                kind, id, record = change
                puts.append((row, kind, id, self._encode(record)))
        execute = self._database.executemany
        self._database.execute("BEGIN IMMEDIATE")
        try:
            if drops:
                execute(_DROP, drops)
            if puts:
                execute(_PUT, puts)
            if self._notes:
                execute("INSERT INTO audit VALUES (?, ?, ?, ?)", self._notes)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _guarded(self, act: Callable[[], T]) -> T:
        """Do it; what SQLite says becomes one sentence."""
        try:
            return act()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise ClusterError(
                    f"The broker's journal {self._path} is in use by another broker; stop that one "
                    "with 'aios down' first."
                ) from error
            raise ClusterError(
                f"The broker's journal {self._path} cannot be used ({error}); make room on the "
                "disk and see that the file is writable."
            ) from error
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            raise ClusterError(
                f"The broker's journal {self._path} cannot be opened ({error.strerror}); see that "
                "its directory exists and is writable."
            ) from error

    def _damaged(self, how: str) -> ClusterError:
        return ClusterError(
            f"The broker's journal {self._path} is damaged ({how}); {snapshots.advice(self._path)}"
        )
