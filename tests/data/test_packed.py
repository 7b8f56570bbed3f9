"""Copies that are compressed on their way, and read as they are."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from s3_server import s3_server

from aios_jupyter.commands import main
from aios_jupyter.data import credentials, packed, sql, storage, transfer
from aios_jupyter.errors import AiosError, ConflictError, UsageError

ROWS = 5000


def table(rows: int = ROWS) -> str:
    return "a,b,label\n" + "".join(f"{n},{n * 7919 % 1003},{n % 3}\n" for n in range(rows))


@pytest.fixture
def rows(tmp_path, catalog):
    path = tmp_path / "rows.csv"
    path.write_text(table())
    return catalog.add("rows", path, tags=["shop"])


@pytest.fixture
def lab(tmp_path):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    (tmp_path / "served" / "lab").mkdir(parents=True)
    with s3_server(tmp_path / "served") as server:
        credentials.put("lab", server.options)
        yield "s3://lab@lab"


def unpacked(url: str) -> bytes:
    fs, path = storage.locate(url)
    with fs.open(path, "rb") as file:
        return packed.opened(file, path).read()


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_compressed_copy_by_name_is_a_dataset_that_reads_as_it_is(codec, rows, catalog):
    entry = catalog.copy("rows", "small", compress=codec)
    assert entry.url.endswith({"gzip": ".csv.gz", "zstd": ".csv.zst"}[codec])
    assert entry.size == Path(entry.url).stat().st_size < rows.size / 2
    assert entry.how == f"copy, compressed with {codec}"
    assert (entry.made_from, entry.rows, entry.classes) == ((rows.ref,), ROWS, rows.classes)
    assert entry.version != rows.version == catalog.get("rows").version
    assert catalog.frame("small").equals(catalog.frame("rows"))
    asked = sql.frame("SELECT sum(b) AS s FROM small", sql.Tables())
    assert asked["s"].tolist() == [catalog.frame("rows")["b"].sum()]
    # It is another content of its own: verified and read again like any.
    assert catalog.add("again", entry.url).version == entry.version
    assert catalog.copies(rows) == ()


def test_whether_it_pays_is_seen_by_a_sample_and_said(rows, catalog, tmp_path):
    entry = catalog.copy("rows", "small", compress="auto")
    assert entry.how.startswith("copy, compressed with zstd: a sample shrinks by ")
    (tmp_path / "tiny.csv").write_text("a\n1\n")
    entry = catalog.copy(str(tmp_path / "tiny.csv"), "tiny", compress="auto")
    assert entry.how == "copy, not compressed: a sample does not shrink"
    assert Path(entry.url).read_text() == "a\n1\n"
    np.save(tmp_path / "x.npy", np.zeros((9, 4)))
    entry = catalog.copy(str(tmp_path / "x.npy"), "x", compress="auto")
    assert entry.how == "copy, not compressed: it is npy, which is read as it is"
    catalog.copy("rows", "small", compress="gzip")
    entry = catalog.copy("small", "same", compress="auto")
    assert entry.how == "copy, not compressed: it is compressed already"
    assert entry.version == catalog.get("small").version


def test_a_path_says_what_it_is_compressed_with(rows, catalog, tmp_path):
    for target, codec, there in (
        ("a.csv", "zstd", "a.csv.zst"),
        ("b.csv.gz", "auto", "b.csv.gz"),
        ("c.csv.gz", "gzip", "c.csv.gz"),
    ):
        entry = catalog.copy("rows", tmp_path / target, compress=codec)
        assert entry.url == str(tmp_path / there)
        assert unpacked(entry.url) == Path(rows.url).read_bytes()
        assert catalog.get(entry.url).version == entry.version
    assert gzip.decompress((tmp_path / "c.csv.gz").read_bytes()) == Path(rows.url).read_bytes()
    with pytest.raises(UsageError, match=r"d\.csv\.gz says .* compressed with gzip, not zstd"):
        catalog.copy("rows", tmp_path / "d.csv.gz", compress="zstd")
    with pytest.raises(UsageError, match=r"a\.csv\.zst' is compressed already; copy it without"):
        catalog.copy(tmp_path / "a.csv.zst", tmp_path / "e.csv.gz", compress="auto")
    with pytest.raises(UsageError, match="is npz, which is read as it is; copy it without"):
        catalog.copy("mnist", "m", compress="zstd")
    with pytest.raises(UsageError, match="compressed with 'brotli' here; use gzip, zstd or auto"):
        catalog.copy("rows", "m", compress="brotli")


@pytest.mark.parametrize("form", ["csv", "text"])
def test_files_of_a_folder_are_compressed_each_and_those_that_are_stay(form, catalog, tmp_path):
    folder = tmp_path / "parts"
    for name in ("a/one", "a/one-two", "b/three"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{'csv' if form == 'csv' else 'txt'}").write_text(table(300))
    end = "csv" if form == "csv" else "txt"
    (folder / "b" / f"four.{end}.gz").write_bytes(gzip.compress(table(300).encode()))
    source = catalog.add("parts", folder, form)
    entry = catalog.copy("parts", "small", compress="zstd")
    assert {path.name for path in Path(entry.url).glob("*/*")} == {
        *(f"{name}.{end}.zst" for name in ("one", "one-two", "three")),
        f"four.{end}.gz",
    }
    assert (entry.rows, entry.classes) == (source.rows, source.classes)
    if form == "csv":
        assert len(catalog.frame("small")) == 1200
    else:
        assert catalog.load("small")[0].tolist() == [table(300)] * 4
    assert catalog.add("again", entry.url, form).version == entry.version
    # Beside a copy of the same as it is.
    catalog.copy("parts", "small")
    assert catalog.get(entry.ref.replace("again", "small")).url == entry.url


def test_a_compressed_copy_that_was_interrupted_goes_on_where_it_stopped(
    rows, catalog, tmp_path, monkeypatch
):
    monkeypatch.setattr(transfer, "RANGE", 10_000)
    target, real = tmp_path / "out" / "rows.csv", transfer._range
    read: list[int] = []

    class Stop(BaseException):
        pass

    def stopping(fs, path, start, end):
        read.append(start)
        if len(read) == 4:
            raise Stop
        return real(fs, path, start, end)

    monkeypatch.setattr(transfer, "_range", stopping)
    with pytest.raises(Stop):
        catalog.copy("rows", target, compress="gzip")
    assert read == [0, 10_000, 20_000, 30_000]
    (aside,) = target.parent.glob("*.gz.*[0-9a-f].partial")
    # Killed while the last part was written: what is not known to be whole is done again.
    aside.write_bytes(aside.read_bytes()[:-5])
    read.clear()
    read.extend([-1] * 4)
    entry = catalog.copy("rows", target, compress="gzip")
    assert read[4:6] == [20_000, 30_000]
    assert gzip.decompress(Path(entry.url).read_bytes()) == Path(rows.url).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["rows.csv.gz"]


def test_a_full_disk_leaves_nothing_of_a_compressed_copy(rows, catalog, tmp_path, monkeypatch):
    real = transfer._ranges

    def full(*arguments):
        real(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_ranges", full)
    with pytest.raises(AiosError, match=r"rows\.csv\.zst cannot be written \(No space left"):
        catalog.copy("rows", tmp_path / "full" / "rows.csv", compress="zstd")
    assert list((tmp_path / "full").iterdir()) == []


def test_what_changed_since_it_was_added_is_not_copied_compressed(rows, catalog, tmp_path):
    facts = Path(rows.url).stat()
    Path(rows.url).write_text(table().replace("2,0", "2,1"))
    # It looks as it did, so that it is found out while it is copied.
    os.utime(rows.url, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ConflictError, match=r"rows\.csv is not what it was when it was added"):
        catalog.copy("rows", tmp_path / "out" / "rows.csv", compress="zstd")
    assert list((tmp_path / "out").iterdir()) == []


def test_compressed_copies_to_and_from_a_bucket(rows, catalog, lab, tmp_path, monkeypatch):
    entry = catalog.copy("rows", f"{lab}/there/rows.csv", compress="zstd")
    assert entry.url == f"{lab}/there/rows.csv.zst"
    assert unpacked(entry.url) == Path(rows.url).read_bytes()
    far = catalog.add("far", entry.url)
    assert (far.version, far.rows) == (entry.version, ROWS)
    assert catalog.frame("far").equals(catalog.frame("rows"))
    asked = sql.frame("SELECT count(*) AS n FROM far", sql.Tables())
    assert asked["n"].tolist() == [ROWS]
    # What is there already is not sent again; what is damaged there is.
    writes: list[str] = []
    real = storage.written_aside
    monkeypatch.setattr(storage, "written_aside", lambda url: writes.append(url) or real(url))
    catalog.copy("rows", f"{lab}/there/rows.csv", compress="zstd")
    assert writes == []
    fs, path = storage.locate(entry.url)
    fs.pipe_file(path, b"something else")
    fs.invalidate_cache()
    catalog.copy("rows", f"{lab}/there/rows.csv", compress="zstd")
    assert writes == [entry.url] and unpacked(entry.url) == Path(rows.url).read_bytes()
    catalog.copy("rows", f"{lab}/plain.csv")
    catalog.add("plain", f"{lab}/plain.csv")
    here = catalog.copy("plain", tmp_path / "here.csv", compress="gzip")
    assert gzip.decompress(Path(here.url).read_bytes()) == Path(rows.url).read_bytes()


def test_bandwidth_is_of_what_travels(rows, catalog, lab, tmp_path, monkeypatch):
    passed: list[int] = []
    monkeypatch.setattr(transfer.Throttle, "passed", lambda self, count: passed.append(count))
    sent = catalog.copy("rows", f"{lab}/rows.csv", compress="zstd", bandwidth=1e9)
    assert sum(passed) == sent.size
    passed.clear()
    catalog.copy(sent.url, tmp_path / "back.csv.zst", bandwidth=1e9)
    assert sum(passed) == sent.size


def test_the_shell_says_what_has_become_of_a_copy(rows, tmp_path, capsys):
    target = str(tmp_path / "small.csv")
    with pytest.raises(SystemExit) as ended:
        main(["data", "cp", "rows", target, "--compress"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "copy, compressed with zstd: a sample shrinks by" in shown
    assert f"{target}.zst" in shown


@pytest.mark.parametrize(
    ("work", "status"),
    [
        # Arrow goes on reading behind who has seen enough, or has met damage.
        ("next(tables._batches(tables._open(path, 'csv'), path))", 0),
        ("tables.head(path, 'csv', 3)", 0),
        ("tables.describe(path + '.csv.zst', 'csv')", 1),
    ],
)
def test_a_process_that_has_not_read_all_of_a_file_ends_as_any(work, status, tmp_path):
    path = tmp_path / "rows.csv.zst"
    blob = packed.packer("zstd")(table(1_500_000).encode())
    path.write_bytes(blob)
    Path(f"{path}.csv.zst").write_bytes(blob[: len(blob) // 2])
    code = f"from aios_jupyter.data import tables; path = {str(path)!r}; {work}"
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == status, ended.stderr
        assert status == 0 or "Truncated compressed stream" in ended.stderr
