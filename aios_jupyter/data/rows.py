"""Where the rows come from that ranks are fed with: arrays, tables, images, sounds and texts.

Arrays, and images of one size, are unpacked once to a file beside the machine's other cached data,
which its ranks map, so that they are in its memory once. Images that differ in size or are too many
are decoded each time that they are taken. A leaf module: it imports numpy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AiosError, ConflictError, UsageError
from . import arrays, cache, labels, layout, storage, upkeep
from .ahead import ahead
from .catalog import Catalog, Entry

Array = NDArray[Any]
Rows = NDArray[np.int64]

# Rows that are decoded at once while images are unpacked, and how many such blocks ahead.
_BLOCK = 256
_AHEAD = 4
# Images that begin so near to each other in a shard are read together.
_TOGETHER = 16 * 2**10
# So many shards of a dataset are kept open.
_OPEN = 256
_READ = os.O_RDONLY | os.O_CLOEXEC
# Part of a disk's free space that unpacked images may take.
_SPACE = 0.5
_X, _Y, _DIFFER = "feed-x.npy", "feed-y.npy", "feed-images-differ"


class Source:
    """Rows that are taken by their numbers.

    Attributes
    ----------
    what_differs
        What is wrong, and what to do, where the rows of a batch are to be an array and are none.
    """

    rows: int
    what_differs = (
        "images of {} differ in shape; give the loader transform=aios_jupyter.augment('resize(…)'), or "
        "a function of your own."
    )

    def take(self, rows: Rows) -> tuple[Any, Array | None]:
        """`x` and `y` of some rows; `x` is a list where the rows are no array together."""
        raise NotImplementedError

    def order(self, random: np.random.Generator) -> Rows:
        """All rows in a new order, the same on every machine."""
        return random.permutation(self.rows)


def source_of(entry: Entry) -> Source:
    """Where the rows of a dataset come from; what is remote is brought to this machine before.

    Raises
    ------
    UsageError
        Its format has no rows that can be fed.
    ConflictError
        It is not what it was when it was added.
    """
    if storage.is_remote(entry.url):
        # Before it is fetched.
        upkeep.check_unchanged(entry)
        return _source_of(entry)
    source = _source_of(entry)
    # Last, since what is wrong with a row or its label says more.
    upkeep.check_unchanged(entry)
    return source


def _source_of(entry: Entry) -> Source:
    if entry.format in {"folder", "webdataset"}:
        return _images(entry)
    if is_table(entry):
        return _unpacked(entry, _unpack_table)
    if entry.format in {"npz", "npy", "parquet"}:
        return _unpacked(entry, _unpack_arrays)
    if entry.format == "zarr":
        from .zarrs import Blocks

        return Blocks(entry, cache.local(entry))
    if entry.format in {"sounds", "text"}:
        from . import row_files

        if entry.format == "text":
            return row_files.Texts(entry)
        if row_files.differ(entry):
            return row_files.Sounds(entry)
        return _unpacked(entry, _unpack_arrays, _Sounds)
    raise UsageError(
        f"'{entry.name or entry.url}' is {entry.format}, which cannot be fed to ranks."
    )


def is_table(entry: Entry) -> bool:
    """Whether its rows are columns of numbers and words."""
    return entry.format in {"csv", "jsonl", layout.DATABASE} or (
        entry.format == "parquet" and "image" not in entry.schema
    )


# --- arrays


class _Arrays(Source):
    """Arrays that are mapped."""

    def __init__(self, x: Array, y: Array | None) -> None:
        self._x, self._y, self.rows = x, y, len(x)

    def take(self, rows: Rows) -> tuple[Array, Array | None]:
        return self._x[rows], None if self._y is None else self._y[rows]


class _Sounds(_Arrays):
    """Sounds as float32 from -1 to 1."""

    def take(self, rows: Rows) -> tuple[Array, Array | None]:
        from .sounds import as_floats

        x, y = super().take(rows)
        return as_floats(x), y


def _unpacked(
    entry: Entry,
    unpack: Callable[[Entry], tuple[Array, Array | None]],
    kind: type[_Arrays] = _Arrays,
) -> Source:
    """Arrays, unpacked by the first rank of this machine that wants them."""
    found = _mapped(cache.place_of(entry.version), kind)
    if found is None:
        here = cache.local(entry)
        with cache.held(entry.version) as home:
            found = _mapped(home, kind)
            if found is None:
                x, y = unpack(here)
                _check_labels(entry, here, len(x), y)
                upkeep.check_unchanged(entry)
                # It is kept even where it does not fit: without it nothing can be done.
                cache.make_room(x.nbytes, spare=entry.version)
                if y is not None:
                    _save(home / _Y, labels.numbered(y))
                _save(home / _X, x)
                found = _mapped(home, kind)
    assert found is not None
    return found


def _check_labels(entry: Entry, here: Entry, rows: int, y: Array | None) -> None:
    """Refuse labels that cannot be learned, and data that is not what the catalogue knows."""
    table, mend = is_table(entry), ""
    if table:
        from .tables import LABELS

        name = next((name for name in LABELS if name in entry.schema), "label")
        mend = f'leave them out first: aios data clean NAME -o NEW --steps "drop_missing({name})"'

    def where(row: int) -> str:
        if not table or entry.format == layout.DATABASE:
            return f"Row {row:,} of {entry.url}"
        from .tables import part_of

        part, within = part_of(here.url, entry.format, row)
        return f"Row {within:,} of {storage.joined(entry.url, part)}"

    labels.check_usable(y, where, mend)
    # A table of a database may grow; of sounds the labels are numbers of folders.
    if entry.format != layout.DATABASE:
        labels.check_known(entry, rows, None if entry.format == "sounds" else y, where)


def _mapped(home: Path, kind: type[_Arrays] = _Arrays) -> Source | None:
    """What has been unpacked before."""
    # `x` is written last: with it, `y` is whole too.
    with contextlib.suppress(FileNotFoundError):
        x = np.load(home / _X, mmap_mode="r").view(np.ndarray)
        return kind(x, np.load(home / _Y) if (home / _Y).exists() else None)
    return None


def _save(path: Path, array: Array) -> None:
    with storage.written_aside(str(path)) as file:
        np.save(file, array, allow_pickle=False)


def _unpack_arrays(entry: Entry) -> tuple[Array, Array | None]:
    from .formats import load

    return load(entry.url, entry.format)


def _unpack_table(entry: Entry) -> tuple[Array, Array | None]:
    from .tables import LABELS, frame

    table = frame(entry.url, entry.format)
    label = next((name for name in LABELS if name in table.columns), None)
    columns = []
    for name in table.columns:
        if name == label:
            continue
        values = table[name].to_numpy()
        if values.dtype.kind not in "iufb":
            raise UsageError(
                f"The column '{name}' of '{entry.name}' is {entry.schema.get(name)} and no "
                "number; make features first: aios data features."
            )
        columns.append(values.astype(np.float32))
    if not columns:
        raise UsageError(f"'{entry.name}' has no column besides its label.")
    return np.stack(columns, axis=1), None if label is None else table[label].to_numpy()


# --- images


class _Encoded(Source):
    """Images that are decoded as they are taken."""

    y: Array | None

    def blobs(self, rows: Rows) -> list[bytes]:
        """The files of some images."""
        raise NotImplementedError

    def what(self, row: int) -> str:
        """What an image is called where something is wrong with it."""
        raise NotImplementedError

    def check(self, entry: Entry) -> None:
        """Refuse what is not as it was when it was added."""
        raise NotImplementedError

    def take(self, rows: Rows) -> tuple[Array | list[Array], Array | None]:
        from .formats import decode_image

        found = zip(rows.tolist(), self.blobs(rows), strict=True)
        images = [decode_image(blob, self.what(row)) for row, blob in found]
        alike = len({image.shape for image in images}) == 1
        return np.stack(images) if alike else images, None if self.y is None else self.y[rows]


class _Folder(_Encoded):
    """Images of a folder with a subfolder for each class, or without classes."""

    def __init__(self, entry: Entry) -> None:
        self._url = entry.url
        self._names = layout.list_images(entry.url)
        classes = {name: n for n, name in enumerate(layout.file_classes(self._names))}
        numbers = [classes[name.split("/")[0]] for name in self._names if classes]
        self.y = np.array(numbers, np.int64) if classes else None
        self.rows = len(self._names)

    def blobs(self, rows: Rows) -> list[bytes]:
        return [storage.read_file(self._url, self._names[row]) for row in rows.tolist()]

    def what(self, row: int) -> str:
        return f"{self._names[row]} in {self._url}"

    def check(self, entry: Entry) -> None:
        known = {check.name for check in Catalog().checks(entry)}
        if known and (others := known.symmetric_difference(self._names)):
            name = min(others)
            now = "is gone from" if name in known else "is new in"
            raise ConflictError(
                f"{name} {now} {entry.url} since that was added; add it again, since its subfolders are "
                "its labels."
            )
        labels.check_known(entry, self.rows, None)


class _Shards(_Encoded):
    """Images of WebDataset's shards, each read where it lies."""

    def __init__(self, entry: Entry) -> None:
        from . import shards

        self._index = shards.index(entry.url)
        known = self._index.labels
        self.y = None if known is None else labels.numbered(known)
        self.rows = len(self._index.start)
        # Opened at once: a copy in the cache may be dropped, and stays readable to who has it open.
        self._open = {p: os.open(p, _READ) for p in self._index.shards[:_OPEN]}
        weakref.finalize(self, _close, tuple(self._open.values()))

    def blobs(self, rows: Rows) -> list[bytes]:
        index, found = self._index, list[bytes]()
        shard, start, size = index.shard[rows], index.start[rows], index.size[rows]
        stop = start + size
        between = start[1:] - stop[:-1]
        near = (shard[1:] == shard[:-1]) & (between >= 0) & (between + size[1:] < _TOGETHER)
        firsts = np.flatnonzero(np.concatenate(([True], ~near)))
        lasts = np.append(firsts[1:], len(rows)) - 1
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            begin = int(start[first])
            block = self._read(index.shards[shard[first]], begin, int(stop[last]) - begin)
            spans = zip(
                start[first : last + 1].tolist(), stop[first : last + 1].tolist(), strict=True
            )
            found += [block[at - begin : to - begin] for at, to in spans]
        return found

    def _read(self, place: str, start: int, size: int) -> bytes:
        file = self._open.get(place)
        if file is not None:
            return os.pread(file, size, start)
        file = os.open(place, _READ)
        try:
            return os.pread(file, size, start)
        finally:
            os.close(file)

    def what(self, row: int) -> str:
        index = self._index
        return f"The image at byte {index.start[row]} of {index.shards[index.shard[row]]}"

    def check(self, entry: Entry) -> None:
        labels.check_known(entry, self.rows, self._index.labels, self.what)


def _close(files: tuple[int, ...]) -> None:
    for file in files:
        os.close(file)


class _DifferError(AiosError):
    """Images of several shapes."""


def _images(entry: Entry) -> Source:
    found = _mapped(cache.place_of(entry.version))
    if found is not None:
        return found
    here = cache.local(entry)
    if entry.format == "webdataset" and storage.is_remote(here.url):
        raise UsageError(
            f"'{entry.name or entry.url}' does not fit the cache of this machine; raise "
            "AIOS_CACHE_LIMIT (GiB), or copy it here with: aios data cp."
        )
    encoded = _Folder(here) if entry.format == "folder" else _Shards(here)
    encoded.check(entry)
    upkeep.check_unchanged(entry)
    with cache.held(entry.version) as home:
        # Another rank may have unpacked them in the meantime.
        return _mapped(home) or _unpack_images(entry.version, encoded, home) or encoded


def _unpack_images(version: str, encoded: _Encoded, home: Path) -> Source | None:
    """Decode all images to a file; None where they do not fit, or differ in shape."""
    if (home / _DIFFER).exists():
        return None
    first = encoded.take(np.arange(1))[0][0]
    need = first.nbytes * encoded.rows
    if need > _SPACE * shutil.disk_usage(home).free or not cache.make_room(need, spare=version):
        return None
    if encoded.y is not None:
        _save(home / _Y, encoded.y)
    try:
        with storage.written_aside(str(home / _X)) as file:
            shape = (encoded.rows, *first.shape)
            arrays.write_npy(file, shape, _blocks(encoded, first.shape))
    except _DifferError:
        (home / _DIFFER).touch()
        return None
    return _mapped(home)


def _blocks(encoded: _Encoded, shape: tuple[int, ...]) -> Iterator[Array]:
    def decode(first: int) -> Array:
        images, _ = encoded.take(np.arange(first, min(first + _BLOCK, encoded.rows)))
        if isinstance(images, list) or images.shape[1:] != shape:
            raise _DifferError("The images differ in shape.")
        return images

    firsts = range(0, encoded.rows, _BLOCK)
    with ThreadPoolExecutor(os.cpu_count(), "aios-unpack") as pool:
        with contextlib.closing(ahead(pool, decode, firsts, _AHEAD)) as blocks:
            for future in blocks:
                yield future.result()
