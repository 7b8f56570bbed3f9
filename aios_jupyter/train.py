"""For the code of a run: `from aios_jupyter import train`.

Everything here also works in a single process outside a run, where `log` and `progress` do nothing,
so that the same code runs in a plain notebook cell. Importing it loads no framework.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .errors import UsageError
from .runs import events

__all__ = [
    "checkpoint",
    "device",
    "is_main",
    "log",
    "prepare",
    "progress",
    "rank",
    "restore",
    "should_stop",
    "world_size",
]

# Where checkpoints go outside a run.
FOLDER = "checkpoints"


def rank() -> int:
    """This process's number among the ranks, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many ranks there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is rank 0: the one that saves, prints, and whose names are pulled."""
    return rank() == 0


def device() -> str:
    """The device of this rank as torch names it: "cuda:1", "cpu".

    Outside a run it is the first GPU that torch can use, "cpu" where there is none.
    """
    told = os.environ.get("AIOS_DEVICE")
    if told is not None:
        return told
    try:
        import torch
    except ImportError:
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def log(step: int | None = None, **metrics: Any) -> None:
    """Report numbers, which the run's card draws over time: `train.log(loss=loss, accuracy=0.9)`.

    Called in each step it costs a few microseconds, more where a value has to come from a GPU: the
    newest values are sent, a hundred times a second at most.

    Parameters
    ----------
    step
        The step they belong to.
    **metrics
        Numbers, or tensors and arrays with one element.

    Raises
    ------
    UsageError
        A value is not a number.
    """
    channel = events.channel()
    if channel is None:
        return
    channel.own_loss = channel.own_loss or "loss" in metrics
    channel.metrics({name: _number(name, value) for name, value in metrics.items()}, step)


def _number(name: str, value: Any) -> float:
    try:
        # Tensors and arrays give their one element without a word about gradients.
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"{name}={type(value).__name__} is not a single number; log numbers, or tensors with "
            "one element."
        ) from None


def progress(done: float, total: float = 0.0, unit: str = "step", label: str = "") -> None:
    """Report how far the run is: `train.progress(epoch + 1, epochs, "epoch")`.

    Until the first call, the optimizer's steps are counted instead.

    Parameters
    ----------
    done, total
        In any unit; total 0 when it is not known.
    label
        What is being done.
    """
    channel = events.channel()
    if channel is not None:
        channel.counts_steps, channel.own_progress = False, True
        channel.progress(float(done), float(total), unit, label)


def checkpoint(state: dict[str, Any], step: int, *, keep: int = 2) -> None:
    """Keep what is needed to go on after this step; every rank calls it.

    In a run it goes to the run's folder, or where `--checkpoints` says; else to `checkpoints/`.
    With torch each rank writes its own part, with Keras rank 0 writes `.weights.h5` files (a compiled
    model's optimizer among them); what a rank that dies meanwhile has left is no checkpoint.

    Parameters
    ----------
    state
        By name: models, optimizers and with torch all else that has `state_dict` and
        `load_state_dict`, and values that can be pickled, of which rank 0's are kept.
    step
        How many steps are done, from 1 on.
    keep
        How many checkpoints to keep, this one included.

    Raises
    ------
    UsageError
        It could not be written, or something in the state cannot be kept.
    """
    if step < 1 or keep < 1:
        raise UsageError("A checkpoint has a step from 1 on, and keep is 1 or more.")
    _checkpoints(state).save(state, step, _folder(), keep)


def restore(state: dict[str, Any]) -> int:
    """Go on from the last checkpoint; every rank calls it.

        for step in range(train.restore(state), steps):
            ...
            if (step + 1) % 100 == 0:
                train.checkpoint(state, step + 1)

    Parameters
    ----------
    state
        As it was given to `checkpoint`: models and the like are changed in place, plain values in
        this dictionary.

    Returns
    -------
    int
        The step of the checkpoint; 0 where there is none, and nothing has changed.

    Raises
    ------
    UsageError
        It could not be read.
    """
    step: int = _checkpoints(state).restore(state, _folder())
    return step


def should_stop() -> bool:
    """Whether this run is being stopped or preempted: time for a last checkpoint, and the end.

    From its first call on, a stop does not interrupt the code, which has to end by itself within
    the grace. All ranks get the same answer, so every rank calls it, once in each step.
    """
    from .runs import lifeline

    told = False
    if lifeline.watch is not None:
        lifeline.watch.defer()
        told = lifeline.watch.told
    tensorflow = sys.modules.get("aios_jupyter.runs.tensorflow")
    if tensorflow is not None and tensorflow.cluster is not None and tensorflow.cluster.begun:
        return bool(tensorflow.cluster.any(told))
    if sys.modules.get("torch.distributed") is None:
        from .runs import horovod

        hvd = horovod.joined()
        return any(hvd.allgather_object(told)) if hvd else told
    from .runs.checkpoint import any_rank

    return any_rank(told)


def _checkpoints(state: Any) -> Any:
    if isinstance(state, dict) and ("keras" in sys.modules or "tf_keras" in sys.modules):
        from .runs import keras_checkpoint

        if any(map(keras_checkpoint.is_keras, state.values())):
            return keras_checkpoint
    if "torch" not in sys.modules or not isinstance(state, dict):
        raise UsageError(
            "Checkpoints are for torch and Keras code: give a dictionary with its model and optimizer."
        )
    from .runs import checkpoint

    return checkpoint


def _folder() -> str:
    folder = os.environ.get("AIOS_CHECKPOINTS", FOLDER)
    if not folder:
        raise UsageError(
            "The ranks are on several nodes, which have no folder in common; start the run with "
            "--checkpoints URL."
        )
    return folder


def prepare(model: Any, optimizer: Any = None, loader: Any = None, *, fsdp: bool = False) -> Any:
    """Make single-process torch code work on every rank.

    The model moves to the rank's device and, where there are several ranks, is wrapped in
    `DistributedDataParallel` (the process group is made if there is none); the loader is replaced
    by one over this rank's share of the data with the same batch size, shuffled anew each epoch.
    With `fsdp` each rank keeps a part of every parameter instead of them all (FSDP2's `fully_shard`).
    With a single rank on a CPU all come back untouched. Batches are moved by the caller:
    `x.to(train.device())`. Keras code needs none of this: `model.fit` is distributed as it is.

    Parameters
    ----------
    model
        A torch module, before or after its optimizer was made.
    optimizer
        Comes back as it is; with `fsdp` it has the sharded parameters, and has made no step.
    loader
        A `DataLoader` with the default samplers.
    fsdp
        For models that are too large for one device.

    Returns
    -------
    object
        The model alone, or a tuple of what was given, in order.

    Raises
    ------
    UsageError
        The model is not torch's, or the loader cannot be split between ranks.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"prepare() takes a torch.nn.Module and not a {type(model).__name__}; pass the model "
            "first, then its optimizer and loader (a Keras model needs nothing: its fit() is "
            "distributed as it is)."
        )
    from .runs.prepare import prepare as prepare_torch

    prepared = prepare_torch(torch.device(device()), model, optimizer, loader, fsdp=fsdp)
    return prepared if len(prepared) > 1 else prepared[0]
