from __future__ import annotations

import io
import zipfile

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from aios_jupyter.data import Catalog, split
from aios_jupyter.data.formats import encode_image
from aios_jupyter.data.storage import written_aside
from aios_jupyter.errors import ConflictError, NotFoundError, UsageError


@pytest.fixture
def npz(tmp_path, digits):
    x, y = digits
    path = tmp_path / "digits.npz"
    np.savez_compressed(path, x=x, y=y)
    return path


def test_mnist_is_there_without_being_added(catalog):
    entry = catalog.get("mnist")
    assert (entry.rows, entry.format, entry.classes) == (10000, "npz", tuple("0123456789"))
    assert entry.schema == {"x": "uint8[28, 28]", "y": "uint8"}
    assert [e.name for e in catalog.list()] == ["mnist"]
    x, y = catalog.load("mnist")
    assert x.shape == (10000, 28, 28)
    assert np.bincount(y).min() > 800
    with pytest.raises(ConflictError, match="comes with the package"):
        catalog.remove("mnist")


def test_what_is_added_is_found_again_in_another_catalogue_object(catalog, npz, digits):
    added = catalog.add("digits", npz)
    entry = Catalog().get("digits")
    assert entry == added
    assert entry.url == str(npz.resolve())
    assert (entry.rows, entry.size) == (290, npz.stat().st_size)
    assert entry.created > 1.7e9
    x, y = catalog.load("digits")
    assert np.array_equal(x, digits[0])
    assert np.array_equal(y, digits[1])
    assert [e.name for e in catalog.list()] == ["digits", "mnist"]


def test_new_content_is_a_new_version_and_old_ones_stay_known(catalog, npz, digits):
    version = catalog.add("digits", npz).version
    first = catalog.add("digits", npz)
    assert first.version == version
    assert len(catalog.versions("digits")) == 1
    np.savez(npz, x=digits[0][:7], y=digits[1][:7])
    second = catalog.add("digits", npz)
    assert second.version != first.version
    assert catalog.get("digits").rows == 7
    assert catalog.get(first.ref) == first
    with pytest.raises(NotFoundError, match=f"no version 'abc'.*{second.version}"):
        catalog.get("digits@abc")


def test_remove_forgets_the_name_and_leaves_the_data(catalog, npz):
    catalog.add("digits", npz)
    catalog.remove("digits")
    assert npz.exists()
    with pytest.raises(NotFoundError, match="no dataset 'digits'"):
        catalog.get("digits")


@pytest.mark.parametrize("verb", ["get", "remove"])
def test_an_unknown_name_suggests_the_nearest(catalog, verb):
    with pytest.raises(NotFoundError) as caught:
        getattr(catalog, verb)("mnits")
    assert str(caught.value) == "There is no dataset 'mnits'; did you mean 'mnist'?"
    with pytest.raises(NotFoundError, match="aios data ls"):
        getattr(catalog, verb)("zzz")


@pytest.mark.parametrize("name", ["", "../x", "a b", "a@1", ".hidden", "a/b", "x" * 101])
def test_a_bad_name_is_a_usage_error(catalog, npz, name):
    with pytest.raises(UsageError, match="cannot be a dataset's name"):
        catalog.add(name, npz)


def test_a_path_or_url_stands_for_a_name(catalog, npz, digits):
    assert catalog.get(npz).rows == 290
    assert catalog.get(f"file://{npz}").url == str(npz)
    blob = npz.read_bytes()
    with fsspec.open("memory://bucket/digits.npz", "wb") as file:
        file.write(blob)
    entry = catalog.get("memory://bucket/digits.npz")
    assert entry.version == catalog.get(npz).version
    assert np.array_equal(catalog.load(entry)[0], digits[0])


def test_arrays_are_stored_with_their_lineage(catalog, digits):
    x, y = digits
    entry = catalog.add_arrays("part", x, y, made_from="mnist", how="every 34th")
    assert entry.made_from == (catalog.get("mnist").ref,)
    assert entry.how == "every 34th"
    assert catalog.get("part") == entry
    back = catalog.load("part")
    assert np.array_equal(back[0], x)
    assert np.array_equal(back[1], y)
    again = catalog.add_arrays("part", x, y)
    assert again.url == entry.url
    only = catalog.add_arrays("numbers", np.arange(6.0).reshape(3, 2))
    assert (only.classes, only.schema) == ((), {"x": "float64[2]"})
    assert catalog.load(only)[1] is None


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((0, 2)), None, "nothing in the array"),
        (np.zeros(3), np.zeros(2), "3 rows but 2 labels"),
        (np.array([{}, {}]), None, "Python objects"),
    ],
)
def test_arrays_that_are_no_dataset_are_usage_errors(catalog, x, y, words):
    with pytest.raises(UsageError, match=words):
        catalog.add_arrays("bad", x, y)
    assert [e.name for e in catalog.list()] == ["mnist"]


def test_an_image_folder_has_a_class_per_subfolder(catalog, photos):
    entry = catalog.add("photos", photos)
    assert (entry.format, entry.rows, entry.classes) == ("folder", 5, ("cat", "dog"))
    with pytest.raises(UsageError, match=r"differ in shape.*resize"):
        catalog.load("photos")
    (photos / "cat" / "a.png").write_bytes((photos / "cat" / "b.png").read_bytes())
    assert catalog.get(photos).version != entry.version


def test_images_of_one_size_load_as_an_array_in_rgb(catalog, tmp_path):
    for name, color in {"blue": (0, 0, 255), "red": (255, 0, 0)}.items():
        path = tmp_path / "flags" / name / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_image(np.full((4, 4, 3), color, np.uint8)))
    x, y = catalog.load(tmp_path / "flags")
    assert x[:, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0]]
    assert y.tolist() == [0, 1]


def write_table(path, **columns):
    parquet.write_table(pa.table(columns), path)
    return path


def test_parquet_images_may_be_files_structures_or_numbers(catalog, tmp_path, digits):
    x = digits[0][:6]
    files = [encode_image(image) for image in x]
    forms = {
        "binary": pa.array(files, pa.binary()),
        "struct": pa.array([{"bytes": blob, "path": "p"} for blob in files]),
        "lists": pa.array(x.tolist(), pa.list_(pa.list_(pa.uint8()))),
    }
    labels = ["even", "odd"] * 3
    for name, column in forms.items():
        path = write_table(tmp_path / f"{name}.parquet", image=column, label=labels)
        entry = catalog.get(path)
        assert (entry.rows, entry.classes) == (6, ("even", "odd"))
        got, y = catalog.load(entry)
        assert got.dtype == np.uint8
        assert np.array_equal(got, x)
        assert y.tolist() == labels


def test_damaged_and_wrong_files_are_named_in_a_sentence(catalog, tmp_path, npz):
    whole = npz.read_bytes()
    cases = {
        "cut.npz": whole[: len(whole) // 2],
        "text.npz": b"hello",
        "empty.npz": b"",
        "text.parquet": b"hello",
    }
    for name, blob in cases.items():
        path = tmp_path / name
        path.write_bytes(blob)
        with pytest.raises(UsageError, match=f"{name} is damaged or not what its name says"):
            catalog.add("x", path)
    broken = bytearray(whole)
    broken[200:400] = bytes(200)
    (tmp_path / "flipped.npz").write_bytes(broken)
    with pytest.raises(UsageError, match=r"flipped\.npz is damaged"):
        catalog.load(tmp_path / "flipped.npz")


def test_pickled_arrays_are_refused(catalog, tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.zeros((2, 4, 4), np.uint8), y=np.array([{}, None], dtype=object))
    with pytest.raises(UsageError, match=r"objects\.npz"):
        catalog.load(path)


def test_arrays_of_other_names_or_lengths_are_usage_errors(catalog, tmp_path):
    path = tmp_path / "odd.npz"
    np.savez(path, a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(UsageError, match="has the arrays a, b"):
        catalog.add("odd", path)
    np.savez(path, x=np.zeros((3, 4, 4)), y=np.zeros(2))
    with pytest.raises(UsageError, match="3 images but 2 labels"):
        catalog.add("odd", path)


def test_what_is_no_dataset_is_a_usage_or_not_found_error(catalog, tmp_path):
    (tmp_path / "notes.doc").write_text("hello")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="not a dataset that can be read"):
        catalog.get(tmp_path / "notes.doc")
    with pytest.raises(UsageError, match="has no images, which are"):
        catalog.get(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="nothing at"):
        catalog.get("./does-not-exist.npz")
    with pytest.raises(UsageError, match="no format 'tiff'"):
        catalog.add("x", tmp_path, format="tiff")
    with pytest.raises(UsageError, match="not a place that can be read"):
        catalog.get("nosuchprotocol://x/y.npz")


def test_an_image_that_cannot_be_read_is_named(catalog, photos):
    (photos / "dog" / "z.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"dog/z\.png in .* is not an image"):
        catalog.load(photos)


def test_a_password_in_a_url_is_refused(catalog):
    with pytest.raises(UsageError, match="password") as caught:
        catalog.add("x", "s3://key:secret@bucket/x.npz")
    assert "secret" not in str(caught.value)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "out.npz"

    def fail() -> None:
        with written_aside(str(target)) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with written_aside(str(target)) as file:
        file.write(b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]


def test_the_same_arrays_give_the_same_npz_that_numpy_reads(digits):
    from aios_jupyter.data.arrays import write_npz

    x, y = digits
    blobs = []
    for blocks in ((x,), (x[:100], x[100:])):
        file = io.BytesIO()
        write_npz(file, x.shape, blocks, y)
        blobs.append(file.getvalue())
    assert blobs[0] == blobs[1]
    assert zipfile.ZipFile(io.BytesIO(blobs[0])).testzip() is None
    with np.load(io.BytesIO(blobs[0])) as archive:
        assert np.array_equal(archive["x"], x)
        assert np.array_equal(archive["y"], y)


def test_a_split_is_stratified_disjoint_and_repeatable():
    y = np.repeat([0, 1, 2], [100, 50, 10])
    x = np.arange(160)
    x_train, y_train, x_test, y_test = split(x, y, holdout=0.2, seed=1)
    assert np.bincount(y_train).tolist() == [80, 40, 8]
    assert np.bincount(y_test).tolist() == [20, 10, 2]
    assert sorted([*x_train, *x_test]) == list(range(160))
    assert np.array_equal(y[x_test], y_test)
    assert np.array_equal(y[x_train], y_train)
    assert np.array_equal(split(x, y, 0.2, seed=1)[2], x_test)
    assert not np.array_equal(split(x, y, 0.2, seed=2)[2], x_test)
    # Not in order of class: the first rows of a test set should show several.
    assert len(set(y_test[:10])) > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 2], [0, 0], 0), "between 0 and 1"),
        (([1, 2], [0, 0], 1), "between 0 and 1"),
        (([1, 2, 3], [0, 0]), "3 rows but labels of shape"),
        (([1, 2, 3], [0, 0, 1]), "Class 1 has a single row"),
    ],
)
def test_a_split_that_makes_no_sense_is_a_usage_error(arguments, words):
    with pytest.raises(UsageError, match=words):
        split(*arguments)


def test_importing_the_catalogue_is_cheap(tmp_path):
    import subprocess
    import sys

    code = "import sys, aios_jupyter.data.catalog as c; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert not {"numpy", "cv2", "pandas", "pyarrow", "fsspec", "distributed"} & set(loaded)
