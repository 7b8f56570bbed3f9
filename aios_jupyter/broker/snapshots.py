"""Copies of the broker's journal, and how to go on from the last one.

There is one snapshot beside each journal. It is made with SQLite's backup, checked, and only then
put in the place of the one before it, so that damage does not get into it unseen.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path

import msgspec

from ..errors import ClusterError, NotFoundError

# Pages that are copied at a time, and seconds between: the broker commits in these pauses.
STEP_PAGES = 256
PAUSE = 0.002
# Leases since the snapshot had fences that are not in it. None of them may be given out again.
FENCE_LEAP = 1_000_000


def place(journal: Path) -> Path:
    """Where a journal's snapshot is."""
    return journal.with_name(f"{journal.stem}.snapshot{journal.suffix}")


def advice(journal: Path) -> str:
    """What to do when a journal is damaged: the end of a sentence."""
    snapshot = place(journal)
    try:
        made = snapshot.stat().st_mtime
    except FileNotFoundError:
        return (
            "there is no snapshot of it: move it and its -wal file away to start anew, leases and "
            "queue are lost then."
        )
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made))
    return (
        f"go on from the snapshot of {when}, {snapshot}, with 'aios up --from-snapshot' (what was "
        "asked for and granted since is lost), or move it and its -wal file away to start anew."
    )


def take(database: sqlite3.Connection, journal: Path) -> None:
    """Replace the snapshot by a copy of an open journal.

    Raises
    ------
    sqlite3.Error
        The copy could not be made, or is damaged; the snapshot is then as it was.
    """
    aside = journal.with_name(f".{place(journal).name}")
    aside.unlink(missing_ok=True)
    os.close(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(aside)) as copy:
            database.backup(copy, pages=STEP_PAGES, sleep=PAUSE)
            # The copy says that it has a log, which would be a second file.
            copy.execute("PRAGMA journal_mode = DELETE")
            _check(copy)
        aside.replace(place(journal))
    finally:
        aside.unlink(missing_ok=True)


def go_on_from(journal: Path) -> Path:
    """Put the snapshot in the journal's place, with nobody using that; returns where that went.

    Raises
    ------
    NotFoundError
        There is no snapshot.
    ClusterError
        The snapshot is damaged too, or a file cannot be moved.
    """
    snapshot = place(journal)
    if not snapshot.exists():
        raise NotFoundError(
            f"There is no snapshot of {journal}; move the journal away to start anew."
        )
    aside = journal.with_name(f"{journal.name}.damaged-{time.time_ns() // 1_000_000}")
    fresh = journal.with_name(f".{journal.name}")
    try:
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with (
            contextlib.closing(sqlite3.connect(f"file:{snapshot}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as copy,
        ):
            source.backup(copy)
            _check(copy)
            _leap(copy, snapshot.stat().st_mtime)
        for ending in ("", "-wal", "-shm"):
            file = journal.with_name(journal.name + ending)
            if file.exists():
                file.replace(aside.with_name(aside.name + ending))
        fresh.replace(journal)
    except (sqlite3.Error, OSError) as error:
        fresh.unlink(missing_ok=True)
        raise ClusterError(
            f"The snapshot {snapshot} cannot be used ({error}); move it and the journal {journal} "
            "away to start anew."
        ) from error
    return aside


def _check(copy: sqlite3.Connection) -> None:
    (report,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if report != "ok":
        raise sqlite3.DatabaseError(report.splitlines()[-1])


def _leap(copy: sqlite3.Connection, made: float) -> None:
    """Fences go on above all that were given out since, and the audit trail says why."""
    which = ("counter", "fence")
    row = copy.execute("SELECT body FROM records WHERE kind = ? AND id = ?", which).fetchone()
    fence = FENCE_LEAP + (msgspec.msgpack.decode(row[0], type=int) if row else 0)
    body = msgspec.msgpack.encode(fence)
    with copy:
        copy.execute("BEGIN")
        copy.execute("DELETE FROM records WHERE kind = ? AND id = ?", which)
        copy.execute("INSERT INTO records VALUES (?, ?, ?)", (*which, body))
        copy.execute(
            "INSERT INTO audit VALUES (?, 'went on from a snapshot', '', ?)",
            (time.time(), json.dumps({"made": made, "fence": fence})),
        )
