"""Datasets: a catalogue of them, what reads and writes them, and augmentation.

`Catalog`, `Entry` and `split` are here for users; they are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import Catalog, Entry
    from .splits import split

__all__ = ["Catalog", "Entry", "split"]


def __getattr__(name: str) -> Any:
    if name == "split":
        from .splits import split

        return split
    if name in __all__:
        from . import catalog

        return getattr(catalog, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
