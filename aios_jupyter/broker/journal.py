"""The broker's memory on disk: one SQLite file with the state's records and the audit trail.

Actions are gathered and written in one transaction by `commit`, which is called before anything
that follows from them leaves the broker (group commit). The file is locked for as long as it is
open: two brokers on one journal would grant the same device twice.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import ClusterError, UsageError
from ..schema import Lease, Node, Owner, Request, Run
from . import events as ev

T = TypeVar("T")

VERSION = 1
SYNC = ("OFF", "NORMAL", "FULL", "EXTRA")
AUDIT_KEPT = 100_000
LOCK_WAIT = 5.0

_TYPES: dict[str, type[Any]] = {
    "counter": int,
    "hour": ev.Hour,
    "foretold": ev.Foretold,
    "history": ev.Lasted,
    "hits": ev.Hits,
    "lease": Lease,
    "node": Node,
    "request": Request,
    "run": Run,
    "session": Owner,
    "setting": ev.Choice,
    "unconfirmed": ev.Unconfirmed,
    "usage": ev.Used,
}
# The rowid keeps the order in which ids were first put: requests come back in their order.
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL,
                      UNIQUE (kind, id));
CREATE TABLE audit (time REAL NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL,
                    detail TEXT NOT NULL);
"""
_PUT = (
    "INSERT INTO records (kind, id, body) VALUES (?, ?, ?)"
    " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body"
)


class Journal:
    """Keeps what the broker promised.

    Parameters
    ----------
    path
        The file; it is made, readable by its owner alone, where there is none.
    sync
        SQLite's `synchronous`: `NORMAL` survives a crash of the broker, `FULL` one of the machine.

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
        self._path = Path(path)
        # What to write: whether an older row must go first, and the record or None to drop it.
        self._records: dict[tuple[str, str], tuple[bool, ev.Record | None]] = {}
        self._notes: list[tuple[float, str, str, str]] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._database = self._guarded(lambda: self._connect(sync.upper()))

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
            match action:
                case ev.Put(kind=kind, id=id, record=record):
                    anew, before = self._records.get((kind, id), (False, record))
                    if before is None:
                        # Dropped and put again: its place is after those put in between.
                        del self._records[kind, id]
                    self._records[kind, id] = (anew, record)
                case ev.Drop(kind=kind, id=id):
                    self._records[kind, id] = (True, None)
                case ev.Audit(what=what, who=who, detail=detail):
                    self._notes.append((now, what, who, json.dumps(detail)))

    def commit(self) -> None:
        """Write all that was applied, in one transaction.

        Raises
        ------
        ClusterError
            It could not be written; it is kept, and tried again by the next commit.
        """
        if not self._records and not self._notes:
            return
        self._guarded(self._write)
        self._records.clear()
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

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._database.close()

    def _connect(self, sync: str) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute(f"PRAGMA synchronous = {sync}")
            database.execute("BEGIN IMMEDIATE")
            (report,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if report != "ok":
                raise self._damaged(report.splitlines()[-1])
            self._check_version(database)
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

    def _check_version(self, database: sqlite3.Connection) -> None:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not tables:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO meta VALUES ('schema', ?)", (str(VERSION),))
            return
        if "meta" not in tables:
            raise self._damaged("it is not a journal")
        row = database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        if row is None or not row[0].isdigit():
            raise self._damaged("it does not say which version wrote it")
        if int(row[0]) > VERSION:
            raise ClusterError(
                f"The broker's journal {self._path} was written by a newer version of aios-jupyter "
                f"(format {row[0]}, this one reads {VERSION}); upgrade aios-jupyter, or move the "
                "file away to start anew."
            )

    def _write(self) -> None:
        drops, puts = [], []
        for (kind, id), (dropped, record) in self._records.items():
            if dropped:
                drops.append((kind, id))
            if record is not None:
                puts.append((kind, id, self._encode(record)))
        execute = self._database.executemany
        self._database.execute("BEGIN IMMEDIATE")
        try:
            execute("DELETE FROM records WHERE kind = ? AND id = ?", drops)
            execute(_PUT, puts)
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
            f"The broker's journal {self._path} is damaged ({how}); move it and its -wal file away "
            "to start anew, leases and queue are lost then."
        )
