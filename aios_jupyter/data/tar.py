"""The members of a plain tar file that lies in memory: what they are called and where they are.

`tarfile` takes longer for the header of a small sample than its bytes take to be read. This reads
what is in shards (ustar, GNU's long names, PAX); all else is left to `tarfile`. A leaf module: it
imports numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BLOCK = 512
_HEADERS_AT_ONCE = 4096
_FILE, _FOLDER = frozenset(b"0\0" + b"7"), ord("5")
_LONG_NAME, _PAX, _PAX_FOR_ALL = ord("L"), ord("x"), ord("g")


class Member(NamedTuple):
    """A member: its name, where its bytes begin, how many there are, and whether it is a file."""

    name: str
    start: int
    size: int
    is_file: bool


def members(data: Any) -> list[Member] | None:
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
    found: list[Member] = []
    headers: list[int] = []
    sums: list[int] = []
    at, end = 0, len(data)
    name, size = "", -1  # of the next member, where a record before it says so
    while at + BLOCK <= end:
        header = data[at : at + BLOCK]
        if header[0] == 0 and not any(header):
            break
        kind = header[156]
        try:
            length = _number(header[124:136])
            sums.append(int(header[148:156].rstrip(b" \0"), 8))
        except ValueError:
            if at == 0:
                return None
            raise ValueError("one of its headers is damaged") from None
        if size >= 0 and kind not in {_PAX, _PAX_FOR_ALL, _LONG_NAME}:
            length = size
        headers.append(at)
        start = at + BLOCK
        at = start + -(-length // BLOCK) * BLOCK
        if start + length > end:
            if len(headers) == 1 and not _whole(data, headers, sums):
                return None
            raise ValueError("it is cut off")
        if kind == _PAX:
            name, size = _extended(data[start : start + length], name, size)
        elif kind == _LONG_NAME:
            name = _text(data[start : start + length])
        elif kind != _PAX_FOR_ALL:
            name = name or _name(header)
            # Before there were kinds a folder's name ended so.
            if kind != _FOLDER and not (kind == 0 and name.endswith("/")):
                found.append(Member(name, start, length, kind in _FILE))
            name, size = "", -1
    if not headers:
        return None if end else []
    if not _whole(data, headers[:1], sums[:1]):
        return None
    _check_end(data, at, headers, sums)
    return found


def _check_end(data: Any, at: int, headers: Sequence[int], sums: Sequence[int]) -> None:
    if not _whole(data, headers, sums):
        raise ValueError("one of its headers is damaged")
    if at + BLOCK > len(data):
        raise ValueError("it is cut off: the blocks of zeros at its end are missing")


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    return int(field.rstrip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU's own format keeps times where this one keeps the beginning of a long name.
    if header[345] and header[257:263] == b"ustar\0":
        return f"{_text(header[345:500])}/{name}"
    return name


def _extended(records: bytes, name: str, size: int) -> tuple[str, int]:
    """Name and size of the next member, where the records of PAX have them."""
    while records:
        count, _, rest = records.partition(b" ")
        length = int(count) - len(count) - 1
        if length <= 0:
            raise ValueError("one of its headers is damaged")
        key, _, value = rest[: length - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            size = int(value)
        records = rest[length:]
    return name, size


def _whole(data: Any, headers: Sequence[int], sums: Sequence[int]) -> bool:
    """Whether the bytes of each header add up to what it says; its own sum counts as spaces."""
    view = np.frombuffer(data, np.uint8)
    for first in range(0, len(headers), _HEADERS_AT_ONCE):
        part = np.asarray(headers[first : first + _HEADERS_AT_ONCE])
        blocks = view[part[:, None] + np.arange(BLOCK)]
        blocks[:, 148:156] = ord(" ")
        if not np.array_equal(
            blocks.sum(axis=1, dtype=np.int64), sums[first : first + _HEADERS_AT_ONCE]
        ):
            return False
    return True
