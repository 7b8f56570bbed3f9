"""AIOS for Jupyter: lease GPUs, train on all of them and serve, without leaving the notebook.

>>> import aios_jupyter
>>> session = aios_jupyter.connect()
>>> lease = session.alloc(devices=2, time="1h")

Names are loaded when they are first used, so that importing this package costs a kernel nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import train as train
    from .data.feed import loader as loader
    from .data.kv import KV
    from .data.loader import augment as augment
    from .errors import AiosError as AiosError
    from .recording import record as record
    from .session import BatchResult as BatchResult
    from .session import Lease as Lease
    from .session import RunHandle as RunHandle
    from .session import RunResult as RunResult
    from .session import Session as Session
    from .session import connect as connect
    from .session import down as down
    from .session import up as up

    kv: KV

_WHERE = {
    "AiosError": ".errors",
    "BatchResult": ".session",
    "Lease": ".session",
    "RunHandle": ".session",
    "RunResult": ".session",
    "Session": ".session",
    "augment": ".data.loader",
    "connect": ".session",
    "down": ".session",
    "loader": ".data.feed",
    "record": ".recording",
    "up": ".session",
}

__all__ = [
    "AiosError",
    "BatchResult",
    "Lease",
    "RunHandle",
    "RunResult",
    "Session",
    "__version__",
    "augment",
    "connect",
    "down",
    "kv",
    "loader",
    "record",
    "train",
    "up",
]


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module(".train", __name__)
    if name == "kv":
        from .data.kv import KV

        globals()["kv"] = own = KV()
        return own
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext aios_jupyter`: adds `%aios` and `%%aios`."""
    from .notebook.magics import load

    load(ipython)


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "aios-jupyter"}]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .server.app import AiosApp

    return [{"module": "aios_jupyter", "app": AiosApp}]
