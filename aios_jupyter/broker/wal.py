"""Whether SQLite would drop commits from a write-ahead log without saying so.

SQLite reads a log up to the first frame whose checksum is wrong and forgets what comes after: right
for a commit that was being written when the machine stopped, wrong for whole commits behind a
damaged one. The format is that of <https://www.sqlite.org/fileformat2.html#walformat>.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER, _FRAME = 32, 24
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}


def damage(log: Path) -> str:
    """What is wrong with a log; "" when nothing but an unfinished commit at its end would go."""
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return ""
    if len(data) < _HEADER:
        return ""
    magic, _, page = struct.unpack_from(">3I", data)
    order = _MAGIC.get(magic)
    if order is None or not 512 <= page <= 65536:
        return "its -wal file is not a log"
    sums = _sums(data[:24], order, (0, 0))
    if sums != struct.unpack_from(">2I", data, 24):
        return "the head of its -wal file is damaged"
    salts = data[16:24]
    bad = 0
    for number, at in enumerate(range(_HEADER, len(data) - _FRAME - page + 1, _FRAME + page), 1):
        if data[at + 8 : at + 16] != salts:
            # Left from before the log was begun anew, as are all that follow.
            bad = bad or number
            continue
        if not bad:
            sums = _sums(data[at : at + 8], order, sums)
            sums = _sums(data[at + _FRAME : at + _FRAME + page], order, sums)
            if sums != struct.unpack_from(">2I", data, at + 16):
                bad = number
        ends_a_commit = data[at + 4 : at + 8] != b"\0\0\0\0"
        if bad and ends_a_commit:
            return f"frame {bad} of its -wal file is damaged"
    return ""


def _sums(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word, after in zip(words, words, strict=True):
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + after + first) & 0xFFFFFFFF
    return first, second
