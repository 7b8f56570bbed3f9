"""Datasets divided into parts for training, validation and testing, by a hash of what each row is.

The same row is on the same side today and when the dataset has grown, whatever its place and however
many workers there are, and rows that are equal are never on two sides. A leaf module: it imports
pandas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import UsageError
from . import storage
from .catalog import Catalog, Entry, check_name
from .selection import Hashes, select


def divide(
    src: str | Entry,
    parts: Mapping[str, float],
    *,
    stratify: str = "",
    by: str = "",
    seed: int = 0,
    to: str = "",
    catalog: Catalog | None = None,
) -> dict[str, Entry]:
    """Divide a dataset: `divide("people", {"train": 0.8, "test": 0.2})` makes `people-train`, ….

    Parameters
    ----------
    parts
        Name and share of each; the shares add up to 1.
    stratify
        A column (of arrays and images, `label`) whose values have these shares in every part, to
        the row. Where data is added later, a row at a boundary may then change sides.
    by
        A column whose rows with the same value stay together, such as a person's id.
    seed
        Another seed is another division.
    to
        What the names begin with, if not with that of `src`.

    Raises
    ------
    UsageError
        The shares make no sense, a part would be empty, or there is no such column.
    """
    catalog = catalog or Catalog()
    entry = catalog.get(src)
    _check_parts(parts)
    stem = to or entry.name
    names = {part: f"{stem}-{part}" for part in parts}
    for name in names.values():
        check_name(name)
    selector = select(entry)
    how = f"split: {_written(parts)}" + "".join(
        f", {word} {value}"
        for word, value in (("stratify", stratify), ("by", by), ("seed", seed))
        if value
    )
    with storage.scratch(stem) as room:
        room.mkdir()
        hashes, classes = selector.look(room, by, stratify, seed)
        places = place(hashes, list(parts.values()), classes)
        for number, part in enumerate(parts):
            if not (places == number).any():
                raise UsageError(
                    f"The part '{part}' would be empty: {len(places):,} rows are too few for "
                    f"{_written(parts)}."
                )
        made = {}
        for number, (part, name) in enumerate(names.items()):
            found = selector.make(name, places == number, room, catalog)
            made[part] = catalog.put(
                msgspec.structs.replace(found, made_from=(entry.ref,), how=f"{how}: {part}")
            )
        return made


def parse_parts(text: str) -> dict[str, float]:
    """Read `train=0.8,val=0.1,test=0.1`."""
    found: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, share = piece.partition("=")
        try:
            if not equals or name.strip() in found:
                raise ValueError
            found[name.strip()] = float(share)
        except ValueError:
            raise UsageError(
                f"'{piece}' is no part; write them like train=0.8,val=0.1,test=0.1."
            ) from None
    _check_parts(found)
    return found


def _check_parts(parts: Mapping[str, float]) -> None:
    if len(parts) < 2 or not all(0 < share < 1 for share in parts.values()):
        raise UsageError("A division has two parts or more, each with a share between 0 and 1.")
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise UsageError(
            f"The shares {_written(parts)} add up to {sum(parts.values()):g}; they have to be 1."
        )


def _written(parts: Mapping[str, float]) -> str:
    return ",".join(f"{name}={share:g}" for name, share in parts.items())


def place(
    hashes: Hashes, shares: list[float], classes: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """The part of each row, by its hash; rows of one hash are one.

    Parameters
    ----------
    classes
        Give every class its shares to the row, in the order of the hashes; a hash that several
        classes have counts as its most frequent one.
    """
    edges = np.cumsum(shares)[:-1]
    if classes is None:
        return np.searchsorted(edges, hashes.astype(np.float64) / 2.0**64, side="right")
    keys, inverse, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    counted = pd.DataFrame({"key": inverse, "class": classes}).value_counts().reset_index()
    counted = counted.sort_values(["key", "count", "class"], ascending=[True, False, True])
    own = counted.drop_duplicates("key")["class"].to_numpy()
    found = np.zeros(len(keys), np.int64)
    for value in pd.unique(own):
        # Hashes are in order already; a group counts as many rows as it has, up to its middle.
        members = np.flatnonzero(own == value)
        through = np.cumsum(sizes[members]) - sizes[members] / 2
        found[members] = np.searchsorted(
            np.round(edges * sizes[members].sum()), through, side="right"
        )
    return found[inverse]
