"""Data that has changed since it was added is not used as what it was, wherever it lies."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from s3_server import s3_server

from aios_jupyter.data import Catalog, cache, credentials, layout, prepare, sql, upkeep
from aios_jupyter.data.augment import augment
from aios_jupyter.data.feed import loader
from aios_jupyter.data.formats import encode_image
from aios_jupyter.errors import ConflictError

USES = {
    "load": lambda: Catalog().load("data"),
    "frame": lambda: Catalog().frame("data"),
    "sql": lambda: sql.frame("SELECT * FROM data", sql.Tables()),
    "prepare": lambda: prepare.prepare("data", "made", "drop_duplicates"),
    "loader": lambda: loader("data", 2),
    "augment": lambda: augment("data", "made", "hflip"),
}
OF = {
    "csv": ["load", "frame", "sql", "prepare", "loader"],
    "npz": ["load", "sql", "loader", "augment"],
    "folder": ["load", "sql", "loader", "augment"],
}


def write(root: Path, form: str, seed: int) -> Path:
    """Data of one size, whose rows, classes and names are the same for every seed."""
    x = np.random.default_rng(seed).integers(100, 255, (4, 2, 2), np.uint8)
    if form == "csv":
        path = root / "data.csv"
        path.write_text("a,label\n" + "".join(f"{x[n, 0, 0]},{n % 2}\n" for n in range(4)))
        return path
    if form == "npz":
        path = root / "data.npz"
        np.savez(path, x=x, y=np.arange(4) % 2)
        return path
    for number, image in enumerate(x):
        path = root / "data" / str(number % 2) / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image, ".bmp"))
    return root / "data"


def sizes(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in root.rglob("data*") if path.is_file()}


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Grows with each file that is read for its hash."""
    found = []
    real = layout.block_hashes

    def block_hashes(file):
        found.append(getattr(file, "name", str(file)))
        return real(file)

    monkeypatch.setattr(layout, "block_hashes", block_hashes)
    return found


@pytest.mark.parametrize(("form", "use"), [(form, use) for form in OF for use in OF[form]])
def test_data_with_other_bytes_alone_is_refused_wherever_it_is_used(form, use, catalog, tmp_path):
    path = write(tmp_path, form, 0)
    old = catalog.add("data", path)
    USES[use]()
    before = sizes(tmp_path)
    write(tmp_path, form, 1)
    assert sizes(tmp_path) == before
    with pytest.raises(
        ConflictError, match=rf"^{path}.* has changed since {old.ref} was added; "
    ) as e:
        USES[use]()
    assert f"aios data add data {path}" in str(e.value)
    # What to do helps, and the old bytes are the old version again.
    new = catalog.add("data", path)
    assert new.version != old.version
    USES[use]()
    write(tmp_path, form, 0)
    with pytest.raises(ConflictError, match=new.ref):
        USES[use]()
    assert catalog.load(old)[0].shape == catalog.load(f"data@{old.version}")[0].shape


def test_what_is_refused_leaves_nothing_that_is_fed_later(catalog, tmp_path):
    path = write(tmp_path, "npz", 0)
    blob = path.read_bytes()
    catalog.add("data", path)
    write(tmp_path, "npz", 1)
    for use in ("loader", "augment"):
        with pytest.raises(ConflictError):
            USES[use]()
    path.write_bytes(blob)
    x, _ = next(loader("data", 4, shuffle=False).arrays())
    assert np.array_equal(x, catalog.load("data")[0])


@pytest.mark.parametrize("form", OF)
def test_the_same_bytes_with_another_time_are_read_once_and_taken(form, catalog, tmp_path, hashed):
    path = write(tmp_path, form, 0)
    entry = catalog.add("data", path)
    hashed.clear()
    upkeep.check_unchanged(entry)
    assert hashed == []
    files = [path] if path.is_file() else sorted(path.glob("*/*.bmp"))
    os.utime(files[0], ns=(1, 1))
    upkeep.check_unchanged(entry)
    assert hashed == [str(files[0])]
    upkeep.check_unchanged(entry)
    assert len(hashed) == 1


def test_a_file_that_is_new_or_gone_is_named(catalog, tmp_path):
    path = write(tmp_path, "folder", 0)
    entry = catalog.add("data", path)
    # What is no part of the dataset may come and go.
    (path / "README.md").write_text("what is here")
    (path / "0" / ".hidden.png").write_bytes(b"")
    (path / "lies beside the classes.png").write_bytes(b"")
    upkeep.check_unchanged(entry)
    (path / "1" / "9.bmp").write_bytes(b"")
    with pytest.raises(ConflictError, match=rf"^{path}/1/9\.bmp is new since data@"):
        catalog.load("data")
    (path / "1" / "9.bmp").unlink()
    (path / "0" / "2.bmp").unlink()
    with pytest.raises(ConflictError, match=rf"^{path}/0/2\.bmp is gone since data@"):
        catalog.load("data")


def test_a_link_counts_for_the_file_that_it_leads_to(catalog, tmp_path):
    path = write(tmp_path, "folder", 0)
    (path / "0" / "again.bmp").symlink_to("../1/1.bmp")
    # Those of folders are not followed, when a dataset is added neither.
    (path / "more").symlink_to("1")
    entry = catalog.add("data", path)
    assert len(catalog.checks(entry)) == 5
    upkeep.check_unchanged(entry)
    blob = (path / "1" / "1.bmp").read_bytes()
    (path / "1" / "1.bmp").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(ConflictError, match=r"/0/again\.bmp has changed since"):
        catalog.load("data")


def test_a_catalog_without_times_goes_on_with_sizes_alone(catalog, tmp_path, hashed):
    path = write(tmp_path, "csv", 0)
    entry = catalog.add("data", path)
    catalog.mark(entry, [msgspec.structs.replace(c, modified=0) for c in catalog.checks(entry)])
    hashed.clear()
    os.utime(path, ns=(1, 1))
    catalog.frame("data")
    write(tmp_path, "csv", 1)
    catalog.frame("data")
    assert hashed == []
    path.write_text(path.read_text() + "1,1\n")
    with pytest.raises(ConflictError, match=r"data\.csv has changed since"):
        catalog.frame("data")


def test_another_copy_and_what_is_in_no_catalogue_are_used_as_they_are(catalog, tmp_path):
    path = write(tmp_path, "npz", 0)
    catalog.add("data", path)
    other = catalog.copy("data", tmp_path / "copy.npz")
    assert other.name == "data"
    write(tmp_path, "npz", 1)
    assert catalog.load(other)[0].shape == catalog.load(str(path))[0].shape


# --- what is remote


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("s3") / "served"
    (root / "lab").mkdir(parents=True)
    with s3_server(root) as server:
        yield server


@pytest.fixture
def far(server, tmp_path, request):
    """A folder of a bucket, and what puts a file of this machine there, as somebody else would."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    credentials.put("lab", server.options)
    place = f"s3://lab@lab/{tmp_path.name}"
    other = s3fs.S3FileSystem(**server.options, skip_instance_cache=True)

    def put(path: Path) -> str:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                name = file.relative_to(tmp_path)
                other.pipe_file(f"lab/{tmp_path.name}/{name}", file.read_bytes())
        return f"{place}/{path.relative_to(tmp_path)}"

    put.system = other
    return put


@pytest.mark.parametrize(("form", "use"), [(form, use) for form in OF for use in OF[form]])
def test_remote_data_with_other_bytes_alone_is_refused_wherever_it_is_used(
    form, use, catalog, tmp_path, far
):
    url = far(write(tmp_path, form, 0))
    old = catalog.add("data", url)
    before = sizes(tmp_path)
    far(write(tmp_path, form, 1))
    assert sizes(tmp_path) == before
    with pytest.raises(
        ConflictError, match=rf"^{url}.* has changed since {old.ref} was added; "
    ) as e:
        USES[use]()
    assert f"aios data add data {url}" in str(e.value)
    new = catalog.add("data", url)
    assert new.version != old.version
    USES[use]()


@pytest.mark.parametrize("use", OF["csv"])
def test_a_copy_in_the_cache_stays_the_version_that_it_is(use, catalog, tmp_path, far):
    url = far(write(tmp_path, "csv", 0))
    entry = catalog.add("data", url)
    before = catalog.frame("data")
    assert cache.has(entry.version)
    far(write(tmp_path, "csv", 1))
    USES[use]()
    asked = sql.frame("SELECT * FROM data", sql.Tables())
    assert asked["a"].tolist() == before["a"].tolist()


def test_a_remote_file_that_is_new_or_gone_is_named(catalog, tmp_path, far):
    path = write(tmp_path, "folder", 0)
    (path / "README.md").write_text("what is here")
    url = far(path)
    entry = catalog.add("data", url)
    far.system.pipe_file(f"lab/{tmp_path.name}/data/lies beside the classes.png", b"")
    upkeep.check_unchanged(entry)
    far.system.pipe_file(f"lab/{tmp_path.name}/data/1/9.bmp", b"")
    with pytest.raises(ConflictError, match=rf"^{url}/1/9\.bmp is new since data@"):
        catalog.load("data")
    far.system.rm(f"lab/{tmp_path.name}/data/1/9.bmp")
    far.system.rm(f"lab/{tmp_path.name}/data/0/2.bmp")
    with pytest.raises(ConflictError, match=rf"^{url}/0/2\.bmp is gone since data@"):
        catalog.load("data")


def test_the_storage_is_asked_once_for_all_files_and_none_is_read(
    catalog, tmp_path, far, hashed, monkeypatch
):
    entries = []
    for count in (4, 40):
        folder = tmp_path / f"of{count}"
        blob = encode_image(np.zeros((2, 2), np.uint8), ".bmp")
        for number in range(count):
            path = folder / str(number % 2) / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
        entries.append(catalog.add(f"of{count}", far(folder)))
    asked: list[str] = []
    s3 = type(far.system)
    real = s3._call_s3

    async def call(self, method, *arguments, **options):
        asked.append(method)
        return await real(self, method, *arguments, **options)

    monkeypatch.setattr(s3, "_call_s3", call)
    hashed.clear()
    found = []
    for entry in entries:
        asked.clear()
        upkeep.check_unchanged(entry)
        found.append(len(asked))
    assert found[0] == found[1] <= 4
    assert hashed == []
    # A copy in the cache needs no word from the storage.
    cache.local(entries[1])
    asked.clear()
    upkeep.check_unchanged(entries[1])
    assert asked == []


def test_the_same_remote_bytes_with_another_mark_are_read_once_and_taken(catalog, tmp_path, far):
    entry = catalog.add("data", far(write(tmp_path, "csv", 0)))
    (check,) = catalog.checks(entry)
    assert check.mark
    # As after a copy in other parts, or by a system that tells of times alone.
    catalog.mark(entry, [msgspec.structs.replace(check, mark="another")])
    upkeep.check_unchanged(entry)
    assert catalog.checks(entry) == (check,)


def test_remote_data_that_was_added_without_marks_is_told_by_its_sizes(catalog, tmp_path, far):
    path = write(tmp_path, "csv", 0)
    entry = catalog.add("data", far(path))
    (check,) = catalog.checks(entry)
    catalog.mark(entry, [msgspec.structs.replace(check, mark="")])
    far(write(tmp_path, "csv", 1))
    upkeep.check_unchanged(entry)
    path.write_text(path.read_text() + "1,1\n")
    far(path)
    with pytest.raises(ConflictError, match=r"data\.csv has changed since"):
        upkeep.check_unchanged(entry)


@pytest.mark.parametrize(
    ("about", "mark"),
    [
        ({"ETag": '"abc"', "LastModified": 5}, "abc"),
        ({"ETag": "", "LastModified": 5}, "5"),
        ({"modificationTime": 12}, "12"),
        ({"size": 3}, ""),
    ],
)
def test_what_a_storage_says_of_a_file_is_its_mark(about, mark):
    assert layout.mark_of(about) == mark
