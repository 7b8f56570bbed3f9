"""Run what waits together: batches form while the model is busy, and an idle model never waits.

One `Batcher` belongs to one event loop. A request that finds the model idle starts at once, with
those that arrived in the same turn of the loop; requests that arrive while it runs form the next
batch. Quick models run on the loop itself, where a hand-over to a thread would cost more than the
model does; slower ones run in one thread, so that the loop keeps reading and writing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


class OverloadedError(Exception):
    """So many requests wait already that another would wait too long."""


@dataclass
class _Waiting:
    inputs: Arrays
    rows: int
    shape: tuple[Any, ...]
    done: asyncio.Future[Arrays] = field(repr=False)


class Batcher:
    """Collects requests for `run` and gives each its part of the result.

    Parameters
    ----------
    run
        The model: arrays by input name to arrays by output name. Called from one place at a time.
    batched
        Whether requests may be laid together along the first dimension.
    max_rows
        Samples in a batch at most; a single request with more runs alone.
    max_waiting
        Requests that may wait before `submit` raises `OverloadedError`.
    max_seconds
        What a request may take, None for any time: batches are kept to half of it, and a request
        that would wait for longer is refused at once.
    inline_below
        Seconds: batches expected to be quicker run on the event loop.
    on_batch
        Called with the samples and seconds of each batch that ran.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        *,
        batched: bool = True,
        max_rows: int = 64,
        max_waiting: int = 1024,
        max_seconds: float | None = None,
        inline_below: float = 0.001,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self._run = run
        self.batched = batched
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self._rows_ahead = 0  # that wait or run
        self._inline_below = inline_below
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._active = False
        self._seconds_per_row = inline_below
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return len(self._waiting)

    async def submit(self, inputs: Arrays) -> Arrays:
        """The model's outputs for `inputs` (checked against the signature).

        Raises
        ------
        OverloadedError
            Too many wait already.
        Exception
            What the model raised for these inputs alone.
        """
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        first = next(iter(inputs.values()))
        rows = len(first) if self.batched else 1
        if self._too_late(rows):
            raise OverloadedError
        shape = tuple((name, array.shape[1:]) for name, array in inputs.items())
        item = _Waiting(inputs, rows, shape, loop.create_future())
        self._waiting.append(item)
        self._rows_ahead += rows
        if not self._active:
            self._active = True
            loop.call_soon(self._next)
        return await item.done

    def _too_late(self, rows: int) -> bool:
        """Whether a request would be answered after its time; one that finds nobody is served."""
        if self._max_seconds is None or not self._rows_ahead:
            return False
        return self._seconds_per_row * (self._rows_ahead + rows) > self._max_seconds

    def _most_rows(self) -> int:
        if self._max_seconds is None:
            return self._max_rows
        fitting = int(self._max_seconds / 2 / self._seconds_per_row)
        return max(1, min(self._max_rows, fitting))

    async def drained(self) -> None:
        """Wait until nothing waits or runs."""
        while self._active or self._waiting:  # noqa: ASYNC110  # rare: an event costs each batch
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Wait for the batch that runs, and end the thread."""
        self._thread.shutdown()

    def _next(self) -> None:
        """Start the next batch, or become idle."""
        batch = self._take()
        if not batch:
            self._active = False
            return
        rows = sum(item.rows for item in batch)
        loop = asyncio.get_running_loop()
        if self._seconds_per_row * rows < self._inline_below:
            self._finish(batch, self._results(batch))
        else:
            work = loop.run_in_executor(self._thread, self._results, batch)
            work.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        rows = 0
        most = self._most_rows()
        while self._waiting:
            item = self._waiting[0]
            if item.done.cancelled():  # its client went away
                self._rows_ahead -= self._waiting.popleft().rows
                continue
            fits = rows + item.rows <= most and self.batched
            if batch and not (fits and item.shape == batch[0].shape):
                break
            batch.append(self._waiting.popleft())
            rows += item.rows
        return batch

    def _finish(self, batch: list[_Waiting], results: list[Arrays | Exception]) -> None:
        for item, result in zip(batch, results, strict=True):
            self._rows_ahead -= item.rows
            if item.done.cancelled():
                continue
            if isinstance(result, Exception):
                item.done.set_exception(result)
            else:
                item.done.set_result(result)
        asyncio.get_running_loop().call_soon(self._next)

    def _results(self, batch: list[_Waiting]) -> list[Arrays | Exception]:
        """Each item's outputs, or what the model raised for it."""
        if len(batch) > 1:
            together = self._together(batch)
            if together is not None:
                return together
        return [self._alone(item) for item in batch]

    def _together(self, batch: list[_Waiting]) -> list[Arrays | Exception] | None:
        names = batch[0].inputs
        joined = {name: np.concatenate([item.inputs[name] for item in batch]) for name in names}
        rows = sum(item.rows for item in batch)
        try:
            outputs = self._timed(joined, rows)
        except Exception:  # noqa: BLE001  # one of them is to blame: alone, each gets its own answer or error
            return None
        if any(array.ndim == 0 or len(array) != rows for array in outputs.values()):
            self.batched = False  # it does not give one row for each row it takes
            return None
        parts: list[Arrays | Exception] = []
        start = 0
        for item in batch:
            end = start + item.rows
            parts.append({name: array[start:end] for name, array in outputs.items()})
            start = end
        return parts

    def _alone(self, item: _Waiting) -> Arrays | Exception:
        try:
            return self._timed(item.inputs, item.rows)
        except Exception as error:  # noqa: BLE001  # handed to the request that asked
            return error

    def _timed(self, inputs: Arrays, rows: int) -> Arrays:
        started = time.perf_counter()
        outputs = self._run(inputs)
        seconds = time.perf_counter() - started
        self._seconds_per_row += 0.2 * (seconds / rows - self._seconds_per_row)
        self._on_batch(rows, seconds)
        return outputs
