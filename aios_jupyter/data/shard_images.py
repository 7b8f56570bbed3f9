"""The images and labels of a shard's samples, found among its members all at once.

A shard with anything out of the ordinary is left to who goes through it sample by sample and says
what is wrong. A leaf module: it imports numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .layout import IMAGE_SUFFIXES
from .tar import Members

_ROWS_AT_ONCE = 8192
# What is longer is no label that samples share.
_LONGEST_LABEL = 64
_DOT, _SLASH = ord("."), ord("/")

Numbers = NDArray[np.int64]


class Images(NamedTuple):
    """Where the image of each sample is, and its label: one of some words, and which; -1 for none."""

    start: Numbers
    size: Numbers
    words: list[str]
    word: Numbers


def find(
    members: Members, data: Any, labels: Sequence[str], read: Callable[[bytes], str | None]
) -> Images | None:
    """The images of a shard; None where it has to be gone through sample by sample.

    Parameters
    ----------
    data
        The shard.
    labels
        Endings of files with a label, the first that a sample has counts.
    read
        The label that such a file's bytes are.
    """
    if not len(members) or members.names.dtype == object or not members.is_file.all():
        return None
    found = _named(members.names)
    if found is None:
        return None
    sample, endings, ending = found
    count = int(sample[-1]) + 1
    is_image = np.array([f".{name}" in IMAGE_SUFFIXES for name in endings])
    image = _firsts(sample, np.flatnonzero(is_image[ending]))
    rank = np.array([labels.index(name) if name in labels else len(labels) for name in endings])
    rows = np.flatnonzero(rank[ending] < len(labels))
    label = _firsts(sample, rows[np.lexsort((rank[ending[rows]], sample[rows]))])
    if len(image) != count or len(label) not in {0, count}:
        return None
    words: tuple[list[str], Numbers] | None = [], np.full(count, -1)
    if len(label):
        words = _words(np.frombuffer(data, np.uint8), members, label, read)
    return words and Images(members.start[image], members.size[image], *words)


def _named(names: NDArray[np.bytes_]) -> tuple[Numbers, list[str], Numbers] | None:
    """For each member its sample, by number, and its ending, by its place among all of them.

    None where a name is none that is cut as it is, or stands twice.
    """
    text = names.view(np.uint8).reshape(len(names), -1)
    parts = []
    for first in range(0, len(names), _ROWS_AT_ONCE):
        # One row before tells whether the first begins a sample.
        before = min(first, 1)
        rows = slice(first - before, first + _ROWS_AT_ONCE)
        part = _cut(text[rows], np.char.str_len(names[rows]))
        if part is None:
            return None
        parts.append([column[before:] for column in part])
    begins, endings = (np.concatenate(column) for column in zip(*parts, strict=True))
    begins[0] = True
    sample = np.cumsum(begins) - 1
    raw, ending = np.unique(endings, return_inverse=True)
    words = [value.decode("utf-8", "surrogateescape").lower() for value in raw.tolist()]
    known = list(dict.fromkeys(words))
    ending = np.array([known.index(word) for word in words])[ending]
    if len(np.unique(sample * len(known) + ending)) != len(sample):
        return None
    return sample, known, ending


def _cut(
    text: NDArray[np.uint8], lengths: Numbers
) -> tuple[NDArray[np.bool_], NDArray[np.bytes_]] | None:
    """Whether each name begins another sample than the one before, and its ending."""
    count, width = text.shape
    dots, slashes = text == _DOT, text == _SLASH
    twice = (dots | slashes)[:, :-1] & slashes[:, 1:] | (dots[:, :-1] & dots[:, 1:])
    if slashes[:, 0].any() or twice.any():
        return None
    places = np.arange(width)
    last = np.where(slashes.any(axis=1), width - 1 - slashes[:, ::-1].argmax(axis=1), -1)
    dots &= places > last[:, None]
    stop = np.where(dots.any(axis=1), dots.argmax(axis=1), lengths)
    key = np.where(places < stop[:, None], text, 0)
    begins = np.ones(count, np.bool_)
    begins[1:] = (key[1:] != key[:-1]).any(axis=1)
    longest = max(int((lengths - stop).max()) - 1, 1)
    at = stop[:, None] + 1 + np.arange(longest)
    letters = text[np.arange(count)[:, None], np.minimum(at, width - 1)]
    letters[at >= lengths[:, None]] = 0
    return begins, letters.view(f"S{longest}").ravel()


def _firsts(sample: Numbers, rows: Numbers) -> Numbers:
    """Of some members, which are in order, the first of each sample."""
    of = sample[rows]
    keep = np.ones(len(of), np.bool_)
    keep[1:] = of[1:] != of[:-1]
    return rows[keep]


def _words(
    view: NDArray[np.uint8],
    members: Members,
    rows: Numbers,
    read: Callable[[bytes], str | None],
) -> tuple[list[str], Numbers] | None:
    """The labels that there are, and which one each of some members is."""
    start, size = members.start[rows, None], members.size[rows, None]
    longest = int(size.max())
    if not 0 < longest <= _LONGEST_LABEL:
        return None
    places = np.arange(longest)
    letters = view[np.minimum(start + places, len(view) - 1)]
    inside = places < size
    if not letters[inside].all():
        return None
    letters[~inside] = 0
    raw, word = np.unique(letters.view(f"S{longest}").ravel(), return_inverse=True)
    words = [read(value) for value in raw.tolist()]
    known = [value for value in words if value is not None]
    return (known, word) if len(known) == len(words) else None
