"""Datasets: a catalogue of them, what reads and writes them, augmentation and preparation.

`Catalog`, `Entry`, `Recipe`, `embedding` and `split` are here for users; they are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import Catalog, Entry
    from .embeddings import embedding
    from .recipe import Recipe
    from .splits import split

__all__ = ["Catalog", "Entry", "Recipe", "embedding", "split"]


def __getattr__(name: str) -> Any:
    if name == "split":
        from .splits import split

        return split
    if name == "embedding":
        from .embeddings import embedding

        return embedding
    if name == "Recipe":
        from .recipe import Recipe

        return Recipe
    if name in __all__:
        from . import catalog

        return getattr(catalog, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
