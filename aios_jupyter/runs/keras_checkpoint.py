"""Checkpoints of Keras code, in Keras's own format: a `.weights.h5` for each model and optimizer.

All ranks have the same weights, so that rank 0 writes and all read. What is not Keras's goes into
`values.pkl`, which is the user's own file as any pickle of theirs is.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .places import METADATA, Place

if TYPE_CHECKING:
    from .tensorflow import Cluster

_VALUES = "values.pkl"


def is_keras(value: Any) -> bool:
    """Whether a value is a model or an optimizer of Keras, any version."""
    return _kind(value) != ""


def _kind(value: Any) -> str:
    for name in ("keras", "tf_keras"):
        keras = sys.modules.get(name)
        if keras is not None and isinstance(value, keras.Model):
            return "model"
        if keras is not None and isinstance(value, keras.optimizers.Optimizer):
            return "optimizer"
    return ""


def save(state: dict[str, Any], step: int, root: str, keep: int) -> None:
    """`train.checkpoint` for Keras; every rank calls it."""
    _check(state)
    if _rank() != 0:
        if _cluster() is not None:
            # A strategy's variables may be the means of what the ranks have, which takes all ranks.
            with tempfile.TemporaryDirectory() as folder:
                _write(state, Path(folder))
        return
    started = time.monotonic()
    place = Place(root)
    with _told(f"The checkpoint of step {step} could not be written to {root}"):
        place.begin(step)
        if place.local:
            _write(state, Path(place.target(step)))
        else:
            system, _ = place.system()
            with tempfile.TemporaryDirectory() as folder:
                _write(state, Path(folder))
                # The mark is written last.
                for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == METADATA):
                    system.pipe_file(f"{place.target(step)}/{file.name}", file.read_bytes())
        place.finish(step, keep)
    place.announce(step, time.monotonic() - started)


def restore(state: dict[str, Any], root: str) -> int:
    """`train.restore` for Keras; every rank calls it. Gives back the step, 0 without a checkpoint."""
    _check(state)
    place = Place(root)
    with _told(f"The checkpoints in {root} could not be read"):
        step = max(place.steps(), default=0)
        if (cluster := _cluster()) is not None:
            step = cluster.first(step)
        if not step:
            return 0
        if place.local:
            _read(state, Path(place.path(step)))
            return step
        system, _ = place.system()
        with tempfile.TemporaryDirectory() as folder:
            for found in system.ls(place.path(step), detail=False):
                file = Path(folder) / str(found).rsplit("/", 1)[-1]
                file.write_bytes(system.cat_file(found))
            _read(state, Path(folder))
    return step


def _check(state: dict[str, Any]) -> None:
    for name, value in state.items():
        if _kind(value) == "model" and not value.built:
            raise UsageError(
                f"The model {name!r} has no weights yet; give it an Input layer or call its build()."
            )


# --- what is kept of the state


def _write(state: dict[str, Any], folder: Path) -> None:
    values = {name: value for name, value in state.items() if not is_keras(value)}
    for name, value in state.items():
        if _kind(value) == "model":
            value.save_weights(str(folder / f"{name}.weights.h5"))
    for name, optimizer in _optimizers(state):
        if _is_built(optimizer):
            import h5py

            with h5py.File(folder / f"{name}.optimizer.h5", "w") as file:
                optimizer.save_own_variables(file)
    (folder / _VALUES).write_bytes(pickle.dumps(values))
    (folder / METADATA).write_text('{"format": "keras"}')


def _read(state: dict[str, Any], folder: Path) -> None:
    for name, value in state.items():
        if _kind(value) == "model":
            optimizer = getattr(value, "optimizer", None)
            if optimizer is not None and not _is_built(optimizer):
                # Else there is nothing that its state could go to.
                optimizer.build(value.trainable_variables)
            value.load_weights(str(folder / f"{name}.weights.h5"))
    for name, optimizer in _optimizers(state):
        file = folder / f"{name}.optimizer.h5"
        if file.exists():
            _load_optimizer(name, optimizer, file, state)
    # The user's own file, as any pickle of theirs is.
    values = pickle.loads((folder / _VALUES).read_bytes())  # noqa: S301
    state.update((name, value) for name, value in values.items() if name in state)


def _optimizers(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Optimizers whose state is in no model's file; `tf_keras` leaves it out there."""
    models = [value for value in state.values() if _kind(value) == "model"]
    inside = [id(getattr(m, "optimizer", None)) for m in models if not _is_legacy(m)]
    for name, value in state.items():
        if _kind(value) == "optimizer":
            if id(value) not in inside:
                yield name, value
        elif _kind(value) == "model" and _is_legacy(value):
            own = getattr(value, "optimizer", None)
            if own is not None and not any(own is other for other in state.values()):
                yield name, own


def _load_optimizer(name: str, optimizer: Any, path: Path, state: dict[str, Any]) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        if not _is_built(optimizer):
            models = [value for value in state.values() if _kind(value) == "model"]
            if len(models) != 1:
                raise UsageError(
                    f"The optimizer {name!r} has made no step and cannot take over a state; call its "
                    "build(model.trainable_variables) before train.restore()."
                )
            optimizer.build(models[0].trainable_variables)
        optimizer.load_own_variables(file)


def _is_legacy(value: Any) -> bool:
    legacy = sys.modules.get("tf_keras")
    return legacy is not None and isinstance(value, legacy.Model)


def _is_built(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "built", False) or getattr(optimizer, "_built", False))


# --- the ranks


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _cluster() -> Cluster | None:
    """The ranks, where they train as one; None where each is on its own."""
    tensorflow = sys.modules.get(f"{__package__}.tensorflow")
    cluster: Cluster | None = getattr(tensorflow, "cluster", None)
    return cluster if cluster is not None and cluster.begun else None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A full disk or a refused bucket is not this code's mistake, and is said in a sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what}: {error}; give another place with --checkpoints.") from error
