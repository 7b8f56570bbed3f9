"""Torch networks with fewer weights: whole channels taken out, or single weights set to zero.

A leaf module: it imports torch, and torch_pruning where channels go.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils import _pytree

from ..errors import MissingExtraError, UsageError
from .predictor import first_line
from .quiet import quiet

_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
)

Finetune = Callable[..., Any]


Example = tuple[torch.Tensor, ...] | dict[str, torch.Tensor]
"""Arguments of `forward`, positional or named."""


def without_channels(net: torch.nn.Module, share: float, example: Example) -> torch.nn.Module:
    """A copy in which each layer has lost `share` of its channels, the weakest ones (L2 norm).

    What depends on a channel (batch norms, the next layer's inputs, both sides of a residual sum)
    goes with it; the outputs stay.

    Raises
    ------
    UsageError
        The network's parts depend on each other in a way that cannot be followed.
    MissingExtraError
        torch-pruning is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtraError("torch-pruning", "torch") from error
    smaller = copy.deepcopy(net)
    layers = _layers(smaller)
    before = weights(smaller)
    try:
        with quiet():
            torch_pruning.pruner.BasePruner(
                smaller,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=share,
                ignored_layers=layers[-1:],
            ).step()
        with torch.no_grad():
            same = _shapes(smaller, example) == _shapes(net, example)
    except Exception as error:  # it asserts and indexes its way through any architecture
        raise UsageError(
            f"Channels of this network cannot be taken out ({first_line(error)}); use "
            "unstructured pruning (--unstructured)."
        ) from error
    if not same or weights(smaller) == before:
        raise UsageError(
            "No channels of this network could be taken out without changing its outputs; use "
            "unstructured pruning (--unstructured)."
        )
    return smaller


def _shapes(net: torch.nn.Module, example: Example) -> list[tuple[int, ...]]:
    outputs = net(**example) if isinstance(example, dict) else net(*example)
    return [tuple(leaf.shape) for leaf in _pytree.tree_leaves(outputs) if torch.is_tensor(leaf)]


def with_zeros(net: torch.nn.Module, share: float) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A copy in which `share` of all layers' weights, the smallest, are zero, and stay so.

    The function given beside it ends that, once no training follows.
    """
    sparse = copy.deepcopy(net)
    layers = [layer for layer in _layers(sparse) if not parametrize.is_parametrized(layer)]
    named = [(layer, "weight") for layer in layers]
    torch_prune.global_unstructured(named, pruning_method=torch_prune.L1Unstructured, amount=share)

    def settle() -> None:
        for layer in layers:
            torch_prune.remove(layer, "weight")

    return sparse, settle


def _layers(net: torch.nn.Module) -> list[torch.nn.Module]:
    layers = [module for module in net.modules() if isinstance(module, _LAYERS)]
    if not layers:
        raise UsageError("This network has no linear or convolution layers that could be pruned.")
    return layers


def tuned(
    net: torch.nn.Module, finetune: Finetune | None, original: torch.nn.Module
) -> torch.nn.Module:
    """`net` after the user's training, in evaluation mode.

    `finetune` gets the network, and the original (a teacher, frozen) where it takes two; it trains
    in place or gives the trained network back.

    Raises
    ------
    UsageError
        It fails, or gives something else.
    """
    if finetune is not None:
        net.train()
        taken = [net, original] if _takes_two(finetune) else [net]
        try:
            with torch.enable_grad():
                given = finetune(*taken)
        except Exception as error:  # the user's own training may raise anything
            raise UsageError(f"The fine-tuning failed: {first_line(error)}.") from error
        if given is not None and not isinstance(given, torch.nn.Module):
            raise UsageError(
                f"The fine-tuning gave a {type(given).__name__}; let it train the network in place, "
                "or return it."
            )
        net = net if given is None else given
    return net.eval()


def _takes_two(function: Finetune) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables do not tell
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(required) >= 2


def weights(net: torch.nn.Module) -> int:
    """How many parameters there are."""
    return sum(parameter.numel() for parameter in net.parameters())
