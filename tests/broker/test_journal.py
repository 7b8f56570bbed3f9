from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_jupyter.broker import events as ev
from aios_jupyter.broker import journal as journal_module
from aios_jupyter.broker import snapshots
from aios_jupyter.broker.journal import Journal
from aios_jupyter.errors import ClusterError, NotFoundError, UsageError
from aios_jupyter.schema import (
    Device,
    DeviceKind,
    Lease,
    Node,
    Owner,
    RankExit,
    Request,
    Run,
    RunKind,
    Slot,
    Want,
)


def request(name: str) -> Request:
    return Request(id=name, session="s", user="ana", want=Want.GPU, count=1)


def put(record: Request) -> ev.Put:
    return ev.Put(kind="request", id=record.id, record=record)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def reopened(path: Path) -> list[tuple[str, str, ev.Record]]:
    journal = Journal(path)
    try:
        return journal.load()
    finally:
        journal.close()


def test_every_kind_of_record_comes_back_as_it_was(journal: Journal, path: Path) -> None:
    device = Device(id="GPU-1", kind=DeviceKind.GPU, name="A", index=0, memory=8)
    slot = Slot(node="n", device="GPU-1", kind=DeviceKind.GPU, index=0, address="h:1")
    records: list[tuple[str, str, ev.Record]] = [
        ("counter", "fence", 7),
        ("node", "n", Node(id="n", host="h", address="h:1", pid=3, devices=(device,))),
        ("session", "s", Owner(id="s", user="ana", pid=5)),
        ("request", "r", request("r")),
        ("lease", "L7", Lease(id="L7", request="r", session="s", user="ana", slots=(slot,), fence=7,
                              granted=1.5, expires=9.5)),
        ("run", "x", Run(id="x", lease="L7", session="s", user="ana", kind=RunKind.TRAIN, name="t",
                         world_size=1, nodes=("n",), metrics={"loss": 0.5}, detail={"url": "u"},
                         exits=(RankExit(rank=0, code=-9, time=2.0),))),
        ("unconfirmed", "L1@n", ev.Unconfirmed(node="n", lease="L1", devices=("GPU-1",))),
    ]  # fmt: skip
    journal.apply([ev.Put(kind=kind, id=id, record=record) for kind, id, record in records], 0.0)
    journal.commit()
    assert journal.load() == records
    journal.close()
    assert reopened(path) == records


def test_records_keep_the_order_in_which_they_were_first_put(journal: Journal) -> None:
    for name in ("c", "a", "b"):
        journal.apply([put(request(name))], 0.0)
        journal.commit()
    journal.apply([put(request("c").__replace__(label="later"))], 0.0)
    journal.commit()
    assert [id for _, id, _ in journal.load()] == ["c", "a", "b"]


@pytest.mark.parametrize("commits", [True, False], ids=["apart", "in one transaction"])
def test_a_record_dropped_and_put_again_is_a_new_one(journal: Journal, commits: bool) -> None:
    again = request("a").__replace__(label="again")
    for action in (
        put(request("a")),
        put(request("b")),
        ev.Drop(kind="request", id="a"),
        put(request("c")),
        put(again),
    ):
        journal.apply([action], 0.0)
        if commits:
            journal.commit()
    journal.commit()
    assert [id for _, id, _ in journal.load()] == ["b", "c", "a"]
    assert journal.load()[-1][2] == again


def test_what_was_dropped_is_gone(journal: Journal) -> None:
    journal.apply([put(request("a")), put(request("b"))], 0.0)
    journal.commit()
    journal.apply([ev.Drop(kind="request", id="a"), put(request("c"))], 0.0)
    journal.apply([ev.Drop(kind="request", id="c")], 0.0)
    journal.commit()
    assert [id for _, id, _ in journal.load()] == ["b"]


def test_only_what_was_committed_survives(journal: Journal, path: Path) -> None:
    journal.apply([put(request("a"))], 0.0)
    journal.commit()
    journal.apply([put(request("b"))], 0.0)
    journal.close()
    assert [id for _, id, _ in reopened(path)] == ["a"]


WRITE_AND_DIE = """
import os, signal, sys
from aios_jupyter.broker import events as ev
from aios_jupyter.broker.journal import Journal

journal = Journal(sys.argv[1])
journal.apply([ev.Put(kind="counter", id="fence", record=7)], 0.0)
journal.commit()
journal.apply([ev.Put(kind="counter", id="fence", record=8)], 0.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_committed_survives_a_kill(path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, path], timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert reopened(path) == [("counter", "fence", 7)]


def test_one_commit_is_one_transaction(journal: Journal) -> None:
    journal.apply([put(request("a"))], 0.0)
    journal.commit()
    journal.apply([ev.Drop(kind="request", id="a"), put(request("b"))], 0.0)
    journal._notes.append((0.0, "", None, ""))  # type: ignore[arg-type]  # cannot be written
    with pytest.raises(sqlite3.IntegrityError):
        journal._write()
    assert [id for _, id, _ in journal.load()] == ["a"]
    journal._notes.clear()
    journal.commit()
    assert [id for _, id, _ in journal.load()] == ["b"]


def test_audit_records_come_newest_first(journal: Journal) -> None:
    journal.apply([ev.Audit(what="granted", who="ana", detail={"lease": "L1"})], 10.0)
    journal.apply([ev.Audit(what="released", who="bob", detail={})], 11.0)
    assert journal.audit(10) == [
        {"time": 11.0, "what": "released", "who": "bob", "detail": {}},
        {"time": 10.0, "what": "granted", "who": "ana", "detail": {"lease": "L1"}},
    ]
    assert [note["who"] for note in journal.audit(1)] == ["bob"]


def test_old_audit_records_are_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "AUDIT_KEPT", 3)
    for _ in range(2):
        journal = Journal(path)
        journal.apply([ev.Audit(what=str(n), who="", detail={}) for n in range(5)], 0.0)
        kept = journal.audit(100)
        journal.close()
    assert [note["what"] for note in kept] == ["4", "3", "2", "1", "0", "4", "3", "2"]


def test_the_file_is_for_its_owner_alone(journal: Journal, path: Path) -> None:
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize(("sync", "level"), [("NORMAL", 1), ("FULL", 2), ("full", 2)])
def test_synchronous_is_set_as_asked(path: Path, sync: str, level: int) -> None:
    journal = Journal(path, sync=sync)
    assert journal._database.execute("PRAGMA synchronous").fetchone() == (level,)
    journal.close()


def test_an_unknown_sync_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="AIOS_JOURNAL_SYNC='MAYBE'"):
        Journal(path, sync="MAYBE")
    assert not path.exists()


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 500)


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def damage_a_record(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE records SET body = x'81'")
    database.commit()
    database.close()


def add_an_unknown_kind(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("INSERT INTO records VALUES ('spell', 'x', x'80')")
    database.commit()
    database.close()


def another_programs_file(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE cookies (name TEXT)")
    database.commit()
    database.close()


@pytest.mark.parametrize(
    "damage",
    [damage_header, damage_pages, cut_off, damage_a_record, add_an_unknown_kind,
     another_programs_file],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_a_damaged_file_is_named_and_left_alone(path: Path, damage: object) -> None:
    journal = Journal(path)
    journal.apply([put(request(f"r{n}")) for n in range(300)], 0.0)
    journal.commit()
    journal.close()
    damage(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(
        ClusterError, match=r"damaged .*; there is no snapshot of it: move it"
    ) as caught:
        reopened(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_newer_file_is_named_and_left_alone(journal: Journal, path: Path) -> None:
    journal._database.execute("UPDATE meta SET value = '99'")
    journal.close()
    before = path.read_bytes()
    with pytest.raises(ClusterError, match=r"newer version .*format 99.*upgrade") as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_journal(path: Path) -> None:
    path.touch()
    assert reopened(path) == []


def test_a_torn_tail_of_the_log_loses_only_what_was_torn(path: Path, tmp_path: Path) -> None:
    journal = Journal(path)
    for name in ("a", "b"):
        journal.apply([put(request(name))], 0.0)
        journal.commit()
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    log = Path(f"{path}-wal").read_bytes()
    journal.close()
    Path(f"{copy}-wal").write_bytes(log[:-100])
    assert [id for _, id, _ in reopened(copy)] == ["a"]


def test_two_brokers_never_share_a_journal(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LOCK_WAIT", 0.05)
    with pytest.raises(ClusterError, match="in use by another broker"):
        Journal(path)


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="see that its directory exists"):
        Journal(tmp_path / "nowhere" / "journal.sqlite")


# --- formats


def as_format_1(path: Path) -> None:
    """Make of a journal what the first version of this package wrote."""
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(
        """
        ALTER TABLE records RENAME TO newer;
        CREATE TABLE records (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL,
                              UNIQUE (kind, id));
        INSERT INTO records (rowid, kind, id, body) SELECT rowid, kind, id, body FROM newer;
        DROP TABLE newer;
        UPDATE meta SET value = '1';
        """
    )
    database.close()


def test_a_journal_of_an_older_format_is_migrated(path: Path) -> None:
    journal = Journal(path)
    journal.apply([put(request(name)) for name in "cab"], 0.0)
    journal.apply([ev.Drop(kind="request", id="a"), put(request("d"))], 0.0)
    journal.apply([ev.Audit(what="granted", who="ana", detail={})], 1.0)
    journal.commit()
    records = journal.load()
    journal.close()
    as_format_1(path)
    migrated = Journal(path)
    assert migrated.load() == records
    assert [note["what"] for note in migrated.audit(9)] == ["granted"]
    migrated.apply([put(request("c").__replace__(label="later")), put(request("e"))], 2.0)
    migrated.apply([ev.Drop(kind="request", id="b")], 2.0)
    migrated.commit()
    migrated.close()
    database = sqlite3.connect(path)
    assert database.execute("SELECT value FROM meta").fetchall() == [("2",)]
    database.close()
    assert [id for _, id, _ in reopened(path)] == ["c", "d", "e"]


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(path).close()
    as_format_1(path)
    before = path.read_bytes()
    steps = (*journal_module._MIGRATIONS[1], "INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(journal_module, "_MIGRATIONS", {1: steps})
    with pytest.raises(ClusterError, match="cannot be used"):
        Journal(path)
    assert path.read_bytes() == before


# --- the log


def crashed(path: Path, to: Path, commits: int) -> Path:
    """The files of a broker that was killed after so many commits; returns the log's path."""
    journal = Journal(path)
    for n in range(commits):
        journal.apply([put(request(f"r{n}"))], 0.0)
        journal.commit()
    to.write_bytes(path.read_bytes())
    log = to.with_name(f"{to.name}-wal")
    log.write_bytes(Path(f"{path}-wal").read_bytes())
    journal.close()
    return log


def flip(log: Path, at: int) -> None:
    data = bytearray(log.read_bytes())
    data[at] ^= 0x40
    log.write_bytes(data)


@pytest.mark.parametrize(
    "spoil", ["garbage", "head", "salt", "first frame", "last frame", "middle"]
)
def test_a_log_that_would_lose_commits_is_refused(path: Path, tmp_path: Path, spoil: str) -> None:
    copy = tmp_path / "copy.sqlite"
    log = crashed(path, copy, 20)
    size = log.stat().st_size
    if spoil == "garbage":
        log.write_bytes(b"\xa5" * size)
    else:
        places = {
            "head": 20,
            "salt": 40,
            "first frame": 32 + 100,
            "last frame": size - 50,
            "middle": size // 2,
        }
        flip(log, places[spoil])
    before = copy.read_bytes(), log.read_bytes()
    with pytest.raises(ClusterError, match=r"-wal file is .*|-wal file is not") as caught:
        Journal(copy)
    assert str(copy) in str(caught.value)
    assert (copy.read_bytes(), log.read_bytes()) == before


@pytest.mark.parametrize("left", [0, 31, 32, 56, 200, 5000, -1, -4097])
def test_a_log_cut_off_anywhere_keeps_whole_commits(path: Path, tmp_path: Path, left: int) -> None:
    copy = tmp_path / "copy.sqlite"
    log = crashed(path, copy, 20)
    data = log.read_bytes()
    log.write_bytes(data[:left])
    found = [id for _, id, _ in reopened(copy)]
    assert found == [f"r{n}" for n in range(len(found))]
    assert len(found) == {5000: 1, -1: 19, -4097: 19}.get(left, 0)


def test_a_damaged_file_with_a_log_is_left_alone_too(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    log = crashed(path, copy, 300)
    copy.write_bytes(b"\xa5" * copy.stat().st_size * 3)
    before = copy.read_bytes(), log.read_bytes()
    for _ in range(2):
        with pytest.raises(ClusterError, match="damaged"):
            Journal(copy)
        assert (copy.read_bytes(), log.read_bytes()) == before


def test_a_newer_file_with_a_log_is_left_alone_too(path: Path, tmp_path: Path) -> None:
    journal = Journal(path)
    journal._database.execute("UPDATE meta SET value = '99'")
    copy = tmp_path / "copy.sqlite"
    log = Path(f"{copy}-wal")
    copy.write_bytes(path.read_bytes())
    log.write_bytes(Path(f"{path}-wal").read_bytes())
    journal.close()
    before = copy.read_bytes(), log.read_bytes()
    with pytest.raises(ClusterError, match="newer version"):
        Journal(copy)
    assert (copy.read_bytes(), log.read_bytes()) == before


def test_a_log_that_was_begun_anew_is_whole(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a checkpoint the log starts over, with older frames behind its end."""
    monkeypatch.setattr(journal_module, "LOG_PAGES", 20)
    copy = tmp_path / "copy.sqlite"
    crashed(path, copy, 103)
    assert len(reopened(copy)) == 103


# --- snapshots


def snapshotted(path: Path) -> None:
    journal = Journal(path)
    journal.apply([put(request("old")), ev.Put(kind="counter", id="fence", record=7)], 0.0)
    journal.commit()
    journal.snapshot()
    journal.apply([put(request("new")), ev.Put(kind="counter", id="fence", record=9)], 0.0)
    journal.commit()
    journal.close()


def test_a_damaged_journal_names_its_snapshot_and_goes_on_from_it(path: Path) -> None:
    snapshotted(path)
    damage_pages(path)
    damaged = path.read_bytes()
    with pytest.raises(ClusterError, match="aios up --from-snapshot") as caught:
        Journal(path)
    assert str(snapshots.place(path)) in str(caught.value)
    kept = snapshots.go_on_from(path)
    assert kept.read_bytes() == damaged
    assert [id for kind, id, _ in reopened(path) if kind == "request"] == ["old"]
    # Fences that the damaged journal gave out are not given out again.
    ((_, _, fence),) = [row for row in reopened(path) if row[0] == "counter"]
    assert fence > 9
    journal = Journal(path)
    assert journal.audit(1)[0]["what"] == "went on from a snapshot"
    journal.close()


def test_the_log_of_a_damaged_journal_does_not_get_into_the_snapshot(
    path: Path, tmp_path: Path
) -> None:
    snapshotted(path)
    copy = tmp_path / "copy.sqlite"
    log = crashed(path, copy, 5)
    snapshots.place(copy).write_bytes(snapshots.place(path).read_bytes())
    flip(log, 40)
    with pytest.raises(ClusterError, match="damaged"):
        Journal(copy)
    kept = snapshots.go_on_from(copy)
    assert Path(f"{kept}-wal").exists() and not log.exists()
    assert [id for kind, id, _ in reopened(copy) if kind == "request"] == ["old"]


def test_a_snapshot_is_for_its_owner_alone_and_one_file(path: Path) -> None:
    snapshotted(path)
    snapshotted(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "journal.snapshot.sqlite",
        "journal.sqlite",
    ]
    assert stat.S_IMODE(snapshots.place(path).stat().st_mode) == 0o600


def test_a_damaged_snapshot_is_refused_and_both_are_left_alone(path: Path) -> None:
    snapshotted(path)
    damage_pages(path)
    damage_pages(snapshots.place(path))
    before = path.read_bytes(), snapshots.place(path).read_bytes()
    with pytest.raises(ClusterError, match=r"snapshot .* cannot be used"):
        snapshots.go_on_from(path)
    assert (path.read_bytes(), snapshots.place(path).read_bytes()) == before
    assert len(list(path.parent.iterdir())) == 2


def test_no_snapshot_is_said(path: Path) -> None:
    with pytest.raises(NotFoundError, match="no snapshot"):
        snapshots.go_on_from(path)


def test_damage_does_not_get_into_the_snapshot(path: Path) -> None:
    """A page that goes bad under an open journal is found in the copy, and the good one stays."""
    journal = Journal(path)
    journal.apply([put(request(f"r{n}")) for n in range(300)], 0.0)
    journal.commit()
    journal.snapshot()
    good = snapshots.place(path).read_bytes()
    journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal._database.execute("PRAGMA cache_size = 1")
    damage_pages(path)
    with pytest.raises(ClusterError):
        journal.snapshot()
    assert snapshots.place(path).read_bytes() == good
    journal.close()


def test_commits_go_on_while_a_snapshot_is_taken(path: Path) -> None:
    journal = Journal(path)
    journal.apply([put(request(f"r{n}")) for n in range(20_000)], 0.0)
    journal.commit()
    thread = threading.Thread(target=journal.snapshot)
    thread.start()
    n = 0
    while thread.is_alive():
        n += 1
        journal.apply([put(request(f"s{n}"))], 0.0)
        journal.commit()
    thread.join()
    journal.close()
    assert len(reopened(path)) == 20_000 + n
    assert 20_000 <= len(reopened(snapshots.place(path))) <= 20_000 + n


# --- a full disk


def test_what_does_not_fit_on_the_disk_is_kept_and_written_later(
    journal: Journal, path: Path
) -> None:
    journal.apply([put(request("a"))], 0.0)
    journal.commit()
    (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    many = [put(request(f"r{n}")) for n in range(300)]
    journal.apply([*many, ev.Drop(kind="request", id="a")], 0.0)
    for _ in range(2):
        with pytest.raises(ClusterError, match="make room on the disk"):
            journal.commit()
        assert journal.failure
        assert [id for _, id, _ in journal.load()] == ["a"]
        assert not journal.durable("request", "r0")
    journal._database.execute("PRAGMA max_page_count = 1000000")
    journal.commit()
    assert journal.failure is None
    assert journal.durable("request", "r0")
    journal.close()
    assert [id for _, id, _ in reopened(path)] == [f"r{n}" for n in range(300)]
