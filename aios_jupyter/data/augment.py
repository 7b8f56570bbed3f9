"""Make augmented datasets, as tasks on the cluster or in this process, and preview policies.

A leaf module: it imports numpy and OpenCV; `distributed` only where a client is given.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConflictError, UsageError
from . import arrays, chunks, formats, layout, near, storage, texts
from .augment_job import MANIFEST, Job, Source, decoded, is_folder, plan_job, resolved
from .catalog import Catalog, Entry
from .entries import unpacked_name
from .pipeline import Pipeline, check_images
from .policy import Policy
from .preview import preview, to_png
from .sequences import TextPipeline

__all__ = ["Source", "augment", "preview", "resolved", "to_png"]

if TYPE_CHECKING:
    from distributed import Client

_CHUNK_BYTES = 8 * 2**20
_CHUNKS = 32
_LEAST_ARRAY_ROWS = 64
_LEAST_FILES = 8
_LINES = 10_000

_Made = tuple[Entry, tuple[layout.FileCheck, ...]]


def augment(
    src: Source,
    dst: str | Path,
    policy: str | Policy,
    copies: int = 1,
    seed: int = 0,
    client: Client | None = None,
    on_progress: chunks.Progress | None = None,
    *,
    keep_original: bool = True,
    catalog: Catalog | None = None,
) -> Entry:
    """Make a dataset of the originals and `copies` augmented copies of each, labels kept.

    The result is first all originals, then the first copy of each, then the second, and so on; in
    an image folder a copy lies beside its original as `NAME-augN`. The same source, policy and seed
    give the same bytes for any number of workers. What is finished when it is interrupted is used
    when the same is asked for again.

    Parameters
    ----------
    src
        Name, path or URL of a dataset of uint8 images; or an array `x`, or a pair `(x, y)`.
    dst
        A name: the data is kept in the state directory. Or a path (`….npz`, `….parquet`, a folder)
        or URL, whose stem becomes the name. Image folders become folders; arrays become npz unless
        the suffix says Parquet.
    policy
        Such as `"rotate(15), shift(0.1), hflip"`; of a folder of sounds `"speed(0.9, 1.1),
        noise(0.01)"`, of texts `"drop(0.1), typo(0.02)"`.
    copies
        Augmented copies of each image.
    seed
        Not negative.
    client
        Runs the work as Dask tasks; the workers must see the state directory and the source. None:
        in this process.
    on_progress
        Called with the numbers of augmented images that are done and that there will be.
    keep_original
        False leaves the originals out.
    catalog
        Where names are looked up and the result is added.

    Raises
    ------
    UsageError, NotFoundError, ConflictError
        The policy does not parse, the source is missing or not uint8 images, or the destination is
        a folder that holds something else.
    ClusterError
        The workers died or the cluster went away.
    """
    catalog = catalog or Catalog()
    job = plan_job(src, str(dst), policy, copies, seed, keep_original, catalog)
    total = job.source.rows * copies
    progress = on_progress or _no_progress
    finished = _finished(job, catalog)
    if finished is not None:
        progress(total, total)
        return finished
    with _locked(job.work), storage.writing():
        make: Callable[..., _Made] = _make_arrays
        if is_folder(job.source):
            make = _make_folder
        elif job.source.format == "text":
            make = _make_lines
        entry, checks = make(job, client, progress)
        shutil.rmtree(job.work)
        return catalog.put(entry, checks)


def _finished(job: Job, catalog: Catalog) -> Entry | None:
    """The result of the same job from before, if it is still the newest and still there."""
    known = catalog.versions(job.name)
    if not known:
        return None
    entry = known[-1]
    same = entry.how == job.how and entry.made_from == (job.source.ref,)
    if not same or (job.target and entry.url != job.target):
        return None
    if not job.target and Path(entry.url).suffix != job.suffix:
        return None
    if not storage.exists(entry.url):
        return None
    return entry if layout.content(entry.url, entry.format).version == entry.version else None


def _make_arrays(job: Job, client: Client | None, progress: chunks.Progress) -> _Made:
    images, labels = decoded(
        job.source.version,
        job.source.url,
        lambda: formats.load(job.source.url, job.source.format),
    )
    x = np.load(images, mmap_mode="r")
    check_images(x)
    shape = Pipeline(job.policy).output_shape(x.shape[1:])
    step = _step(len(x), int(np.prod(shape)) * job.copies, _LEAST_ARRAY_ROWS)
    tasks = [
        chunks.ArrayTask(
            source=str(images),
            start=start,
            stop=min(start + step, len(x)),
            policy=str(job.policy),
            seed=job.seed,
            copies=job.copies,
            target=str(job.work / f"{step}-{start:010d}.npy"),
        )
        for start in range(0, len(x), step)
    ]
    chunks.run(chunks.augment_rows, tasks, client, progress)
    rounds = job.copies + job.keep_original
    y = np.load(labels) if labels is not None else None
    return _write_arrays(
        job,
        (rounds * len(x), *shape),
        _in_order(job, x, tasks),
        None if y is None else np.tile(y, (rounds,) + (1,) * (y.ndim - 1)),
    )


def _in_order(
    job: Job, x: NDArray[Any], tasks: Sequence[chunks.ArrayTask]
) -> Iterator[NDArray[Any]]:
    """The images of the result: the originals, then each copy of all."""
    if job.keep_original:
        resize = Pipeline(job.policy).resize_only()
        for task in tasks:
            rows = x[task.start : task.stop]
            yield rows if resize is None else resize.apply(rows)
    for copy in range(job.copies):
        for task in tasks:
            yield np.load(task.target, mmap_mode="r")[copy]


def _write_arrays(
    job: Job, shape: tuple[int, ...], blocks: Iterator[NDArray[Any]], y: NDArray[Any] | None
) -> _Made:
    parquet = job.suffix in {".parquet", ".pq"}

    def write(file: Any) -> None:
        if parquet:
            formats.write_parquet(file, blocks, y)
        else:
            arrays.write_npz(file, shape, blocks, y)

    if job.target:
        with storage.written_aside(job.target) as file:
            write(file)
        url = job.target
        content = layout.content(url, "npz")
    else:
        with storage.scratch(job.name) as aside:
            with aside.open("wb") as file:
                write(file)
            path, content = layout.adopt(aside, job.name, job.suffix)
        url = str(path)
    form = "parquet" if parquet else "npz"
    return _entry(job, url, form, content)


def _make_lines(job: Job, _: Client | None, progress: chunks.Progress) -> _Made:
    """The lines of a text and copies of each; they are made here, which is soon done."""
    rows = list(texts.rows(job.source.url))
    pipeline, total = TextPipeline(job.policy, job.seed), len(rows) * job.copies

    def write(file: Any) -> None:
        if job.keep_original:
            file.writelines(f"{row}\n".encode() for row in rows)
        for copy in range(job.copies):
            for start in range(0, len(rows), _LINES):
                made = pipeline.apply(rows[start : start + _LINES], start, copy + 1)
                file.writelines(f"{row}\n".encode() for row in made)
                progress(copy * len(rows) + start + len(made), total)

    progress(0, total)
    if job.target:
        with storage.written_aside(job.target) as file:
            write(file)
        return _entry(job, job.target, "text", layout.content(job.target, "text"))
    with storage.scratch(job.name) as aside:
        with aside.open("wb") as file:
            write(file)
        path, content = layout.adopt(aside, job.name, job.suffix, "text")
    return _entry(job, str(path), "text", content)


def _make_folder(job: Job, client: Client | None, progress: chunks.Progress) -> _Made:
    form = job.source.format
    names = layout.list_files(job.source.url, form)
    if len({unpacked_name(name) for name in names}) < len(names):
        raise UsageError(
            f"{job.source.url} has a file twice, compressed and not; remove one of them, since what is "
            "made of both has the same name."
        )
    mark = "-aug"
    while any(mark in name for name in names):
        mark += "aug"
    home = Path(job.target).parent if job.target else storage.data_dir(job.name)
    aside = home / f".{job.name}.{job.key}.partial"
    step = _step(len(names), 0, _LEAST_FILES)
    tasks = [
        chunks.FolderTask(
            source=job.source.url,
            names=tuple(names[start : start + step]),
            first=start,
            medium=job.policy.medium,
            policy=str(job.policy),
            seed=job.seed,
            copies=job.copies,
            keep_original=job.keep_original,
            mark=mark,
            target=str(aside),
            done=str(job.work / f"{step}-{start:010d}.done"),
            version=near.remote_version(job.source),
        )
        for start in range(0, len(names), step)
    ]
    if not aside.exists():
        # Marks of finished chunks without their files are worth nothing.
        for task in tasks:
            Path(task.done).unlink(missing_ok=True)
        aside.mkdir(parents=True)
    chunks.run(chunks.augment_files, tasks, client, progress)
    if job.target:
        (aside / MANIFEST).write_text(json.dumps({"made_from": job.source.ref, "how": job.how}))
        content = layout.content(str(aside), form)
        storage.replace_directory(aside, Path(job.target))
        return _entry(job, job.target, form, content)
    path, content = layout.adopt(aside, job.name, "", form)
    return _entry(job, str(path), form, content)


def _entry(
    job: Job, url: str, form: str, content: layout.Content
) -> tuple[Entry, tuple[layout.FileCheck, ...]]:
    description = formats.describe(url, form)
    entry = Entry(
        name=job.name,
        url=url,
        format=form,
        version=content.version,
        rows=description.rows,
        size=content.size,
        schema=description.schema,
        classes=tuple(description.classes),
        counts=tuple(description.classes.values()),
        fields=description.fields,
        made_from=(job.source.ref,),
        how=job.how,
        tags=job.source.tags,
    )
    return entry, content.files


def _step(rows: int, row_bytes: int, least: int) -> int:
    """Rows of a chunk: many chunks for progress, none too small for a task, none too large."""
    most = _CHUNK_BYTES // row_bytes if row_bytes else rows
    return max(1, min(max(least, -(-rows // _CHUNKS)), max(1, most)))


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """One process at a time; the lock goes when its holder dies."""
    work.mkdir(parents=True, exist_ok=True)
    with work.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                "The same augmentation is running already; wait for it, or stop it first."
            ) from None
        yield
        work.with_suffix(".lock").unlink(missing_ok=True)


def _no_progress(done: int, total: int) -> None:
    """Nobody watches."""
