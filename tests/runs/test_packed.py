"""Streams of values with their large buffers aside."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from aios_jupyter.runs import cells
from aios_jupyter.runs.packed import ALIGN, LARGE, MAGIC, Packed, load, mapped, new_memory

LARGE_ONES = {
    "bytes": np.arange(LARGE * 3 + 5, dtype=np.uint8),
    "floats": np.linspace(0, 1, LARGE),
    "fortran": np.asfortranarray(np.arange(LARGE, dtype=np.int32).reshape(64, -1)),
    "fixed": np.arange(LARGE, dtype=np.int64),
    "small": np.arange(3),
    "word": "hello",
}
LARGE_ONES["fixed"].flags.writeable = False  # type: ignore[union-attr]


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype
            assert value.flags.f_contiguous == other[name].flags.f_contiguous
            assert value.flags.writeable == other[name].flags.writeable, name


def test_a_mapping_is_used_in_place_and_is_ones_own() -> None:
    packed = cells.pack(LARGE_ONES, set())
    assert bytes(packed)[: len(MAGIC)] == MAGIC
    fd = new_memory()
    packed.write(fd)
    assert os.fstat(fd).st_size == packed.size
    one, two = load(mapped(fd)), load(mapped(fd))
    same(LARGE_ONES, one)
    one["bytes"][:] = 7
    same(LARGE_ONES, two)
    assert one["floats"].__array_interface__["data"][0] % ALIGN == 0
    assert not one["floats"].flags.owndata
    os.close(fd)


@pytest.mark.parametrize("size", [1000, LARGE, 10**9])
def test_pieces_are_the_stream(size: int) -> None:
    packed = cells.pack(LARGE_ONES, set())
    pieces = list(packed.pieces(size))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert b"".join(pieces) == bytes(packed)
    assert len(bytes(packed)) == packed.size
    same(LARGE_ONES, load(b"".join(pieces)))


def test_without_large_buffers_it_is_a_plain_pickle() -> None:
    packed = cells.pack({"a": np.arange(5)}, set())
    assert len(packed.parts) == 1
    assert bytes(packed)[:1] == b"\x80"
    assert list(Packed(b"", []).pieces(10)) == []


def test_an_array_that_is_there_twice_travels_once() -> None:
    data = np.zeros(LARGE * 10, dtype=np.uint8)
    packed = cells.pack({"a": data, "b": [data, data]}, set())
    assert packed.size < 1.1 * data.nbytes
    back = load(bytearray(bytes(packed)))
    assert back["a"] is back["b"][0]


def test_a_part_of_a_tensor_travels_alone() -> None:
    torch = pytest.importorskip("torch")
    whole = torch.randn(10, LARGE)
    packed = cells.pack({"part": whole[3]}, set())
    assert packed.size < 1.1 * whole[3].nbytes
    assert torch.equal(load(bytes(packed))["part"], whole[3])
