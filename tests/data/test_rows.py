"""Where the rows come from that ranks are fed with: shards, folders, sounds, texts, a bucket."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from s3_server import s3_server

import aios_jupyter
from aios_jupyter.data import cache, credentials, rows, sounds, storage
from aios_jupyter.data.formats import encode_image
from aios_jupyter.errors import AiosError, UsageError

torch = pytest.importorskip("torch")


def write_shards(folder: Path, images, labels, shards: int = 3) -> Path:
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for k in range(shard, len(images), shards):
                files = {"png": encode_image(images[k]), "cls": str(labels[k]).encode()}
                for ending, blob in files.items():
                    member = tarfile.TarInfo(f"{k:05}.{ending}")
                    member.size = len(blob)
                    archive.addfile(member, io.BytesIO(blob))
    return folder


@pytest.fixture
def shards(catalog, digits, tmp_path) -> Path:
    folder = write_shards(tmp_path / "shards", *digits)
    catalog.add("shards", folder)
    return folder


def everything(name, batch_size=29, **options):
    found = list(aios_jupyter.loader(name, batch_size, shuffle=False, **options).arrays())
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


def kept(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "data" / "cache").glob("*/feed-*"))


def test_images_of_shards_are_decoded_once_and_shuffled_as_arrays_are(
    catalog, shards, digits, state, monkeypatch
):
    x, y = everything("shards")
    order = np.concatenate([np.arange(shard, 290, 3) for shard in range(3)])
    assert np.array_equal(x, digits[0][order]) and np.array_equal(y, digits[1][order])
    assert kept(state) == ["feed-x.npy", "feed-y.npy"]
    catalog.add_arrays("same", x, y)
    for shard in shards.iterdir():
        shard.rename(shard.with_suffix(".away"))
    pairs = zip(
        aios_jupyter.loader("shards", 20, seed=4),
        aios_jupyter.loader("same", 20, seed=4),
        strict=True,
    )
    for (one, label), (other, same) in pairs:
        assert torch.equal(one, other) and torch.equal(label, same)


def test_what_does_not_fit_the_cache_is_decoded_as_it_is_taken(shards, digits, state, monkeypatch):
    kept_once = everything("shards")
    cache.drop(next((state / "data" / "cache").glob("*/feed-x.npy")).parent)
    monkeypatch.setattr(cache, "settings", lambda: type("Limit", (), {"cache_limit": 1e-6}))
    again = everything("shards")
    assert all(np.array_equal(a, b) for a, b in zip(kept_once, again, strict=True))
    assert kept(state) == []


def test_ranks_of_a_machine_unpack_once(shards, monkeypatch):
    """The second one finds what the first one has made, whichever comes first."""
    unpacked = []
    plain = rows._unpack_images

    def counted(*arguments):
        unpacked.append(threading.current_thread().name)
        return plain(*arguments)

    monkeypatch.setattr(rows, "_unpack_images", counted)
    ranks = [
        threading.Thread(target=everything, args=("shards",), kwargs={"rank": k, "world_size": 2})
        for k in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(unpacked) == 1


def test_an_epoch_of_shards_goes_on_where_a_checkpoint_was(shards):
    before = aios_jupyter.loader("shards", 16, seed=1)
    running = iter(before)
    seen = [next(running) for _ in range(5)]
    state = before.state_dict()
    running.close()
    after = aios_jupyter.loader("shards", 16, seed=1)
    after.load_state_dict(state)
    whole = list(aios_jupyter.loader("shards", 16, seed=1))
    both = [*seen, *after]
    assert len(both) == len(whole) == 18
    assert all(torch.equal(a[0], b[0]) for a, b in zip(both, whole, strict=True))


def test_images_of_several_sizes_get_one_by_the_policy_the_same_for_any_number_of_ranks(
    catalog, tmp_path, state
):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (20 + k, 30, 3), np.uint8) for k in range(12)]
    catalog.add("mixed", write_shards(tmp_path / "mixed", images, range(12)))
    with pytest.raises(UsageError, match=r"differ in shape.*augment\('resize\(…\)'\)"):
        everything("mixed", 4)
    transform = aios_jupyter.augment("resize(16), rotate(20), noise(0.1)", seed=3)
    whole = dict(of_labels(aios_jupyter.loader("mixed", 4, transform=transform)))
    assert len(whole) == 12 and whole[0].shape == (16, 16, 3)
    for rank in range(2):
        batches = aios_jupyter.loader("mixed", 2, transform=transform, rank=rank, world_size=2)
        for label, image in of_labels(batches):
            assert torch.equal(image, whole[label])
    again = aios_jupyter.loader("mixed", 4, transform=transform)
    list(again)
    assert not all(torch.equal(image, whole[label]) for label, image in of_labels(again))
    assert kept(state) == ["feed-images-differ", "feed-y.npy"]
    with pytest.raises(UsageError, match=r"differ in shape .*resize\(…\) in the policy"):
        next(iter(aios_jupyter.loader("mixed", 4, transform=aios_jupyter.augment("hflip"))))


@pytest.mark.parametrize("labels", [("x", "", "y"), ("0", "", "1")])
def test_rows_of_a_table_without_a_label_are_counted_and_not_made_a_class(
    labels, catalog, tmp_path
):
    path = tmp_path / "some.csv"
    path.write_text("a,label\n" + "".join(f"{a},{label}\n" for a, label in enumerate(labels)))
    catalog.add("some", path)
    refused = r"Row 1 of .*some\.csv has no label \(1 of 3 rows .*drop_missing\(label\)"
    with pytest.raises(UsageError, match=refused):
        everything("some", 1)
    path.write_text("a,label\n" + "".join(f"{a},{label}\n" for a, label in enumerate("xyx")))
    assert catalog.add("some", path).classes == ("x", "y")
    x, y = everything("some", 1)
    assert (x.ravel().tolist(), y.tolist()) == ([0, 1, 2], [0, 1, 0])


def of_labels(batches):
    return [(int(y), x) for xs, ys in batches for x, y in zip(xs, ys, strict=True)]


def test_a_broken_image_of_a_shard_is_named(catalog, shards, digits):
    first = shards / "0.tar"
    blob = first.read_bytes()
    at = blob.index(b"IDAT")
    first.write_bytes(blob[: at - 30] + bytes(60) + blob[at + 30 :])
    with pytest.raises(UsageError, match=r"image at byte 512 of .*0\.tar is not an image"):
        everything(catalog.add("broken", shards))
    first.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(UsageError, match=r"0\.tar is damaged.*cut off"):
        catalog.add("broken", shards)


def test_samples_without_labels_and_compressed_shards(catalog, tmp_path, digits):
    import gzip

    folder = write_shards(tmp_path / "plain", digits[0][:10], digits[1][:10], 1)
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress((folder / "0.tar").read_bytes()))
    assert np.array_equal(catalog.load(packed)[0], digits[0][:10])
    with pytest.raises(UsageError, match=r"packed\.tar is compressed"):
        everything(catalog.add("packed", packed))


def test_folders_are_decoded_once_too_and_tables_and_single_arrays_are_fed(
    catalog, tmp_path, digits, state
):
    for number in range(6):
        path = tmp_path / "photos" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(digits[0][number]))
    catalog.add("photos", tmp_path / "photos")
    found = aios_jupyter.loader("photos", 6, shuffle=False)
    ((x, y),) = found.arrays()
    assert np.array_equal(x, digits[0][[0, 2, 4, 1, 3, 5]]) and y.tolist() == [0, 0, 0, 1, 1, 1]
    assert kept(state) == ["feed-x.npy", "feed-y.npy"]
    (tmp_path / "t.csv").write_text("a,b,label\n1,2.5,x\n3,4.5,w\n")
    catalog.add("table", tmp_path / "t.csv")
    ((x, y),) = aios_jupyter.loader("table", 2, shuffle=False).arrays()
    assert (x.tolist(), x.dtype, y.tolist()) == ([[1, 2.5], [3, 4.5]], np.float32, [1, 0])
    np.save(tmp_path / "a.npy", np.arange(8.0).reshape(4, 2))
    ((x, y),) = aios_jupyter.loader(catalog.add("array", tmp_path / "a.npy"), 4, shuffle=False)
    assert x.tolist() == np.arange(8.0).reshape(4, 2).tolist() and y is None


def test_sounds_and_texts_are_fed_and_augmented(catalog, tmp_path):
    for number in range(4):
        path = tmp_path / "words" / "ny"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.full((50, 1), (number + 1) * 2**13 - 1, np.int16)
        path.write_bytes(sounds.encode(sounds.Sound(samples, 8000)))
    catalog.add("words", tmp_path / "words")
    ((x, y),) = aios_jupyter.loader("words", 4, shuffle=False)
    assert (x.dtype, x.shape, y.tolist()) == (torch.float32, (4, 50), [0, 0, 1, 1])
    assert x[:, 0].tolist() == pytest.approx([0.25, 0.75, 0.5, 1], abs=1e-3)
    soft = aios_jupyter.augment("volume(0.5, 0.5)", of="sound")
    ((half, _),) = aios_jupyter.loader("words", 4, shuffle=False, transform=soft)
    assert torch.allclose(half, x / 2)
    (tmp_path / "lines.txt").write_text("one two\nthree four\n")
    lines = catalog.add("lines", tmp_path / "lines.txt")
    ((x, y),) = aios_jupyter.loader("lines", 2, shuffle=False)
    assert (x, y) == (["one two", "three four"], None)
    swap = aios_jupyter.augment("swap(1)", of="text")
    ((x, _),) = aios_jupyter.loader(lines, 2, shuffle=False, transform=swap)
    assert x == ["two one", "four three"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("s3") / "served"
    (root / "lab").mkdir(parents=True)
    with s3_server(root) as server:
        yield server


def test_shards_of_a_bucket_are_read_from_this_machine_after_the_first_time(
    server, catalog, shards, monkeypatch
):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    credentials.put("lab", server.options)
    catalog.copy("shards", "s3://lab@lab/shards")
    entry = catalog.add("far", "s3://lab@lab/shards")
    near = everything("shards")
    cache.drop(storage.data_dir("cache", entry.version))
    first = everything("far")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "locate", lambda url: pytest.fail(f"{url} was read again"))
        again = everything(entry)
    assert all(np.array_equal(a, b) for a, b in zip(near, first, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(near, again, strict=True))
    cache.drop(storage.data_dir("cache", entry.version))
    monkeypatch.setattr(cache, "settings", lambda: type("Limit", (), {"cache_limit": 1e-6}))
    with pytest.raises(UsageError, match=r"'far' does not fit the cache.*AIOS_CACHE_LIMIT"):
        everything("far")


def test_a_full_disk_while_images_are_unpacked_leaves_no_part_of_them(shards, state, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(rows.arrays, "write_npy", full)
    with pytest.raises(AiosError, match="No space left"):
        everything("shards")
    assert kept(state) == ["feed-y.npy"]
    monkeypatch.undo()


def test_sounds_of_several_lengths_come_as_a_list_to_who_brings_them_to_one(catalog, tmp_path):
    for number, frames in enumerate((50, 80, 60, 80)):
        place = tmp_path / "words" / "ab"[number % 2] / f"{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        samples = np.full((frames, 1), 2**14, np.int16)
        place.write_bytes(sounds.encode(sounds.Sound(samples, 8000)))
    catalog.add("words", tmp_path / "words")

    def padded(x, y):
        assert sorted(map(len, x)) == [50, 60, 80, 80]
        return np.stack([np.pad(one, (0, 80 - len(one))) for one in x]), y

    x, y = everything("words", 4, transform=padded)
    assert (x.dtype, x.shape, y.tolist()) == (np.float32, (4, 80), [0, 0, 1, 1])
    assert x.sum(axis=1).tolist() == [25, 30, 40, 40]
    for transform in (None, aios_jupyter.augment("noise(0.1)", of="sound")):
        with pytest.raises(UsageError, match=r"sounds of words@\w+ differ in length; .*np\.resize"):
            everything("words", 4, transform=transform)


def test_numbers_that_are_missing_are_refused_unless_somebody_does_something(catalog, tmp_path):
    (tmp_path / "t.csv").write_text("a,b,label\n1,NA,0\n2,5,1\n")
    catalog.add("t", tmp_path / "t.csv")
    np.savez(tmp_path / "x.npz", x=np.array([[1.0, np.nan], [3.0, 4.0]]), y=[0, 1])
    catalog.add("x", tmp_path / "x.npz")
    with pytest.raises(UsageError, match=r't\.csv has 1 missing number in .*"fill\(b, median\)"'):
        everything("t", 2)
    with pytest.raises(UsageError, match=r"x\.npz has 1 missing number in 'x'"):
        everything("x", 2)
    for name in ("t", "x"):
        x, _ = everything(name, 2, transform=lambda x, y: (np.nan_to_num(x), y))
        assert np.isfinite(x).all()
