"""The reader of tar files in memory, held against the standard library's."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_jupyter.data import tar

NAMES = ["a/1.png", "a/1.cls", "ä" * 40 + ".txt", "long/" * 30 + "x.png", "./b/2.png", "b/empty"]


def archive(form: int, names: list[str] = NAMES, mtime: float = 12.5) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as writer:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        writer.addfile(folder)
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = number * 300, mtime
            writer.addfile(member, io.BytesIO(bytes([number]) * member.size))
    return file.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_the_standard_library_finds(form):
    data = archive(form)
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        wanted = [(m.name, m.offset_data, m.size) for m in reader if m.isfile()]
    found = tar.members(data)
    assert [(m.name, m.start, m.size) for m in found] == wanted
    assert all(m.is_file for m in found)
    assert [data[m.start : m.start + m.size] for m in found][2] == bytes([2]) * 600


def test_links_are_no_files_and_large_sizes_are_read():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as writer:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        writer.addfile(link)
    (found,) = tar.members(file.getvalue())
    assert (found.name, found.is_file) == ("link", False)
    large = tarfile.TarInfo("large")
    large.size = 2**34
    with pytest.raises(ValueError, match="cut off"):
        tar.members(archive(tarfile.GNU_FORMAT)[:512] + large.tobuf(tarfile.GNU_FORMAT))


def test_what_is_compressed_or_no_tar_file_is_left_to_others():
    data = archive(tarfile.USTAR_FORMAT)
    for blob in (gzip.compress(data), b"no tar file" * 500, b"short", b"\0" * 20):
        assert tar.members(blob) is None
    assert tar.members(b"") == []


def test_damage_is_found():
    data = archive(tarfile.USTAR_FORMAT)
    second = tar.members(data)[1].start - 512
    for change in (
        data[: second + 20] + b"X" + data[second + 21 :],
        data[: second + 130] + b"X" + data[second + 131 :],
    ):
        with pytest.raises(ValueError, match="headers is damaged"):
            tar.members(change)
    # Also where it is cut off between two members, as by a writer that was killed.
    for end in (second, second + 100, second + 512):
        with pytest.raises(ValueError, match="cut off"):
            tar.members(data[:end])


@given(st.data())
def test_whatever_is_cut_off_or_changed_ends_in_members_or_an_error(drawn):
    data = bytearray(archive(drawn.draw(st.sampled_from([0, 1, 2])), NAMES[:4]))
    for _ in range(drawn.draw(st.integers(0, 3))):
        data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    data = data[: drawn.draw(st.integers(0, len(data)))]
    try:
        found = tar.members(bytes(data))
    except ValueError:
        return
    for member in found or []:
        assert 0 <= member.start <= member.start + member.size <= len(data)
