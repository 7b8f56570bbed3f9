"""Each format that a dataset may have: what is said of it, what is loaded, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import wave
import zipfile
import zlib

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from aios_jupyter.commands import main
from aios_jupyter.data import packed, prepare, shards, sounds, sql
from aios_jupyter.data.augment import augment
from aios_jupyter.data.feed import loader
from aios_jupyter.data.formats import decode_image, encode_image
from aios_jupyter.errors import ConflictError, NotFoundError, UsageError

TABLE = "name,size,weight,label\nana,3,1.5,cat\nbob,,2.5,dog\ncarl,5,nan,cat\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pets.csv"
    path.write_text(TABLE)
    return path


def write_wav(path, seconds=0.1, rate=8000, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        frames = int(seconds * rate)
        wanted = np.arange(frames * channels, dtype=np.int64) % 100
        data = wanted.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
        file.writeframes(data.tobytes())
    return path


def write_tar(path, members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as archive:
        for name, blob in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(blob), kind
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            archive.addfile(info, io.BytesIO(blob) if kind == tarfile.REGTYPE else None)
    return path


def by_name(entry):
    return {field.name: field for field in entry.fields}


def test_a_table_of_csv_tells_its_columns_and_what_is_missing(catalog, table):
    entry = catalog.add("pets", table)
    assert (entry.rows, entry.format, entry.classes) == (3, "csv", ("cat", "dog"))
    assert entry.schema == {
        "name": "string",
        "size": "int64",
        "weight": "double",
        "label": "string",
    }
    fields = by_name(entry)
    assert (fields["size"].missing, fields["size"].mean, fields["size"].most) == (1, 4, 5)
    assert fields["weight"].missing == 1
    assert fields["name"].example == "ana, bob, carl"
    frame = catalog.frame("pets")
    assert frame["weight"].sum() == 4
    with pytest.raises(UsageError, match=r"columns that are no numbers \(name\).*frame"):
        catalog.load("pets")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_same_table_in_each_format_and_in_parts_says_the_same(form, catalog, tmp_path):
    random = np.random.default_rng(0)
    columns = {"a": random.normal(size=500), "b": np.arange(500), "label": np.arange(500) % 3}
    folder = tmp_path / form
    folder.mkdir()
    for part in range(2):
        here = {name: values[part::2] for name, values in columns.items()}
        path = folder / f"part-{part}.{form}"
        if form == "parquet":
            parquet.write_table(pa.table(here), path)
            continue
        frame = pa.table(here).to_pandas()
        if form == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True, double_precision=15)
    entry = catalog.add("numbers", folder)
    assert (entry.rows, entry.format, entry.classes) == (500, form, ("0", "1", "2"))
    fields = by_name(entry)
    assert fields["a"].mean == pytest.approx(columns["a"].mean())
    assert fields["a"].deviation == pytest.approx(columns["a"].std())
    assert (fields["b"].least, fields["b"].most) == (0, 499)
    x, y = catalog.load("numbers")
    assert x.shape == (500, 2)
    assert np.bincount(y).tolist() == [167, 167, 166]


def compressed(form: str, rows: int) -> bytes:
    """A table whose blocks are more than one."""
    numbers = [(n, n * 7919 % 1003, n % 3) for n in range(rows)]
    if form == "csv":
        lines = ["a,b,label", *(",".join(map(str, row)) for row in numbers)]
    else:
        lines = [json.dumps(dict(zip(("a", "b", "label"), row, strict=True))) for row in numbers]
    return gzip.compress(("\n".join(lines) + "\n").encode())


def zstd(data: bytes) -> bytes:
    """In several frames, as a writer that goes on makes it."""
    codec = pa.Codec("zstd")
    return b"".join(codec.compress(part, asbytes=True) for part in (data[:999], data[999:]))


@pytest.mark.parametrize(
    "name",
    [
        *("t.csv.gz", "t.CSV.gz", "t.jsonl.gz", "t.ndjson.gz", "t.json.gz"),
        *("t.csv.zst", "t.jsonl.zst", "t.json.zst"),
    ],
)
def test_a_compressed_table_is_a_table_in_every_verb(name, catalog, tmp_path):
    form = "csv" if "csv" in name.lower() else "jsonl"
    path = tmp_path / "parts" / name
    path.parent.mkdir()
    path.write_bytes(compressed(form, 900))
    if name.endswith(".zst"):
        path.write_bytes(zstd(gzip.decompress(path.read_bytes())))
    # What lies beside it is not compressed, and of another name.
    second = path.with_name(f"u.{form}")
    second.write_bytes(gzip.decompress(compressed(form, 100)))
    for ref, url, rows in (("one", path, 900), ("parts", path.parent, 1000)):
        entry = catalog.add(ref, url)
        assert (entry.format, entry.rows, entry.classes) == (form, rows, ("0", "1", "2"))
        assert len(catalog.frame(ref)) == rows
        asked = sql.frame(f"SELECT count(*) AS n, sum(b) AS s FROM {ref}", sql.Tables())
        assert asked["n"].tolist() == [rows]
        assert asked["s"].tolist() == [catalog.frame(ref)["b"].sum()]
        made = prepare.prepare(ref, "ready", "scale(a)")
        assert made.entry.rows == rows
        x, y = next(loader(ref, 100, shuffle=False).arrays())
        assert x[:3].tolist() == [[0, 0], [1, 7919 % 1003], [2, 2 * 7919 % 1003]]
        assert y[:3].tolist() == [0, 1, 2]
    copy = catalog.copy("one", "copied")
    assert copy.url.endswith(name[1:]) and len(catalog.frame("copied")) == 900


@pytest.mark.parametrize(("pack", "end"), [(gzip.compress, "gz"), (zstd, "zst")])
def test_a_compressed_table_that_unpacks_to_too_much_is_refused(
    pack, end, catalog, tmp_path, monkeypatch
):
    path = tmp_path / f"line.csv.{end}"
    path.write_bytes(pack(b"a,label\n") + pack(b"0" * 2**26))
    assert path.stat().st_size < 2**17
    with pytest.raises(UsageError, match=r"line\.csv\.\w+ .* \(it has a row longer than a MiB\)"):
        catalog.add("line", path)
    path = tmp_path / f"rows.csv.{end}"
    path.write_bytes(pack(b"a,label\n" + b"1,2\n" * 2**20))
    catalog.add("rows", path)
    free = psutil.virtual_memory()._replace(available=2**24)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(UsageError, match=r"rows\.csv\.\w+ unpacks to more than 0\.0 GiB"):
        catalog.frame("rows")


@pytest.mark.parametrize(("pack", "end"), [(gzip.compress, "gz"), (zstd, "zst")])
def test_compressed_texts_are_texts(pack, end, catalog, tmp_path, monkeypatch):
    lines = [f"ä {n}" for n in range(500)]
    path = tmp_path / f"lines.txt.{end}"
    path.write_bytes(pack("\n".join(lines).encode()))
    entry = catalog.add("lines", path)
    assert (entry.format, entry.rows) == ("text", 500)
    assert catalog.load("lines")[0].tolist() == lines
    assert next(loader("lines", 2, shuffle=False).arrays())[0] == lines[:2]
    for name in ("ham/1", "spam/1"):
        document = tmp_path / "mail" / f"{name}.txt.{end}"
        document.parent.mkdir(parents=True)
        document.write_bytes(pack(b"dear\n" * 1000))
    assert catalog.add("mail", tmp_path / "mail").classes == ("ham", "spam")
    assert catalog.load("mail")[0].tolist() == ["dear\n" * 1000] * 2
    document.write_bytes(cut(document.read_bytes()))
    with pytest.raises(UsageError, match=rf"spam/1\.txt\.{end} is damaged"):
        catalog.add("mail", tmp_path / "mail")
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"lines\.txt\.{end} is damaged"):
        catalog.add("lines", path)
    # A bomb: one line without an end, and documents or lines that the memory does not take.
    monkeypatch.setattr(packed, "LONGEST_LINE", 2**16)
    path.write_bytes(pack(b"0" * 2**17))
    with pytest.raises(UsageError, match=r"a line of more than 0 MiB; if it is no decompression"):
        catalog.add("lines", path)
    path.write_bytes(pack(b"0\n" * 2**17))
    catalog.add("lines", path)
    document.write_bytes(pack(b"dear" * 2**20))
    free = psutil.virtual_memory()._replace(available=2**22)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(UsageError, match=rf"spam/1\.txt\.{end} unpacks to more than 0\.0 GiB"):
        catalog.add("mail", tmp_path / "mail")
    with pytest.raises(UsageError, match=r"has texts of more than 0\.0 GiB"):
        catalog.load("lines")


def test_the_damaged_file_of_a_folder_is_named(catalog, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for form in ("csv", "jsonl"):
        for number, rows in enumerate((10, 200_000)):
            (folder / f"{number}.{form}.gz").write_bytes(compressed(form, rows))
        bad = folder / f"1.{form}.gz"
        bad.write_bytes(cut(bad.read_bytes()))
        with pytest.raises(UsageError, match=rf"parts/1\.{form}\.gz is damaged .*Truncated"):
            catalog.add("cut", folder, form)
        first = folder / f"0.{form}.gz"
        first.write_bytes(b"what is this")
        with pytest.raises(UsageError, match=rf"parts/0\.{form}\.gz is damaged .*header"):
            catalog.add("other", folder, form)


def test_sounds_in_a_folder_have_classes_and_lengths(catalog, tmp_path):
    for label in ("no", "yes"):
        for k in range(2):
            write_wav(tmp_path / "words" / label / f"{k}.wav")
    entry = catalog.add("words", tmp_path / "words")
    assert (entry.rows, entry.format, entry.classes) == (4, "sounds", ("no", "yes"))
    assert entry.schema["sound"] == "int16, 8000 Hz, 1 channel"
    assert by_name(entry)["seconds"].mean == pytest.approx(0.1)
    x, y = catalog.load("words")
    assert (x.shape, x.dtype, y.tolist()) == ((4, 800), np.int16, [0, 0, 1, 1])
    assert x[0, :3].tolist() == [0, 1, 2]
    write_wav(tmp_path / "words" / "yes" / "long.wav", seconds=0.2)
    with pytest.raises(UsageError, match=r"differ.*yes/long\.wav"):
        catalog.load(tmp_path / "words")


@pytest.mark.parametrize(("width", "kind"), [(1, "uint8"), (3, "int32"), (4, "int32")])
def test_a_single_sound_of_any_width(width, kind, catalog, tmp_path):
    path = write_wav(tmp_path / "one.wav", width=width, channels=2)
    entry = catalog.get(path)
    assert (entry.rows, entry.classes) == (1, ())
    assert entry.schema["sound"].startswith(f"{kind}, 8000 Hz, 2 channels")
    samples = sounds.read(str(tmp_path), "one.wav").samples
    assert samples.shape == (800, 2)
    assert samples[:2].ravel().tolist() == [k << (8 if width == 3 else 0) for k in range(4)]


def test_text_is_lines_of_a_file_or_documents_of_a_folder(catalog, tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("roses äre red\nviolets\n\n")
    entry = catalog.add("poem", path)
    assert (entry.rows, entry.format, by_name(entry)["characters"].most) == (3, "text", 13)
    assert catalog.load("poem")[0].tolist() == ["roses äre red", "violets", ""]
    for name in ("ham/1.txt", "spam/1.txt", "spam/2.txt"):
        document = tmp_path / "mail" / name
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(name)
    x, y = catalog.load(catalog.add("mail", tmp_path / "mail"))
    assert x.tolist() == ["ham/1.txt", "spam/1.txt", "spam/2.txt"]
    assert y.tolist() == [0, 1, 1]
    path.write_bytes(b"fine\nb\xe4d\n")
    with pytest.raises(
        UsageError, match=r"line 2 of .*poem\.txt is not UTF-8 text \(byte 0xe4 at 1"
    ):
        catalog.get(path)


def test_shards_of_webdataset_give_images_and_labels(catalog, tmp_path, digits):
    x, y = digits[0][::40], digits[1][::40]
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        members = {}
        for k in range(shard, len(x), 2):
            members[f"a/{k:03}.png"] = encode_image(x[k])
            members[f"a/{k:03}.cls"] = str(y[k]).encode()
        write_tar(folder / f"{shard}.tar", members)
    entry = catalog.add("wds", folder)
    assert (entry.rows, entry.format) == (len(x), "webdataset")
    assert entry.classes == tuple(map(str, np.unique(y)))
    got, labels = catalog.load("wds")
    order = [*range(0, len(x), 2), *range(1, len(x), 2)]
    assert np.array_equal(got, x[order])
    assert np.array_equal(labels, y[order])
    assert next(shards.samples(entry.url))[0] == "a/000"
    one = catalog.get(
        write_tar(tmp_path / "part.tar", {"1.png": encode_image(x[0]), "2.cls": b"3"})
    )
    assert by_name(one)["png"].missing == 1


def test_an_array_alone_and_numbers_that_are_none(catalog, tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    x[1, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    entry = catalog.add("alone", tmp_path / "x.npy")
    (field,) = entry.fields
    assert (entry.rows, entry.format, field.missing, field.most) == (4, "npy", 1, 11)
    assert np.array_equal(catalog.load("alone")[0], x, equal_nan=True)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 times 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def test_a_decompression_bomb_is_refused_before_it_unpacks(catalog, tmp_path):
    with pytest.raises(UsageError, match=r"bomb\.png unpacks to more than 134 million pixels"):
        decode_image(bomb(), "bomb.png")
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 10_000)
    with pytest.raises(UsageError, match=r"bomb\.npz unpacks to 74505\d\d\.\d GiB"):
        catalog.load(catalog_entry(path))


def catalog_entry(path):
    from aios_jupyter.data.catalog import Entry

    return Entry(name="", url=str(path), format="npz", version="", rows=1)


def cut(blob: bytes) -> bytes:
    return blob[: len(blob) * 2 // 3]


def test_what_is_cut_off_or_something_else_is_named_in_a_sentence(catalog, tmp_path):
    parquet.write_table(pa.table({"a": np.arange(1000)}), tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", np.arange(1000))
    whole = {
        "a.wav": write_wav(tmp_path / "t.wav").read_bytes(),
        "a.tar": write_tar(tmp_path / "t.tar", {"1.bin": b"x" * 28_000}).read_bytes(),
        "a.parquet": (tmp_path / "t.parquet").read_bytes(),
        "a.npy": (tmp_path / "t.npy").read_bytes(),
    }
    cases = {name: cut(blob) for name, blob in whole.items()}
    cases |= {f"b{name[1:]}": b"\x00\x01what is this" for name in whole}
    cases |= {
        "c.jsonl": b'{"a": 1}\n{"a": ',
        "c.csv": b"a,b\n1,2\n3,4,5\n",
        "d.csv": b"",
        "e.csv": b"a,b\n",
        "f.csv.gz": cut(compressed("csv", 1000)),
        "f.jsonl.gz": cut(compressed("jsonl", 1000)),
        "g.csv.gz": b"a,b\n1,2\n",
        "h.csv.gz": b"",
        "i.csv.gz": compressed("csv", 100)[:-8] + bytes(8),
    }
    for name, blob in cases.items():
        path = tmp_path / name
        path.write_bytes(blob)
        with pytest.raises(UsageError) as caught:
            catalog.add("bad", path)
        assert name in str(caught.value), name
        assert str(caught.value).endswith("."), name
        assert "\n" not in str(caught.value), name
    assert [entry.name for entry in catalog.list()] == ["mnist"]


@pytest.mark.parametrize("damage", [cut, lambda _: b"what is this", lambda _: b""])
def test_an_image_that_is_cut_off_or_none_is_named(damage, catalog, photos):
    path = photos / "cat" / "a.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=r"cat/a\.png in .* is not an image that can be read"):
        catalog.load(photos)


def test_python_objects_and_mixed_labels_are_refused(catalog, tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], object))
    with pytest.raises(UsageError, match=r"objects\.npz"):
        catalog.add("bad", tmp_path / "objects.npz")
    members = {"1.png": encode_image(np.zeros((4, 4), np.uint8)), "1.cls": b"1"}
    members["2.png"] = members["1.png"]
    path = write_tar(tmp_path / "some.tar", members)
    with pytest.raises(UsageError, match=r"1 of 2 samples have no label, .* 2 in .*some\.tar;"):
        catalog.load(path)


@pytest.mark.parametrize("name", ["../../etc/x.png", "/etc/x.png"])
def test_a_name_that_leads_out_of_a_shard_is_refused(name, catalog, tmp_path):
    with pytest.raises(UsageError, match="leads out of the shard"):
        catalog.add("bad", write_tar(tmp_path / "bad.tar", {name: b"x"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_link_in_a_shard_is_refused(kind, catalog, tmp_path):
    with pytest.raises(UsageError, match="is a link or a device"):
        catalog.add("bad", write_tar(tmp_path / "bad.tar", {"1.png": b""}, kind))


def test_a_link_out_of_a_folder_is_refused_and_one_within_is_not(catalog, photos, tmp_path):
    (photos / "dog" / "same.png").symlink_to(photos / "cat" / "a.png")
    assert catalog.get(photos).rows == 6
    outside = tmp_path / "secret.png"
    outside.write_bytes((photos / "cat" / "a.png").read_bytes())
    (photos / "dog" / "out.png").symlink_to(outside)
    with pytest.raises(UsageError, match=r"dog/out\.png in .* leads out of the folder"):
        catalog.add("bad", photos)


def test_tags_owners_and_versions_are_kept(catalog, table):
    import getpass

    first = catalog.add("pets", table, tags=["small", "animals"])
    assert (first.owner, first.tags) == (getpass.getuser(), ("animals", "small"))
    tagged = catalog.tag("pets", add=["new"], remove=["small"])
    assert catalog.get("pets") == tagged
    assert tagged.tags == ("animals", "new")
    table.write_text(TABLE + "dora,1,1,dog\n")
    second = catalog.add("pets", table, made_from="mnist", how="by hand", tags=["big"])
    assert second.tags == ("animals", "big", "new")
    again = catalog.add("pets", table)
    assert (again.tags, again.made_from, again.how) == (
        second.tags,
        second.made_from,
        "by hand",
    )
    assert catalog.get(f"pets@{first.version[:4]}") == tagged
    for short in (first.version[:3], "zzzz"):
        with pytest.raises(NotFoundError, match="There is no version"):
            catalog.get(f"pets@{short}")
    catalog.remove(first.ref)
    assert [entry.version for entry in catalog.versions("pets")] == [second.version]
    with pytest.raises(UsageError, match="cannot be a tag"):
        catalog.tag("pets", add=["two words"])
    with pytest.raises(NotFoundError, match="no dataset 'pats'; did you mean 'pets'"):
        catalog.tag("pats", add=["x"])


def test_an_entry_of_an_older_version_is_still_read(catalog, table):
    import sqlite3

    import msgspec

    entry = catalog.add("pets", table)
    old = {
        k: v
        for k, v in json.loads(msgspec.json.encode(entry)).items()
        if k not in {"fields", "tags", "owner"}
    }
    with sqlite3.connect(catalog._path) as database:
        database.execute("UPDATE entries SET body = ?", (msgspec.msgpack.encode(old),))
        database.execute("DROP TABLE checks")
    assert catalog.get("pets").rows == 3
    assert catalog.get("pets").tags == ()
    assert catalog.checks(catalog.get("pets")) == ()


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_images_have_sizes_and_classes_have_counts(form, catalog, tmp_path, capsys):
    random = np.random.default_rng(0)
    for number, (label, shape) in enumerate(
        [("cat", (20, 30, 3)), ("cat", (40, 50)), ("dog", (30, 30, 3)), ("dog", (0, 0))]
    ):
        blob = b"none" if label == "dog" and not shape[0] else b""
        blob = blob or encode_image(random.integers(0, 256, shape, np.uint8))
        path = tmp_path / "images" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    place = tmp_path / "images"
    if form == "webdataset":
        place = tmp_path / "images.tar"
        with tarfile.open(place, "w") as archive:
            for path in sorted((tmp_path / "images").rglob("*.png")):
                label = path.parent.name.encode()
                for name, blob in (
                    (f"{path.stem}.png", path.read_bytes()),
                    (f"{path.stem}.cls", label),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(blob)
                    archive.addfile(member, io.BytesIO(blob))
    entry = catalog.add("images", place)
    assert (entry.classes, entry.counts) == (("cat", "dog"), (2, 2))
    width, height = entry.fields[-2:]
    assert (width.name, width.least, width.most, width.missing) == ("width", 30, 50, 1)
    assert (height.name, height.least, height.mean, height.most) == ("height", 20, 30, 40)
    with pytest.raises(SystemExit):
        main(["data", "show", "images"])
    assert "cat (2), dog (2)" in capsys.readouterr().out


def test_classes_of_tables_arrays_sounds_and_texts_are_counted(catalog, tmp_path):
    (tmp_path / "t.csv").write_text("n,label\n1,b\n2,a\n3,b\n4,\n")
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=[7, 5, 7])
    for name in ("x/1.txt", "x/2.txt", "w/3.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("text")
    found = {name: catalog.add("it", tmp_path / name) for name in ("t.csv", "a.npz", "texts")}
    assert {name: dict(zip(e.classes, e.counts, strict=True)) for name, e in found.items()} == {
        "t.csv": {"a": 1, "b": 2},
        "a.npz": {"5": 1, "7": 2},
        "texts": {"w": 1, "x": 2},
    }


def test_images_without_classes_are_a_dataset_too(catalog, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encode_image(np.full((8, 8), number * 9, np.uint8)))
    (folder / "README.txt").write_text("none of them")
    entry = catalog.add("photos", folder)
    assert (entry.format, entry.rows, entry.classes) == ("folder", 6, ())
    assert entry.schema == {"image": "file"}
    x, y = catalog.load("photos")
    assert y is None and x[:, 0, 0].tolist() == [0, 9, 18, 27, 36, 45]
    (found,) = loader("photos", batch_size=6)
    assert found[1] is None and sorted(found[0][:, 0, 0].tolist()) == x[:, 0, 0].tolist()
    assert augment("photos", "more", "hflip", copies=1).rows == 12
    assert sql.frame("SELECT * FROM photos", sql.Tables()).columns.tolist() == ["file"]
    (folder / "new.png").write_bytes(encode_image(np.zeros((8, 8), np.uint8)))
    with pytest.raises(ConflictError, match=r"new\.png is new since photos@"):
        catalog.load("photos")
    # Beside classes it would be of none.
    (folder / "cat").mkdir()
    (folder / "new.png").replace(folder / "cat" / "a.png")
    labeled = catalog.add("photos", folder)
    assert (labeled.rows, labeled.classes) == (1, ("cat",))
    assert catalog.load("photos")[1].tolist() == [0]


def test_show_has_the_first_rows_of_a_table(tmp_path, catalog, capsys):
    rows = {"n": [1, None, 3, 4, 5, 6], "word": ["x" * 99, *"abcde"], "real": [0.5] * 6}
    rows |= {f"more{number}": [0] * 6 for number in range(12)}
    parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    catalog.add("t", tmp_path / "t.parquet")

    def shown():
        with pytest.raises(SystemExit) as ended:
            main(["data", "show", "t"])
        assert not ended.value.code
        return capsys.readouterr().out

    text = shown()
    sample = text[text.index("the first rows") :].splitlines()
    assert sample[0] == "the first rows (12 of 15 columns)"
    assert sample[1].split()[:3] == ["N", "WORD", "REAL"]
    assert sample[2].split()[:3] == ["1", "x" * 39 + "…", "0.5"]
    assert sample[3].split()[:2] == ["-", "a"]
    assert len(sample) == 7
    (tmp_path / "t.parquet").unlink()
    # What is known of it is shown all the same.
    assert "Its rows cannot be shown: " in shown()
    assert "word" in shown()
