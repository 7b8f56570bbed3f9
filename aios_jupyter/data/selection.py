"""Rows of a dataset picked into a dataset of their own, of the same format.

A leaf module: it imports pandas.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import UsageError
from . import layout, pieces, shards, storage, texts
from .catalog import Catalog, Entry
from .recipe_columns import hashes as row_bits
from .recipe_columns import labels

Hashes = NDArray[np.uint64]


def keep(
    src: str | Entry,
    rows: NDArray[np.bool_],
    to: str,
    how: str,
    catalog: Catalog | None = None,
) -> Entry:
    """Keep some rows of a dataset as dataset `to`, whose lineage says `how`.

    Parameters
    ----------
    rows
        (rows,): which.
    """
    catalog = catalog or Catalog()
    entry = catalog.get(src)
    with storage.scratch(to) as room:
        room.mkdir()
        selector = select(entry)
        selector.look(room, "", "", 0)
        found = selector.make(to, rows, room, catalog)
        return catalog.put(msgspec.structs.replace(found, made_from=(entry.ref,), how=how))


def select(entry: Entry) -> Selector:
    """What picks rows of a dataset, by its format."""
    if entry.format in {"npz", "npy", "zarr"}:
        return _Arrays(entry)
    if entry.format == "webdataset":
        return _Shards(entry)
    if entry.format == "text" and not _is_folder(entry):
        return _Lines(entry)
    return (_Files if entry.format in {"folder", "sounds", "text"} else _Table)(entry)


def _is_folder(entry: Entry) -> bool:
    fs, path = storage.locate(entry.url)
    return bool(fs.isdir(path))


def _hashed(texts: NDArray[Any], seed: int) -> Hashes:
    """64 bits of each text; equal texts are hashed once."""
    codes, values = pd.factorize(texts, use_na_sentinel=False)
    bits = np.array([_bits(str(value).encode(), seed) for value in values], np.uint64)
    return np.asarray(bits[codes])


def _bits(blob: bytes, seed: int) -> int:
    digest = hashlib.blake2b(blob, digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big")


class Selector:
    """Picks rows of data of one kind; `look` comes first."""

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
        if stratify and (stratify not in {"label", "labels", "y", "class"} or not has):
            raise UsageError(
                f"'{self.entry.name}' has {'its labels' if has else 'nothing'} to stratify by; "
                "write --stratify label."
            )


class _Table(Selector):
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


class _Arrays(Selector):
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


class _Files(Selector):
    """A row in each file, whose first folder is its class."""

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        self._root, self._names = layout.named_files(self.entry.url, self.entry.format)
        self._only_labels(by, stratify, bool(layout.file_classes(self._names)))
        blobs = (storage.read_file(self._root, name) for name in self._names)
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
        """A hard link where that can be: the same file need not be on the disk twice."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if not storage.is_remote(self._root):
            source = Path(self._root.removeprefix("file://")) / PurePosixPath(name)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
            return
        target.write_bytes(storage.read_file(self._root, name))


class _Lines(Selector):
    """Text with a row in each line."""

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        self._only_labels(by, stratify, has=False)
        bits = (_bits(line.encode(), seed) for line in texts.rows(self.entry.url))
        return np.fromiter(bits, np.uint64), None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        with storage.scratch(name) as aside:
            with aside.open("w", encoding="utf-8", newline="\n") as file:
                for line, own in zip(texts.rows(self.entry.url), rows, strict=True):
                    if own:
                        file.write(f"{line}\n")
            path, _ = layout.adopt(aside, name, ".txt", "text")
        return catalog.add(name, path, "text")


class _Shards(Selector):
    """WebDataset: each shard keeps its name and those of its samples that are picked."""

    def look(
        self, room: Path, by: str, stratify: str, seed: int
    ) -> tuple[Hashes, NDArray[Any] | None]:
        hashes, classes = [], []
        for _, _, sample in self._samples():
            # A row is its image: neither its name nor what is said of it.
            ends = sorted(end for end in sample if f".{end}" in layout.IMAGE_SUFFIXES)
            ends = ends or sorted(sample.keys() - set(shards.LABELS))
            hashes.append(_bits(b"".join(bytes(sample[end]) for end in ends), seed))
            classes.append(shards.label_of(sample))
        self._only_labels(by, stratify, None not in classes)
        return np.array(hashes, np.uint64), np.array(classes) if stratify else None

    def make(self, name: str, rows: NDArray[np.bool_], room: Path, catalog: Catalog) -> Entry:
        with storage.scratch(name) as aside:
            aside.mkdir()
            shard, archive = "", None
            for (place, key, sample), own in zip(self._samples(), rows, strict=True):
                if not own:
                    continue
                if archive is None or place != shard:
                    shard, archive = place, self._opened(aside / PurePosixPath(place), archive)
                for end, blob in sample.items():
                    _write(archive, f"{key}.{end}", bytes(blob))
            if archive is not None:
                archive.close()
            path, _ = layout.adopt(aside, name, "", "webdataset")
        return catalog.add(name, path, "webdataset")

    def _samples(self) -> Iterator[tuple[str, str, Any]]:
        root, names = layout.named_files(self.entry.url, "webdataset")
        for name in names:
            for key, sample in shards.samples(f"{root}/{name}"):
                yield name, key, sample

    def _opened(self, path: Path, before: tarfile.TarFile | None) -> tarfile.TarFile:
        if before is not None:
            before.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        return tarfile.open(path, "w")


def _write(archive: tarfile.TarFile, name: str, blob: bytes) -> None:
    # Without a time: the same rows are the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(blob)
    archive.addfile(member, io.BytesIO(blob))
