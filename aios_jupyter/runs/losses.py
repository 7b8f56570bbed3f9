"""What torch code says of its loss and batches by what it does. Imports torch.

The loss is what `backward()` was last called on, where that is one number, and the batch is that of
the loader from which the last one was taken. Nothing is computed or copied for it: a value is read
when it is told, five times a second at most.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


class Seen:
    """The last loss, and how many samples loaders have given.

    Attributes
    ----------
    samples
        Since `take`, from the loader that gave the last ones; 0 where that is not known.
    """

    def __init__(self) -> None:
        self._loss: Any = None
        self._loader: int = 0
        self.samples = 0

    def backward(self, loss: Any) -> None:
        """The loss that gradients are worked out of."""
        if loss.numel() == 1:
            self._loss = getattr(loss, "_aios_unscaled", loss).detach()

    def fetched(self, loader: Any, size: int) -> None:
        """A loader gave a batch."""
        if self._loader != id(loader):
            self._loader, self.samples = id(loader), 0
        self.samples += size

    def take(self) -> tuple[float | None, int]:
        """The loss, and the samples since the last call."""
        samples, self.samples = self.samples, 0
        loss, self._loss = self._loss, None
        if loss is None or _capturing(loss):
            return None, samples
        return float(loss), samples


def _capturing(loss: Any) -> bool:
    """Whether a CUDA graph is being recorded, in which nothing may be read."""
    return bool(loss.is_cuda and torch.cuda.is_current_stream_capturing())


def watch() -> Seen:
    """See the losses and batches of this process from now on."""
    seen = Seen()
    _watch_backward(seen)
    _watch_scaling()
    _watch_loaders(seen)
    return seen


def _watch_backward(seen: Seen) -> None:
    backward = torch.Tensor.backward

    @functools.wraps(backward)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.backward(self)
        return backward(self, *args, **kwargs)

    torch.Tensor.backward = watched


def _watch_scaling() -> None:
    """A scaled loss (mixed precision) is a factor too large: it remembers what it was."""
    scaler = torch.amp.GradScaler
    scale = scaler.scale

    @functools.wraps(scale)
    def scaled(self: Any, outputs: Any) -> Any:
        result = scale(self, outputs)
        if isinstance(outputs, torch.Tensor) and result is not outputs:
            result._aios_unscaled = outputs
        return result

    scaler.scale = scaled


def _watch_loaders(seen: Seen) -> None:
    loader = torch.utils.data.DataLoader
    iterate = loader.__iter__

    @functools.wraps(iterate)
    def watched(self: Any) -> Any:
        batches = iterate(self)
        size = getattr(self, "batch_size", None)
        return _counted(batches, self, size, seen) if size else batches

    loader.__iter__ = watched


class _counted:  # noqa: N801  # stands for the iterator that it wraps
    """A loader's iterator that counts what it gives; in all else it is that one."""

    def __init__(self, batches: Any, loader: Any, size: int, seen: Seen) -> None:
        self._batches = batches
        self._next = batches.__next__
        self._loader, self._size, self._seen = loader, size, seen

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        batch = self._next()
        self._seen.fetched(self._loader, self._size)
        return batch

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)
