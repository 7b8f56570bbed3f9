"""Embeddings by name, for the step `embed(note, NAME)` of a recipe.

A recipe has the name alone, so that nothing in its file is ever executed: the function is one that
this process has registered, or that an installed package offers as an entry point of the group
`aios_jupyter.embeddings`, which workers and endpoints find too. It imports numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NotFoundError, UsageError
from .entries import check_name

Embed = Callable[[list[str]], Any]

GROUP = "aios_jupyter.embeddings"
_KNOWN: dict[str, Embed] = {}


def embedding(name: str, function: Embed) -> None:
    """Register a function for this process: a list of texts in, an array `(texts, numbers)` out."""
    check_name(name, "a name of an embedding")
    _KNOWN[name] = function


def embed(name: str, texts: list[str]) -> NDArray[np.float32]:
    """The embedding of some texts, also of none.

    Raises
    ------
    NotFoundError
        Nobody offers it here.
    UsageError
        It did not give as many rows of finite numbers.
    """
    function = _find(name)
    # Of no text nobody knows how many numbers there are: an empty one tells.
    found = np.asarray(function(texts or [""]))
    right = found.ndim == 2 and len(found) == len(texts or [""]) and found.dtype.kind in "iuf"
    if not right or not np.isfinite(found).all():
        raise UsageError(
            f"The embedding '{name}' gave {found.dtype} {found.shape} for {len(texts)} texts; it has "
            "to give an array (texts, numbers) of finite numbers."
        )
    return found[: len(texts)].astype(np.float32)


def _find(name: str) -> Embed:
    if name in _KNOWN:
        return _KNOWN[name]
    for offered in entry_points(group=GROUP, name=name):
        function: Embed = offered.load()
        return function
    raise NotFoundError(
        f"There is no embedding '{name}' in this process; register it with "
        f"aios_jupyter.data.embedding('{name}', function), or, for a cluster's workers and for "
        f"serving, install a package that offers it (entry points '{GROUP}')."
    )
