"""Copies of datasets from one storage to another: in ranges, resumed, limited, and verified.

A leaf module: it imports fsspec, through `storage`.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import ConflictError, UsageError
from . import layout, storage
from .entries import packed_name, packing

Progress = Callable[[int, int], None]
# What a file system tells of a file.
Info = Mapping[str, Any]
RANGE = 4 * 2**20


@dataclass
class Throttle:
    """Keeps a transfer to so many bytes a second; None: as fast as it goes."""

    rate: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    _free_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate <= 0:
            raise UsageError(f"A bandwidth must be above zero, but is {self.rate:g}.")

    def passed(self, count: int) -> None:
        """Say that so many bytes went through; returns when more may."""
        if self.rate is None:
            return
        now = self.clock()
        self._free_at = max(now, self._free_at) + count / self.rate
        self.sleep(self._free_at - now)


def copy(
    source: str,
    form: str,
    target: str,
    *,
    expect: str = "",
    codec: str = "",
    known: Mapping[str, layout.FileCheck] | None = None,
    bandwidth: float | None = None,
    on_progress: Progress | None = None,
) -> layout.Content:
    """Copy a dataset's files, and verify them.

    A copy to a local path that was interrupted goes on where it stopped; one to another storage
    goes on with the files that are not there yet. `target` is written aside and moved, so that a
    partly written file, or on this machine a folder, is never seen.

    Parameters
    ----------
    source, form
        Where the dataset is, and its format.
    target
        A path or URL; a folder for a dataset that is one.
    expect
        The version that the copy must have; "" for any.
    codec
        `gzip` or `zstd` compresses the files that are not, each of whose names gets the ending that says
        so. What they unpack to is then what is verified, and `target` of a single file ends so.
    known
        The hashes of the files, by which a compressed copy to another storage knows what it has sent.
    bandwidth
        At most so many bytes a second.
    on_progress
        Called with bytes done and bytes in all.

    Raises
    ------
    ConflictError
        There is something else at `target`, or the source is no longer what was expected.
    AiosError
        The storage failed in spite of several attempts, or is full.
    """
    if form == layout.DATABASE:
        raise UsageError(
            'A table of a database has no files to copy; keep its rows with: aios sql "SELECT * FROM '
            'NAME" --to NEW'
        )
    fs, path = storage.locate(source)
    with storage.reading(source):
        folder = fs.isdir(path)
        names = layout.list_files(source, form) if folder else [""]
        files = {name: fs.info(storage.joined(path, name)) for name in names}
    called = {name: _called(name, codec) for name in names}
    _check_target(target, folder, set(called.values()), form)
    aside = _folder_aside(f"{codec}{source}", target, files) if folder else None
    place = target if aside is None else str(aside)
    throttle, done, known = Throttle(bandwidth), 0, known or {}
    total = sum(int(info["size"]) for info in files.values())
    for name, info in files.items():

        def advance(count: int, before: int = done) -> None:
            if on_progress is not None:
                on_progress(before + count, total)

        try:
            to = called[name]
            packs = codec if packs_file(storage.joined(source, name), codec) else ""
            if aside is not None and _is_whole(aside / to, info, packs):
                advance(int(info["size"]))
            else:
                one = storage.joined(source, name)
                to = storage.joined(place, to)
                if packs and _has_sent(to, known.get(name)):
                    advance(int(info["size"]))
                else:
                    _copy_file(one, info, to, throttle, advance, packs)
        except OSError as error:
            if aside is not None and error.errno in _FULL:
                shutil.rmtree(aside)
            raise storage.unwritable(storage.joined(target, called[name]), error) from None
        done += int(info["size"])
    found = layout.content(place, form)
    version = found.version if not codec else _unpacked_version(source, place, called)
    if expect and version != expect:
        if aside is not None:
            shutil.rmtree(aside)
        else:
            _remove(target, called.values())
        raise ConflictError(
            f"{source} is not what it was when it was added (it is version {version}, not "
            f"{expect}); add it again, and copy that."
        )
    if aside is not None:
        try:
            aside.rename(target)
        except OSError as error:
            raise storage.unwritable(target, error) from None
    return found


def packs_file(url: str, codec: str) -> bool:
    """Whether a file is compressed on its way: what is compressed already is not."""
    return bool(codec) and not packing(url)


def _called(name: str, codec: str) -> str:
    """What a file of the source is called at the target; "" stays the dataset that is a single file."""
    return packed_name(name, codec) if name and packs_file(name, codec) else name


def _has_sent(target: str, check: layout.FileCheck | None) -> bool:
    """Whether an earlier attempt has left a compressed file at another storage."""
    if check is None or not storage.is_remote(target):
        return False
    from . import packed

    fs, path = storage.locate(target)
    with storage.reaching(target):
        if not fs.exists(path):
            return False
    try:
        with storage.reading(target), fs.open(path, "rb") as file:
            return layout.hashed(packed.opened(file, path))[1:] == (check.size, check.blocks)
    except UsageError:
        # It is something else, which is written over.
        return False


def _unpacked_version(source: str, place: str, called: Mapping[str, str]) -> str:
    """The version of what the files of a compressed copy were before."""
    from . import packed

    fs, root = storage.locate(place)
    digests = []
    for name, to in called.items():
        path = storage.joined(root, to)
        same = packing(storage.joined(source, name)) == packing(path)
        with storage.reading(storage.joined(place, to)), fs.open(path, "rb") as file:
            digests.append((name, layout.hashed(file if same else packed.opened(file, path))[0]))
    return digests[0][1][:12] if "" in called else layout.together(digests)


def _folder_aside(source: str, target: str, files: Mapping[str, Info]) -> Path | None:
    """Where the files of a new local folder are gathered; None where a folder cannot be moved."""
    if storage.is_remote(target) or Path(target).exists():
        return None
    digest = hashlib.sha256(source.encode())
    for name, info in files.items():
        digest.update(f"\0{name}\0{_mark(info)}".encode())
    return Path(target).with_name(f".{Path(target).name}.{digest.hexdigest()[:12]}.partial")


def _is_whole(place: Path, info: Info, codec: str) -> bool:
    """Whether an earlier attempt has moved a file there."""
    return place.is_file() and (bool(codec) or place.stat().st_size == int(info["size"]))


def _check_target(target: str, folder: bool, names: set[str], form: str) -> None:
    fs, path = storage.locate(target)
    with storage.reaching(target):
        if not fs.exists(path):
            return
        if fs.isdir(path) != folder:
            raise ConflictError(f"There is something else at {target}; give another place.")
        if not folder:
            return
        there = {f.removeprefix(path.rstrip("/") + "/") for f in fs.find(path)}
    others = {name for name in there - names if layout.takes(form, name)}
    if others:
        raise ConflictError(
            f"{target} has other files ({min(others)}); give a new folder for the copy."
        )


def _copy_file(
    source: str,
    info: Info,
    target: str,
    throttle: Throttle,
    advance: Callable[[int], None],
    codec: str,
) -> None:
    fs, path = storage.locate(source)
    size = int(info["size"])
    if storage.is_remote(target):
        there, place = storage.locate(target)
        with storage.reaching(target):
            if (
                not codec
                and there.exists(place)
                and int(there.info(place)["size"]) == size
                and _same(fs, path, there, place)
            ):
                advance(size)
                return
        with storage.written_aside(target) as file:
            _ranges(fs, path, source, _Sink(file, codec), 0, size, throttle, advance)
        return
    final = Path(target)
    # What the storage knows of this content: a time, an ETag. It tells a changed file.
    mark = hashlib.sha256(f"{source}\0{_mark(info)}{codec}".encode()).hexdigest()[:12]
    aside = final.with_name(f".{final.name}.{mark}.partial")
    ends = final.with_name(f".{final.name}.{mark}.ends.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        start, there_is = _so_far(aside, ends if codec else None, size)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(aside.open("r+b" if start else "wb"))
            file.truncate(there_is)
            file.seek(there_is)
            advance(start)
            log = stack.enter_context(ends.open("ab" if start else "wb")) if codec else None
            _ranges(fs, path, source, _Sink(file, codec, log), start, size, throttle, advance)
        aside.replace(final)
        ends.unlink(missing_ok=True)
    except OSError as error:
        # What has come so far stays for the next attempt, unless there is no room for it.
        if error.errno in _FULL:
            aside.unlink(missing_ok=True)
            ends.unlink(missing_ok=True)
        raise


def _so_far(aside: Path, ends: Path | None, size: int) -> tuple[int, int]:
    """How many bytes of the source an earlier attempt has done, and how many of the copy that makes.

    Parameters
    ----------
    ends
        Of a compressed copy: where each of its parts ends, each of which is a range of the source.
    """
    there_is = aside.stat().st_size if aside.exists() else 0
    if ends is None:
        return (done := min(there_is, size)), done
    blob = ends.read_bytes() if ends.exists() else b""
    known = [end for (end,) in _END.iter_unpack(blob[: len(blob) // _END.size * _END.size])]
    whole = [end for end in known if end <= there_is]
    # The last one may be that of the rest of the file.
    whole = whole[: size // RANGE]
    if ends.exists():
        with ends.open("r+b") as log:
            log.truncate(len(whole) * _END.size)
    return len(whole) * RANGE, whole[-1] if whole else 0


_END = struct.Struct("<Q")


class _Sink:
    """Where ranges are written, each compressed by itself, so that a copy goes on after any of them."""

    def __init__(self, file: IO[bytes], codec: str, ends: IO[bytes] | None = None) -> None:
        self._file, self._ends = file, ends
        self._pack = None
        if codec:
            from . import packed

            self._pack = packed.packer(codec)

    def write(self, data: bytes) -> int:
        """Write a range; gives the bytes that it takes."""
        blob = data if self._pack is None else self._pack(data)
        self._file.write(blob)
        if self._ends is not None:
            # Only what is there is said to be.
            self._file.flush()
            self._ends.write(_END.pack(self._file.tell()))
            self._ends.flush()
        return len(blob)


_FULL = (28, 122)  # ENOSPC and EDQUOT: no space, or not for this user


def _mark(info: Info) -> str:
    """What tells one content of a file from another without reading it."""
    known = [info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "modificationTime")]
    return f"{info['size']} {known}"


def _same(fs: Any, path: str, there: Any, place: str) -> bool:
    """Whether both files have the same bytes, as far as both storages keep a hash of them."""
    mine, theirs = fs.info(path).get("ETag"), there.info(place).get("ETag")
    # An MD5 of the whole, unless it was uploaded in parts.
    return mine is not None and mine == theirs and "-" not in mine


def _ranges(
    fs: Any,
    path: str,
    url: str,
    sink: _Sink,
    start: int,
    size: int,
    throttle: Throttle,
    advance: Callable[[int], None],
) -> None:
    if size == 0:
        sink.write(b"")
    while start < size:
        end = min(start + RANGE, size)
        with storage.reading(url):
            data = storage.retrying(lambda a=start, b=end: _range(fs, path, a, b))  # type: ignore[misc]
        written = sink.write(data)
        start = end
        advance(start)
        throttle.passed(len(data) if storage.is_remote(url) else written)


def _range(fs: Any, path: str, start: int, end: int) -> bytes:
    data = bytes(fs.cat_file(path, start=start, end=end))
    if len(data) != end - start:
        raise ConnectionError(f"{len(data)} bytes came where {end - start} were asked for")
    return data


def _remove(target: str, names: Iterable[str]) -> None:
    fs, path = storage.locate(target)
    for name in names:
        fs.rm(storage.joined(path, name))
