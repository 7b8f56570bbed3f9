"""Models: publish, resolve, open, serve, ask.

`registry` keeps versions, `package` makes their files and `predictor` opens them; `serve` is the
process behind an endpoint and `client` asks it. Importing this package is cheap: the names below
are loaded when they are used.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ModelVersion", "fetch", "load", "publish", "resolve", "set_alias", "versions"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
