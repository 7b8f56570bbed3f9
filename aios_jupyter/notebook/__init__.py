"""The notebook's side of the verbs.

magics      `%aios`, `%%aios` and what registers them
display     the notebook's host: decides what to show and how
widgets     live cards with buttons
held        those of leases and endpoints, which outlive their cells
previews    that of an augmentation policy
html        the same cards as static HTML, which is what a saved notebook keeps
completion  what Tab offers after `%aios`
"""

from __future__ import annotations

from typing import Any


def load_ipython_extension(ipython: Any) -> None:
    """What AIOS kernels load when they start.

    It goes by another name than `%load_ext aios_jupyter`, which notebooks for all kernels begin
    with: IPython would say there that it is loaded already.
    """
    from .magics import load

    load(ipython)
