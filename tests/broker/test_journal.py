from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_jupyter.broker import events as ev
from aios_jupyter.broker import journal as journal_module
from aios_jupyter.broker.journal import Journal
from aios_jupyter.errors import ClusterError, UsageError
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
    with pytest.raises(ClusterError, match=r"damaged .*; move it") as caught:
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
