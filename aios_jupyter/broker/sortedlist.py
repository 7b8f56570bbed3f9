"""A list that stays sorted, in chunks, so that a change costs the same in a short and a long one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])

_LOAD = 256


class SortedList(Generic[T]):
    """Tuples in ascending order, no two of them equal."""

    __slots__ = ("_chunks", "_lasts", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._chunks: list[list[T]] = []
        self._lasts: list[T] = []

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for chunk in self._chunks:
            yield from chunk

    def __contains__(self, item: T) -> bool:
        at = bisect_left(self._lasts, item)
        if at == len(self._chunks):
            return False
        chunk = self._chunks[at]
        place = bisect_left(chunk, item)
        return place < len(chunk) and chunk[place] == item

    def first(self) -> T | None:
        """The least item."""
        return self._chunks[0][0] if self._chunks else None

    def after(self, item: T) -> T | None:
        """The least of those above an item, which may be gone by now."""
        at = bisect_right(self._lasts, item)
        if at == len(self._chunks):
            return None
        chunk = self._chunks[at]
        return chunk[bisect_right(chunk, item)]

    def add(self, item: T) -> None:
        """Put an item in its place."""
        self._size += 1
        if not self._chunks:
            self._chunks.append([item])
            self._lasts.append(item)
            return
        at = min(bisect_left(self._lasts, item), len(self._chunks) - 1)
        chunk = self._chunks[at]
        insort(chunk, item)
        if len(chunk) > 2 * _LOAD:
            self._chunks.insert(at + 1, chunk[_LOAD:])
            del chunk[_LOAD:]
            self._lasts.insert(at, chunk[-1])
            at += 1
        self._lasts[at] = self._chunks[at][-1]

    def remove(self, item: T) -> None:
        """Take out an item that is there."""
        at = bisect_left(self._lasts, item)
        chunk = self._chunks[at]
        place = bisect_left(chunk, item)
        assert chunk[place] == item
        del chunk[place]
        self._size -= 1
        if chunk:
            self._lasts[at] = chunk[-1]
        else:
            del self._chunks[at], self._lasts[at]

    def index(self, item: T) -> int:
        """How many items come before one that is there."""
        at = bisect_left(self._lasts, item)
        return sum(map(len, self._chunks[:at])) + bisect_left(self._chunks[at], item)
