"""Checkpoints of torch code, in the format of torch's distributed checkpoint (DCP). Imports torch.

Every rank writes its own part, so that sharded models (FSDP2, tensor parallel) need no more memory
than they have, and another number of ranks can read what these have written. A checkpoint is a
folder `step-N`; it counts once its `.metadata` is there, which DCP writes last, and on a local disk
it gets its name only then.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as parts

from ..errors import UsageError
from . import events

_NAME = re.compile(r"step-(\d+)")
_METADATA = ".metadata"


def save(state: dict[str, Any], step: int, root: str, keep: int) -> None:
    """`train.checkpoint` for torch; every rank calls it."""
    started = time.monotonic()
    place = _Place(root)
    with _told(f"The checkpoint of step {step} could not be written to {root}"), _quiet():
        target = place.begin(step)
        dcp.save(_parts(state), storage_writer=place.writer(target))
        if _rank() == 0:
            place.finish(target, step, keep)
    channel = events.channel()
    if channel is not None and _rank() == 0:
        seconds = time.monotonic() - started
        made = events.CheckpointMade(
            time=time.time(), step=step, path=place.path(step), seconds=seconds
        )
        channel.send(made)


def restore(state: dict[str, Any], root: str) -> int:
    """`train.restore` for torch; every rank calls it. Gives back the step, 0 without a checkpoint."""
    place = _Place(root)
    with _told(f"The checkpoints in {root} could not be read"), _quiet():
        step = _agreed(max(place.steps(), default=0) if _rank() == 0 else 0)
        if not step:
            return 0
        found = _parts(state)
        dcp.load(found, storage_reader=place.reader(place.path(step)))
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
            result[name] = parts.get_optimizer_state_dict(_model_of(name, value, state), value)
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
        parts.set_optimizer_state_dict(_model_of(name, value, state), value, optim_state_dict=found)
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


class _Place:
    """The folder that checkpoints are in: on a local disk, or anywhere that fsspec reaches."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.local = "://" not in root

    def path(self, step: int) -> str:
        return f"{self.root}/step-{step}"

    def begin(self, step: int) -> str:
        """Where to write the checkpoint of a step; nothing is there."""
        if not self.local:
            if _rank() == 0:
                self._remove(self.path(step))
            _barrier()
            return self.path(step)
        aside = f"{self.root}/.step-{step}.part"
        if _rank() == 0:
            for left in Path(self.root).glob(".step-*.part"):
                shutil.rmtree(left)
            Path(aside).mkdir(parents=True)
        _barrier()
        return aside

    def finish(self, written: str, step: int, keep: int) -> None:
        """The checkpoint is whole: it gets its name, and the oldest ones go."""
        if self.local:
            target = Path(self.path(step))
            if target.exists():
                shutil.rmtree(target)
            Path(written).rename(target)
        for old in sorted(self.steps(), reverse=True)[keep:]:
            self._remove(self.path(old))

    def steps(self) -> list[int]:
        """Steps of which there is a whole checkpoint."""
        if self.local:
            found = Path(self.root).glob(f"step-*/{_METADATA}")
            names = [path.parent.name for path in found]
        else:
            system, path = self._system()
            names = [
                str(found).rsplit("/", 2)[-2] for found in system.glob(f"{path}/step-*/{_METADATA}")
            ]
        return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]

    def writer(self, target: str) -> Any:
        if self.local:
            return dcp.FileSystemWriter(target)
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(target, overwrite=True)

    def reader(self, target: str) -> Any:
        if self.local:
            return dcp.FileSystemReader(target)
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(target)

    def _remove(self, target: str) -> None:
        if self.local:
            shutil.rmtree(target)
            return
        system, _ = self._system()
        if system.exists(target):
            # A checkpoint without its mark is none, should this be cut short.
            with contextlib.suppress(FileNotFoundError):
                system.rm(f"{target}/{_METADATA}")
            system.rm(target, recursive=True)

    def _system(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.root)
        # What another process has written since shows only to who looks anew.
        system.invalidate_cache()
        return system, path


# --- the ranks


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _agreed(number: int) -> int:
    """Rank 0's number."""
    if not (dist.is_available() and dist.is_initialized()):
        return number
    told = [number]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank; every rank calls it."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
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
        if not any(isinstance(cause, OSError) for cause in causes):
            raise
        first = next(cause for cause in causes if isinstance(cause, OSError))
        raise UsageError(f"{what}: {first}; give another place with --checkpoints.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # That a single process saves without a group is as it should be.
        warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
