"""WebDataset: tar files of samples, each some files that share the name before the first dot.

A leaf module: it imports numpy. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import shard_images, tar
from .ahead import ahead
from .description import MOST_CLASSES, Description, Field
from .layout import IMAGE_SUFFIXES, named_files
from .shard_images import Images
from .storage import is_remote, locate, reading

Sample = dict[str, bytes]
LABELS = ("cls", "label", "label.txt", "cls.txt")
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
            if members is None:
                yield from _streamed(place)
                continue
            for key, sample in _grouped(_where(members, place), place):
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
    places = tuple(f"{root}/{name}" for name in names)
    with ThreadPoolExecutor(os.cpu_count(), "aios-index") as pool:
        with contextlib.closing(
            ahead(pool, lambda place: _images_in(place, url), places, 2)
        ) as made:
            found, firsts = zip(*(future.result() for future in made), strict=True)
    shard = np.repeat(np.arange(len(found)), [len(images.start) for images in found])
    start, size = (np.concatenate(column) for column in zip(*(i[:2] for i in found), strict=True))
    first = next((key for key in firsts if key), "")
    return Index(places, shard, start, size, _labels(found, first))


def _images_in(place: str, url: str) -> tuple[Images, str]:
    """The images of a shard, and which is the first sample without a label."""
    with reading(place), _placed(place) as (data, members):
        if members is None:
            raise UsageError(
                f"{place} is compressed, so that its images cannot be read one by one; shards are "
                "plain tar files."
            )
        images = shard_images.find(members, data, LABELS, _word)
        images = images or _one_by_one(members, data, place, url)
        lacking = images.word < 0
        return images, _key(members, place, int(lacking.argmax())) if lacking.any() else ""


def _one_by_one(members: tar.Members, data: Any, place: str, url: str) -> Images:
    """The images of a shard, sample by sample."""
    at: list[tuple[int, int]] = []
    words = dict[str, int]()
    word: list[int] = []
    for key, sample in _grouped(_where(members, place), place):
        at.append(sample[_image_of(key, sample, url)])
        label = _label_at(data, sample)
        word.append(-1 if label is None else words.setdefault(label, len(words)))
    start, size = np.array(at, np.int64).reshape(-1, 2).T
    return Images(start, size, list(words), np.array(word, np.int64))


def _key(members: tar.Members, place: str, number: int) -> str:
    """What a sample of a shard is called."""
    keys = (key for key, _ in _grouped(_where(members, place), place))
    return f"{next(itertools.islice(keys, number, None))} in {place}"


@contextlib.contextmanager
def _placed(place: str) -> Iterator[tuple[Any, tar.Members | None]]:
    """A shard mapped, and its members; None for one that is remote or compressed."""
    with contextlib.ExitStack() as stack:
        data = members = None
        if not is_remote(place):
            file = stack.enter_context(Path(place).open("rb"))
            # An empty file cannot be mapped.
            if Path(place).stat().st_size:
                data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                members = tar.members(data)
        yield data, members


def _where(members: tar.Members, place: str) -> list[tuple[str, tuple[int, int]]]:
    """The name of each member, and where its bytes are."""
    for name, _, _, is_file in members:
        _check(name, is_file, place)
    return [(name, (start, size)) for name, start, size, _ in members]


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
            _check(member.name, member.isfile(), place)
            opened = archive.extractfile(member)
            assert opened is not None
            yield member.name, opened.read()


def _check(name: str, is_file: bool, place: str) -> None:
    if not is_file:
        raise UsageError(f"{name} in {place} is a link or a device; a shard has plain files alone.")
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        raise UsageError(f"{name} in {place} leads out of the shard; do not trust it.")


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
        label = label_of(sample)
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
        labels.append(label_of(sample))
        if not first and labels[-1] is None:
            first = f"{key} in {url}"
    return stack(images, url), _all_labels(labels, first)


def label_of(sample: Sample) -> str | None:
    """The label of a sample, if it has one."""
    blob = next((sample[name] for name in LABELS if name in sample), None)
    return None if blob is None else _word(blob)


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
    words = [label for label in labels if label is not None]
    if not words:
        return None
    _refuse_missing(len(labels) - len(words), len(labels), first)
    return _as_labels(words)


def _labels(found: Sequence[Images], first: str) -> NDArray[Any] | None:
    """`_all_labels` of all shards."""
    word = np.concatenate([images.word for images in found])
    words = [text for images in found for text in images.words]
    if not words:
        return None
    _refuse_missing(int((word < 0).sum()), len(word), first)
    before = np.cumsum([0, *(len(images.words) for images in found[:-1])])
    labels: NDArray[Any] = _as_labels(words)[
        word + np.repeat(before, [len(images.word) for images in found])
    ]
    return labels


def _refuse_missing(missing: int, rows: int, first: str) -> None:
    if missing:
        raise UsageError(
            f"{missing:,} of {rows:,} samples have no label, the first of them {first}; remove them, "
            "or give each a file that ends in .cls."
        )


def _as_labels(words: Sequence[str]) -> NDArray[Any]:
    numbers = all(word.lstrip("-").isdigit() for word in words)
    return np.array(words, np.int64 if numbers else str)


def _label_at(data: Any, sample: dict[str, tuple[int, int]]) -> str | None:
    where = next((sample[name] for name in LABELS if name in sample), None)
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
