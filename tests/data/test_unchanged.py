"""Local data that has changed since it was added is not used as what it was."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aios_jupyter.data import Catalog, layout, prepare, sql, upkeep
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
        found.append(file.name)
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
