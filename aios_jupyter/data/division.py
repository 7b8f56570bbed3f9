"""Datasets divided into parts for training, validation and testing, by a hash of what each row is.

The same row is on the same side today and when the dataset has grown, whatever its place and however
many workers there are, and rows that are equal are never on two sides. A leaf module: it imports
pandas.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import UsageError
from . import layout, pieces, shards, storage, texts, upkeep
from .catalog import Catalog, Entry, check_name, readable
from .recipe_columns import hashes as row_bits
from .recipe_columns import labels

Hashes = NDArray[np.uint64]


def divide(
    src: str | Entry,
    parts: Mapping[str, float],
    *,
    stratify: str = "",
    by: str = "",
    seed: int = 0,
    to: str = "",
    catalog: Catalog | None = None,
) -> dict[str, Entry]:
    """Divide a dataset: `divide("people", {"train": 0.8, "test": 0.2})` makes `people-train`, ….

    Parameters
    ----------
    parts
        Name and share of each; the shares add up to 1.
    stratify
        A column (of arrays and images, `label`) whose values have these shares in every part, to
        the row. Where data is added later, a row at a boundary may then change sides.
    by
        A column whose rows with the same value stay together, such as a person's id.
    seed
        Another seed is another division.
    to
        What the names begin with, if not with that of `src`.

    Raises
    ------
    UsageError
        The shares make no sense, a part would be empty, or there is no such column.
    """
    catalog = catalog or Catalog()
    entry = catalog.get(src)
    _check_parts(parts)
    stem = to or entry.name
    names = {part: f"{stem}-{part}" for part in parts}
    for name in names.values():
        check_name(name)
    maker = _maker(entry)
    how = f"split: {_written(parts)}" + "".join(
        f", {word} {value}"
        for word, value in (("stratify", stratify), ("by", by), ("seed", seed))
        if value
    )
    with storage.scratch(stem) as room:
        room.mkdir()
        hashes, classes = maker.look(room, by, stratify, seed)
        places = place(hashes, list(parts.values()), classes)
        for number, part in enumerate(parts):
            if not (places == number).any():
                raise UsageError(
                    f"The part '{part}' would be empty: {len(places):,} rows are too few for "
                    f"{_written(parts)}."
                )
        made = {}
        for number, (part, name) in enumerate(names.items()):
            found = maker.make(name, places == number, room, catalog)
            made[part] = catalog.put(
                msgspec.structs.replace(found, made_from=(entry.ref,), how=f"{how}: {part}")
            )
        return made


def _maker(entry: Entry) -> _Maker:
    upkeep.check_unchanged(readable(entry))
    if entry.format in {"npz", "npy", "zarr"}:
        return _Arrays(entry)
    if entry.format == "webdataset":
        return _Shards(entry)
    if entry.format in {"folder", "sounds", "text"}:
        return _Folder(entry) if storage.is_folder(entry.url) else _Lines(entry)
    return _Table(entry)


def parse_parts(text: str) -> dict[str, float]:
    """Read `train=0.8,val=0.1,test=0.1`."""
    found: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, share = piece.partition("=")
        try:
            if not equals or name.strip() in found:
                raise ValueError
            found[name.strip()] = float(share)
        except ValueError:
            raise UsageError(
                f"'{piece}' is no part; write them like train=0.8,val=0.1,test=0.1."
            ) from None
    _check_parts(found)
    return found


def _check_parts(parts: Mapping[str, float]) -> None:
    if len(parts) < 2 or not all(0 < share < 1 for share in parts.values()):
        raise UsageError("A division has two parts or more, each with a share between 0 and 1.")
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise UsageError(
            f"The shares {_written(parts)} add up to {sum(parts.values()):g}; they have to be 1."
        )


def _written(parts: Mapping[str, float]) -> str:
    return ",".join(f"{name}={share:g}" for name, share in parts.items())


def place(
    hashes: Hashes, shares: list[float], classes: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """The part of each row, by its hash; rows of one hash are one.

    Parameters
    ----------
    classes
        Give every class its shares to the row, in the order of the hashes; a hash that several
        classes have counts as its most frequent one.
    """
    edges = np.cumsum(shares)[:-1]
    if classes is None:
        return np.searchsorted(edges, hashes.astype(np.float64) / 2.0**64, side="right")
    keys, inverse, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    counted = pd.DataFrame({"key": inverse, "class": classes}).value_counts().reset_index()
    counted = counted.sort_values(["key", "count", "class"], ascending=[True, False, True])
    own = counted.drop_duplicates("key")["class"].to_numpy()
    found = np.zeros(len(keys), np.int64)
    for value in pd.unique(own):
        # Hashes are in order already; a group counts as many rows as it has, up to its middle.
        members = np.flatnonzero(own == value)
        through = np.cumsum(sizes[members]) - sizes[members] / 2
        found[members] = np.searchsorted(
            np.round(edges * sizes[members].sum()), through, side="right"
        )
    return found[inverse]


def _hashed(texts: NDArray[Any], seed: int) -> Hashes:
    """64 bits of each text; equal texts are hashed once."""
    codes, values = pd.factorize(texts, use_na_sentinel=False)
    bits = np.array([_bits(str(value).encode(), seed) for value in values], np.uint64)
    return np.asarray(bits[codes])


def _bits(blob: bytes, seed: int) -> int:
    digest = hashlib.blake2b(blob, digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big")


class _Maker:
    """Divides data of one kind."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        """Each row's hash and class."""
        raise NotImplementedError

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        """The dataset `name` of these rows, not yet in the catalogue with its lineage."""
        raise NotImplementedError

    def _only_labels(self, by: str, stratify: str, has: bool) -> None:
        if by:
            raise UsageError(f"'{self.entry.name}' has no columns, so that --by has no meaning.")
        if stratify and not has:
            raise UsageError(f"'{self.entry.name}' has no labels to stratify by.")
        if stratify and stratify not in {"label", "labels", "y", "class"}:
            raise UsageError(
                f"'{self.entry.name}' has its labels to stratify by; write --stratify label."
            )


class _Table(_Maker):
    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        self._parts = pieces.parts(self.entry, room)
        hashes, classes = [], []
        for part in self._parts:
            frame = pieces.read(part)
            for column in filter(None, (by, stratify)):
                if column not in frame.columns:
                    raise UsageError(
                        f"There is no column '{column}' in '{self.entry.name}'; there are "
                        f"{', '.join(map(str, frame.columns[:12]))}."
                    )
            if by:
                hashes.append(_hashed(labels(frame[by]), seed))
            else:
                rows = row_bits(frame, f"{seed:016}"[-16:])
                hashes.append(rows.to_numpy(np.uint64))
            if stratify:
                classes.append(labels(frame[stratify]).astype(str))
        self._ends = np.cumsum([len(part) for part in hashes])[:-1]
        return np.concatenate(hashes), np.concatenate(classes) if stratify else None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        files = []
        for number, (part, own) in enumerate(
            zip(self._parts, np.split(rows, self._ends), strict=True)
        ):
            if own.any():
                files.append(room / f"{name}-{number:06}.parquet")
                pieces.write(pieces.read(part)[own], files[-1])
        with storage.scratch(name) as aside:
            pieces.join(files, aside)
            return pieces.keep(aside, name, catalog)


class _Arrays(_Maker):
    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        self._x, self._y = Catalog().load(self.entry)
        self._only_labels(by, stratify, self._y is not None)
        flat = np.ascontiguousarray(self._x.reshape(len(self._x), -1))
        hashes = np.array([_bits(row.tobytes(), seed) for row in flat], np.uint64)
        return hashes, self._y if stratify else None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        return catalog.add_arrays(name, self._x[rows], None if self._y is None else self._y[rows])


class _Folder(_Maker):
    """Images, sounds or documents, whose subfolders are their classes."""

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        self._names = layout.list_files(self.entry.url, self.entry.format)
        self._only_labels(by, stratify, has=bool(layout.file_classes(self._names)))
        blobs = (storage.read_file(self.entry.url, name) for name in self._names)
        hashes = np.array([_bits(blob, seed) for blob in blobs], np.uint64)
        return hashes, np.array([name.split("/")[0] for name in self._names]) if stratify else None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        form = self.entry.format
        with storage.scratch(name) as aside:
            for file in np.array(self._names, object)[rows]:
                self._copy(file, aside / PurePosixPath(file))
            path, _ = layout.adopt(aside, name, "", form)
        return catalog.add(name, path, form)

    def _copy(self, name: str, target: Path) -> None:
        """A hard link where that can be: the same image need not be on the disk twice."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if not storage.is_remote(self.entry.url):
            source = Path(self.entry.url.removeprefix("file://")) / PurePosixPath(name)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
            return
        target.write_bytes(storage.read_file(self.entry.url, name))


class _Lines(_Maker):
    """The lines of a file of text."""

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        if self.entry.format != "text":
            raise UsageError(
                f"'{self.entry.name}' is one sound, which cannot be divided; add a folder of them."
            )
        self._only_labels(by, stratify, has=False)
        bits = [_bits(line.encode(), seed) for line in texts.rows(self.entry.url)]
        return np.array(bits, np.uint64), None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        with storage.scratch(name) as aside:
            with aside.open("w", encoding="utf-8", newline="\n") as file:
                lines = itertools.compress(texts.rows(self.entry.url), rows)
                file.writelines(f"{line}\n" for line in lines)
            path, _ = layout.adopt(aside, name, ".txt", "text")
        return catalog.add(name, path, "text")


class _Shards(_Maker):
    """The samples of WebDataset shards, each of which becomes one for each part."""

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        self._only_labels(by, stratify, has=bool(self.entry.classes))
        root, names = layout.named_files(self.entry.url, "webdataset")
        self._shards = [storage.joined(root, name) for name in names]
        hashes, classes = list[int](), list[str]()
        for _, sample in shards.samples(self.entry.url):
            blob = b"".join(end.encode() + b"\0" + sample[end] for end in sorted(sample))
            hashes.append(_bits(blob, seed))
            classes.append(shards.label_of(sample) or "")
        return np.array(hashes, np.uint64), np.array(classes) if stratify else None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        wanted = iter(rows)
        with storage.scratch(name) as aside:
            aside.mkdir()
            for number, shard in enumerate(self._shards):
                place = aside / f"{name}-{number:06}.tar"
                with tarfile.open(place, "w") as archive:
                    for key, sample in shards.samples(shard):
                        if next(wanted):
                            _add_sample(archive, key, sample)
                    empty = not archive.getmembers()
                if empty:
                    place.unlink()
            path, _ = layout.adopt(aside, name, "", "webdataset")
        return catalog.add(name, path, "webdataset")


def _add_sample(archive: tarfile.TarFile, key: str, sample: Mapping[str, bytes]) -> None:
    for ending, blob in sample.items():
        member = tarfile.TarInfo(f"{key}.{ending}" if ending else key)
        member.size = len(blob)
        archive.addfile(member, io.BytesIO(blob))
