"""Hashes that are made while a file is written, held against those made by reading it."""

from __future__ import annotations

import threading

import pytest

from aios_jupyter.data import hashing, layout


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 4000, 12_345, 40_000])
@pytest.mark.parametrize("step", [50, 7000, 100_000])
def test_they_are_those_of_the_finished_file(size, step, tmp_path, monkeypatch):
    for module in (layout, hashing):
        monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(hashing, "_HANDED_OVER", 4000)
    data = bytes(k * 7 % 251 for k in range(size))
    path = tmp_path / "x.npy"
    with path.open("wb") as file, hashing.HashedFile(file) as hashed:
        for start in range(0, size, step):
            assert hashed.write(data[start : start + step]) == len(data[start : start + step])
        hashed.flush()
        found = hashed.content()
    assert path.read_bytes() == data
    assert found == layout.content(str(path), "npy")


def test_an_error_while_writing_ends_the_threads(tmp_path):
    def broken() -> None:
        with (tmp_path / "x").open("wb") as file, hashing.HashedFile(file) as hashed:
            hashed.write(b"x" * 10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not [t for t in threading.enumerate() if t.name.startswith("aios-hash")]
