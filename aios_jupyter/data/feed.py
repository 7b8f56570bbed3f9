"""Batches on every rank, from a dataset: sharded, shuffled, ahead of time, resumable.

A leaf module: it imports numpy and OpenCV; torch or TensorFlow when the first batch is made.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, UsageError
from ..runs import events
from .ahead import ahead
from .catalog import Catalog, Entry, readable
from .loader import Augment, AugmentRows
from .rows import Source, is_table, source_of

Array = NDArray[Any]
Transform = Callable[[Any, Any], tuple[Any, Any]]
_Batch = TypeVar("_Batch")

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
    transform: Transform | Augment | AugmentRows | None = None,
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

    `batches.tf()` is the same for TensorFlow and Keras, and `batches.arrays()` as arrays.

    Parameters
    ----------
    name
        Arrays, in a file or in the chunks of Zarr; images of a folder or of WebDataset's shards; a table of numbers, whose column
        `label` (or `y`, `class`, `target`) is `y` and the others `x` as float32; sounds as float32
        from -1 to 1, of several lengths as a list for `transform`; or texts, as a list.
    batch_size
        Rows for each rank.
    shuffle, seed
        Another order in each epoch, the same whatever the number of ranks; without it that of the
        dataset.
    drop_last
        Leave out what does not fill a batch on every rank. Without it the first rows fill it, so
        that all ranks take as many steps.
    transform
        What `aios_jupyter.augment` gives: a row becomes the same in each epoch whatever the number
        of ranks, and images of several sizes one size by `resize`. Or a function that is called, in
        a thread, with the arrays of a batch, and gives what tensors are made of.
    rank, world_size
        Those of this process by default.

    Raises
    ------
    UsageError
        There are too few rows for one batch, or the data is none that can be fed; or numbers are
        missing in it, and no `transform` is there to do something about that.
    """
    entry = readable(Catalog().get(name))
    if transform is None:
        _refuse_missing(entry)
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


def _refuse_missing(entry: Entry) -> None:
    """Refuse numbers that are missing in `x`: they would be NaN, and after a step so would the model."""
    table = is_table(entry)
    if not table and entry.format not in {"npz", "npy", "zarr"}:
        return
    from .tables import LABELS

    # Of arrays `x` is the first; where labels are missing is told by who looks at them.
    names = entry.schema.keys() - set(LABELS) if table else {next(iter(entry.schema))}
    given = (field for field in entry.fields if field.name in names and field.mean is not None)
    lacking = [field for field in given if field.missing]
    if not lacking:
        return
    columns = ", ".join(field.name for field in lacking)
    mend = (
        f'fill them first: aios data features {entry.name} -o NEW --steps "fill({columns}, median)"'
        if table
        else "repair them"
    )
    count = lacking[0].missing
    raise UsageError(
        f"{entry.url} has {count:,} missing number{'s'[: count != 1]} in '{lacking[0].name}', which would be "
        f"NaN in its batches; {mend}, or give the loader a transform=function that does."
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
        transform: Transform | Augment | AugmentRows | None,
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
        """The rest of this epoch, as tensors of torch."""
        torch = _torch()
        pin = torch.cuda.is_available()

        def tensors(x: Any, y: Any) -> tuple[Any, Any]:
            return _tensor(torch, x, pin), _tensor(torch, y, pin)

        return self._rest(tensors)

    def arrays(self) -> Iterator[tuple[Any, Any]]:
        """The rest of this epoch, as arrays of numpy."""
        return self._rest(lambda x, y: (x, y))

    def tf(self, *, endless: bool = False) -> Any:
        """The rest of this epoch as a `tf.data.Dataset`; gone through again, it is the next epoch.

            model.fit(batches.tf(), epochs=10)
            model.fit(batches.tf(endless=True), steps_per_epoch=len(batches), epochs=10)

        It is this rank's own part, and made ahead: a `prefetch` after it would only let a
        checkpoint count batches that no step has seen.

        Parameters
        ----------
        endless
            Epoch after epoch. Keras takes the length of the first pass for that of all, so that one
            which begins in the middle of an epoch needs it.
        """
        from .feeding import tf_batches

        return tf_batches(self, endless)

    def first(self) -> tuple[Any, Any]:
        """The batch that comes next, without going on."""
        order = self._order()
        left = order[self._taken :]
        return self._make(self._share(left if len(left) else order, 0))

    def _rest(self, shown: Callable[[Any, Any], _Batch]) -> Iterator[_Batch]:
        order = self._order()[self._taken :]
        clock = Clock()

        def make(number: int) -> _Batch:
            return shown(*self._make(self._share(order, number)))

        count = self._batches(len(order))
        with ThreadPoolExecutor(_THREADS, "aios-feed") as pool:
            with contextlib.closing(ahead(pool, make, range(count), _AHEAD)) as batches:
                for number, future in enumerate(batches, 1):
                    with clock:
                        made = future.result()
                    self._taken += self._batch * self._world
                    self.stall = clock.tell()
                    if number == count:
                        # Who has the last batch is at the beginning of the next epoch: not
                        # everybody asks for one more.
                        self._next_epoch()
                    yield made
        if not count:
            self._next_epoch()

    def _next_epoch(self) -> None:
        self.epoch += 1
        self._taken = 0

    def _order(self) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._source.rows)
        random = np.random.Generator(np.random.Philox(key=[self._seed, self.epoch]))
        return self._source.order(random)

    def _share(self, order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Rows of this rank in a batch of all ranks; the first ones again where they run out."""
        together = self._batch * self._world
        start = number * together + self._rank * self._batch
        places = np.arange(start, start + self._batch)
        return order[places % len(order)]

    def _make(self, rows: NDArray[np.int64]) -> tuple[Any, Any]:
        x, y = self._source.take(rows)
        transform = self._transform
        if transform is not None and not isinstance(transform, Augment | AugmentRows):
            return transform(x, y)
        differ = isinstance(x, list) and not isinstance(x[0], str)
        if differ and not isinstance(transform, Augment):
            raise UsageError(f"The {self._source.what_differs.format(self._ref)}")
        if transform is None:
            return x, y
        return transform.batch(x, y, indices=rows, epoch=self.epoch)

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
    if values is None or isinstance(values, list | torch.Tensor):
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
