"""Text: a file with a row in each line, or a folder of documents with one subfolder per class.

A leaf module: it imports numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .description import Description, Tally
from .entries import packing
from .layout import class_counts, file_classes, named_files
from .storage import locate, read_unpacked, reading

_AT_ONCE = 10_000


def describe(url: str) -> Description:
    """How many lines or documents, how long, and their classes."""
    tally, lengths, first = Tally(), [], ""
    for text in rows(url):
        first = first or text
        lengths.append(len(text))
        if len(lengths) == _AT_ONCE:
            tally.add(np.array(lengths))
            lengths = []
    tally.add(np.array(lengths))
    if tally.count == 0:
        raise UsageError(f"{url} is empty; there is nothing to use.")
    fs, path = locate(url)
    classes = class_counts(named_files(url, "text")[1]) if fs.isdir(path) else {}
    schema = {"text": "string"} | ({"label": "subfolder"} if classes else {})
    return Description(
        tally.count, schema, classes, (tally.field("characters", "int", first[:60]),)
    )


def load(url: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """All texts, and the number of each one's class."""
    x = np.array(_that_fit(url), object)
    classes = _classes(url)
    if not classes:
        return x, None
    _, names = named_files(url, "text")
    return x, np.array([classes.index(name.split("/")[0]) for name in names])


def _that_fit(url: str) -> list[str]:
    """All texts, if the memory takes them: what is compressed may be small and they are not."""
    import psutil

    free, size, found = psutil.virtual_memory().available // 2, 0, []
    for text in rows(url):
        found.append(text)
        size += sys.getsizeof(text)
        if size > free:
            raise UsageError(
                f"{url} has texts of more than {free / 2**30:.1f} GiB, half of the memory that is free; "
                "use a machine with more, or a part of them."
            )
    return found


def _classes(url: str) -> list[str]:
    fs, path = locate(url)
    return file_classes(named_files(url, "text")[1]) if fs.isdir(path) else []


def rows(url: str) -> Iterator[str]:
    """The lines of a file, or the documents of a folder in order."""
    fs, path = locate(url)
    if fs.isdir(path):
        root, names = named_files(url, "text")
        for name in names:
            yield decode(read_unpacked(root, name), f"{name} in {url}")
        return
    with reading(url), fs.open(path, "rb") as file:
        for number, line in enumerate(_lines(file, url), 1):
            yield decode(line, f"line {number} of {url}").rstrip("\r\n")


def _lines(file: IO[bytes], url: str) -> Iterator[bytes]:
    if not packing(url):
        return iter(file)
    from . import packed

    return packed.lines(file, url)


def decode(blob: bytes, what: str) -> str:
    """Bytes as text; `what` names them where they are none."""
    try:
        return blob.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8 text (byte {blob[error.start]:#04x} at {error.start}); "
            "convert it first."
        ) from None
