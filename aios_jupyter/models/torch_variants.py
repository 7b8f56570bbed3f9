"""A torch network as `optimize` handles it: it runs like any other variant, exports, is pruned.

A leaf module: it imports torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from ..errors import UsageError
from . import prune
from .onnx_files import save_and_open
from .predictor import ONNX_MODEL, named_inputs
from .signature import Signature
from .torch_export import arguments, export_torch, plain_module

ROWS = 4


class TorchModel:
    """A copy of the user's network, on the CPU and in evaluation mode.

    Parameters
    ----------
    model
        The user's network, which stays as it is.
    x
        Samples; the first few are its example.
    """

    def __init__(self, model: torch.nn.Module, x: Any) -> None:
        self._net = plain_module(model)
        self._example = _first(x)
        self.signature: Signature

    @property
    def size(self) -> int:
        """Bytes of its parameters and buffers."""
        tensors = self._net.state_dict().values()
        return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))

    def export(self, folder: Path) -> Path:
        """Write it as ONNX into the empty `folder`, checked against the network itself."""
        extras = folder / "extras"
        extras.mkdir()
        self.signature, proto = export_torch(self._net, extras, self._example)
        save_and_open(proto, folder)
        return folder / ONNX_MODEL

    def pruned(
        self, share: float, *, unstructured: bool, finetune: Callable[..., Any] | None
    ) -> TorchModel:
        """A smaller network, trained further by `finetune`."""
        if unstructured:
            net, settle = prune.with_zeros(self._net, share)
        else:
            args, kwargs = arguments(self._net, self._example)
            if args and kwargs:
                raise UsageError("Give the model's inputs as one dict, or as a tuple.")
            net, settle = prune.without_channels(self._net, share, kwargs or args), None
        net = prune.tuned(net, finetune, self._net)
        if settle is not None:
            settle()
        smaller = TorchModel(net, self._example)
        smaller.signature = self.signature
        return smaller

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name, as the exported model has them."""
        tensors = [torch.from_numpy(inputs[t.name]) for t in self.signature.inputs]
        with torch.inference_mode():
            if isinstance(self._example, Mapping):
                given = self._net(**dict(zip(self._example, tensors, strict=True)))
            else:
                given = self._net(*tensors)
        leaves = [leaf.numpy() for leaf in _pytree.tree_leaves(given)]
        return {t.name: leaf for t, leaf in zip(self.signature.outputs, leaves, strict=True)}

    def predict(self, x: Any) -> Any:
        """As other predictors: an array for `x`, or a dict by output name."""
        outputs = self.run(named_inputs(self.signature, x))
        return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)

    @contextlib.contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Within the block torch computes with `count` threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _first(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {name: value[:ROWS] for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(value[:ROWS] for value in x)
    return x[:ROWS]
