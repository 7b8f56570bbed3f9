"""Zarr: an array in chunks, each a file, or a group with `x` and `y`; of both versions of the format.

A leaf module: it imports numpy; zarr where data is opened, since it is an extra of its own.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConflictError, UsageError
from . import arrays, labels, layout
from .catalog import Catalog, Entry
from .description import Description, Tally
from .rows import Rows, Source
from .storage import is_remote, locate, need, reading

Array = NDArray[Any]

# A row of more chunks is a mistake, or takes for ever.
_MOST_CHUNKS = 100_000
# Statistics are of so many bytes, or blocks, that are spread over the whole.
_SAMPLE = 64 * 2**20
_SAMPLED = 16
# Rows are shuffled among so many bytes of blocks, which a rank keeps unpacked.
_TOGETHER = 128 * 2**20


class Zarr:
    """An array and its labels, read by blocks of whole chunks: `x[start:stop]` along the first axis.

    Attributes
    ----------
    x_name, y_name
        What they are called; no labels are "".
    rows, block
        Rows in all, and of a block: a chunk, or a shard of version 3.
    shape, dtype
        Of all rows.
    """

    def __init__(self, url: str) -> None:
        need("zarr", "zarr")
        self.url = url
        with reading(url), _zarr_errors():
            self.x_name, self._x, self.y_name, self._y = _members(_opened(url), url)
        self.shape, self.dtype = tuple(self._x.shape), np.dtype(self._x.dtype)
        if not self.shape or not self.shape[0]:
            raise UsageError(f"{url} has no rows as '{self.x_name}'; there is nothing to use.")
        if self.dtype.kind not in "biuf":
            raise UsageError(f"{url} has {self.dtype} as '{self.x_name}', not numbers.")
        self.rows = int(self.shape[0])
        self.chunks = tuple(self._x.chunks)
        arrays.check_memory(self.chunks, self.dtype, url)
        across = zip(self.shape[1:], self.chunks[1:], strict=True)
        if (spread := math.prod(-(-size // chunk) for size, chunk in across)) > _MOST_CHUNKS:
            raise UsageError(
                f"A row of '{self.x_name}' in {url} is spread over {spread:,} chunks; store it again "
                "with larger ones."
            )
        self.block = int((getattr(self._x, "shards", None) or self.chunks)[0])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that is unpacked."""
        return int(math.prod(self.shape[1:])) * int(self.dtype.itemsize)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-self.rows // self.block)

    def read(self, start: int, stop: int) -> Array:
        """Rows from `start` to `stop`."""
        # Chunks that are not there take no space, until they are read.
        arrays.check_memory((min(stop, self.rows) - start, *self.shape[1:]), self.dtype, self.url)
        what = f"{self.url} (rows {start:,} to {min(stop, self.rows):,} of '{self.x_name}')"
        with reading(what), _zarr_errors():
            return np.asarray(self._x[start:stop])

    def labels(self) -> Array | None:
        """All labels; None where there are none."""
        if self._y is None:
            return None
        with reading(f"{self.url} ('{self.y_name}')"), _zarr_errors():
            y = np.asarray(self._y[...])
        if y.ndim == 0 or len(y) != self.rows:
            count = 1 if y.ndim == 0 else len(y)
            raise UsageError(f"{self.url} has {self.rows} rows but {count} labels; each needs one.")
        # Text of any length has a type of its own.
        return y.astype(str) if y.dtype.kind in "TO" else y


def _opened(url: str) -> Any:
    import zarr
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from zarr.storage import FsspecStore

    fs, path = locate(url)
    if not is_remote(url):
        return zarr.open(str(Path(path)), mode="r")
    # Wrapped though it may be asynchronous: connections of a second one would be closed by nobody.
    store = FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=path, read_only=True)
    return zarr.open(store, mode="r")


def _members(found: Any, url: str) -> tuple[str, Any, str, Any]:
    """The arrays of rows and of labels, by their names."""
    if not hasattr(found, "array_keys"):
        return "x", found, "", None
    names = list(found.array_keys())
    x_name, y_name = arrays.pair(names, url)
    return x_name, found[x_name], y_name or "", found[y_name] if y_name else None


@contextlib.contextmanager
def _zarr_errors() -> Iterator[None]:
    """What codecs raise for damaged chunks, and zarr for metadata that makes no sense, as one kind."""
    try:
        yield
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(str(error).rstrip(".")) from None


def describe(url: str) -> Description:
    """Shape, type and chunks; statistics of some blocks, since all may be more than one will read."""
    found = Zarr(url)
    tally = Tally()
    block_bytes = max(1, found.block * found.row_bytes)
    count = max(1, min(found.blocks, _SAMPLED, _SAMPLE // block_bytes))
    for place in range(count):
        start = place * found.blocks // count * found.block
        # A block may be more than the sample is to be.
        stop = start + min(found.block, max(1, _SAMPLE // max(1, found.row_bytes)))
        tally.add(found.read(start, stop))
    kind = arrays.type_of(found.dtype, found.shape[1:])
    chunks = ", ".join(map(str, found.chunks))
    part = "" if count == found.blocks else f"; statistics of {count} of {found.blocks:,} blocks"
    fields = [tally.field(found.x_name, kind, f"chunks of {chunks}{part}")]
    schema, y = {found.x_name: kind}, found.labels()
    if y is not None:
        schema[found.y_name] = arrays.type_of(y.dtype, y.shape[1:])
        fields.append(arrays.label_field(found.y_name, y, schema[found.y_name]))
    return Description(found.rows, schema, arrays.classes_of(y), tuple(fields))


def load(url: str) -> tuple[Array, Array | None]:
    """All of it, if it fits in memory."""
    found = Zarr(url)
    return found.read(0, found.rows), found.labels()


class Blocks(Source):
    """Rows that are read by blocks, and shuffled among some blocks at a time."""

    def __init__(self, entry: Entry, here: Entry) -> None:
        self._zarr = Zarr(here.url)
        self.rows = self._zarr.rows
        if here.url == entry.url:
            _check_files(entry)
        y = self._zarr.labels()

        def where(row: int) -> str:
            return f"Row {row:,} of {entry.url}"

        labels.check_usable(y, where)
        labels.check_known(entry, self.rows, y, where)
        self._y = None if y is None else labels.numbered(y)
        block_bytes = max(1, self._zarr.block * self._zarr.row_bytes)
        self._together = max(1, _TOGETHER // block_bytes)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[Array]] = OrderedDict()

    def order(self, random: np.random.Generator) -> Rows:
        """Blocks in a new order, and rows in a new order among as many as are kept unpacked."""
        size, together = self._zarr.block, self._together
        blocks = random.permutation(self._zarr.blocks)
        groups = []
        for first in range(0, len(blocks), together):
            starts = blocks[first : first + together] * size
            rows = (starts[:, None] + np.arange(size)).ravel()
            groups.append(random.permutation(rows[rows < self.rows]))
        return np.concatenate(groups)

    def take(self, rows: Rows) -> tuple[Array, Array | None]:
        x = np.empty((len(rows), *self._zarr.shape[1:]), self._zarr.dtype)
        numbers = rows // self._zarr.block
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            x[mine] = self._block(number)[rows[mine] - number * self._zarr.block]
        return x, None if self._y is None else self._y[rows]

    def _block(self, number: int) -> Array:
        """A block, unpacked once for all threads that want it."""
        with self._lock:
            future = self._kept.get(number)
            mine = future is None
            if future is None:
                future = self._kept[number] = Future()
            self._kept.move_to_end(number)
            # Those of the next rows begin before the last ones are done.
            while len(self._kept) > 2 * self._together:
                self._kept.popitem(last=False)
        if mine:
            start = number * self._zarr.block
            try:
                future.set_result(self._zarr.read(start, start + self._zarr.block))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(number, None)
                future.set_exception(error)
                raise
        return future.result()


def _check_files(entry: Entry) -> None:
    """A chunk that is not there is read as a constant, so that one which was there has to be."""
    known = {check.name for check in Catalog().checks(entry)}
    if known and (gone := known.difference(layout.list_files(entry.url, "zarr"))):
        raise ConflictError(
            f"{min(gone)} is gone from {entry.url} since that was added; restore it ('aios data "
            "verify' mends from a copy), or add the dataset again."
        )
