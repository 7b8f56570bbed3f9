from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from aios_jupyter.models.batching import Batcher, OverloadedError


class Model:
    """Doubles its input, slowly if asked; remembers the sizes and threads of its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.rows: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        x = inputs["x"]
        self.rows.append(len(x))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if (x < 0).any():
            raise ValueError("negative")
        return {"y": x * 2}


def sample(value: float, rows: int = 1, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), value)}


async def test_requests_that_wait_run_together_and_get_their_own_rows() -> None:
    model = Model(0.05)
    batcher = Batcher(model)
    results = await asyncio.gather(*(batcher.submit(sample(i, rows=i + 1)) for i in range(8)))
    for i, outputs in enumerate(results):
        assert outputs["y"].tolist() == [[2.0 * i]] * (i + 1)
    late = asyncio.gather(*(batcher.submit(sample(i)) for i in range(4)))
    assert len(await late) == 4
    assert model.rows == [36, 4]
    batcher.close()


async def test_an_idle_model_starts_at_once() -> None:
    batcher = Batcher(Model())
    for _ in range(10):  # the first calls measure the model, in a thread
        await batcher.submit(sample(1))
    started = time.perf_counter()
    for _ in range(100):
        await batcher.submit(sample(1))
    assert (time.perf_counter() - started) / 100 < 0.002
    batcher.close()


async def test_requests_that_arrive_meanwhile_form_the_next_batch() -> None:
    model = Model(0.05)
    batcher = Batcher(model)
    first = asyncio.create_task(batcher.submit(sample(1)))
    await asyncio.sleep(0.02)
    rest = [asyncio.create_task(batcher.submit(sample(i))) for i in range(5)]
    await asyncio.gather(first, *rest)
    assert model.rows == [1, 5]
    batcher.close()


async def test_quick_models_run_on_the_loop_and_slow_ones_do_not() -> None:
    for seconds, inline in ((0.0, True), (0.01, False)):
        model = Model(seconds)
        batcher = Batcher(model)
        for _ in range(20):
            await batcher.submit(sample(1))
        model.threads.clear()
        await batcher.submit(sample(1))
        assert (threading.get_ident() in model.threads) is inline
        batcher.close()


async def test_a_bad_request_fails_alone() -> None:
    batcher = Batcher(Model())
    good, bad = batcher.submit(sample(3)), batcher.submit(sample(-1))
    results = await asyncio.gather(good, bad, batcher.submit(sample(4)), return_exceptions=True)
    assert results[0]["y"].tolist() == [[6.0]]  # type: ignore[index,call-overload]
    assert isinstance(results[1], ValueError)
    assert results[2]["y"].tolist() == [[8.0]]  # type: ignore[index,call-overload]
    batcher.close()


async def test_batches_stay_within_their_limit_and_shapes_do_not_mix() -> None:
    model = Model()
    batcher = Batcher(model, max_rows=4)
    wide = [batcher.submit(sample(1, width=2)) for _ in range(3)]
    await asyncio.gather(*(batcher.submit(sample(1)) for _ in range(10)), *wide)
    assert model.rows == [4, 4, 2, 3]
    await batcher.submit(sample(1, rows=9))
    assert model.rows[-1] == 9
    batcher.close()


async def test_a_model_that_mixes_rows_is_not_batched() -> None:
    calls: list[int] = []

    def total(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        calls.append(len(inputs["x"]))
        return {"y": inputs["x"].sum(keepdims=True)}

    batcher = Batcher(total)
    results = await asyncio.gather(*(batcher.submit(sample(i)) for i in range(3)))
    assert [r["y"].item() for r in results] == [0, 1, 2]
    assert calls == [3, 1, 1, 1]
    await asyncio.gather(*(batcher.submit(sample(i)) for i in range(3)))
    assert calls[4:] == [1, 1, 1]
    batcher.close()


async def test_too_many_waiting_is_refused() -> None:
    batcher = Batcher(Model(0.1), max_waiting=2)
    running = asyncio.create_task(batcher.submit(sample(1)))
    await asyncio.sleep(0.02)
    waiting = [asyncio.create_task(batcher.submit(sample(1))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await batcher.submit(sample(1))
    await asyncio.gather(running, *waiting)
    batcher.close()


async def test_a_client_that_went_away_is_not_computed_for() -> None:
    model = Model(0.05)
    batcher = Batcher(model)
    running = asyncio.create_task(batcher.submit(sample(1)))
    await asyncio.sleep(0.02)
    gone = asyncio.create_task(batcher.submit(sample(2)))
    await asyncio.sleep(0)
    gone.cancel()
    await running
    await asyncio.sleep(0.1)
    assert model.rows == [1]
    batcher.close()


pytestmark = pytest.mark.asyncio
