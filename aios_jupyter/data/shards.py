"""WebDataset: tar files of samples, each some files that share the name before the first dot.

A leaf module: it imports numpy. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import contextlib
import mmap
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import tar
from .description import MOST_CLASSES, Description, Field
from .layout import IMAGE_SUFFIXES, named_files
from .storage import is_remote, locate, reading

Sample = dict[str, bytes]
_LABELS = ("cls", "label", "label.txt", "cls.txt")
_What = TypeVar("_What")


def samples(url: str) -> Iterator[tuple[str, Sample]]:
    """Each sample of a shard, or of all shards of a folder: its key, and file ending to bytes.

    Raises
    ------
    UsageError
        A shard is cut off, or has a link or a name that leads out of it.
    """
    root, names = named_files(url, "webdataset")
    for name in names:
        place = f"{root}/{name}"
        with reading(place), _placed(place) as (data, members):
            if data is None:
                yield from _streamed(place)
                continue
            for key, sample in _grouped(members, place):
                yield key, {end: data[at : at + size] for end, (at, size) in sample.items()}


@dataclass(frozen=True)
class Index:
    """Where the image of each sample is: its shard, place and length there; and its label."""

    shards: tuple[str, ...]
    shard: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: NDArray[Any] | None


def index(url: str) -> Index:
    """Find every image of a dataset, so that each can be read by itself.

    Raises
    ------
    UsageError
        As `samples`; also where a sample has no image, or some have no label.
    """
    root, names = named_files(url, "webdataset")
    found: list[tuple[int, int, int]] = []
    labels: list[str | None] = []
    first = ""
    for number, name in enumerate(names):
        place = f"{root}/{name}"
        with reading(place), _placed(place) as (data, members):
            if data is None:
                raise UsageError(
                    f"{place} is compressed, so that its images cannot be read one by one; shards "
                    "are plain tar files."
                )
            for key, sample in _grouped(members, place):
                found.append((number, *sample[_image_of(key, sample, url)]))
                labels.append(_label_at(data, sample))
                if not first and labels[-1] is None:
                    first = f"{key} in {place}"
    shard, start, size = np.array(found, np.int64).reshape(-1, 3).T
    places = tuple(f"{root}/{name}" for name in names)
    return Index(places, shard, start, size, _all_labels(labels, first))


@contextlib.contextmanager
def _placed(place: str) -> Iterator[tuple[Any, list[tuple[str, tuple[int, int]]]]]:
    """A shard mapped, and where its files are in it; None for one that is remote or compressed."""
    members = None
    with contextlib.ExitStack() as stack:
        data = None
        if not is_remote(place):
            file = stack.enter_context(Path(place).open("rb"))
            # An empty file cannot be mapped.
            if Path(place).stat().st_size:
                data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                members = tar.members(data)
        if members is None:
            yield None, []
            return
        yield data, [_checked(m.name, m.is_file, (m.start, m.size), place) for m in members]


def _streamed(place: str) -> Iterator[tuple[str, Sample]]:
    """The samples of a shard that is read from its beginning to its end, whatever its form."""
    fs, path = locate(place)
    with fs.open(path, "rb") as file:
        yield from _grouped(_opened(file, place), place)


def _opened(file: IO[bytes], place: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            name, _ = _checked(member.name, member.isfile(), (0, 0), place)
            opened = archive.extractfile(member)
            assert opened is not None
            yield name, opened.read()


def _checked(
    name: str, is_file: bool, where: tuple[int, int], place: str
) -> tuple[str, tuple[int, int]]:
    if not is_file:
        raise UsageError(f"{name} in {place} is a link or a device; a shard has plain files alone.")
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        raise UsageError(f"{name} in {place} leads out of the shard; do not trust it.")
    return name, where


def _grouped(
    members: Iterable[tuple[str, _What]], place: str
) -> Iterator[tuple[str, dict[str, _What]]]:
    """Members as samples: each its key, and file ending to what is known of the file."""
    key, sample = "", dict[str, _What]()
    for name, what in members:
        plain = str(PurePosixPath(name)) if "./" in name or "//" in name else name
        folder, slash, file = plain.rpartition("/")
        stem, _, ending = file.partition(".")
        ending = ending.lower()
        here = folder + slash + stem
        if sample and here != key:
            yield key, sample
            sample = {}
        if ending in sample:
            raise UsageError(f"{name} stands twice in {place}; make the shard again.")
        key, sample[ending] = here, what
    if sample:
        yield key, sample


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

    images, labels, first = [], [], ""
    for key, sample in samples(url):
        ending = _image_of(key, sample, url)
        images.append(decode_image(sample[ending], f"{key}.{ending} in {url}"))
        labels.append(_label(sample))
        if not first and labels[-1] is None:
            first = f"{key} in {url}"
    return stack(images, url), _all_labels(labels, first)


def _image_of(key: str, sample: dict[str, Any], url: str) -> str:
    ending = next((e for e in sample if f".{e}" in IMAGE_SUFFIXES), None)
    if ending is None:
        raise UsageError(
            f"Sample {key} of {url} has no image (it has {', '.join(sample)}); read such "
            "samples with data.shards.samples(url)."
        )
    return ending


def _all_labels(labels: list[str | None], first: str) -> NDArray[Any] | None:
    """Labels as numbers, or else as words; `first` is the first sample without one."""
    if all(label is None for label in labels):
        return None
    if None in labels:
        raise UsageError(
            f"{labels.count(None):,} of {len(labels):,} samples have no label, the first of them "
            f"{first}; remove them, or give each a file that ends in .cls."
        )
    words = [str(label) for label in labels]
    numbers = all(word.lstrip("-").isdigit() for word in words)
    return np.array(words, np.int64 if numbers else str)


def _label(sample: Sample) -> str | None:
    blob = next((sample[name] for name in _LABELS if name in sample), None)
    return None if blob is None else _word(blob)


def _label_at(data: Any, sample: dict[str, tuple[int, int]]) -> str | None:
    where = next((sample[name] for name in _LABELS if name in sample), None)
    if where is None:
        return None
    return _word(data[where[0] : sum(where)])


def _word(blob: bytes) -> str | None:
    """A label; none where its file is empty, or says that there is none."""
    text = blob.decode("utf-8", "replace").strip()
    return None if text.lower() in {"", "nan"} else text


def _in_order(labels: set[str]) -> tuple[str, ...]:
    numbers = all(label.lstrip("-").isdigit() for label in labels)
    return tuple(sorted(labels, key=int)) if numbers else tuple(sorted(labels))
