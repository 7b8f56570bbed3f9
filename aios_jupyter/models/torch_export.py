"""A torch module as ONNX with a free batch size, checked against the module itself.

A leaf module: it imports torch, and is itself imported when a torch module is published.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree

from ..errors import MissingExtraError, UsageError
from .onnx_files import EXPORT_ROWS, compare, save_and_open, save_example
from .predictor import first_line, plain
from .quiet import quiet
from .signature import Signature

if TYPE_CHECKING:
    import onnx


def export_torch(
    model: torch.nn.Module, extras: Path, input_example: Any
) -> tuple[Signature, onnx.ModelProto]:
    """Export `model` and compare; its weights and the example go into `extras`.

    Raises
    ------
    UsageError
        There is no example, the model fails on it, cannot be exported, or the export differs.
    """
    net = plain_module(model)
    args, kwargs = arguments(net, input_example)
    rows, args, kwargs = trimmed(args, kwargs)
    expected = _outputs(net, args, kwargs, rows)
    try:
        proto = _export(net, args, kwargs, len(expected))
    except ImportError as error:
        raise MissingExtraError(f"ONNX export ({error.name or error})", "torch") from error
    except Exception as error:  # the exporter raises whatever a part of it or of the model does
        raise UsageError(
            f"This model cannot be exported to ONNX ({_root_cause(error)}); write forward() with "
            "tensor operations that do not depend on the data, or publish an ONNX file of your own."
        ) from error
    predictor = save_and_open(proto, extras)

    def case(count: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        some_args = tuple(_take(t, count) for t in args)
        some_kwargs = {name: _take(t, count) for name, t in kwargs.items()}
        inputs = _named(predictor.signature, some_args, some_kwargs)
        return inputs, _outputs(net, some_args, some_kwargs, count)

    compare(predictor, rows, case)
    _save_weights(net, extras)
    save_example(_named(predictor.signature, args, kwargs), extras)
    return predictor.signature, proto


def plain_module(model: torch.nn.Module) -> torch.nn.Module:
    """A copy on the CPU, in evaluation mode, in at least 32 bits, without its wrappers."""
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        else:
            break
    try:
        net = copy.deepcopy(model).cpu().eval()
    except Exception as error:  # any attribute's own __deepcopy__ may refuse
        raise UsageError(
            f"This model cannot be copied ({first_line(error)}); keep what is not a parameter or "
            "plain value (files, locks, data loaders) out of its attributes."
        ) from error
    low = {torch.float16, torch.bfloat16}
    if any(value.dtype in low for value in net.state_dict().values() if torch.is_tensor(value)):
        net = net.float()
    return net


def arguments(
    net: torch.nn.Module, example: Any
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """The example as positional and named arguments of `forward`, floats in the weights' type."""
    if example is None:
        raise UsageError(
            "A torch model needs an input example: pass input_example=x[:1] with a sample as the "
            "model takes it."
        )
    floats = [p.dtype for p in net.parameters() if p.is_floating_point()]
    floating = floats[0] if floats else torch.get_default_dtype()

    def tensor(value: Any) -> torch.Tensor:
        try:
            result = torch.as_tensor(plain(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"The input example is no array ({first_line(error)}); pass x[:1]."
            ) from None
        result = result.detach().cpu().contiguous()
        return result.to(floating) if result.is_floating_point() else result

    if isinstance(example, Mapping):
        named = {str(name): tensor(value) for name, value in example.items()}
        try:
            bound = inspect.signature(net.forward).bind(**named)
        except TypeError as error:
            raise UsageError(
                f"The input example does not fit forward() ({first_line(error)}); name its "
                "parameters."
            ) from None
        return bound.args, bound.kwargs  # in forward's own order
    if isinstance(example, tuple):
        return tuple(tensor(value) for value in example), {}
    return (tensor(example),), {}


def trimmed(
    args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> tuple[int, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """At least 2 samples and at most `EXPORT_ROWS`: an export with one would fix the batch at 1."""
    sizes = {len(t) if t.ndim else 0 for t in (*args, *kwargs.values())}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError(
            "Each array of input_example needs the same number of samples, at least one, as its "
            "first dimension; pass x[:1] rather than x[0]."
        )
    rows = sizes.pop()

    def cut(t: torch.Tensor) -> torch.Tensor:
        return torch.cat([t, t]) if rows == 1 else t[:EXPORT_ROWS]

    count = 2 if rows == 1 else min(rows, EXPORT_ROWS)
    return count, tuple(cut(t) for t in args), {name: cut(t) for name, t in kwargs.items()}


def _outputs(
    net: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    rows: int,
) -> list[np.ndarray]:
    """What the model itself gives, flat."""
    try:
        with torch.no_grad():
            leaves = _pytree.tree_leaves(net(*args, **kwargs))
    except Exception as error:  # the user's forward() may raise anything
        shapes = [list(t.shape) for t in (*args, *kwargs.values())]
        raise UsageError(
            f"The model fails on the input example of shape {shapes} ({first_line(error)}); pass "
            "samples as the model takes them, with the batch first."
        ) from error
    if not leaves or not all(torch.is_tensor(leaf) for leaf in leaves):
        raise UsageError("The model must give tensors; return tensors alone from forward().")
    if any(leaf.ndim == 0 or len(leaf) != rows for leaf in leaves):
        raise UsageError(
            f"The model gives {[list(leaf.shape) for leaf in leaves]} for {rows} samples; the "
            "first dimension of inputs and outputs must be the batch (pass x[:1], not x[0])."
        )
    return [leaf.numpy() for leaf in leaves]


def _export(
    net: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    outputs: int,
) -> onnx.ModelProto:
    names = _parameter_names(net, len(args)) + list(kwargs)
    free = {0: torch.export.Dim("batch")}
    said = io.StringIO()  # it prints whole graphs when it fails; the reason is in the error too
    with (
        quiet("torch.onnx", "torch.export", "torch.fx", "onnxscript"),
        contextlib.redirect_stderr(said),
        torch.no_grad(),
    ):
        program = torch.onnx.export(
            net,
            args,
            kwargs=kwargs,
            input_names=["input"] if len(names) == 1 else names,
            output_names=["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)],
            dynamic_shapes=dict.fromkeys(names, free) if kwargs else (free,) * len(args),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True always gives one
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    return proto


def _root_cause(error: BaseException) -> str:
    """The first line of what went wrong at the bottom: the exporter wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _parameter_names(net: torch.nn.Module, count: int) -> list[str]:
    """Names of forward's first `count` parameters; counted where it takes *args."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(net.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds][:count]
    return names if len(names) == count else [f"input_{i}" for i in range(count)]


def _strip(proto: onnx.ModelProto) -> None:
    """Take out traces of the notebook's code and paths, and shapes that no longer hold."""
    proto.doc_string = ""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]


def _take(t: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([t, t])[:count] if count > len(t) else t[:count]


def _named(
    signature: Signature, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    """Arrays by the exported model's input names, which are in the order of the arguments."""
    values = [*args, *kwargs.values()]
    if len(values) != len(signature.inputs):
        raise UsageError(
            f"The model does not use all {len(values)} arrays of the input example; leave out what "
            "forward() ignores."
        )
    return {t.name: v.numpy() for t, v in zip(signature.inputs, values, strict=True)}


def _save_weights(net: torch.nn.Module, extras: Path) -> None:
    try:
        from safetensors.torch import save_model
    except ImportError as error:
        raise MissingExtraError("safetensors", "torch") from error
    with quiet("safetensors"):
        save_model(net, str(extras / "weights.safetensors"))
