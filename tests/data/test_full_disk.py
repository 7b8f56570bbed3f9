"""A disk that is really full: each writer names the place, leaves nothing that looks whole, and
succeeds when there is room again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from aios_jupyter.config import settings
from aios_jupyter.data import cache, vault
from aios_jupyter.data.augment import augment
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.data.formats import encode_image
from aios_jupyter.errors import AiosError

ROOM = 4 * 2**20
# Enough for some of what is written, not for all of it.
LEFT = 300_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)]
    made = None
    if shutil.which("mount") is not None:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made is None or made.returncode != 0:
        why = made.stderr.strip() if made is not None else "there is no mount command"
        pytest.skip(f"a small tmpfs cannot be mounted (that needs root): {why}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """360 kB as arrays and 1.2 MB as images, elsewhere."""
    random = np.random.default_rng(0)
    root = tmp_path / "sources"
    for number in range(10):
        path = root / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(random.integers(0, 256, (200, 200, 3), np.uint8)))
    x = random.integers(0, 256, (36, 100, 100), np.uint8)
    np.savez(root / "digits.npz", x=x, y=np.arange(36) % 3)
    return root


def fill(disk: Path, left: int) -> None:
    state = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(state.f_bavail * state.f_frsize - left))


def make_room(disk: Path) -> None:
    (disk / "ballast").unlink()


def refused(work: Callable[[], object], place: str) -> None:
    with pytest.raises(AiosError) as caught:
        work()
    said = str(caught.value)
    assert place in said and "No space left on device" in said
    assert said.endswith(".") and "\n" not in said and "Errno" not in said


def seen(folder: Path) -> list[Path]:
    """Files that are not hidden, in no hidden folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return [p for p in found if not any(n.startswith(".") for n in p.relative_to(folder).parts)]


@pytest.fixture
def at_home(disk: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """The catalogue, and all that it keeps, on that disk."""
    monkeypatch.setenv("AIOS_STATE_DIR", str(disk / "state"))
    settings.cache_clear()
    catalog = Catalog()
    catalog.add("digits", sources / "digits.npz")
    catalog.add("photos", sources / "photos")
    yield catalog
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize("left", [0, LEFT])
@pytest.mark.parametrize(("name", "end"), [("digits.npz", ""), ("photos", "cat/")])
def test_a_copy_is_whole_or_not_there(name, end, left, disk, sources, catalog):
    target = disk / "copies" / name
    target.parent.mkdir()
    fill(disk, left)
    refused(lambda: catalog.copy(sources / name, target), f"{target}/{end}".rstrip("/"))
    assert list(target.parent.iterdir()) == []
    make_room(disk)
    copied = catalog.copy(sources / name, target)
    assert copied.version == catalog.get(target).version == catalog.get(sources / name).version


def test_a_folder_that_was_interrupted_is_not_seen_and_goes_on(sources, catalog, tmp_path):
    target, entry = tmp_path / "copies" / "photos", catalog.add("photos", sources / "photos")

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        catalog.copy("photos", target, on_progress=stop)
    assert seen(target.parent) == [] and not target.exists()
    first = min(target.parent.rglob("*.png"))
    before = first.stat().st_ino
    assert catalog.copy("photos", target).version == entry.version
    assert target.joinpath(*first.parts[-2:]).stat().st_ino == before
    assert [path.name for path in target.parent.iterdir()] == ["photos"]


@pytest.mark.parametrize("left", [0, LEFT])
@pytest.mark.parametrize("name", ["digits.npz", "photos"])
def test_the_cache_does_not_take_part_of_a_copy_for_the_whole(name, left, disk, sources, at_home):
    memory = fsspec.filesystem("memory")
    memory.put(str(sources / name), f"/full/{name}", recursive=True)
    try:
        entry = at_home.add("far", f"memory://full/{name}")
        fill(disk, left)
        refused(lambda: cache.local(entry), f"{disk}/state/data/cache/{entry.version}/data")
        home = cache.place_of(entry.version)
        assert seen(home) == []
        make_room(disk)
        here = cache.local(entry)
        assert Path(here.url).parent == home
        assert at_home.get(here.url).version == entry.version
    finally:
        memory.rm("/full", recursive=True)


@pytest.mark.parametrize("left", [0, LEFT])
@pytest.mark.parametrize(("name", "place"), [("digits", "cache/"), ("photos", "more/")])
def test_an_augmentation_goes_on_when_there_is_room(name, place, left, disk, at_home, sources):
    fill(disk, left)
    refused(lambda: augment(name, "more", "hflip", 2), f"{disk}/state/data/{place}")
    assert at_home.versions("more") == []
    assert seen(disk / "state" / "data" / "more") == []
    make_room(disk)
    made = augment(name, "more", "hflip", 2)
    rows = at_home.get(name).rows
    assert (made.rows, at_home.get("more").version) == (3 * rows, made.version)
    assert len(at_home.load(made)[0]) == 3 * rows


@pytest.mark.parametrize("left", [0, LEFT])
@pytest.mark.parametrize("name", ["digits", "photos"])
def test_an_encrypted_copy_is_whole_or_not_there(name, left, disk, at_home):
    vault.key("ana")
    fill(disk, left)
    refused(lambda: vault.encrypt(name, ["ana"], "secret"), f"{disk}/state/data/secret")
    assert at_home.versions("secret") == []
    assert list((disk / "state" / "data" / "secret").iterdir()) == []
    make_room(disk)
    vault.encrypt(name, ["ana"], "secret")
    fill(disk, left)
    refused(lambda: vault.decrypt("secret", "plain"), f"{disk}/state/data/plain")
    assert at_home.versions("plain") == []
    make_room(disk)
    assert vault.decrypt("secret", "plain").version == at_home.get(name).version


def test_a_key_that_has_no_room_is_not_there(disk, at_home):
    vault.key("ana")
    fill(disk, 0)
    refused(lambda: vault.key("bob"), f"{disk}/state/keys/bob.key")
    make_room(disk)
    assert vault.key("bob").startswith("age1")


def test_the_catalogue_says_that_it_cannot_be_written_and_keeps_what_it_has(disk, at_home, sources):
    before = {entry.ref for entry in at_home.list()}
    fill(disk, 0)
    for work in (
        lambda: [at_home.add(f"more{number}", sources / "digits.npz") for number in range(9)],
        lambda: [at_home.tag("digits", [f"tag{number}"]) for number in range(999)],
    ):
        with pytest.raises(AiosError, match=rf"^{disk}/state/data/catalog\.sqlite cannot be writ"):
            work()
    assert before <= {entry.ref for entry in at_home.list()}
    make_room(disk)
    assert at_home.add("more", sources / "digits.npz").rows == 36
