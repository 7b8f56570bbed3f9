"""What a dataset's bytes hash to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pytest

from aios_jupyter.data import layout


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 25_500])
def test_a_files_hash_is_that_of_its_block_or_of_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(layout, "BLOCK", 1000)
    data = bytes(number * 7 % 251 for number in range(size))
    (tmp_path / "x.bin").write_bytes(data)
    parts = [data[at : at + 1000] for at in range(0, size, 1000)] or [b""]
    digests = [hashlib.sha256(part).digest() for part in parts]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    found = layout.content(str(tmp_path / "x.bin"), "npy")
    (check,) = found.files
    assert found.version == whole.hex()[:12]
    assert (found.size, check.size) == (size, size)
    assert check.blocks == tuple(digest[:16] for digest in digests)


def test_storage_that_gives_less_than_was_asked_for_changes_no_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "BLOCK", 1000)
    data = bytes(range(256)) * 10
    with fsspec.open("memory://hashes/whole", "wb") as file:
        file.write(data)
    usual = layout.content("memory://hashes/whole", "npy")
    memory = fsspec.filesystem("memory")
    opened = memory.open

    def short(*arguments: object, **more: object) -> object:
        file = opened(*arguments, **more)
        read = file.read
        file.read = lambda size=-1: read(min(size, 77))
        return file

    monkeypatch.setattr(type(memory), "open", lambda self, *a, **k: short(*a, **k))
    assert layout.content("memory://hashes/whole", "npy") == usual
