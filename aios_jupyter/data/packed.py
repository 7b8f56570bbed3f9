"""Text and tables that are compressed, with gzip or Zstandard, as the endings of their names say.

A leaf module: it imports pyarrow, and is imported only where such a file is read or written.
"""

from __future__ import annotations

import atexit
import io
import time
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

import psutil
import pyarrow as pa
from pyarrow import fs as arrow_fs

from ..errors import UsageError
from . import layout, storage
from .entries import Entry, packed_name, packing

# What has no end of a line for so long is no text, but may be a decompression bomb.
LONGEST_LINE = 64 * 2**20
AUTO = "auto"
# With them a disk or a network is slower than one core.
_LEVELS = {"gzip": 6, "zstd": 3}
_PACKED_FORMATS = frozenset({"csv", "jsonl", "text"})
# More than so much of a sample left is not worth that every reader unpacks it.
_PAYS = 0.9
_SAMPLE = 4 * 2**20
_BLOCK = 2**20


def opened(file: IO[bytes], name: str) -> IO[bytes]:
    """A file's bytes as they were before it was compressed; the file itself where it is not."""
    codec = packing(name)
    if not codec:
        return file
    stream: Any = pa.CompressedInputStream(file, codec)
    return io.BufferedReader(stream, _BLOCK)


def lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines of a file that may be compressed.

    Raises
    ------
    UsageError
        A line of a compressed one is longer than any text has.
    """
    if not packing(name):
        yield from file
        return
    unpacked = opened(file, name)
    while line := unpacked.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise UsageError(
                f"{name} unpacks to a line of more than {LONGEST_LINE // 2**20} MiB; if it is no "
                "decompression bomb, break its lines first."
            )
        yield line


def whole(blob: bytes, name: str) -> bytes:
    """All that a file of text unpacks to, if the memory takes it."""
    if not packing(name):
        return blob
    free = psutil.virtual_memory().available // 2
    stream, found, size = opened(io.BytesIO(blob), name), list[bytes](), 0
    while part := stream.read(_BLOCK):
        found.append(part)
        size += len(part)
        if size > free:
            raise UsageError(
                f"{name} unpacks to more than {free / 2**30:.1f} GiB, half of the memory that is "
                "free; use a machine with more, or make it smaller."
            )
    return b"".join(found)


def packer(codec: str) -> Callable[[bytes], bytes]:
    """What compresses a range of a file: a stream by itself, and several after each other are one."""
    made = pa.Codec(codec, compression_level=_LEVELS[codec])
    return lambda data: bytes(made.compress(data, asbytes=True))


def choose(entry: Entry, target: str, wanted: str) -> tuple[str, str]:
    """What to compress a copy of a dataset with, "" for nothing, and how it is made, in words.

    Parameters
    ----------
    target
        Where it goes. A single file whose name says what it is compressed with is that.
    wanted
        `gzip`, `zstd` or `auto`: whether it pays is seen by a sample.

    Raises
    ------
    UsageError
        It is nothing that is read when it is compressed, is compressed already, or `target` says
        something else.
    """
    if wanted not in {*_LEVELS, AUTO}:
        raise UsageError(f"Nothing is compressed with '{wanted}' here; use gzip, zstd or auto.")
    folder, plain = _plain_files(entry)
    has, said = ("", "") if folder else (packing(entry.url), packing(target))
    if not plain:
        already = entry.format in _PACKED_FORMATS
        why = "is compressed already" if already else f"is {entry.format}, which is read as it is"
        if wanted != AUTO or said not in {"", has}:
            where = ", to a place that ends as it does" if said not in {"", has} else ""
            raise UsageError(
                f"'{entry.name or entry.url}' {why}; copy it without --compress{where}."
            )
        return "", f"copy, not compressed: it {why}"
    if said and wanted not in {said, AUTO}:
        raise UsageError(
            f"{target} says by its name that it is compressed with {said}, not {wanted}; give it another."
        )
    if said or wanted != AUTO:
        return said or wanted, f"copy, compressed with {said or wanted}"
    left = _sampled(max(plain, key=lambda file: file[1])[0])
    shrinks = f"a sample shrinks by {1 - left:.0%}" if left < 1 else "a sample does not shrink"
    if left < _PAYS:
        return "zstd", f"copy, compressed with zstd: {shrinks}"
    return "", f"copy, not compressed: {shrinks}"


def placed(entry: Entry, place: str, codec: str) -> str:
    """Where a copy goes: the name of a file says what it is compressed with."""
    fs, path = storage.locate(entry.url)
    folder = fs.isdir(path)
    if codec and folder and place.startswith(f"{storage.data_dir()}/"):
        # Beside a copy as it is.
        return f"{place}-{codec}"
    return place if not codec or folder or packing(place) else packed_name(place, codec)


def _plain_files(entry: Entry) -> tuple[bool, list[tuple[str, int]]]:
    """Whether it is a folder, and place and size of each file that is not compressed."""
    fs, path = storage.locate(entry.url)
    with storage.reading(entry.url):
        folder = bool(fs.isdir(path))
        if entry.format not in _PACKED_FORMATS:
            return folder, []
        names = layout.list_files(entry.url, entry.format) if folder else [""]
        places = [storage.joined(entry.url, name) for name in names]
        return folder, [
            (place, int(fs.info(storage.joined(path, name))["size"]))
            for name, place in zip(names, places, strict=True)
            if not packing(place)
        ]


def _sampled(url: str) -> float:
    """What is left of a file's beginning when it has been compressed, as a part."""
    fs, path = storage.locate(url)
    with storage.reading(url), fs.open(path, "rb") as file:
        sample = file.read(_SAMPLE)
    return len(packer("zstd")(sample)) / len(sample) if sample else 1.0


# Files of Python's that threads of Arrow's have, which read ahead of what is asked for.
_held: weakref.WeakSet[Any] = weakref.WeakSet()
_LONGEST_WAIT = 5.0


def _let_go() -> None:
    """Wait until those threads are done: one that needs an interpreter which is gone aborts, or hangs."""
    until = time.monotonic() + _LONGEST_WAIT
    for file in list(_held):
        file.close()
        # The last one would be held here.
        del file
    busy = True
    while (_held or busy) and time.monotonic() < until:
        before = time.process_time()
        time.sleep(0.01)
        busy = time.process_time() - before > 0.001


class Unpacking(arrow_fs.FSSpecHandler):
    """A file system of fsspec's for Arrow, which sees by itself what gzip has compressed alone."""

    def open_input_file(self, path: str) -> Any:
        if not self.fs.isfile(path):
            raise FileNotFoundError(path)
        atexit.unregister(_let_go)
        atexit.register(_let_go)
        file = self.fs.open(path, "rb")
        _held.add(file)
        opened = pa.PythonFile(file, mode="r")
        if packing(path) != "zstd":
            return opened
        return pa.PythonFile(pa.CompressedInputStream(opened, "zstd"), mode="r")
