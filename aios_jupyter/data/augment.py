"""Make augmented datasets, as tasks on the cluster or in this process, and preview policies.

A leaf module: it imports numpy and OpenCV; `distributed` only where a client is given.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConflictError, UsageError
from . import arrays, cache, chunks, formats, layout, storage
from .catalog import Catalog, Entry, check_name, looks_like_path
from .pipeline import Pipeline, check_images
from .policy import Policy, parse
from .preview import preview, to_png

__all__ = ["Source", "augment", "preview", "to_png"]

if TYPE_CHECKING:
    from distributed import Client

# Part of the key of finished chunks: raise it when the same policy gives other pixels.
_PIXELS = 2
_MOST_COPIES = 1000
_CHUNK_BYTES = 8 * 2**20
_CHUNKS = 32
_LEAST_ARRAY_ROWS = 64
_LEAST_FILES = 8
_MANIFEST = ".aios-augment.json"

Source = str | Path | Entry | NDArray[Any] | tuple[NDArray[Any], NDArray[Any] | None]


_Made = tuple[Entry, tuple[layout.FileCheck, ...]]


@dataclass(frozen=True)
class _Job:
    """What to make. `key` is the same for the same pixels, and so names the finished chunks."""

    source: Entry
    target: str
    name: str
    suffix: str
    policy: Policy
    copies: int
    seed: int
    keep_original: bool
    key: str
    how: str

    @property
    def work(self) -> Path:
        return storage.data_dir("work") / self.key


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
        Such as `"rotate(15), shift(0.1), hflip"`.
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
    job = _plan(src, str(dst), parse(policy), copies, seed, keep_original, catalog)
    total = job.source.rows * copies
    progress = on_progress or _no_progress
    finished = _finished(job, catalog)
    if finished is not None:
        progress(total, total)
        return finished
    with _locked(job.work), storage.writing():
        make = _make_folder if job.source.format == "folder" else _make_arrays
        entry, checks = make(job, client, progress)
        shutil.rmtree(job.work)
        return catalog.put(entry, checks)


def _plan(
    src: Source,
    dst: str,
    policy: Policy,
    copies: int,
    seed: int,
    keep_original: bool,
    catalog: Catalog,
) -> _Job:
    if not 1 <= copies <= _MOST_COPIES:
        raise UsageError(f"The number of copies must be 1 to {_MOST_COPIES}, but is {copies}.")
    Pipeline(policy, seed)
    if policy.mixes:
        raise UsageError(
            "mixup and cutmix mix the images of a training batch; leave them out here, and use "
            "aios_jupyter.augment(policy) in the loader."
        )
    source = _source(src, catalog)
    folder = source.format == "folder"
    name, target, suffix = _destination(dst, folder)
    if folder and target and (storage.is_remote(target) or _holds_something_else(Path(target))):
        raise ConflictError(
            f"{target} is not a new local folder; give another one, or a name to keep the result "
            "in the catalogue."
        )
    what = f"copies={copies}, seed={seed}" + ("" if keep_original else ", without originals")
    identity = [source.version, str(policy), copies, seed, keep_original, _PIXELS]
    return _Job(
        source=source,
        target=target,
        name=name,
        suffix=suffix,
        policy=policy,
        copies=copies,
        seed=seed,
        keep_original=keep_original,
        key=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        how=f"augment {policy}; {what}",
    )


def _source(src: Source, catalog: Catalog) -> Entry:
    if isinstance(src, str | Path | Entry):
        return catalog.get(src)
    x, y = src if isinstance(src, tuple) else (src, None)
    x = np.ascontiguousarray(x)
    check_images(x)
    if y is not None and len(np.atleast_1d(y)) != len(x):
        raise UsageError(f"There are {len(x)} images but {np.size(y)} labels; each needs one.")
    description = arrays.describe_arrays(x, None if y is None else np.asarray(y))
    digest = hashlib.sha256(str(x.shape).encode() + x.data.cast("B"))
    if y is not None:
        digest.update(f"{np.asarray(y).dtype}".encode() + np.ascontiguousarray(y).tobytes())
    version = digest.hexdigest()[:12]
    _decoded(version, lambda: (x, y))
    return Entry(
        name="array",
        url="",
        format="npz",
        version=version,
        rows=len(x),
        schema=description.schema,
        classes=description.classes,
    )


def _destination(dst: str, folder: bool) -> tuple[str, str, str]:
    """Name in the catalogue, place ("" for the catalogue's own), and suffix ("" for a folder)."""
    if not looks_like_path(dst):
        check_name(dst)
        return dst, "", "" if folder else ".npz"
    target = storage.absolute(dst)
    place = Path(target)
    suffix = place.suffix.lower()
    if folder:
        if suffix in {".npz", ".parquet", ".pq"}:
            raise UsageError(f"An image folder becomes a folder; {dst} must not end in {suffix}.")
        name = place.name
    elif suffix not in {".npz", ".parquet", ".pq"}:
        raise UsageError(f"{dst} must end in .npz or .parquet, or be a name without a slash.")
    else:
        name = place.stem
    check_name(name)
    return name, target, "" if folder else suffix


def _finished(job: _Job, catalog: Catalog) -> Entry | None:
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


def _make_arrays(job: _Job, client: Client | None, progress: chunks.Progress) -> _Made:
    images, labels = _decoded(
        job.source.version, lambda: formats.load(job.source.url, job.source.format)
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
    job: _Job, x: NDArray[Any], tasks: Sequence[chunks.ArrayTask]
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
    job: _Job, shape: tuple[int, ...], blocks: Iterator[NDArray[Any]], y: NDArray[Any] | None
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


def _make_folder(job: _Job, client: Client | None, progress: chunks.Progress) -> _Made:
    names = layout.list_images(job.source.url)
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
            policy=str(job.policy),
            seed=job.seed,
            copies=job.copies,
            keep_original=job.keep_original,
            mark=mark,
            target=str(aside),
            done=str(job.work / f"{step}-{start:010d}.done"),
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
        (aside / _MANIFEST).write_text(json.dumps({"made_from": job.source.ref, "how": job.how}))
        content = layout.content(str(aside), "folder")
        storage.replace_directory(aside, Path(job.target))
        return _entry(job, job.target, "folder", content)
    path, content = layout.adopt(aside, job.name, "")
    return _entry(job, str(path), "folder", content)


def _entry(
    job: _Job, url: str, form: str, content: layout.Content
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
        classes=description.classes,
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


def _decoded(
    version: str, load: Callable[[], tuple[NDArray[Any], NDArray[Any] | None]]
) -> tuple[Path, Path | None]:
    """The images and labels of a source as npy files that workers can map; made once."""
    directory = storage.data_dir("cache", version)
    images, labels = directory / "x.npy", directory / "y.npy"
    if images.exists():
        os.utime(directory)
    else:
        x, y = load()
        check_images(x)
        # It is made even where it does not fit: without it nothing can be done.
        cache.make_room(x.nbytes, spare=version)
        # The labels first: the images' file says that all is there.
        if y is not None:
            with storage.written_aside(str(labels)) as file:
                np.lib.format.write_array(file, np.asarray(y), allow_pickle=False)
        with storage.written_aside(str(images)) as file:
            arrays.write_npy(file, x.shape, (x,))
    return images, labels if labels.exists() else None


def _holds_something_else(folder: Path) -> bool:
    if not folder.exists():
        return False
    return not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MANIFEST).exists())


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
