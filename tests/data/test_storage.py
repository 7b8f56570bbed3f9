"""Storage that fails, is slow, is full or is somebody else's: against a real S3 server."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from s3_server import SECRET, s3_server

from aios_jupyter.config import settings
from aios_jupyter.data import cache, credentials, layout, storage, transfer
from aios_jupyter.data.augment import augment
from aios_jupyter.errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("s3") / "served"
    (root / "lab").mkdir(parents=True)
    with s3_server(root) as server:
        yield server


@pytest.fixture
def lab(server):
    """Credentials by the name `lab`, and the bucket `lab`."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    credentials.put("lab", server.options)
    return "s3://lab@lab"


@pytest.fixture
def npz(tmp_path, digits) -> Path:
    path = tmp_path / "digits.npz"
    np.savez(path, x=digits[0], y=digits[1])
    return path


def test_a_dataset_goes_to_a_bucket_and_is_read_and_augmented_there(lab, catalog, npz, digits):
    catalog.add("digits", npz)
    there = catalog.copy("digits", f"{lab}/a/digits.npz")
    remote = catalog.add("far", there.url)
    assert (remote.version, remote.rows) == (catalog.get("digits").version, 290)
    assert remote.url == f"{lab}/a/digits.npz"
    x, y = catalog.load("far")
    assert np.array_equal(x, digits[0]) and np.array_equal(y, digits[1])
    made = augment("far", f"{lab}/a/more.npz", "hflip(1)")
    assert catalog.load(made)[0].shape == (580, 28, 28)


def test_a_folder_of_images_and_a_table_lie_in_a_bucket(lab, catalog, photos, tmp_path):
    catalog.add("photos", photos)
    catalog.copy("photos", f"{lab}/photos")
    entry = catalog.add("far", f"{lab}/photos")
    assert (entry.version, entry.classes) == (catalog.get("photos").version, ("cat", "dog"))
    assert augment("far", "more", "hflip, resize(10)").rows == 10
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    catalog.copy(str(tmp_path / "t.csv"), f"{lab}/t.csv")
    assert catalog.frame(catalog.add("t", f"{lab}/t.csv"))["a"].tolist() == [1, 2]


def test_secrets_stand_nowhere_but_in_the_private_file(lab, catalog, npz, state, capsys):
    from aios_jupyter.commands import main

    catalog.copy(str(npz), f"{lab}/s/digits.npz")
    catalog.add("far", f"{lab}/s/digits.npz")
    catalog.load("far")
    assert credentials.path().stat().st_mode & 0o777 == 0o600
    for path in state.rglob("*"):
        if path.is_file() and path != credentials.path():
            assert SECRET.encode() not in path.read_bytes(), path
    with pytest.raises(SystemExit):
        main(["data", "keys", "ls"])
    shown = capsys.readouterr().out
    assert "lab" in shown and "secret=***" in shown and SECRET not in shown


def test_the_environment_may_have_the_credentials(server, lab, catalog, npz, monkeypatch):
    credentials.remove("lab")
    with pytest.raises(NotFoundError, match=r"no credentials 'lab'.*data keys add lab"):
        catalog.copy(str(npz), f"{lab}/e/digits.npz")
    monkeypatch.setenv("AIOS_CREDENTIALS_LAB", json.dumps(server.options))
    assert catalog.copy(str(npz), f"{lab}/e/digits.npz").rows == 290
    assert credentials.names()["lab"]["key"] == "***"
    monkeypatch.setenv("AIOS_CREDENTIALS_LAB", f"not json {SECRET}")
    with pytest.raises(UsageError) as caught:
        catalog.get(f"{lab}/e/digits.npz")
    assert "AIOS_CREDENTIALS_LAB" in str(caught.value) and SECRET not in str(caught.value)


def test_a_file_of_credentials_that_others_may_read_is_refused(lab, catalog):
    credentials.path().chmod(0o640)
    with pytest.raises(AccessError, match="chmod 600"):
        catalog.get(f"{lab}/x.npz")


def test_wrong_keys_and_missing_things_are_sentences(server, lab, catalog):
    credentials.put("wrong", server.options | {"secret": "no"})
    with pytest.raises(AccessError, match=r"s3://wrong@lab/x\.npz may not be read"):
        catalog.get("s3://wrong@lab/x.npz")
    with pytest.raises(NotFoundError, match="nothing at"):
        catalog.get(f"{lab}/none.npz")
    with pytest.raises(UsageError, match="has a password"):
        catalog.get("s3://key:secret@lab/x.npz")


def test_a_bucket_that_may_not_be_written_is_named(server, lab, catalog):
    credentials.put("wrong", server.options | {"secret": "no"})
    url = "s3://wrong@lab/w/more.npz"
    for write in (lambda: augment("mnist", url, "hflip"), lambda: catalog.copy("mnist", url)):
        with pytest.raises(AccessError, match=rf"{url} may not be written with these credentials"):
            write()
    assert not (server.root / "lab" / "w").exists()


def test_a_key_that_leads_out_of_its_folder_is_refused(catalog, photos, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    picture = (photos / "cat" / "a.png").read_bytes()
    for key in ("cat/a.png", "cat/../../../out.png"):
        memory.pipe_file(f"/hostile/set/{key}", picture)
    try:
        for work in (
            lambda: catalog.add("bad", "memory://hostile/set"),
            lambda: catalog.copy("memory://hostile/set", tmp_path / "a" / "b" / "c"),
        ):
            with pytest.raises(UsageError, match=r"cat/\.\./\.\./\.\./out\.png in .* leads out of"):
                work()
    finally:
        memory.rm("/hostile", recursive=True)
    assert not list(tmp_path.rglob("out.png"))
    assert not (tmp_path / "a").exists()


def test_a_server_that_is_away_is_a_sentence(lab, server, catalog, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    credentials.put(
        "away",
        server.options
        | {
            "endpoint_url": "http://127.0.0.1:9",
            "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2},
        },
    )
    with pytest.raises(AiosError, match="does not answer"):
        catalog.get("s3://away@lab/x.npz")


def test_the_cache_is_read_in_place_of_the_server_and_keeps_to_its_limit(
    lab, catalog, npz, server, monkeypatch
):
    catalog.copy(str(npz), f"{lab}/c/digits.npz")
    entry = catalog.add("far", f"{lab}/c/digits.npz")
    here = cache.local(entry)
    assert not storage.is_remote(here.url)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "copy", lambda *_, **__: pytest.fail("it was copied again"))
        assert cache.local(entry) == here
    monkeypatch.setattr(cache, "settings", lambda: Limit(entry.size * 1.5 / 2**30))
    # What was used a moment ago stays, so that the next one is not kept.
    assert not cache.make_room(entry.size)
    old = storage.data_dir("cache", entry.version)
    os.utime(old, (1, 1))
    assert cache.make_room(entry.size)
    assert not old.exists()


class Limit:
    def __init__(self, limit: float) -> None:
        self.cache_limit = limit


def test_what_is_larger_than_the_cache_is_read_where_it_is(lab, catalog, npz, digits, monkeypatch):
    catalog.copy(str(npz), f"{lab}/l/digits.npz")
    entry = catalog.add("far", f"{lab}/l/digits.npz")
    monkeypatch.setattr(cache, "settings", lambda: Limit(1e-6))
    assert cache.local(entry) == entry
    assert np.array_equal(catalog.load("far")[0], digits[0])


def test_a_copy_that_was_interrupted_goes_on_where_it_stopped(
    lab, catalog, npz, tmp_path, monkeypatch
):
    monkeypatch.setattr(transfer, "RANGE", 20_000)
    catalog.copy(str(npz), f"{lab}/i/digits.npz")
    entry = catalog.add("far", f"{lab}/i/digits.npz")
    target = tmp_path / "out" / "back.npz"

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        catalog.copy("far", target, on_progress=stop)
    assert not target.exists()
    (aside,) = target.parent.glob(".*.partial")
    seen: list[int] = []
    catalog.copy("far", target, on_progress=lambda done, _: seen.append(done))
    assert seen[0] > entry.size / 2 - 20_000
    assert target.read_bytes() == npz.read_bytes()
    assert not aside.exists()


def test_a_server_that_is_killed_in_the_middle_and_comes_back_is_waited_for(
    lab, catalog, npz, tmp_path, server, monkeypatch
):
    monkeypatch.setattr(transfer, "RANGE", 20_000)
    catalog.copy(str(npz), f"{lab}/k/digits.npz")
    catalog.add("far", f"{lab}/k/digits.npz")
    killed = threading.Event()
    again: list[threading.Timer] = []

    def kill(done: int, total: int) -> None:
        if done > total / 2 and not killed.is_set():
            killed.set()
            server.stop()
            again.append(threading.Timer(0.5, server.start))
            again[0].start()

    catalog.copy("far", tmp_path / "back.npz", on_progress=kill)
    again[0].join()
    assert killed.is_set()
    assert (tmp_path / "back.npz").read_bytes() == npz.read_bytes()


def test_a_server_that_stops_halfway_for_good_is_named_and_nothing_looks_whole(
    catalog, npz, tmp_path, monkeypatch
):
    import s3fs

    monkeypatch.setattr(transfer, "RANGE", 20_000)
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    (tmp_path / "served" / "lab").mkdir(parents=True)
    s3fs.S3FileSystem.clear_instance_cache()
    with s3_server(tmp_path / "served") as server:
        quick = {"retries": {"max_attempts": 1}, "connect_timeout": 2}
        credentials.put("lab", server.options | {"config_kwargs": quick})
        catalog.copy(str(npz), "s3://lab@lab/digits.npz")
        catalog.add("far", "s3://lab@lab/digits.npz")

        def stop(done: int, total: int) -> None:
            if done > total / 2:
                server.stop()

        target = tmp_path / "out" / "back.npz"
        with pytest.raises(AiosError, match=r"s3://lab@lab/digits\.npz does not answer"):
            catalog.copy("far", target, on_progress=stop)
        # What has come stays aside, for the next attempt.
        (aside,) = target.parent.iterdir()
        assert aside.name.endswith(".partial")
        assert 0 < aside.stat().st_size < npz.stat().st_size


def test_what_changed_since_it_was_added_is_not_copied(lab, catalog, npz, tmp_path):
    catalog.copy(str(npz), f"{lab}/v/digits.npz")
    catalog.add("far", f"{lab}/v/digits.npz")
    np.savez(npz, x=np.zeros((5, 4, 4), np.uint8))
    fs, path = storage.locate(f"{lab}/v/digits.npz")
    fs.put_file(str(npz), path)
    fs.invalidate_cache()
    with pytest.raises(ConflictError, match=r"digits\.npz has changed since far@"):
        catalog.copy("far", tmp_path / "back.npz")
    assert not (tmp_path / "back.npz").exists()


def test_a_full_disk_leaves_nothing_half_written(catalog, npz, tmp_path, monkeypatch):
    real = transfer._ranges

    def full(*arguments):
        real(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_ranges", full)
    with pytest.raises(AiosError, match=r"back\.npz cannot be written \(No space left"):
        catalog.copy(str(npz), tmp_path / "full" / "back.npz")
    assert list((tmp_path / "full").iterdir()) == []


def test_a_copy_does_not_touch_what_is_somebody_elses(catalog, photos, npz, tmp_path):
    folder = tmp_path / "mine"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "my.png").write_bytes(b"mine")
    with pytest.raises(ConflictError, match=r"has other files \(cat/my\.png\)"):
        catalog.copy(str(photos), folder)
    with pytest.raises(ConflictError, match="something else at"):
        catalog.copy(str(npz), folder)
    assert (folder / "cat" / "my.png").read_bytes() == b"mine"


def hashes(catalog, entry):
    return [(check.name, check.size, check.blocks) for check in catalog.checks(entry)]


def test_a_copy_by_name_is_a_dataset_with_its_lineage(catalog, npz):
    source = catalog.add("digits", npz, tags=["a"])
    copied = catalog.copy("digits", "mine")
    assert (copied.version, copied.made_from, copied.tags) == (
        source.version,
        (source.ref,),
        ("a",),
    )
    assert Path(copied.url).parent == storage.data_dir("mine")
    assert hashes(catalog, copied) == hashes(catalog, source)


def test_bandwidth_is_kept_by_a_clock():
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    throttle = transfer.Throttle(1000, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        throttle.passed(500)
    assert sum(slept) == pytest.approx(2)
    now[0] += 60
    throttle.passed(500)
    assert slept[-1] == pytest.approx(0.5)
    with pytest.raises(UsageError, match="above zero"):
        transfer.Throttle(0)


def test_what_fails_is_tried_again_and_what_is_missing_is_not(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionResetError("gone")
        return "there"

    assert storage.retrying(flaky) == "there"
    assert len(pauses) == 3 and pauses[2] > pauses[0]
    for error, count in ((FileNotFoundError(), 1), (PermissionError(), 1), (TimeoutError(), 5)):
        calls.clear()

        def fail(error=error):
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            storage.retrying(fail)
        assert len(calls) == count


def test_blocks_of_a_file_have_hashes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK", 1000)
    path = tmp_path / "x.npy"
    np.save(path, np.arange(500))
    content = layout.content(str(path), "npy")
    (check,) = content.files
    assert check.size == path.stat().st_size
    assert len(check.blocks) == 5
    assert settings().cache_limit == 20


class Answers(BaseHTTPRequestHandler):
    """A web server that answers with the status that the path names."""

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "words"), [(404, "There is nothing"), (403, "may not be read"), (503, "not answer")]
)
def test_a_web_server_says_what_is_wrong_with_a_file(status, words, catalog):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(AiosError, match=words):
            catalog.add("web", f"http://127.0.0.1:{web.server_port}/{status}/rows.csv")
        web.shutdown()


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_server_that_is_down_is_named(scheme, catalog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}/rows.csv"
        with pytest.raises(AiosError, match=rf"storage of {url} does not answer"):
            catalog.add("down", url)
