"""Models: publish, resolve, open, serve, ask.

`registry` keeps versions, `aliases` moves names, `card` tells what is known; `package` makes files
and `predictor` opens them; `optimize` makes smaller variants; `serve` is the process behind an
endpoint and `client` asks it. Importing this package is cheap: the names below
are loaded when they are used.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ModelVersion", "fetch", "load", "publish", "resolve", "rollback", "set_alias", "versions",
]  # fmt: skip
_ALIASES = ("rollback", "set_alias")


def __getattr__(name: str) -> Any:
    if name in _ALIASES:
        from . import aliases

        return getattr(aliases, name)
    if name in __all__:
        from . import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
