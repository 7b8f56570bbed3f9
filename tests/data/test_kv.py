"""The shared key-value store: an SQLite file by default, a real Redis server where it is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import until

from aios_jupyter.data.kv import KV, Item
from aios_jupyter.data.kv_sqlite import SqliteStore, own_file
from aios_jupyter.errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError

NO_SERVER = shutil.which("redis-server") is None


@contextlib.contextmanager
def redis_server(directory: Path, *arguments: str) -> Iterator[str]:
    """A server of the test's own; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
               "--dir", str(directory), *arguments]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if not any("Ready to accept" in line for line in server.stdout):
                pytest.fail("the server ended before it was ready")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.kill()


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param(
            "redis",
            marks=[
                pytest.mark.systems,
                pytest.mark.skipif(NO_SERVER, reason="redis-server is not installed"),
            ],
        ),
    ]
)
def open_kv(request, tmp_path, monkeypatch) -> Iterator[Callable[[], KV]]:
    """Makes one more user of the same store."""
    made: list[KV] = []

    def make() -> KV:
        made.append(KV())
        return made[-1]

    with contextlib.ExitStack() as stack:
        if request.param == "redis":
            monkeypatch.setenv("AIOS_KV", stack.enter_context(redis_server(tmp_path)))
        yield make
        for kv in made:
            kv.close()


@pytest.fixture
def kv(open_kv: Callable[[], KV]) -> KV:
    return open_kv()


def test_values_come_back_as_they_were_to_everybody(kv, open_kv) -> None:
    values = [
        "text", "ä", "", 3, -1, 2**60, 1.5, float("inf"), True, None, b"\x00\xff",
        [1, [2, {"a": None}]], {"loss": 0.5, "names": ["x"]},
    ]  # fmt: skip
    for number, value in enumerate(values):
        kv.put(f"key {number}", value)
    other = open_kv()
    assert [other.get(f"key {number}") for number in range(len(values))] == values
    kv.put("number", np.float32(0.5))
    assert other.get("number") == 0.5
    assert other.get("none", "mine") == "mine"
    with pytest.raises(NotFoundError, match="no key 'none'"):
        other.get("none")


def test_each_write_has_the_next_version_and_the_last_one_counts(kv, open_kv) -> None:
    first, second = kv.put("a", 1), open_kv().put("b", 1)
    third = kv.put("a", 2)
    assert first < second < third
    assert kv.item("a") == Item(key="a", value=2, version=third)
    assert [item.key for item in kv.ls()] == ["a", "b"]
    kv.rm("a")
    assert kv.item("a") is None
    with pytest.raises(NotFoundError):
        kv.rm("a")
    assert kv.put("a", 3) > third + 1


def test_a_write_that_expects_another_version_changes_nothing(kv, open_kv) -> None:
    version = kv.put("a", "mine", expect=0)
    with pytest.raises(ConflictError, match=f"'a' has version {version} where none was expected"):
        open_kv().put("a", "theirs", expect=0)
    newer = open_kv().put("a", "theirs", expect=version)
    for act in (lambda: kv.put("a", "mine", expect=version), lambda: kv.rm("a", expect=version)):
        with pytest.raises(ConflictError, match=f"has version {newer} where version {version}"):
            act()
    assert kv.get("a") == "theirs"
    kv.rm("a", expect=newer)
    with pytest.raises(ConflictError, match="is not there where version"):
        kv.put("a", 1, expect=newer)


def test_no_update_of_several_processes_is_lost(kv, state) -> None:
    code = (
        "from aios_jupyter import kv\n"
        "for _ in range(50): kv.update('count', lambda n: (n or 0) + 1)\n"
    )
    environment = {**os.environ, "AIOS_STATE_DIR": str(state)}
    children = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert kv.get("count") == 150


def test_a_key_with_a_time_to_live_goes_by_itself(kv, open_kv) -> None:
    version = kv.put("short", 1, ttl=0.5)
    kv.put("long", 1, ttl=3600)
    changes = open_kv().watch("short*", timeout=30)
    assert next(changes).expires is not None
    gone = next(changes)
    assert (gone.key, gone.removed) == ("short", True)
    assert gone.version > version
    changes.close()
    assert kv.get("short", None) is None
    assert [item.key for item in open_kv().ls()] == ["long"]
    assert kv.put("short", 2, expect=0) > gone.version
    assert kv.get("short") == 2


def test_watching_tells_what_is_there_and_then_each_change(kv, open_kv) -> None:
    kv.put("gone", 1)
    kv.rm("gone")
    kv.put("job/b", 1)
    kv.put("other", 1)
    kv.put("job/a", 1)
    changes = open_kv().watch("job/*", timeout=30)
    assert [(item.key, item.value) for item in (next(changes), next(changes))] == [
        ("job/a", 1),
        ("job/b", 1),
    ]
    writer = open_kv()
    for value in range(3):
        writer.put("other", value)
        writer.put("job/a", {"step": value})
        found = next(changes)
        assert (found.key, found.value) == ("job/a", {"step": value})
    writer.rm("job/a")
    found = next(changes)
    assert (found.key, found.removed, found.value) == ("job/a", True, None)
    changes.close()
    assert list(open_kv().watch("none", timeout=0.1)) == []


@pytest.mark.parametrize("key", ["", " a", "a ", "a\nb", "a*", "a?", "[a]", "x" * 513, "a\0"])
def test_a_key_that_makes_no_sense_is_a_usage_error(key, state) -> None:
    with pytest.raises(UsageError, match="cannot be a key"):
        KV().put(key, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "cannot be kept .*object"),
        (np.zeros(3), "cannot be kept .*ndarray.*dataset"),
        (2**70, "cannot be kept"),
        (b"x" * (16 * 1024 * 1024 + 1), "at most 16,777,216"),
    ],
)
def test_a_value_that_cannot_be_kept_is_a_usage_error(value, words, state) -> None:
    kv = KV()
    with pytest.raises(UsageError, match=words):
        kv.put("a", value)
    with pytest.raises(UsageError, match="more than 0 s"):
        kv.put("a", 1, ttl=0)
    with pytest.raises(UsageError, match="not -1"):
        kv.put("a", 1, expect=-1)
    assert kv.ls() == []
    kv.close()


# --- the file


def test_others_cannot_read_the_file(state) -> None:
    kv = KV()
    kv.put("secret", "x")
    files = list(own_file().parent.glob("kv.sqlite*"))
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    if os.geteuid() == 0:
        # A second user, who is let into the folder all the same.
        for folder in own_file().parents:
            if not folder.stat().st_mode & 0o001:
                folder.chmod(0o755)
        child = subprocess.run(["cat", own_file()], user=65534, capture_output=True, text=True)
        assert "Permission denied" in child.stderr
    kv.close()


def test_a_writer_that_is_killed_leaves_whole_values(state) -> None:
    code = (
        "from aios_jupyter import kv\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    kv.put('a', [n] * 1000)\n"
        "    kv.put('b', n)\n"
    )
    environment = {**os.environ, "AIOS_STATE_DIR": str(state)}
    kv = KV()
    for _ in range(3):
        kv.put("b", 0)
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as child:
            until(lambda: kv.get("b") > 20, "it writes")
            child.send_signal(signal.SIGKILL)
        value = kv.get("a")
        assert value == [value[0]] * 1000
        assert kv.get("b") in {value[0], value[0] - 1}
    kv.close()


def test_a_process_that_is_forked_opens_the_file_itself(state) -> None:
    kv = KV()
    kv.put("a", 1)
    pid = os.fork()
    if pid == 0:
        try:
            kv.put("a", kv.get("a") + 1)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert kv.get("a") == 2
    kv.close()


def test_threads_of_one_process_share_it(state) -> None:
    with KV() as kv:
        threads = [
            threading.Thread(
                target=lambda: [kv.update("n", lambda n: (n or 0) + 1) for _ in range(30)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert kv.get("n") == 120


def test_the_file_serves_one_machine_at_a_time(state, monkeypatch) -> None:
    kv = KV()
    kv.put("a", 1)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(ConflictError, match=r"serves one machine.*AIOS_KV=redis://"):
        KV().put("a", 2)
    kv.close()
    # Nobody has it open: the machine has another name now.
    other = KV()
    assert other.get("a") == 1
    other.close()


def test_a_damaged_file_is_named(state) -> None:
    own_file().write_bytes(b"not a database" * 100)
    with pytest.raises(AiosError, match=r"kv\.sqlite cannot be used"):
        KV().put("a", 1)


def test_marks_of_removed_keys_go_after_a_while(state, monkeypatch) -> None:
    kv = KV()
    kv.put("a", 1)
    kv.rm("a")
    later = time.time() + 4000
    monkeypatch.setattr(time, "time", lambda: later)
    kv.put("b", 1)
    kv.close()
    with contextlib.closing(sqlite3.connect(own_file())) as database:
        assert database.execute("SELECT key FROM items").fetchall() == [("b",)]
    assert isinstance(SqliteStore(own_file()).rows(0), list)


# --- the server


@pytest.mark.systems
@pytest.mark.skipif(NO_SERVER, reason="redis-server is not installed")
def test_a_server_that_refuses_or_is_gone_is_a_sentence_without_the_password(
    tmp_path, monkeypatch
) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as url:
        wrong = url.replace("//", "//:wr0ng@")
        monkeypatch.setenv("AIOS_KV", wrong)
        with pytest.raises(AccessError, match="does not let us in") as refused:
            KV().get("a")
        monkeypatch.setenv("AIOS_KV", url.replace("redis://", "valkey://:right@"))
        kv = KV()
        kv.put("a", 1)
        assert kv.get("a") == 1
    with pytest.raises(AiosError, match="does not answer") as gone:
        kv.get("a")
    assert "right" not in str(gone.value)
    assert "wr0ng" not in str(refused.value)


def test_an_unknown_store_is_a_usage_error(monkeypatch) -> None:
    monkeypatch.setenv("AIOS_KV", "ftp://me:secret@x")
    with pytest.raises(UsageError, match="AIOS_KV does not name a store") as caught:
        KV().get("a")
    assert "secret" not in str(caught.value)
