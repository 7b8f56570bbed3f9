"""WebDataset: tar files of samples, each some files that share the name before the first dot.

A leaf module: it imports numpy. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .description import MOST_CLASSES, Description, Field
from .layout import IMAGE_SUFFIXES, named_files
from .storage import locate, reading

Sample = dict[str, bytes]
_LABELS = ("cls", "label", "label.txt", "cls.txt")


def samples(url: str) -> Iterator[tuple[str, Sample]]:
    """Each sample of a shard, or of all shards of a folder: its key, and file ending to bytes.

    Raises
    ------
    UsageError
        A shard is cut off, or has a link or a name that leads out of it.
    """
    root, names = named_files(url, "webdataset")
    fs, path = locate(root)
    for name in names:
        with reading(f"{root}/{name}"), fs.open(f"{path.rstrip('/')}/{name}", "rb") as file:
            yield from _samples(file, f"{root}/{name}")


def _samples(file: IO[bytes], url: str) -> Iterator[tuple[str, Sample]]:
    key, sample = "", Sample()
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            _check(member, url)
            stem, _, ending = PurePosixPath(member.name).name.partition(".")
            here = f"{PurePosixPath(member.name).parent}/{stem}".removeprefix("./")
            if sample and here != key:
                yield key, sample
                sample = {}
            opened = archive.extractfile(member)
            if opened is None or ending.lower() in sample:
                raise UsageError(f"{member.name} stands twice in {url}; make the shard again.")
            key, sample[ending.lower()] = here, opened.read()
    if sample:
        yield key, sample


def _check(member: tarfile.TarInfo, url: str) -> None:
    path = PurePosixPath(member.name)
    if not member.isfile():
        raise UsageError(
            f"{member.name} in {url} is a link or a device; a shard has plain files alone."
        )
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{member.name} in {url} leads out of the shard; do not trust it.")


def describe(url: str) -> Description:
    """How many samples, of which files, and which classes their labels are."""
    rows, sizes, labels = 0, dict[str, list[int]](), set[str]()
    for _, sample in samples(url):
        rows += 1
        for ending, blob in sample.items():
            count = sizes.setdefault(ending, [0, 0])
            count[0] += 1
            count[1] += len(blob)
        label = _label(sample)
        if label is not None and len(labels) <= MOST_CLASSES:
            labels.add(label)
    if rows == 0:
        raise UsageError(f"{url} has no samples; there is nothing to use.")
    fields = tuple(
        Field(name=ending, kind="file", missing=rows - count, mean=total / count)
        for ending, (count, total) in sizes.items()
    )
    classes = _in_order(labels) if len(labels) <= MOST_CLASSES else ()
    return Description(rows, dict.fromkeys(sizes, "file"), classes, fields)


def load(url: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The images, which must have one size, and the labels: numbers, or else words."""
    from .formats import decode_image, stack

    images, labels = [], []
    for key, sample in samples(url):
        ending = next((e for e in sample if f".{e}" in IMAGE_SUFFIXES), None)
        if ending is None:
            raise UsageError(
                f"Sample {key} of {url} has no image (it has {', '.join(sample)}); read such "
                "samples with data.shards.samples(url)."
            )
        images.append(decode_image(sample[ending], f"{key}.{ending} in {url}"))
        labels.append(_label(sample))
    if all(label is None for label in labels):
        return stack(images, url), None
    if None in labels:
        raise UsageError(f"{url} has {labels.count(None)} samples without a label; remove them.")
    words = [str(label) for label in labels]
    numbers = all(word.lstrip("-").isdigit() for word in words)
    return stack(images, url), np.array(words, np.int64 if numbers else str)


def _label(sample: Sample) -> str | None:
    blob = next((sample[name] for name in _LABELS if name in sample), None)
    return None if blob is None else blob.decode("utf-8", "replace").strip()


def _in_order(labels: set[str]) -> tuple[str, ...]:
    numbers = all(label.lstrip("-").isdigit() for label in labels)
    return tuple(sorted(labels, key=int)) if numbers else tuple(sorted(labels))
