"""The reader of tar files in memory, held against the standard library's."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import mmap
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
    found = list(tar.members(data))
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
    assert list(tar.members(b"")) == []


def test_damage_is_found():
    data = archive(tarfile.USTAR_FORMAT)
    second = list(tar.members(data))[1].start - 512
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


@contextlib.contextmanager
def looking(part: int):
    """Headers are looked for in parts of so many bytes, however large members are; 0: never."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "_PROBE", 1 if part else 2**62)
        patch.setattr(tar, "_PART", part)
        patch.setattr(tar, "_SMALL", 2**62)
        yield


def outcome(data: bytes, part: int):
    with looking(part):
        try:
            found = tar.members(data)
        except ValueError as error:
            return str(error)
    return None if found is None else list(found)


@st.composite
def members(draw):
    kinds = st.sampled_from([tarfile.REGTYPE] * 8 + [tarfile.DIRTYPE, tarfile.SYMTYPE, b"7", b"\0"])
    letters = st.text(st.sampled_from("ab./ä"), min_size=1, max_size=8)
    name = draw(letters | st.sampled_from([letter * 120 for letter in ("x", "y/", "ö")]))
    member = tarfile.TarInfo(name)
    member.type = draw(kinds)
    # A time that is no whole number has a record of its own before the header.
    member.mtime = draw(st.sampled_from([0, 12, 12.5, 1e9 + 0.25]))
    data = draw(
        st.binary(max_size=20) | st.sampled_from([b"u" * 700, archive(0), archive(2)[:4096]])
    )
    # So was a folder called before there were kinds.
    folder = member.type == b"\0" and name.endswith("/")
    has_data = member.type in {tarfile.REGTYPE, b"7", b"\0"} and not folder
    member.size = len(data) if has_data else 0
    if draw(st.integers(0, 9)) == 0:
        member.pax_headers = {"comment": "u" * draw(st.integers(0, 600))}
    return member, data[: member.size]


class Archive(bytes):
    """What a failing test can print."""

    def __repr__(self) -> str:
        with tarfile.open(fileobj=io.BytesIO(self)) as reader:
            return f"{[(m.name, m.type, m.size, m.pax_headers) for m in reader]}"


@st.composite
def archives(draw):
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as writer:
        for member, data in draw(st.lists(members(), min_size=1, max_size=8)):
            if form == tarfile.USTAR_FORMAT and "/" not in member.name[:100]:
                member.name = member.name[:20]
            writer.addfile(member, io.BytesIO(data))
    return Archive(file.getvalue())


@given(archives(), st.sampled_from([512, 1536, 4096, 2**20]))
def test_headers_that_are_looked_for_are_those_that_are_walked_through(data, part):
    found = outcome(data, part)
    assert found == outcome(data, 0)
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        wanted = [(m.name, m.offset_data, m.size) for m in reader if m.isfile()]
    # The standard library takes the slash from the end of a name.
    assert [(m.name.rstrip("/"), m.start, m.size) for m in found if m.is_file] == [
        (name.rstrip("/"), *where) for name, *where in wanted
    ]


@given(st.data())
def test_what_is_odd_or_damaged_is_the_same_to_who_looks_and_who_walks(drawn):
    data = bytearray(drawn.draw(archives()))
    # In headers: what else is changed nobody sees.
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(drawn.draw(st.integers(1, 2))):
        head = drawn.draw(st.sampled_from(heads))
        place = drawn.draw(st.sampled_from([0, 50, 125, 134, 135, 150, 154, 156, 257, 262, 345]))
        data[head + place] = drawn.draw(st.sampled_from(list(b"\0 017-_xLgSu/\x80\xff")))
        if drawn.draw(st.booleans()):
            header = (
                bytes(data[head : head + 148]) + b" " * 8 + bytes(data[head + 156 : head + 512])
            )
            data[head + 148 : head + 155] = b"%06o\0" % sum(header)
    data = bytes(data[: drawn.draw(st.just(len(data)) | st.integers(0, len(data)))])
    part = drawn.draw(st.sampled_from([512, 1536, 4096, 2**20]))
    assert outcome(data, part) == outcome(data, 0)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_oddity_of_a_header_is_the_same_to_who_looks_and_who_walks(form):
    whole = archive(form, ["a/1", "a/2", "a/3"])
    heads = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    # Where names, sizes, sums, kinds, magic and prefixes are, and the records of PAX after them.
    places = [0, 3, 50, 99, 125, 134, 135, 148, 153, 154, 155, 156, 257, 262, 345, 513, 516, 520]
    for head, place in itertools.product(heads[1:4], places):
        for value in b"\0 017-_xgLu/\x80\xff":
            data = bytearray(whole)
            data[head + place] = value
            if not 148 <= place < 156:
                data[head + 148 : head + 156] = b" " * 8
                data[head + 148 : head + 155] = b"%06o\0" % sum(data[head : head + 512])
            assert outcome(bytes(data), 4096) == outcome(bytes(data), 0), (head, place, value)


def test_large_members_are_not_looked_through(monkeypatch):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as writer:
        for number in range(300):
            member = tarfile.TarInfo(f"{number}")
            member.size = 300 if number >= 200 else 2**16
            writer.addfile(member, io.BytesIO(bytes(member.size)))
    looked = []
    scan = tar.tar_scan.scan
    monkeypatch.setattr(
        tar.tar_scan, "scan", lambda view, *part: looked.append(part) or scan(view, *part)
    )
    assert [m.name for m in tar.members(file.getvalue())] == [str(n) for n in range(300)]
    ((start, _),) = looked
    assert start > 200 * 2**16


def test_a_size_below_zero_is_damage():
    data = bytearray(archive(tarfile.USTAR_FORMAT))
    second = list(tar.members(bytes(data)))[1].start - 512
    data[second + 124 : second + 136] = b"-0000001000\0"
    for part in (0, 4096):
        assert outcome(bytes(data), part) == "one of its headers is damaged"


def test_a_damaged_shard_that_is_mapped_is_closed(tmp_path):
    path = tmp_path / "cut.tar"
    path.write_bytes(archive(tarfile.USTAR_FORMAT)[:-4096])
    with path.open("rb") as file, looking(4096), pytest.raises(ValueError, match="cut off"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tar.members(data)
