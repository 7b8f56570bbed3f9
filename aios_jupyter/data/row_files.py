"""Rows of several lengths, for ranks: texts, and sounds that are no array together.

A leaf module, behind `rows`: it imports numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConflictError, UsageError
from . import cache, formats, labels, layout, sounds
from .catalog import Entry
from .rows import Rows, Source

Array = NDArray[Any]


class Texts(Source):
    """Lines, or documents, which are kept in memory."""

    def __init__(self, entry: Entry) -> None:
        here = cache.local(entry)
        self._x, self._y = formats.load(here.url, here.format)
        self.rows = len(self._x)
        labels.check_known(entry, self.rows, None)

    def take(self, rows: Rows) -> tuple[list[str], Array | None]:
        return self._x[rows].tolist(), None if self._y is None else self._y[rows]


def differ(entry: Entry) -> bool:
    """Whether the sounds of a dataset have several lengths, as far as the catalogue knows."""
    return any(f.name == "seconds" and f.least != f.most for f in entry.fields)


class Sounds(Source):
    """Sounds as float32 from -1 to 1, each read when it is taken."""

    what_differs = (
        "sounds of {} differ in length; give the loader a function that brings them to one, such as "
        "transform=lambda x, y: (np.stack([np.resize(one, 16000) for one in x]), y)."
    )

    def __init__(self, entry: Entry) -> None:
        self._url, self._names = layout.named_files(cache.local(entry).url, "sounds")
        self.rows = len(self._names)
        kinds = entry.schema.get("sound", "")
        if " or " in kinds:
            raise UsageError(
                f"The sounds of {entry.url} are of several kinds ({kinds}); bring them to one first."
            )
        classes = {name: n for n, name in enumerate(layout.file_classes(self._names))}
        numbers = [classes[name.split("/")[0]] for name in self._names if classes]
        self._y = np.array(numbers, np.int64) if classes else None
        if tuple(classes) != entry.classes:
            raise ConflictError(
                f"{entry.url} has other subfolders than when it was added, and they are its labels; add "
                "it again."
            )
        labels.check_known(entry, self.rows, None)

    def take(self, rows: Rows) -> tuple[list[Array], Array | None]:
        found = [sounds.read(self._url, self._names[row]).samples for row in rows.tolist()]
        floats = [sounds.as_floats(one[:, 0] if one.shape[1] == 1 else one) for one in found]
        return floats, None if self._y is None else self._y[rows]
