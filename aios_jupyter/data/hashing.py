"""A file that is hashed while it is written, on the cores that the writer leaves free."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any

from .layout import BLOCK, Content, FileCheck

# A thread gets Python's lock back some milliseconds after it wants it: it had better have much to do.
_HANDED_OVER = 4 * BLOCK
_WAITING = 3


class HashedFile:
    """Writes to a file and knows, when all is written, what `layout.content` would find there."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._buffer = bytearray()
        self._size = 0
        self._whole = hashlib.sha256()
        self._blocks: list[bytes] = []
        # One thread for each of the two kinds of hashes, since both go through the bytes in order.
        self._pools = [ThreadPoolExecutor(1, "aios-hash") for _ in range(2)]
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._file.write(data)
        self._buffer += data
        while len(self._buffer) >= _HANDED_OVER:
            self._hand_over()
        return len(data)

    def flush(self) -> None:
        """Write what the file has not written yet."""
        self._file.flush()

    def content(self) -> Content:
        """The hashes of all that was written, as those of a dataset of one file."""
        if self._buffer or not self._size:
            self._hand_over()
        while self._waiting:
            self._waiting.popleft().result()
        check = FileCheck(name="", size=self._size, blocks=tuple(self._blocks))
        return Content(self._whole.hexdigest()[:12], self._size, (check,))

    def _hand_over(self) -> None:
        # Whole blocks, but for the last.
        data = bytes(self._buffer[:_HANDED_OVER])
        del self._buffer[:_HANDED_OVER]
        self._size += len(data)
        for pool, work in zip(self._pools, (self._hash_whole, self._hash_blocks), strict=True):
            self._waiting.append(pool.submit(work, data))
        while len(self._waiting) > 2 * _WAITING:
            self._waiting.popleft().result()

    def _hash_whole(self, data: bytes) -> None:
        self._whole.update(data)

    def _hash_blocks(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data) or 1, BLOCK):
            block = view[start : start + BLOCK]
            self._blocks.append(hashlib.sha256(block).digest()[:16])
