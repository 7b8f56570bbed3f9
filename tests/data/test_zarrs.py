"""Arrays in chunks: of both versions of the format, here and in a bucket; for ranks; damaged; hostile."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from s3_server import s3_server

import aios_jupyter
from aios_jupyter.commands.preview import grid
from aios_jupyter.data import credentials, upkeep, vault, zarrs
from aios_jupyter.data.augment import augment
from aios_jupyter.errors import AiosError, ConflictError, MissingExtraError, UsageError

zarr = pytest.importorskip("zarr")
torch = pytest.importorskip("torch")

FORMS = {"v2": (2, {}), "v3": (3, {}), "shards": (3, {"shards": (80, 28, 28)})}


def write(path, x, y=None, form="v3", chunk=40):
    version, options = FORMS[form]
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    shape = {"shape": x.shape, "chunks": (chunk, *x.shape[1:]), "dtype": x.dtype}
    group.create_array("x", **shape, **options)[:] = x
    if y is not None:
        group.create_array("y", shape=y.shape, chunks=(100,), dtype=y.dtype)[:] = y
    return path


def everything(name, batch_size=29, **options):
    found = list(aios_jupyter.loader(name, batch_size, shuffle=False, **options).arrays())
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


@pytest.mark.parametrize("form", FORMS)
def test_a_group_is_shown_loaded_fed_augmented_copied_and_encrypted(
    form, catalog, digits, tmp_path, state
):
    x, y = digits
    entry = catalog.add("digits", write(tmp_path / "digits.zarr", x, y, form))
    assert (entry.format, entry.rows) == ("zarr", 290)
    assert entry.schema == {"x": "uint8[28, 28]", "y": "uint8"}
    assert entry.classes == tuple(map(str, np.unique(y)))
    field = entry.fields[0]
    assert field.mean == pytest.approx(x.mean()) and field.example == "chunks of 40, 28, 28"
    for found in (catalog.load("digits"), everything("digits")):
        assert np.array_equal(found[0], x) and np.array_equal(found[1], y)
    assert augment("digits", "more", "hflip").rows == 580
    assert grid(entry).startswith(b"\x89PNG")
    copied = catalog.copy("digits", tmp_path / "copies" / "digits")
    assert catalog.get(copied.url).version == entry.version
    vault.key("ana")
    vault.encrypt("digits", ["ana"], "secret")
    assert vault.decrypt("secret", "plain").version == entry.version
    chunk = max(path for path in (tmp_path / "digits.zarr" / "x").rglob("*") if path.is_file())
    blob = chunk.read_bytes()
    chunk.write_bytes(blob[:-3] + b"bad")
    (finding,) = upkeep.verify(catalog, entry, mend=True)
    assert finding.mended and chunk.read_bytes() == blob


def test_an_array_alone_is_a_dataset_and_statistics_are_of_a_sample(catalog, tmp_path):
    x = np.arange(4000.0).reshape(1000, 4)
    array = zarr.create_array(str(tmp_path / "x"), shape=x.shape, chunks=(10, 2), dtype=x.dtype)
    array[:] = x
    entry = catalog.add("alone", tmp_path / "x")
    assert (entry.format, entry.rows, entry.classes) == ("zarr", 1000, ())
    assert entry.fields[0].example == "chunks of 10, 2; statistics of 16 of 100 blocks"
    assert entry.fields[0].mean == pytest.approx(x.mean(), rel=0.1)
    assert np.array_equal(catalog.load("alone")[0], x)
    ((first, none),) = list(aios_jupyter.loader("alone", 1000, shuffle=False))
    assert torch.equal(first, torch.from_numpy(x)) and none is None
    before = entry.version
    array[3, 1] = 0
    assert catalog.add("alone", tmp_path / "x").version != before


def test_ranks_share_an_epoch_that_is_shuffled_among_a_few_blocks_and_resumed(
    catalog, tmp_path, monkeypatch
):
    rows = np.arange(1000)
    catalog.add("numbers", write(tmp_path / "n", rows.reshape(-1, 1).astype("f4"), rows, chunk=20))
    # Four blocks of 80 bytes are kept at a time.
    monkeypatch.setattr(zarrs, "_TOGETHER", 4 * 80)
    read = []
    plain = zarrs.Zarr.read
    monkeypatch.setattr(zarrs.Zarr, "read", lambda *a: read.append(a[1]) or plain(*a))
    ranks = [aios_jupyter.loader("numbers", 10, seed=1, rank=r, world_size=2) for r in range(2)]
    epochs = [[y.tolist() for _, y in batches] for batches in ranks]
    seen = [row for batches in epochs for batch in batches for row in batch]
    assert sorted(seen) == rows.tolist() and seen[:10] != sorted(seen[:10])
    # Each rank has read each block once, however the rows are mixed.
    assert set(Counter(read).values()) == {2} and len(read) == 100
    assert all(len({row // 20 for row in batch}) <= 4 for batch in epochs[0][::8])
    again = aios_jupyter.loader("numbers", 10, seed=1, rank=0, world_size=2)
    running = iter(again)
    begun = [next(running)[1].tolist() for _ in range(20)]
    after = aios_jupyter.loader("numbers", 10, seed=1, rank=0, world_size=2)
    after.load_state_dict(again.state_dict())
    assert begun + [y.tolist() for _, y in after] == epochs[0]
    assert [y.tolist() for _, y in after] != epochs[0]


def test_a_group_in_a_bucket_is_shown_there_and_fed_from_this_machine(catalog, digits, tmp_path):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    near = catalog.add("near", write(tmp_path / "near", *digits, "v2"))
    (tmp_path / "served" / "lab").mkdir(parents=True)
    with s3_server(tmp_path / "served") as server:
        credentials.put("lab", server.options)
        catalog.copy("near", "s3://lab@lab/far")
        entry = catalog.add("far", "s3://lab@lab/far")
        assert (entry.version, entry.fields) == (near.version, near.fields)
        shutil.rmtree(tmp_path / "near")
        found = zarrs.Zarr(entry.url)
        assert np.array_equal(found.read(35, 50), digits[0][35:50])
        assert np.array_equal(found.labels(), digits[1])
        assert np.array_equal(everything("far")[0], digits[0])
    # Once it is here, nobody asks the server.
    assert np.array_equal(everything("far")[0], digits[0])


def test_a_chunk_that_is_damaged_or_gone_is_named(catalog, digits, tmp_path):
    path = write(tmp_path / "digits", *digits)
    catalog.add("digits", path)
    chunk = path / "x" / "c" / "2" / "0" / "0"
    blob = chunk.read_bytes()
    batches = aios_jupyter.loader("digits", 10, shuffle=False)
    chunk.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(UsageError, match=rf"{path} \(rows 80 to 120 of 'x'\) is damaged"):
        list(batches.arrays())
    with pytest.raises(ConflictError, match=rf"^{chunk} has changed since digits@"):
        aios_jupyter.loader("digits", 10)
    chunk.unlink()
    with pytest.raises(ConflictError, match=rf"^x/c/2/0/0 is gone from {path} since .*verify"):
        everything("digits")
    chunk.write_bytes(blob)
    assert np.array_equal(everything("digits")[0], digits[0])


def test_labels_that_do_not_match_or_are_nan_are_refused(catalog, digits, tmp_path):
    with pytest.raises(UsageError, match="has 290 rows but 289 labels"):
        catalog.add("few", write(tmp_path / "few", digits[0], digits[1][:-1]))
    y = digits[1].astype("f4")
    y[7] = np.nan
    catalog.add("none", write(tmp_path / "none", digits[0], y))
    with pytest.raises(UsageError, match=rf"^Row 7 of {tmp_path}/none has the label nan"):
        everything("none")


def test_words_are_labels(catalog, tmp_path):
    group = zarr.open_group(str(tmp_path / "w"), mode="w", zarr_format=2)
    group.create_array("x", shape=(4, 2), chunks=(2, 2), dtype="f4")[:] = 1
    group.create_array("y", shape=(4,), chunks=(4,), dtype="U5")[:] = ["dog", "cat", "dog", "cat"]
    assert catalog.add("words", tmp_path / "w").classes == ("cat", "dog")
    assert everything("words", 4)[1].tolist() == [1, 0, 1, 0]


def test_what_would_run_code_is_refused_before_it_is_read(catalog, tmp_path):
    path = tmp_path / "hostile"
    write(path, np.zeros((10, 2)), form="v2", chunk=10)

    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (path / "x" / "0.0").write_bytes(pickle.dumps(Hostile()))
    known = json.loads((path / "x" / ".zarray").read_text())
    plain = {"filters": None, "compressor": None, "fill_value": None}
    for how in ({"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}):
        for kind in ("<f8", "|O", "<i8"):
            text = json.dumps(known | plain | how | {"dtype": kind})
            (path / "x" / ".zarray").write_text(text)
            with pytest.raises(UsageError, match=str(path)):
                catalog.load(catalog.add("hostile", path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [10**9, 10**9]}, "spread over 500,000,000 chunks"),
        ({"chunks": [10**9, 10**9]}, "unpacks to .* GiB of memory"),
        ({"shape": []}, "is damaged or not what its name says|has no rows"),
        ({"dtype": "<U8", "fill_value": ""}, "not numbers"),
        ({"compressor": {"id": "none-such"}}, "is damaged or not what its name says"),
    ],
)
def test_metadata_that_makes_no_sense_is_a_sentence(change, said, catalog, tmp_path):
    path = write(tmp_path / "odd", np.zeros((10, 2)), form="v2", chunk=5)
    known = json.loads((path / "x" / ".zarray").read_text())
    (path / "x" / ".zarray").write_text(json.dumps(known | change))
    with pytest.raises(AiosError, match=said) as caught:
        catalog.add("odd", path)
    assert str(path) in str(caught.value)
    assert catalog.versions("odd") == []


def test_a_group_without_rows_and_a_missing_library_are_sentences(catalog, tmp_path, monkeypatch):
    group = zarr.open_group(str(tmp_path / "g"), mode="w")
    for name in ("a", "b"):
        group.create_array(name, shape=(4,), chunks=(4,), dtype="f4")
    with pytest.raises(UsageError, match="has the arrays a, b, but a dataset needs 'x'"):
        catalog.add("g", tmp_path / "g")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"zarr is not installed.*aios-jupyter\[zarr\]"):
        catalog.add("g", tmp_path / "g")
