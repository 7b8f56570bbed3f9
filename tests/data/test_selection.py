"""Parts of datasets of each format: every row is in one of them, as it was."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from aios_jupyter.data import sounds, texts
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.data.division import divide
from aios_jupyter.data.formats import encode_image
from aios_jupyter.data.selection import keep
from aios_jupyter.data.shards import samples
from aios_jupyter.errors import UsageError

HALVES = {"a": 0.5, "b": 0.5}


def shard(path: Path, digits: tuple[np.ndarray, np.ndarray], rows: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for row in rows:
            image, label = encode_image(digits[0][row], ".png"), str(digits[1][row]).encode()
            for end, blob in (("png", image), ("cls", label), ("txt", b"note %d" % row)):
                member = tarfile.TarInfo(f"d/{row:04}.{end}")
                member.size = len(blob)
                archive.addfile(member, io.BytesIO(blob))


def told(url: str) -> dict[str, dict[str, bytes]]:
    return {key: {end: bytes(blob) for end, blob in each.items()} for key, each in samples(url)}


def test_shards_are_divided_with_all_files_of_each_sample(
    tmp_path: Path, catalog: Catalog, digits
) -> None:
    shard(tmp_path / "w" / "0.tar", digits, range(150))
    shard(tmp_path / "w" / "deep" / "1.tar", digits, range(150, 290))
    catalog.add("w", tmp_path / "w")
    made = divide("w", HALVES, stratify="label")
    one, two = (told(entry.url) for entry in made.values())
    assert not one.keys() & two.keys()
    assert one | two == told(str(tmp_path / "w"))
    assert {path.name for path in Path(made["a"].url).rglob("*.tar")} == {"0.tar", "1.tar"}
    x, y = catalog.load(made["a"])
    rows = [int(key[2:]) for key in one]
    assert np.array_equal(x, digits[0][rows])
    assert np.array_equal(y, digits[1][rows])
    again = divide("w", HALVES, stratify="label", to="again")
    assert [entry.version for entry in again.values()] == [e.version for e in made.values()]
    with pytest.raises(UsageError, match="--by has no meaning"):
        divide("w", HALVES, by="cls")


def test_equal_images_of_a_shard_are_on_one_side(tmp_path: Path, catalog: Catalog, digits) -> None:
    same = (np.repeat(digits[0][:40], 3, axis=0), np.arange(120) % 10)
    shard(tmp_path / "same.tar", same, range(120))
    catalog.add("same", tmp_path / "same.tar")
    sides = [
        {sample["png"] for sample in told(entry.url).values()}
        for entry in divide("same", HALVES).values()
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40


def test_sounds_are_divided_as_files(tmp_path: Path, catalog: Catalog) -> None:
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "s" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = random.integers(-999, 999, (80, 1), np.int16)
        path.write_bytes(sounds.encode(sounds.Sound(noise, 8000)))
    catalog.add("s", tmp_path / "s")
    made = divide("s", HALVES, stratify="label")
    assert [entry.rows for entry in made.values()] == [10, 10]
    assert all(entry.format == "sounds" and entry.classes == ("a", "b") for entry in made.values())


def test_lines_and_documents_are_divided(tmp_path: Path, catalog: Catalog) -> None:
    lines = [f"line {number} ä" for number in range(40)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    catalog.add("lines", tmp_path / "lines.txt")
    one, two = (list(texts.rows(entry.url)) for entry in divide("lines", HALVES).values())
    assert sorted(one + two) == sorted(lines)
    assert one == [line for line in lines if line in set(one)]
    with pytest.raises(UsageError, match="has nothing to stratify by"):
        divide("lines", HALVES, stratify="label")
    for number, line in enumerate(lines):
        path = tmp_path / "docs" / "ab"[number % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line, encoding="utf-8")
    catalog.add("docs", tmp_path / "docs")
    made = divide("docs", HALVES, stratify="label")
    assert all(entry.classes == ("a", "b") for entry in made.values())
    both = [text for entry in made.values() for text in texts.rows(entry.url)]
    assert sorted(both) == sorted(lines)


def test_an_array_alone_is_divided(tmp_path: Path, catalog: Catalog) -> None:
    np.save(tmp_path / "x.npy", np.arange(60).reshape(20, 3))
    catalog.add("x", tmp_path / "x.npy")
    parts = [catalog.load(entry)[0] for entry in divide("x", HALVES).values()]
    assert sorted(np.concatenate(parts)[:, 0]) == list(range(0, 60, 3))


def test_rows_that_are_kept_say_where_they_come_from(
    tmp_path: Path, catalog: Catalog, digits
) -> None:
    shard(tmp_path / "d.tar", digits, range(10))
    source = catalog.add("d", tmp_path / "d.tar")
    made = keep("d", np.arange(10) < 3, "few", "by hand", catalog)
    assert (made.rows, made.made_from, made.how) == (3, (source.ref,), "by hand")
    assert list(told(made.url)) == ["d/0000", "d/0001", "d/0002"]
