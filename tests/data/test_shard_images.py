"""Samples that are found all at once, held against those that are gone through one by one."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_jupyter.data import shard_images, shards, tar
from aios_jupyter.errors import AiosError

ENDINGS = ["png", "cls", "PNG", "jpg", "label", "label.txt", "json", "a.png", ""]
LABELS = [b"3", b"-1", b"cat", b"3\n", b"", b"nan", b"a\0b", b"a\0", b"x" * 70, "ä".encode()]


def shard(files: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as writer:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            writer.addfile(member, io.BytesIO(data))
    return file.getvalue()


@st.composite
def samples(draw):
    """Files of samples: most as they should be, each with an image and a label."""
    folder = draw(st.sampled_from(["", "a/", "ä.b/", "a/b/", "./", "a/../"]))
    stem = draw(st.text(st.sampled_from("xyä"), min_size=1, max_size=3))
    usual = [("png", b"image"), ("cls", draw(st.sampled_from(LABELS)))]
    odd = st.tuples(st.sampled_from(ENDINGS), st.sampled_from(LABELS))
    files = usual if draw(st.integers(0, 3)) else draw(st.lists(odd, min_size=1, max_size=4))
    return [(f"{folder}{stem}.{end}" if end else folder + stem, data) for end, data in files]


def told(work):
    try:
        found = work()
    except AiosError as error:
        return str(error)
    start, size, labels = found.start.tolist(), found.size.tolist(), found.labels
    return start, size, None if labels is None else (labels.dtype.kind, labels.tolist())


@given(st.lists(st.lists(samples(), min_size=1, max_size=6), min_size=1, max_size=3), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_index_is_the_same_however_samples_are_found(tmp_path_factory, found, few):
    folder = tmp_path_factory.mktemp("shards")
    for number, files in enumerate(found):
        (folder / f"{number}.tar").write_bytes(shard([file for sample in files for file in sample]))
    with pytest.MonkeyPatch.context() as patch:
        if few:
            patch.setattr(shard_images, "_ROWS_AT_ONCE", 3)
        at_once = told(lambda: shards.index(str(folder)))
        patch.setattr(shard_images, "find", lambda *_: None)
        assert at_once == told(lambda: shards.index(str(folder)))


def found(files: list[tuple[str, bytes]]):
    data = shard(files)
    return data, shard_images.find(tar.members(data), data, ("cls", "txt"), bytes.decode)


@pytest.mark.parametrize("rows", [2, 8192])
def test_images_and_labels_of_a_usual_shard_are_found_at_once(rows, monkeypatch):
    monkeypatch.setattr(shard_images, "_ROWS_AT_ONCE", rows)
    ends = ("txt", "JPG", "cls")
    files = [(f"v1.0/{n}.{end}", b"%d" % (n % 3)) for n in range(9) for end in ends]
    files[:2] = [("v1.0/0.txt", b"less"), ("v1.0/0.JPG", b"first")]
    data, images = found(files)
    assert [data[a : a + s] for a, s in zip(images.start, images.size, strict=True)][:2] == [
        b"first",
        b"1",
    ]
    assert [images.words[word] for word in images.word] == ["0", "1", "2"] * 3
    _, images = found([("a.png", b"1"), ("b.png", b"1")])
    assert images.words == [] and np.array_equal(images.word, [-1, -1])


@pytest.mark.parametrize(
    "files",
    [
        [("a.png", b""), ("a.cls", b"1"), ("b.cls", b"1")],
        [("a.png", b""), ("a.cls", b"1"), ("b.png", b"")],
        [("a.png", b""), ("a.PNG", b"")],
        [("./a.png", b"")],
        [("/a.png", b"")],
        [("a/../b.png", b"")],
        [("x" * 300 + ".png", b"")],
        [("a.png", b""), ("a.cls", b"")],
        [("a.png", b""), ("a.cls", b"a\0")],
    ],
)
def test_anything_out_of_the_ordinary_is_left_to_who_goes_one_by_one(files):
    assert found(files)[1] is None
