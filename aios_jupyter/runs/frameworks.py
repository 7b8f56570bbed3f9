"""What a rank does for the framework of its code: before the code runs, once it has imported a
framework, and at its end. Nothing of a framework is imported here unless the user's code does.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from . import horovod, peers

if TYPE_CHECKING:
    from .rank import Orders


def prepare(orders: Orders) -> None:
    """Make ready for the user's code; what a framework needs once it is there waits for its import.

    Raises
    ------
    AiosError
        The framework is not here, or the ranks do not find each other.
    """
    # First of all: the ranks meet over the socket that torch's store may take over.
    if orders.spec.framework in ("tensorflow", "horovod"):
        quieten_tensorflow(orders.threads)
    if orders.spec.framework == "horovod":
        horovod.prepare(orders)
    elif orders.spec.framework == "tensorflow" and orders.spec.world_size > 1:
        _tell_tensorflow(orders)
    for name, action in _ATTACHED.items():
        after_import(name, functools.partial(action, orders))


def await_others() -> None:
    """The code has ended well: where all ranks have to end together, wait for them."""
    if (tensorflow := _loaded("tensorflow")) is not None:
        tensorflow.finish()


def finish() -> None:
    """Report what there is to report."""
    if (torch := _loaded("torch")) is not None:
        torch.finish()


def _loaded(name: str) -> Any:
    """Our module for a framework, when that has been imported."""
    return sys.modules.get(f"{__package__}.{name}")


def quieten_tensorflow(threads: int) -> None:
    """Else it prints how it was compiled, and takes all cores for each rank."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(threads))


def _tell_tensorflow(orders: Orders) -> None:
    """TF_CONFIG, which code reads before it imports TensorFlow."""
    if orders.agent_store:
        there = peers.meet(orders)
        os.environ["TF_CONFIG"] = peers.tf_config(there, orders.rank.rank)


# --- once a framework is there


def _attach_torch(orders: Orders) -> None:
    from . import torch

    torch.attach(orders)


def _attach_tensorflow(orders: Orders) -> None:
    if orders.spec.framework == "tensorflow":
        from . import tensorflow

        tensorflow.attach(orders)
        _join_tf_keras()


def _attach_keras(orders: Orders) -> None:
    if orders.spec.framework != "none":
        from . import keras

        keras.attach(sys.modules["keras"], orders.rank.rank, _tensorflow_cluster)


def _attach_tf_keras(orders: Orders) -> None:
    if orders.spec.framework != "none":
        from . import keras

        keras.attach_legacy(sys.modules["tf_keras"], orders.rank.rank)
        _join_tf_keras()


def _join_tf_keras() -> None:
    """Once both are there: which is imported first depends on how."""
    cluster = _tensorflow_cluster()
    if cluster is not None and "tf_keras" in sys.modules:
        cluster.become_default()


def _tensorflow_cluster() -> Any:
    tensorflow = _loaded("tensorflow")
    return None if tensorflow is None else tensorflow.cluster


def _attach_tqdm(_: Orders) -> None:
    from . import bars

    bars.attach(sys.modules["tqdm.std"])


_ATTACHED = {
    "torch": _attach_torch,
    "tensorflow": _attach_tensorflow,
    "keras": _attach_keras,
    "tf_keras": _attach_tf_keras,
    "tqdm.std": _attach_tqdm,
}


def after_import(name: str, action: Callable[[], None]) -> None:
    """Call `action` once `name` has been imported by whoever imports it; at once if it has been."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the other finders find, and adds to what the loader does."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                # Not earlier: many libraries look for a module without importing it.
                sys.meta_path.remove(self)
                self._action()

            # The loader was made for this import alone.
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
