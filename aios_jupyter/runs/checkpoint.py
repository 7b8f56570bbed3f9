"""Checkpoints of torch code, in the format of torch's distributed checkpoint (DCP). Imports torch.

Every rank writes its own part, so that sharded models (FSDP2, tensor parallel) need no more memory
than they have, and another number of ranks can read what these have written. DCP writes `.metadata`
last, with which a checkpoint counts (`places`). Under Horovod, where all ranks have the same, rank 0
writes and all read.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as parts

from ..errors import UsageError
from . import horovod
from .places import Place


def save(state: dict[str, Any], step: int, root: str, keep: int) -> None:
    """`train.checkpoint` for torch; every rank calls it."""
    started = time.monotonic()
    place = Place(root)
    with _told(f"The checkpoint of step {step} could not be written to {root}"), _quiet():
        if _rank() == 0:
            place.begin(step)
        _barrier()
        target = place.target(step)
        found = _parts(state)
        if _rank() == 0 or horovod.joined() is None:
            dcp.save(found, storage_writer=_writer(place, target))
        if _rank() == 0:
            place.finish(step, keep)
            place.announce(step, time.monotonic() - started)


def restore(state: dict[str, Any], root: str) -> int:
    """`train.restore` for torch; every rank calls it. Gives back the step, 0 without a checkpoint."""
    place = Place(root)
    with _told(f"The checkpoints in {root} could not be read"), _quiet():
        step = _agreed(max(place.steps(), default=0) if _rank() == 0 else 0)
        if not step:
            return 0
        found = _parts(state)
        dcp.load(found, storage_reader=_reader(place, place.path(step)))
    for name, value in state.items():
        _give_back(state, name, value, found[name])
    return step


# --- what is kept of the state


def _parts(state: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for name, value in state.items():
        if isinstance(value, torch.nn.Module):
            result[name] = parts.get_model_state_dict(value)
        elif isinstance(value, torch.optim.Optimizer):
            with horovod.plain(value):
                own = _model_of(name, value, state)
                result[name] = parts.get_optimizer_state_dict(own, value)
        else:
            has_state = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
            result[name] = _packed(value.state_dict() if has_state else value)
    return result


def _packed(value: Any) -> bytes:
    """As bytes, since DCP would take dictionaries apart, and expect the same keys again."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _give_back(state: dict[str, Any], name: str, value: Any, found: Any) -> None:
    if isinstance(value, torch.nn.Module):
        parts.set_model_state_dict(value, found)
        return
    if isinstance(value, torch.optim.Optimizer):
        with horovod.plain(value):
            own = _model_of(name, value, state)
            parts.set_optimizer_state_dict(own, value, optim_state_dict=found)
        return
    # The user's own file, as any pickle of theirs is.
    kept = torch.load(io.BytesIO(found), weights_only=False)
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        value.load_state_dict(kept)
    else:
        state[name] = kept


def _model_of(name: str, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Any:
    """The module whose parameters an optimizer has: DCP names its state by them."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for value in state.values():
        if isinstance(value, torch.nn.Module) and own <= {id(p) for p in value.parameters()}:
            return value
    raise UsageError(
        f"The optimizer {name!r} belongs to no module of the state; put its model there too."
    )


# --- where


def _writer(place: Place, target: str) -> Any:
    if place.local:
        return dcp.FileSystemWriter(target)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    return FsspecWriter(target, overwrite=True)


def _reader(place: Place, target: str) -> Any:
    if place.local:
        return dcp.FileSystemReader(target)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    return FsspecReader(target)


# --- the ranks


def _grouped() -> bool:
    return bool(dist.is_available() and dist.is_initialized())


def _rank() -> int:
    if _grouped():
        return int(dist.get_rank())
    hvd = horovod.joined()
    return int(hvd.rank()) if hvd else 0


def _barrier() -> None:
    if _grouped():
        dist.barrier()
    elif hvd := horovod.joined():
        hvd.barrier()


def _agreed(number: int) -> int:
    """Rank 0's number."""
    if not _grouped():
        hvd = horovod.joined()
        return int(hvd.broadcast_object(number)) if hvd else number
    told = [number]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank; every rank calls it."""
    if not _grouped():
        hvd = horovod.joined()
        return any(hvd.allgather_object(flag)) if hvd else flag
    device = os.environ.get("AIOS_DEVICE", "cpu") if dist.get_backend() == "nccl" else "cpu"
    told = torch.tensor([float(flag)], device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A full disk or a refused bucket is not this code's mistake, and is said in a sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what}: {error}; give another place with --checkpoints.") from error
    except dcp.CheckpointException as error:
        causes = [failure[0] for failure in error.failures.values()]
        why = next((why for cause in causes if (why := _refusal_of_disk(cause))), "")
        if not why:
            raise
        raise UsageError(f"{what}: {why}; give another place with --checkpoints.") from error


def _refusal_of_disk(error: BaseException) -> str:
    """What a disk or bucket has said; "" for what is not its fault."""
    if isinstance(error, OSError):
        return str(error)
    # torch's writer finds at its end that less was written than it gave, and says that alone.
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return "only a part of it could be written, as on a full disk"
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # That a single process saves without a group is as it should be.
        warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
