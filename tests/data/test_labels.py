"""Labels that nothing can be learned from, or that are not those of the catalogue, in each format."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import aios_jupyter
from aios_jupyter.data.augment import augment
from aios_jupyter.data.formats import encode_image
from aios_jupyter.errors import ConflictError, UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
FORMS = ("csv", "jsonl", "parquet")


def fed(name):
    batches = list(aios_jupyter.loader(name, 2, shuffle=False).arrays())
    return [label for _, y in batches for label in y.tolist()]


def write_shard(path, labels):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, label in enumerate(labels):
            files = {"png": encode_image(IMAGES[0])}
            files |= {} if label is None else {"cls": label.encode()}
            for ending, blob in files.items():
                member = tarfile.TarInfo(f"s{number}.{ending}")
                member.size = len(blob)
                archive.addfile(member, io.BytesIO(blob))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_label_of_arrays_that_is_no_number_is_named_and_the_data_can_still_be_looked_at(
    wrong, catalog, tmp_path
):
    y = np.arange(6.0)
    y[3:5] = wrong
    path = tmp_path / "digits.npz"
    np.savez(path, x=IMAGES, y=y)
    entry = catalog.add("digits", path)
    assert np.array_equal(catalog.load(entry)[1], y, equal_nan=True)
    assert entry.fields[1].missing == (2 if np.isnan(wrong) else 0)
    said = rf"^Row 3 of {path} has the label {wrong} \(2 of 6 rows have none that can be used\); re"
    for work in (lambda: fed("digits"), lambda: augment("digits", "more", "hflip")):
        with pytest.raises(UsageError, match=said):
            work()
    with pytest.raises(UsageError, match=r"^Row 3 of the array has the label"):
        augment((IMAGES, y), "more", "hflip")
    keep = np.isfinite(y)
    np.savez(path, x=IMAGES[keep], y=y[keep])
    catalog.add("digits", path)
    assert fed("digits") == [0, 1, 2, 5]


def test_one_of_several_labels_of_a_row_that_is_no_number_is_named(catalog):
    y = np.ones((6, 3))
    y[2, 1] = np.nan
    catalog.add_arrays("boxes", IMAGES, y)
    with pytest.raises(UsageError, match=r"^Row 2 of .*\.npz has the label nan \(1 of 6 rows"):
        fed("boxes")


@pytest.mark.parametrize(
    ("form", "labels", "said"),
    [
        *((form, ["a", None, "b"], "no label .*drop_missing") for form in FORMS),
        *((form, [1.5, np.nan, 2.5], "no label .*drop_missing") for form in FORMS),
        # JSON has no infinite numbers.
        *((form, [1.5, np.inf, 2.5], "the label inf .*repair") for form in ("csv", "parquet")),
    ],
)
def test_the_part_of_a_table_and_the_row_in_it_are_named(form, labels, said, catalog, tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    for part in range(2):
        path = folder / f"{part}.{form}"
        table = pa.table({"a": [1.0, 2.0, 3.0], "label": labels if part else [labels[0]] * 3})
        if form == "parquet":
            parquet.write_table(table, path)
        elif form == "csv":
            table.to_pandas().to_csv(path, index=False)
        else:
            table.to_pandas().to_json(path, orient="records", lines=True)
    catalog.add("people", folder)
    with pytest.raises(UsageError, match=rf"^Row 1 of .*people/1\.{form} has {said}"):
        fed("people")


@pytest.mark.parametrize(
    ("labels", "said"),
    [([1, 2, None], r"1 of 3 rows of .*of them row 2"), ([1.0, 2.0, np.nan], "^Row 2 of .* nan")],
)
def test_images_of_a_table_without_a_label_are_named(labels, said, catalog, tmp_path):
    path = tmp_path / "photos.parquet"
    images = [encode_image(image) for image in IMAGES[:3]]
    parquet.write_table(pa.table({"image": images, "label": labels}), path)
    catalog.add("photos", path)
    with pytest.raises(UsageError, match=said):
        fed("photos")


@pytest.mark.parametrize("wrong", [None, "", "nan\n"])
def test_a_sample_of_a_shard_without_a_label_is_named(wrong, catalog, tmp_path):
    write_shard(tmp_path / "shards" / "0.tar", "0101")
    write_shard(tmp_path / "shards" / "1.tar", ["0", "1", wrong, wrong])
    assert catalog.add("shards", tmp_path / "shards").classes == ("0", "1")
    with pytest.raises(UsageError, match=r"^2 of 8 samples have no label.* s2 in .*shards/1\.tar;"):
        fed("shards")


def test_labels_that_are_none_of_the_classes_of_the_catalogue_are_named(catalog, tmp_path):
    path = tmp_path / "digits.npz"
    np.savez(path, x=IMAGES, y=np.arange(6) % 3)
    catalog.add("digits", path)
    np.savez(path, x=IMAGES, y=np.arange(6) % 4)
    with pytest.raises(ConflictError, match=rf"^Row 3 of {path} has the label 3, .*\(0, 1, 2\)"):
        fed("digits")
    np.savez(path, x=IMAGES[:4], y=np.arange(4) % 3)
    with pytest.raises(ConflictError, match=r"digits\.npz has 4 rows, but had 6 when"):
        fed("digits")
    write_shard(tmp_path / "shards" / "0.tar", ["1", "007"])
    catalog.add("shards", tmp_path / "shards")
    write_shard(tmp_path / "shards" / "0.tar", ["1", "8"])
    with pytest.raises(ConflictError, match=r"0\.tar has the label 8, .*\(1, 007\)"):
        fed("shards")
    write_shard(tmp_path / "shards" / "0.tar", ["1", "007"])
    assert fed("shards") == [1, 7]
    (tmp_path / "pets.csv").write_text("a,label\n1,cat\n2,dog\n")
    catalog.add("pets", tmp_path / "pets.csv")
    (tmp_path / "pets.csv").write_text("a,label\n1,cat\n2,dgo\n")
    with pytest.raises(ConflictError, match=r"^Row 1 of .*pets\.csv has the label dgo, .*cat, dog"):
        fed("pets")


def test_an_image_that_has_another_folder_since_its_dataset_was_added_is_named(catalog, tmp_path):
    for number, image in enumerate(IMAGES):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image))
    catalog.add("pets", tmp_path / "pets")
    (tmp_path / "pets" / "dog" / "5.png").rename(tmp_path / "pets" / "cat" / "5.png")
    with pytest.raises(ConflictError, match=r"cat/5\.png is new in .*pets since that was added"):
        fed("pets")
    catalog.add("pets", tmp_path / "pets")
    assert fed("pets") == [0, 0, 0, 0, 1, 1]
