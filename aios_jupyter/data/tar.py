"""The members of a plain tar file that lies in memory: what they are called and where they are.

`tarfile` takes longer for the header of a small sample than its bytes take to be read. This reads
what is in shards (ustar, GNU's long names, PAX); all else is left to `tarfile`. Headers are walked
through one by one, and where members are small, found many at a time. A leaf module: it imports
numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import tar_scan
from .tar_scan import BLOCK, FILE, FOLDER, PAX, Part

# To look at every block of a file costs less than a walk where a header comes this often. Of larger
# members only the headers are read.
_SMALL = 8 * 2**10
# So many headers tell how often they come, and so many bytes are looked at at once.
_PROBE = 32
_PART = 2**20
_SUMS_AT_ONCE = 4096
# Names of which all take the room of the longest.
_WIDEST = 255
_LONG_NAME, _PAX_FOR_ALL = ord("L"), ord("g")


class Member(NamedTuple):
    """A member: its name, where its bytes begin, how many there are, and whether it is a file."""

    name: str
    start: int
    size: int
    is_file: bool


@dataclass(frozen=True)
class Members:
    """Members in order, as columns; to iterate is to go through them one by one.

    Attributes
    ----------
    names
        As bytes, or as objects that are, where some are long.
    """

    names: NDArray[Any]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    is_file: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[Member]:
        columns = (self.start.tolist(), self.size.tolist(), self.is_file.tolist())
        return map(Member, map(_text, self.names.tolist()), *columns)


def members(data: Any) -> Members | None:
    """Members in order, without folders; None where it does not begin as a plain tar file does.

    Parameters
    ----------
    data
        Bytes, or a mapped file.

    Raises
    ------
    ValueError
        It is cut off or damaged.
    """
    chain = _Chain(data)
    try:
        while chain.skip() or chain.step():
            pass
        return chain.members()
    finally:
        # What a traceback keeps must not keep a mapped file from being closed.
        chain.view = np.empty(0, np.uint8)


class _Chain:
    """Header after header, each of which says where the next one is.

    Attributes
    ----------
    at, headers
        Where the next header is, and how many came before it.
    name, size
        Of the next member, where a record before it says so.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.end = data, len(data)
        self.view = np.frombuffer(data, np.uint8)
        self.at = self.headers = 0
        self.name, self.size = b"", -1
        self.is_tar, self.whole = True, True
        # Of headers that were walked: where they are, and what they say that they add up to.
        self._walked: list[int] = []
        self._sums: list[int] = []
        self._found: list[tuple[bytes, int, int, bool]] = []
        self._columns: list[Members] = []
        self._part: Part | None = None
        # Since when headers are counted in order to know how often they come.
        self._since = (0, 0)

    def skip(self) -> bool:
        """Go past plain headers that follow each other, if it is worth a look; whether there were any."""
        if self.name or self.size >= 0 or (self._part is None and self.headers < _PROBE):
            return False
        if self._part is None or self.at >= self._part.stop:
            self._part = self._looked()
        run = self._part.run(self.at) if self._part is not None else None
        if self._part is None or run is None:
            return False
        part, count = self._part, run.stop - run.start
        listed = part.listed[run]
        self._flush()
        start = part.at[run][listed] + BLOCK
        files = np.ones(len(start), np.bool_)
        self._columns.append(Members(part.name[run][listed], start, part.size[run][listed], files))
        self.whole &= bool(part.whole[run].all())
        self.headers += count
        self.at = int(part.next[run.stop - 1])
        return True

    def _looked(self) -> Part | None:
        """The next part, where headers come often enough."""
        at, headers = self._since
        if self.headers - headers < _PROBE:
            return None
        often = self.at - at <= _SMALL * (self.headers - headers)
        self._since = (self.at, self.headers)
        return tar_scan.scan(self.view, self.at, min(self.at + _PART, self.end)) if often else None

    def step(self) -> bool:
        """Read one header, and what it says of the next; whether it was one."""
        if self.at + BLOCK > self.end:
            return False
        header = self.data[self.at : self.at + BLOCK]
        if header[0] == 0 and not any(header):
            return False
        kind = header[156]
        try:
            length = _number(header[124:136])
            said = int(header[148:156].rstrip(b" \0"), 8)
            if length < 0:
                raise ValueError
        except ValueError:
            if self.at == 0:
                self.is_tar = False
                return False
            raise ValueError("one of its headers is damaged") from None
        if self.size >= 0 and kind not in {PAX, _PAX_FOR_ALL, _LONG_NAME}:
            length = self.size
        self._walked.append(self.at)
        self._sums.append(said)
        self.headers += 1
        start = self.at + BLOCK
        self.at = start + -(-length // BLOCK) * BLOCK
        if start + length > self.end:
            if self.headers == 1 and not tar_scan.are_whole(self.view, self._walked, self._sums):
                self.is_tar = False
                return False
            raise ValueError("it is cut off")
        self._read(header, kind, start, length)
        return True

    def _read(self, header: bytes, kind: int, start: int, length: int) -> None:
        if kind == PAX:
            self.name, self.size = _extended(
                self.data[start : start + length], self.name, self.size
            )
        elif kind == _LONG_NAME:
            self.name = self.data[start : start + length].partition(b"\0")[0]
        elif kind != _PAX_FOR_ALL:
            name = self.name or _name(header)
            # Before there were kinds a folder's name ended so.
            if kind != FOLDER and not (kind == 0 and name.endswith(b"/")):
                self._found.append((name, start, length, kind in FILE))
            self.name, self.size = b"", -1

    def members(self) -> Members | None:
        """What was found, once there is no further header."""
        if not self.is_tar or (not self.headers and self.end):
            return None
        if self.headers:
            if not tar_scan.are_whole(self.view, self._walked[:1], self._sums[:1]):
                return None
            self._check_end()
        self._flush()
        return _joined(self._columns)

    def _check_end(self) -> None:
        firsts = range(0, len(self._walked), _SUMS_AT_ONCE)
        parts = (slice(first, first + _SUMS_AT_ONCE) for first in firsts)
        if not self.whole or not all(
            tar_scan.are_whole(self.view, self._walked[part], self._sums[part]) for part in parts
        ):
            raise ValueError("one of its headers is damaged")
        if self.at + BLOCK > self.end:
            raise ValueError("it is cut off: the blocks of zeros at its end are missing")

    def _flush(self) -> None:
        """What was walked through, as columns."""
        if self._found:
            names, start, size, is_file = zip(*self._found, strict=True)
            where = np.array(start, np.int64), np.array(size, np.int64)
            self._columns.append(Members(_array(names), *where, np.array(is_file, np.bool_)))
            self._found = []


def _joined(columns: Sequence[Members]) -> Members:
    if not columns:
        columns = [Members(_array([]), *(np.empty(0, kind) for kind in (np.int64, np.int64, bool)))]
    names = [part.names for part in columns]
    if any(name.dtype == object for name in names):
        names = [name.astype(object) for name in names]
    return Members(
        np.concatenate(names),
        np.concatenate([part.start for part in columns]),
        np.concatenate([part.size for part in columns]),
        np.concatenate([part.is_file for part in columns]),
    )


def _array(names: Sequence[bytes]) -> NDArray[Any]:
    narrow = max(map(len, names), default=0) <= _WIDEST
    return np.array(names, np.bytes_ if narrow else object)


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    return int(field.rstrip(b" \0") or b"0", 8)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's own format keeps times where this one keeps the beginning of a long name.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _extended(records: bytes, name: bytes, size: int) -> tuple[bytes, int]:
    """Name and size of the next member, where the records of PAX have them."""
    while records:
        count, _, rest = records.partition(b" ")
        length = int(count) - len(count) - 1
        if length <= 0:
            raise ValueError("one of its headers is damaged")
        key, _, value = rest[: length - 1].partition(b"=")
        if key == b"path":
            name = value.partition(b"\0")[0]
        elif key == b"size":
            size = int(value)
        records = rest[length:]
    return name, size
