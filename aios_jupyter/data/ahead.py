"""Work that is done before its result is asked for. Imports nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(
    pool: Executor, work: Callable[[Given], Made], given: Iterable[Given], count: int
) -> Generator[Future[Made]]:
    """Futures of the results in order, of which `count` are made before they are asked for."""
    waiting: deque[Future[Made]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(work, one))
            if len(waiting) > count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
