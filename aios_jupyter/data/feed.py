"""Batches for torch on every rank, from a dataset: sharded, shuffled, ahead of time, resumable.

A leaf module: it imports numpy; torch when the first batch is made. Arrays are unpacked once to a
file that the ranks of a machine map, so that they are in its memory once.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, UsageError
from ..runs import events
from . import layout, storage
from .catalog import Catalog, Entry, readable

Array = NDArray[Any]
Transform = Callable[[Array, Any], tuple[Any, Any]]

_LABELS = ("label", "y", "class", "target")
# How many batches are made before they are asked for.
_AHEAD = 4
_THREADS = 2
# How often the run hears how long its ranks wait for data.
_TELL_EVERY = 1.0


def loader(
    name: str | Entry,
    batch_size: int = 32,
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = True,
    transform: Transform | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> Loader:
    """Batches of a dataset for the rank that calls it, as `(x, y)` of torch tensors.

        batches = aios_jupyter.loader("mnist-train", batch_size=64)
        state = {"model": model, "optimizer": optimizer, "batches": batches}
        step = train.restore(state)
        for epoch in range(batches.epoch, epochs):
            for x, y in batches:
                ...
                train.checkpoint(state, step := step + 1)

    Parameters
    ----------
    name
        Arrays, a folder of images of one size, or a table of numbers: its column `label` (or `y`,
        `class`, `target`) is `y`, the others are `x` as float32.
    batch_size
        Rows for each rank.
    shuffle, seed
        Another order in each epoch, the same whatever the number of ranks; without it that of the
        dataset.
    drop_last
        Leave out what does not fill a batch on every rank. Without it the first rows fill it, so
        that all ranks take as many steps.
    transform
        Is called with the arrays of a batch, in a thread, and gives what is made tensors of.
    rank, world_size
        Those of this process by default.

    Raises
    ------
    UsageError
        There are too few rows for one batch, or the data is none that can be fed.
    """
    entry = readable(Catalog().get(name))
    return Loader(
        source_of(entry),
        entry.ref,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        transform=transform,
        rank=int(os.environ.get("RANK", "0")) if rank is None else rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size,
    )


class Loader:
    """See `loader`. To iterate is to go through the rest of an epoch.

    Attributes
    ----------
    epoch
        The epoch that the next iteration belongs to, from 0 on.
    stall
        The part of the time, since the epoch began, in which the code waited for data. A run shows
        it as its metric `stall`.
    """

    def __init__(
        self,
        source: Source,
        ref: str,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        transform: Transform | None,
        rank: int,
        world_size: int,
    ) -> None:
        if batch_size < 1 or seed < 0 or not 0 <= rank < world_size:
            raise UsageError(
                "A loader has a batch_size from 1 on, a seed from 0 on, and a rank below world_size."
            )
        if drop_last and source.rows < batch_size * world_size:
            raise UsageError(
                f"{ref} has {source.rows} rows, too few for a batch of {batch_size} on each of "
                f"{world_size} ranks; take smaller batches, or drop_last=False."
            )
        self.epoch = 0
        self.stall = 0.0
        self._source, self._ref, self._transform = source, ref, transform
        self._batch, self._shuffle, self._seed, self._drop_last = (
            batch_size,
            shuffle,
            seed,
            drop_last,
        )
        self._rank, self._world = rank, world_size
        # Rows of this epoch that all ranks together have been given.
        self._taken = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._batches(self._source.rows)

    def _batches(self, rows: int) -> int:
        together = self._batch * self._world
        return rows // together if self._drop_last else math.ceil(rows / together)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """The rest of this epoch."""
        torch = _torch()
        order = self._order()[self._taken :]
        count = self._batches(len(order))
        clock = Clock()
        with ThreadPoolExecutor(_THREADS, "aios-feed") as pool:
            waiting: deque[Future[tuple[Any, Any]]] = deque()
            try:
                for number in range(count + _AHEAD):
                    if number < count:
                        waiting.append(pool.submit(self._make, self._share(order, number), torch))
                    if number >= _AHEAD or number >= count:
                        if not waiting:
                            break
                        with clock:
                            made = waiting.popleft().result()
                        self._taken += self._batch * self._world
                        self.stall = clock.tell()
                        yield made
            finally:
                for future in waiting:
                    future.cancel()
        self.epoch += 1
        self._taken = 0

    def _order(self) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._source.rows)
        random = np.random.Generator(np.random.Philox(key=[self._seed, self.epoch]))
        return random.permutation(self._source.rows)

    def _share(self, order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Rows of this rank in a batch of all ranks; the first ones again where they run out."""
        together = self._batch * self._world
        start = number * together + self._rank * self._batch
        places = np.arange(start, start + self._batch)
        return order[places % len(order)]

    def _make(self, rows: NDArray[np.int64], torch: Any) -> tuple[Any, Any]:
        x, y = self._source.take(rows)
        if self._transform is not None:
            x, y = self._transform(x, y)
        pin = torch.cuda.is_available()
        return _tensor(torch, x, pin), None if y is None else _tensor(torch, y, pin)

    def state_dict(self) -> dict[str, Any]:
        """Where it is, for a checkpoint: the same on every rank."""
        return {"ref": self._ref, "seed": self._seed, "epoch": self.epoch, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another has stopped; there may be another number of ranks now.

        Raises
        ------
        UsageError
            It was another dataset (or version of it), or another order.
        """
        for what, own in (("ref", self._ref), ("seed", self._seed)):
            if state[what] != own:
                word = "dataset" if what == "ref" else "seed"
                raise UsageError(
                    f"The checkpoint was made with the {word} {state[what]}, and this loader has "
                    f"{own}; give it the same, or leave it out of the state."
                )
        self.epoch, self._taken = int(state["epoch"]), int(state["taken"])


def _tensor(torch: Any, values: Any, pin: bool) -> Any:
    if isinstance(values, torch.Tensor):
        return values
    array = np.ascontiguousarray(values)
    made = torch.from_numpy(array if array.flags.writeable else array.copy())
    return made.pin_memory() if pin else made


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch") from None
    return torch


class Clock:
    """How long the code waits for data, of the time since its first batch."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._since: float | None = None
        self._told = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        now = time.perf_counter()
        # The first batch has nothing to be made beside.
        if self._since is None:
            self._since = now
        else:
            self._waited += now - self._began

    def tell(self) -> float:
        """The part so far; the run hears of it once a second."""
        now = time.perf_counter()
        total = now - (self._since if self._since is not None else now)
        part = self._waited / total if total > 0 else 0.0
        channel = events.channel()
        if channel is not None and now - self._told > _TELL_EVERY:
            self._told = now
            channel.metrics({"stall": part}, None)
        return part


# --- where rows come from


class Source:
    """Rows that are taken by their numbers."""

    rows: int

    def take(self, rows: NDArray[np.int64]) -> tuple[Array, Array | None]:
        """`x` and `y` of some rows."""
        raise NotImplementedError


def source_of(entry: Entry) -> Source:
    """Where the rows of a dataset come from.

    Raises
    ------
    UsageError
        Its format has no rows that can be fed.
    """
    if entry.format == "npz":
        return _Arrays(entry, _unpack_arrays)
    if entry.format == "folder":
        return _Images(entry)
    if entry.format == "parquet" and "image" not in entry.schema:
        return _Arrays(entry, _unpack_table)
    if entry.format == "parquet":
        return _Arrays(entry, _unpack_arrays)
    raise UsageError(
        f"'{entry.name or entry.url}' is {entry.format}, which cannot be fed to ranks."
    )


class _Arrays(Source):
    """Arrays that are unpacked once on a machine, and mapped."""

    def __init__(self, entry: Entry, unpack: Callable[[Entry], tuple[Array, Array | None]]) -> None:
        folder = storage.data_dir(".feed")
        self._x_file, y_file = (folder / f"{entry.version}.{end}.npy" for end in "xy")
        # `x` is written last: with it, `y` is whole too.
        if not self._x_file.exists():
            x, y = unpack(entry)
            if y is not None:
                _save(y_file, _numbered(y))
            _save(self._x_file, x)
        self._x = np.load(self._x_file, mmap_mode="r")
        self._y = np.load(y_file) if y_file.exists() else None
        self.rows = len(self._x)

    def take(self, rows: NDArray[np.int64]) -> tuple[Array, Array | None]:
        return self._x[rows], None if self._y is None else self._y[rows]


def _save(path: Path, array: Array) -> None:
    with storage.written_aside(str(path)) as file:
        np.save(file, array, allow_pickle=False)


def _numbered(y: Array) -> Array:
    """Labels that are text as their places among the classes."""
    if y.dtype.kind not in "US":
        return y.astype(np.int64) if y.dtype.kind in "iub" else y
    return np.searchsorted(np.unique(y), y)


def _unpack_arrays(entry: Entry) -> tuple[Array, Array | None]:
    return Catalog().load(entry)


def _unpack_table(entry: Entry) -> tuple[Array, Array | None]:
    from pyarrow import parquet

    fs, path = storage.locate(entry.url)
    try:
        with fs.open(path, "rb") as file:
            table = parquet.read_table(file)
    except (OSError, ValueError) as error:
        raise storage.unreadable(entry.url, error) from None
    label = next((name for name in _LABELS if name in table.column_names), None)
    columns = []
    for name in table.column_names:
        if name == label:
            continue
        values = table.column(name).to_pandas().to_numpy()
        if values.dtype.kind not in "iufb":
            raise UsageError(
                f"The column '{name}' of '{entry.name}' is {table.schema.field(name).type} and no "
                "number; make features first: aios data features."
            )
        columns.append(values.astype(np.float32))
    if not columns:
        raise UsageError(f"'{entry.name}' has no column besides its label.")
    y = None if label is None else table.column(label).to_pandas().to_numpy()
    if y is not None and y.dtype == object:
        y = y.astype(str)
    return np.stack(columns, axis=1), y


class _Images(Source):
    """Images of a folder, decoded as they are taken."""

    def __init__(self, entry: Entry) -> None:
        self._url = entry.url
        self._names = layout.list_images(entry.url)
        classes = {name: n for n, name in enumerate(layout.file_classes(self._names))}
        self._y = np.array([classes[name.split("/")[0]] for name in self._names], np.int64)
        self.rows = len(self._names)

    def take(self, rows: NDArray[np.int64]) -> tuple[Array, Array | None]:
        from .formats import read_image

        images = [read_image(self._url, self._names[row]) for row in rows]
        if len({image.shape for image in images}) > 1:
            raise UsageError(
                f"The images of {self._url} differ in shape; augment them with resize(…) in the "
                "policy first."
            )
        return np.stack(images), self._y[rows]
