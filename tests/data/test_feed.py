"""Batches for ranks, by real torch; several ranks are several loaders here, and processes in tests/session."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import aios_jupyter
from aios_jupyter.data import feed, vault
from aios_jupyter.data.formats import encode_image
from aios_jupyter.errors import NotFoundError, UsageError

torch = pytest.importorskip("torch")


@pytest.fixture
def numbers(catalog) -> str:
    """103 rows that say which they are."""
    x = np.arange(103, dtype=np.float32).reshape(-1, 1)
    catalog.add_arrays("numbers", x, np.arange(103) % 3)
    return "numbers"


def rows(batches) -> list[int]:
    return [int(value) for x, _ in batches for value in x[:, 0]]


def test_ranks_share_each_epoch_and_its_order_is_new(numbers) -> None:
    ranks = [aios_jupyter.loader(numbers, 8, seed=1, rank=rank, world_size=3) for rank in range(3)]
    first = [rows(batches) for batches in ranks]
    assert [len(found) for found in first] == [32, 32, 32]
    assert len({*first[0], *first[1], *first[2]}) == 96
    assert [len(batches) for batches in ranks] == [4, 4, 4]
    second = rows(ranks[0])
    assert ranks[0].epoch == 2
    assert second != first[0]
    other = aios_jupyter.loader(numbers, 8, seed=2, rank=0, world_size=3)
    assert rows(other) != first[0]
    same = aios_jupyter.loader(numbers, 8, seed=1, rank=0, world_size=3)
    assert rows(same) == first[0]


def test_rows_come_with_their_labels_in_order_and_none_is_left_out(numbers) -> None:
    plain = aios_jupyter.loader(numbers, 10, shuffle=False, drop_last=False)
    found = list(plain)
    assert [len(x) for x, _ in found] == [10] * 11
    assert rows(found) == [*range(103), *range(7)]
    for x, y in found:
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(y, x[:, 0].long() % 3)
    halves = [
        aios_jupyter.loader(numbers, 10, drop_last=False, rank=rank, world_size=2)
        for rank in range(2)
    ]
    counts = Counter(rows(halves[0]) + rows(halves[1]))
    assert set(counts) == set(range(103))
    assert len(halves[0]) == len(halves[1]) == 6


@pytest.mark.parametrize("world", [1, 2, 3])
def test_it_goes_on_where_a_checkpoint_was_with_any_number_of_ranks(numbers, world) -> None:
    before = aios_jupyter.loader(numbers, 6, seed=3, rank=0, world_size=2)
    list(before)
    seen, stepped = [], iter(before)
    for _ in range(4):
        seen += rows([next(stepped)])
    state = before.state_dict()
    stepped.close()
    assert state["taken"] == 48
    other = aios_jupyter.loader(numbers, 6, seed=3, rank=1, world_size=2)
    other.load_state_dict({**state, "taken": 0})
    partner = iter(other)
    for _ in range(4):
        seen += rows([next(partner)])
    partner.close()
    assert len(set(seen)) == 48
    left = []
    for rank in range(world):
        after = aios_jupyter.loader(numbers, 6, seed=3, rank=rank, world_size=world)
        after.load_state_dict(state)
        assert after.epoch == 1
        left += rows(after)
        assert after.epoch == 2
    assert len(left) == (55 // (6 * world)) * 6 * world
    assert not set(left) & set(seen)


def test_with_its_last_batch_an_epoch_has_ended(numbers) -> None:
    """A checkpoint there begins with the next epoch, and does not go through an empty one."""
    batches = aios_jupyter.loader(numbers, 8)
    running = iter(batches)
    for _ in range(len(batches)):
        next(running)
    assert batches.state_dict() | {"epoch": 1, "taken": 0} == batches.state_dict()
    assert next(running, None) is None
    assert batches.epoch == 1
    running.close()
    other = aios_jupyter.loader(numbers, 8)
    other.load_state_dict({**batches.state_dict(), "epoch": 4, "taken": 103})
    assert list(other) == []
    assert other.epoch == 5


def test_a_checkpoint_of_something_else_is_refused(catalog, numbers) -> None:
    state = aios_jupyter.loader(numbers, 8).state_dict()
    with pytest.raises(UsageError, match="made with the seed 0, and this loader has 1"):
        aios_jupyter.loader(numbers, 8, seed=1).load_state_dict(state)
    catalog.add_arrays("numbers", np.zeros((50, 1)))
    with pytest.raises(UsageError, match="made with the dataset numbers@"):
        aios_jupyter.loader(numbers, 8).load_state_dict(state)


def test_batches_are_made_ahead_and_no_thread_stays(numbers) -> None:
    made = []

    def slow(x, y):
        made.append(threading.current_thread().name)
        return x, y

    batches = iter(aios_jupyter.loader(numbers, 8, transform=slow))
    next(batches)
    deadline = time.monotonic() + 20
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) == 5
    assert all(name.startswith("aios-feed") for name in made)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("aios-feed")]


def test_waiting_for_data_is_measured(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = feed.Clock()
    with clock:
        now[0] += 50  # before the first batch nothing else could be done
    assert clock.tell() == 0
    now[0] += 3
    with clock:
        now[0] += 1
    assert clock.tell() == 0.25


def test_the_part_that_was_waited_is_shown(numbers, monkeypatch) -> None:
    monkeypatch.setattr(feed.Clock, "tell", lambda self: 0.5)
    batches = aios_jupyter.loader(numbers, 10)
    next(iter(batches))
    assert batches.stall == 0.5


def test_what_a_transform_raises_is_raised_where_the_batch_is_asked_for(numbers) -> None:
    def bad(x, y):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(iter(aios_jupyter.loader(numbers, 8, transform=bad)))


def test_tables_images_and_text_labels_are_fed(catalog, tmp_path: Path) -> None:
    table = pa.table(
        {"a": [1, 2, 3, 4], "b": [True, False, True, False], "label": ["x", "z", "x", "y"]}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    catalog.add("table", tmp_path / "t.parquet")
    ((x, y),) = aios_jupyter.loader("table", 4, shuffle=False)
    assert (x.tolist(), y.tolist()) == ([[1, 1], [2, 0], [3, 1], [4, 0]], [0, 2, 0, 1])
    for name in ("cat/a", "dog/a", "dog/b"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(np.full((4, 5, 3), len(name), np.uint8)))
    catalog.add("photos", tmp_path / "photos")
    ((x, y),) = aios_jupyter.loader("photos", 3, shuffle=False)
    assert (x.shape, x.dtype, y.tolist()) == ((3, 4, 5, 3), torch.uint8, [0, 1, 1])


def test_what_cannot_be_fed_is_a_sentence(catalog, numbers, tmp_path) -> None:
    with pytest.raises(UsageError, match="103 rows, too few for a batch of 60 on each of 2 ranks"):
        aios_jupyter.loader(numbers, 60, rank=0, world_size=2)
    with pytest.raises(UsageError, match="batch_size from 1 on"):
        aios_jupyter.loader(numbers, 0)
    with pytest.raises(NotFoundError, match="did you mean 'numbers'"):
        aios_jupyter.loader("number", 8)
    parquet.write_table(pa.table({"a": ["x", "y"], "label": [0, 1]}), tmp_path / "t.parquet")
    catalog.add("words", tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="column 'a' of 'words' is string and no number"):
        aios_jupyter.loader("words", 1)
    vault.key("me")
    vault.encrypt(numbers, ["me"])
    with pytest.raises(UsageError, match="'numbers' is encrypted"):
        aios_jupyter.loader(numbers, 8)
