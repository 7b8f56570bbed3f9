"""`train.prepare` for torch: single-process code becomes that of all ranks. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from ..errors import UsageError


def prepare(
    device: torch.device, model: Any, optimizer: Any | None, loader: Any | None, *, fsdp: bool
) -> tuple[Any, ...]:
    """`train.prepare` for torch; gives back what was given, in order."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type != "cpu":
        model = model.to(device)
    if world_size > 1:
        if not dist.is_initialized():
            dist.init_process_group()
        if fsdp:
            _shard(model, optimizer, device)
        else:
            model = _replicated(model, device)
        loader = None if loader is None else sharded(loader)
    return tuple(part for part in (model, optimizer, loader) if part is not None)


def _replicated(model: Any, device: torch.device) -> Any:
    wrapper = torch.nn.parallel.DistributedDataParallel
    if isinstance(model, wrapper) or not any(part.requires_grad for part in model.parameters()):
        return model
    return wrapper(model, device_ids=[device.index] if device.type == "cuda" else None)


def _shard(model: Any, optimizer: Any | None, device: torch.device) -> None:
    """Have each rank keep a part of every parameter, and gather the rest when it is needed.

    The layers of a `ModuleList` are gathered one at a time, all else together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    if optimizer is not None and optimizer.state:
        raise UsageError(
            "The optimizer has made steps already, and its state cannot be sharded; call prepare() "
            "before the first step."
        )
    # DDP does this by itself.
    for value in (*model.parameters(), *model.buffers()):
        dist.broadcast(value.detach(), src=0)
    before = {id(parameter): name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # The innermost first, as FSDP wants it.
    for part in reversed(list(model.modules())):
        for layer in part if isinstance(part, torch.nn.ModuleList) else ():
            if not isinstance(layer, FSDPModule | torch.nn.ModuleList | torch.nn.ModuleDict):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if optimizer is not None:
        _point_to(dict(model.named_parameters()), optimizer, before)


def _point_to(sharded: dict[str, Any], optimizer: Any, before: dict[int, str]) -> None:
    """Sharded parameters are other objects: have the optimizer step these."""
    for group in optimizer.param_groups:
        group["params"] = [
            sharded[before[id(each)]] if id(each) in before else each for each in group["params"]
        ]


def sharded(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader over this rank's share of the data, shuffled anew in each iteration.

    Raises
    ------
    UsageError
        Its order comes from a sampler or an iterable that cannot be split from outside.
    """
    sampler = loader.sampler
    if isinstance(sampler, DistributedSampler):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        raise UsageError(
            "An IterableDataset cannot be split between ranks from outside; let it yield every "
            "world_size-th item, starting with item rank (aios_jupyter.train has both)."
        )
    plain = type(loader.batch_sampler) is BatchSampler or loader.batch_sampler is None
    if not plain or type(sampler) not in (RandomSampler, SequentialSampler):
        name = type(sampler if plain else loader.batch_sampler).__name__
        raise UsageError(
            f"A loader with a {name} cannot be split between ranks; give it a DistributedSampler, "
            "or shuffle=True or False without a sampler."
        )
    own = DistributedSampler(
        loader.dataset, shuffle=isinstance(sampler, RandomSampler), drop_last=loader.drop_last
    )
    return _EpochLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=own,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _EpochLoader(DataLoader):
    """Each iteration is an epoch, for which a `DistributedSampler` has to be told a new number."""

    _epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.sampler.set_epoch(self._epoch)
        self._epoch += 1
        batches: Iterator[Any] = super().__iter__()
        return batches
