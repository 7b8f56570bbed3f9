"""The plain headers of a part of a tar file, found and read all at once.

What is not exactly as the usual writers write it is left to who walks from header to header. A leaf
module: it imports numpy.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
FILE, FOLDER, PAX = frozenset(b"0\0" + b"7"), ord("5"), ord("x")

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_MAGIC = np.frombuffer(b"ustar", np.uint8)
_SIZE, _SUM = slice(124, 136), slice(148, 156)
# Of these bits each fourth byte of a word stays; the sum of 64 words of two such bytes has 16 bits.
_EVEN = np.uint64(0x00FF00FF00FF00FF)


@dataclass(frozen=True)
class Part:
    """Headers between two places of a file, where one of them may lie in the data of another.

    Attributes
    ----------
    stop
        Up to where headers were looked for.
    at, next
        Where each header is, and where the one after it is if there is one.
    name, size
        Of the member that it is the header of.
    listed
        Whether it is the header of a file, rather than of a folder or of the times of what follows.
    whole
        Whether its bytes add up to what it says.
    """

    stop: int
    at: Numbers
    next: Numbers
    name: NDArray[np.bytes_]
    size: Numbers
    listed: Flags
    whole: Flags
    _places: list[int]
    _breaks: list[int]

    def run(self, at: int) -> slice | None:
        """The headers from a place on, each where the one before it ends; None where there is none."""
        first = bisect_left(self._places, at)
        if first == len(self._places) or self._places[first] != at:
            return None
        return slice(first, self._breaks[bisect_left(self._breaks, first)] + 1)


def scan(view: Bytes, start: int, stop: int) -> Part:
    """Read all plain headers of a part of a tar file.

    Parameters
    ----------
    view
        All of the file.
    start, stop
        The part; headers are so many whole blocks from its start.
    """
    blocks = view[start : stop - (stop - start) % BLOCK].reshape(-1, BLOCK)
    rows = np.flatnonzero(blocks[:, 257] == _MAGIC[0])
    heads = blocks[rows]
    size, plain = _octal(heads[:, _SIZE], 11)
    said, good = _octal(heads[:, _SUM], 6)
    kind = heads[:, 156]
    name, usual = _names(heads, kind)
    times = kind == PAX
    listed = np.isin(kind, list(FILE))
    at = start + rows * BLOCK
    after = at + BLOCK + -(-size // BLOCK) * BLOCK
    plain &= good & usual & (heads[:, 257:262] == _MAGIC).all(axis=1)
    plain &= (listed | (kind == FOLDER) | times) & (at + BLOCK + size <= len(view))
    only = np.flatnonzero(times & plain)
    plain[only] = _only_times(blocks, rows[only] + 1, size[only])
    kept = np.flatnonzero(plain)
    at, after = at[kept], after[kept]
    breaks = np.flatnonzero(after[:-1] != at[1:]).tolist()
    return Part(
        stop=start + len(blocks) * BLOCK,
        at=at,
        next=after,
        name=name[kept],
        size=size[kept],
        listed=listed[kept],
        whole=(_sums(heads) == said)[kept],
        _places=at.tolist(),
        _breaks=[*breaks, len(at) - 1],
    )


def are_whole(view: Bytes, headers: list[int], said: list[int]) -> bool:
    """Whether the bytes of each header add up to what it says."""
    found = view[np.asarray(headers)[:, None] + np.arange(BLOCK)]
    return np.array_equal(_sums(found), said)


def _sums(heads: Bytes) -> Numbers:
    """The sum of each header's bytes, where that of its own sum counts as spaces."""
    words = heads.view(np.uint64)
    pairs = ((words & _EVEN) + ((words >> np.uint64(8)) & _EVEN)).sum(axis=1)
    sums = pairs.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
    found: Numbers = sums - heads[:, _SUM].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    return found


def _octal(fields: Bytes, digits: int) -> tuple[Numbers, Flags]:
    """Numbers of so many octal digits with zeros or spaces after them, and which fields are such."""
    values = fields[:, :digits] - np.uint8(ord("0"))
    rest = fields[:, digits:]
    plain = (values < 8).all(axis=1) & ((rest == 0) | (rest == ord(" "))).all(axis=1)
    return values.astype(np.int64) @ 8 ** np.arange(digits - 1, -1, -1), plain


def _names(heads: Bytes, kind: Bytes) -> tuple[NDArray[np.bytes_], Flags]:
    """Names that stand in their header as they are, and which do."""
    fields = np.ascontiguousarray(heads[:, :100])
    lengths = np.count_nonzero(fields, axis=1)
    zeros = fields == 0
    ends = np.where(zeros.any(axis=1), zeros.argmax(axis=1), 100)
    last = fields[np.arange(len(fields)), np.maximum(lengths - 1, 0)]
    # POSIX has the beginning of a long name apart; before there were kinds a folder's ended in a slash.
    apart = (heads[:, 345] != 0) & (heads[:, 262] == 0)
    usual = (lengths == ends) & ~apart & ~((kind == 0) & (last == ord("/")))
    width = max(int(lengths.max(initial=0)), 1)
    return np.ascontiguousarray(fields[:, :width]).view(f"S{width}").ravel(), usual


def _only_times(blocks: Bytes, rows: Numbers, sizes: Numbers) -> Flags:
    """Which records of PAX are a single one that tells when a file was changed."""
    found = np.zeros(len(rows), np.bool_)
    here = rows < len(blocks)
    for size in np.unique(sizes[here & (sizes <= BLOCK)]).tolist():
        same = np.flatnonzero(here & (sizes == size))
        record = np.frombuffer(b"%d mtime=" % size, np.uint8)
        found[same] = (blocks[rows[same], : len(record)] == record).all(axis=1)
    return found
