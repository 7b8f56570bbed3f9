"""The tasks of an augmentation: what a worker does, and how they are run.

A leaf module: it imports numpy and OpenCV, and `distributed` where a client is given. Inputs are read from storage by the worker and outputs
written there, each aside and moved into place, so that a chunk is whole or not there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

from ..errors import AiosError, ClusterError
from . import arrays, cache, media, near, storage
from .entries import unpacked_name
from .pipeline import Pipeline

if TYPE_CHECKING:
    from distributed import Client

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ArrayTask:
    """Rows `start` to `stop` of an npy file; the result is `(copies, rows, …)` in `target`."""

    source: str
    start: int
    stop: int
    policy: str
    seed: int
    copies: int
    target: str
    # Its source is an unpacked copy that all workers see.
    version = ""

    @property
    def images(self) -> int:
        return (self.stop - self.start) * self.copies

    def reads(self) -> Sequence[near.Span]:
        """See `near.Task`."""
        return ()

    def finished(self) -> bool:
        return Path(self.target).exists()


@dataclass(frozen=True)
class FolderTask:
    """Some files of a folder, the first of which is number `first`; `done` marks their end."""

    source: str
    names: tuple[str, ...]
    first: int
    medium: str
    policy: str
    seed: int
    copies: int
    keep_original: bool
    mark: str
    target: str
    done: str
    # Of a remote source: who has a copy reads that.
    version: str = ""

    @property
    def images(self) -> int:
        return len(self.names) * self.copies

    def reads(self) -> Sequence[near.Span]:
        """See `near.Task`."""
        return [near.Span(storage.joined(self.source, name)) for name in self.names]

    def finished(self) -> bool:
        return Path(self.done).exists()


_Task = TypeVar("_Task", ArrayTask, FolderTask)


def augment_rows(task: ArrayTask) -> int:
    """Do an `ArrayTask`; gives the number of images."""
    try:
        source = np.load(task.source, mmap_mode="r")
    except FileNotFoundError:
        raise AiosError(
            f"A worker cannot read {task.source}; augmentation needs the state directory "
            "(AIOS_STATE_DIR) on storage that all workers see."
        ) from None
    rows = source[task.start : task.stop]
    pipeline = Pipeline(task.policy, task.seed)
    shape = (task.copies, len(rows), *pipeline.output_shape(rows.shape[1:]))
    with one_opencv_thread(), storage.written_aside(task.target) as file:
        results = (pipeline.apply(rows, task.start, copy + 1) for copy in range(task.copies))
        arrays.write_npy(file, shape, results)
    return task.images


def augment_files(task: FolderTask) -> int:
    """Do a `FolderTask`; gives the number of files made."""
    medium = media.of(task.medium, task.policy, task.seed)
    source = cache.nearest(task.source, task.version)
    with one_opencv_thread():
        for number, name in enumerate(task.names, task.first):
            # What is made of compressed files is not compressed.
            place = Path(task.target) / PurePosixPath(unpacked_name(name))
            blob = storage.read_unpacked(source, name)
            thing = medium.read(blob, f"{name} in {task.source}")
            files = {}
            if task.keep_original:
                files[place.name] = medium.original(blob, thing, place.suffix)
            for copy in range(1, task.copies + 1):
                beside = f"{place.stem}{task.mark}{copy}{place.suffix}"
                files[beside] = medium.vary(thing, number, copy, place.suffix)
            _write(place.parent, files)
    done = Path(task.done)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    return task.images


def _write(directory: Path, files: dict[str, bytes]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, blob in files.items():
            (directory / name).write_bytes(blob)
    except OSError as error:
        raise storage.unwritable(directory, error) from None


def run(
    function: Callable[[_Task], int],
    tasks: Sequence[_Task],
    client: Client | None,
    progress: Progress,
) -> None:
    """Do the tasks that are not done yet; an interrupt or an error cancels the others."""
    total = sum(task.images for task in tasks)
    left = [task for task in tasks if not task.finished()]
    done = total - sum(task.images for task in left)
    progress(done, total)
    with contextlib.closing(_results(function, left, client)) as results:
        for images in results:
            done += images
            progress(done, total)


def _results(
    function: Callable[[_Task], int], tasks: Sequence[_Task], client: Client | None
) -> Generator[int]:
    if client is None:
        with one_opencv_thread():
            yield from map(function, tasks)
        return
    from distributed import as_completed
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    lost = (KilledWorker, FutureCancelledError, ClosedClientError, CommClosedError, TimeoutError)
    try:
        futures = near.submit(client, function, tasks, key="augment")
        try:
            for future, images in as_completed(futures, loop=client.loop, with_results=True):
                # It is given as a result where other errors are raised.
                if future.cancelled():
                    raise FutureCancelledError(future.key, "cancelled")
                yield images
        finally:
            # A client that is closed has nothing left to cancel.
            with contextlib.suppress(ClosedClientError):
                client.cancel([future for future in futures if not future.done()])
    except lost as error:
        raise ClusterError(
            f"The cluster lost the augmentation ({type(error).__name__}); run it again, and it "
            "goes on from what is finished."
        ) from error


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV to this thread: the workers are what runs in parallel."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
