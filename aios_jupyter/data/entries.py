"""What the catalogue knows of a dataset. A light module: every kernel may import it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..errors import UsageError
from ..schema import Struct
from .description import Field

# The format of what `vault` has encrypted.
ENCRYPTED = "age"
_LEAST_OF_VERSION = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# How a file that is compressed ends, and with what it is.
PACKINGS = {".gz": "gzip", ".zst": "zstd"}


def packed_suffixes(*suffixes: str) -> tuple[str, ...]:
    """How files that end so are called when they are compressed."""
    return tuple(suffix + end for suffix in suffixes for end in PACKINGS)


_SUFFIXES = (
    *(".npz", ".npy", ".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson"),
    *packed_suffixes(".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt"),
    *(".wav", ".txt", ".tar", ".zarr"),
)


class Entry(Struct, frozen=True, kw_only=True):
    """One version of a dataset.

    Attributes
    ----------
    name
        Its name in the catalogue; "" for data that is not in it.
    url
        An absolute path, or a URL that fsspec knows.
    format
        `folder` (of images, with a subfolder for each class if they have labels), `npz`, `npy`,
        `parquet`, `csv`, `jsonl`, `sounds`, `text`, `webdataset`, `zarr`, or `database` for a table of
        one (`…/shop#orders`).
    version
        A short hash of the content.
    rows, size
        Number of rows (images, samples, lines), and bytes in storage.
    schema
        Array or column to type, such as `{"x": "uint8[28, 28]", "y": "uint8"}`.
    classes
        The labels that occur, in order, as text; empty for a quantity or no labels.
    counts
        How many rows have each of them; empty where that is not known.
    fields
        Statistics of each column.
    created
        When this version was put in the catalogue.
    made_from, how
        Lineage: `name@version` of what it was made from, and what was done.
    owner, tags
        Who put it there, and words to find it by.
    """

    name: str
    url: str
    format: str
    version: str
    rows: int
    size: int = 0
    schema: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    created: float = 0.0
    made_from: tuple[str, ...] = ()
    how: str = ""
    fields: tuple[Field, ...] = ()
    owner: str = ""
    tags: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def ref(self) -> str:
        """`name@version`: this name with this content."""
        return f"{self.name or self.url}@{self.version}"

    @property
    def file_name(self) -> str:
        """What a dataset of one file is called in a folder."""
        if self.name:
            return f"{self.name}{ending(self.url)}"
        return PurePosixPath(self.url).name

    def is_called(self, version: str) -> bool:
        """Whether this is the version that somebody has written, perhaps its beginning alone."""
        short = len(version) >= _LEAST_OF_VERSION and self.version.startswith(version)
        return short or version in {"", self.version}


def is_name(text: str) -> bool:
    """Whether it can be the name of a dataset."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, what: str = "a dataset's name") -> None:
    """Raise `UsageError` for what cannot be the name of a dataset."""
    if not is_name(name):
        raise UsageError(
            f"'{name}' cannot be {what}; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit."
        )


def ending(url: str) -> str:
    """How a file's name says what is in it: its suffix, with that before `.gz` or `.zst` if it ends so."""
    suffixes = PurePosixPath(url.rstrip("/")).suffixes
    return "".join(suffixes[-2:] if packing(url) else suffixes[-1:])


def packing(name: str) -> str:
    """What a file is compressed with, by its name; "" where it is not."""
    return PACKINGS.get(PurePosixPath(name).suffix, "")


def packed_name(name: str, codec: str) -> str:
    """What a file is called when it has been compressed."""
    return name + next(end for end, known in PACKINGS.items() if known == codec)


def unpacked_name(name: str) -> str:
    """What a file would be called if it were not compressed."""
    return name[: -len(PurePosixPath(name).suffix)] if packing(name) else name


def looks_like_path(text: str) -> bool:
    """Whether a reference to data is a path or URL rather than a name."""
    return "/" in text or text.startswith(("~", ".")) or text.lower().endswith(_SUFFIXES)
