"""What an augmentation is to make: its source, its policy, and where the result goes.

A leaf module: it imports numpy and OpenCV.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConflictError, UsageError
from . import arrays, cache, labels, media, storage, upkeep
from .catalog import Catalog, Entry, check_name, looks_like_path
from .pipeline import check_images
from .policy import Policy, parse

Source = str | Path | Entry | NDArray[Any] | tuple[NDArray[Any], NDArray[Any] | None]

# Part of the key of finished chunks: raise it when the same policy gives other pixels.
_PIXELS = 2
_MOST_COPIES = 1000
MANIFEST = ".aios-augment.json"
# Formats whose files are augmented one by one, in folders.
_FOLDERS = {
    "folder": "An image folder",
    "sounds": "A folder of sounds",
    "text": "A folder of texts",
}
_OF_ARRAYS, _OF_LINES = (".npz", ".parquet", ".pq"), (".txt",)


@dataclass(frozen=True)
class Job:
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


def plan_job(
    src: Source,
    dst: str,
    policy: str | Policy,
    copies: int,
    seed: int,
    keep_original: bool,
    catalog: Catalog,
) -> Job:
    """What is to be made, once all that can be wrong with the request has been looked at."""
    if not 1 <= copies <= _MOST_COPIES:
        raise UsageError(f"The number of copies must be 1 to {_MOST_COPIES}, but is {copies}.")
    src, policy = resolved(src, policy, catalog)
    media.pipeline(policy, seed, policy.medium)
    if isinstance(src, Entry):
        upkeep.check_unchanged(src, catalog)
    source = src if isinstance(src, Entry) else _of_arrays(*src)
    folder = is_folder(source)
    if source.format == "sounds" and not folder:
        raise UsageError(f"{source.url} is a single sound; put it into a folder, and augment that.")
    name, target, suffix = _destination(dst, source)
    if folder and target and (storage.is_remote(target) or _holds_something_else(Path(target))):
        raise ConflictError(
            f"{target} is not a new local folder; give another one, or a name to keep the result "
            "in the catalogue."
        )
    what = f"copies={copies}, seed={seed}" + ("" if keep_original else ", without originals")
    identity = [source.version, str(policy), copies, seed, keep_original, _PIXELS]
    return Job(
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


def resolved(
    src: Source, policy: str | Policy, catalog: Catalog
) -> tuple[Entry | tuple[NDArray[Any], NDArray[Any] | None], Policy]:
    """A source as it is known, and the policy, if it is one for its images, sounds or texts.

    Raises
    ------
    UsageError, NotFoundError
        It does not parse, or mixes, or there is no such source.
    """
    found: Entry | tuple[NDArray[Any], NDArray[Any] | None]
    if isinstance(src, str | Path | Entry):
        found = catalog.get(src)
        medium = media.medium_of(found.format)
    else:
        found, medium = src if isinstance(src, tuple) else (src, None), "image"
    parsed = parse(policy, medium)
    if parsed.mixes:
        raise UsageError(
            "mixup and cutmix mix the images of a training batch; leave them out here, and use "
            "aios_jupyter.augment(policy) in the loader."
        )
    return found, parsed


def is_folder(source: Entry) -> bool:
    """Whether its files are augmented one by one."""
    if source.format not in _FOLDERS:
        return False
    fs, path = storage.locate(source.url)
    return bool(fs.isdir(path))


def _of_arrays(x: NDArray[Any], y: NDArray[Any] | None) -> Entry:
    x = np.ascontiguousarray(x)
    check_images(x)
    if y is not None and len(np.atleast_1d(y)) != len(x):
        raise UsageError(f"There are {len(x)} images but {np.size(y)} labels; each needs one.")
    description = arrays.describe_arrays(x, None if y is None else np.asarray(y))
    digest = hashlib.sha256(str(x.shape).encode() + x.data.cast("B"))
    if y is not None:
        digest.update(f"{np.asarray(y).dtype}".encode() + np.ascontiguousarray(y).tobytes())
    version = digest.hexdigest()[:12]
    decoded(version, "the array", lambda: (x, None if y is None else np.asarray(y)))
    return Entry(
        name="array",
        url="",
        format="npz",
        version=version,
        rows=len(x),
        schema=description.schema,
        classes=tuple(description.classes),
        counts=tuple(description.classes.values()),
    )


def _destination(dst: str, source: Entry) -> tuple[str, str, str]:
    """Name in the catalogue, place ("" for the catalogue's own), and suffix ("" for a folder)."""
    folder = is_folder(source)
    allowed = _OF_LINES if source.format == "text" else _OF_ARRAYS
    if not looks_like_path(dst):
        check_name(dst)
        return dst, "", "" if folder else allowed[0]
    target = storage.absolute(dst)
    place = Path(target)
    suffix = place.suffix.lower()
    if folder:
        if suffix in {*_OF_ARRAYS, *_OF_LINES, ".wav"}:
            what = _FOLDERS[source.format]
            raise UsageError(f"{what} becomes a folder; {dst} must not end in {suffix}.")
        name = place.name
    elif suffix not in allowed:
        ends = " or ".join(allowed[:2])
        raise UsageError(f"{dst} must end in {ends}, or be a name without a slash.")
    else:
        name = place.stem
    check_name(name)
    return name, target, "" if folder else suffix


def _holds_something_else(folder: Path) -> bool:
    if not folder.exists():
        return False
    return not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists())


def decoded(
    version: str, what: str, load: Callable[[], tuple[NDArray[Any], NDArray[Any] | None]]
) -> tuple[Path, Path | None]:
    """The images and labels of a source as npy files that workers can map; made once.

    Raises
    ------
    UsageError
        They are not uint8 images, or a label of `what` is NaN.
    """
    directory = storage.data_dir("cache", version)
    images, of_images = directory / "x.npy", directory / "y.npy"
    if images.exists():
        os.utime(directory)
    else:
        x, y = load()
        check_images(x)
        labels.check_usable(y, lambda row: f"Row {row:,} of {what}")
        # It is made even where it does not fit: without it nothing can be done.
        cache.make_room(x.nbytes, spare=version)
        # The labels first: the images' file says that all is there.
        if y is not None:
            with storage.written_aside(str(of_images)) as file:
                np.lib.format.write_array(file, y, allow_pickle=False)
        with storage.written_aside(str(images)) as file:
            arrays.write_npy(file, x.shape, (x,))
    return images, of_images if of_images.exists() else None
