"""What a cell reads, which framework it uses, and how values travel to its ranks and back.

Source is parsed and never run here. `cloudpickle` is imported when something is packed, and no
framework is imported at all: what is not loaded cannot be in a value.
"""

from __future__ import annotations

import ast
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ..errors import UsageError
from .names import names_read, parse
from .packed import LARGE, Packed, load

__all__ = [
    "ARGUMENTS",
    "FUNCTION",
    "RESULT",
    "Framework",
    "detect_framework",
    "names_read",
    "pack",
    "pack_pulled",
    "unpack",
]

Framework = Literal["torch", "tensorflow", "horovod", "none"]

_TORCH = frozenset({
    "torch", "torchvision", "torchaudio", "lightning", "pytorch_lightning", "accelerate", "timm",
    "ignite", "fastai", "kornia", "opacus",
})  # fmt: skip
_TENSORFLOW = frozenset({"tensorflow", "tf_keras", "keras"})
_FRAMEWORKS = _TORCH | _TENSORFLOW | {"horovod"}

FUNCTION = "__aios_function__"
ARGUMENTS = "__aios_args__"
RESULT = "__aios_result__"


# --- which framework


def detect_framework(source: str, push: dict[str, Any]) -> Framework:
    """The framework that a cell or script uses, by its imports and by the values pushed to it.

    Horovod comes with another and wins; of the others, TensorFlow is the one that needs preparation.
    Keras alone counts as what `KERAS_BACKEND` says, TensorFlow when nothing does. Where Horovod is
    not installed, code that only tries to import it does not count as using it.

    Raises
    ------
    UsageError
        The source does not parse.
    """
    tree = parse(source)
    found = set(_imported(tree))
    if "horovod" in found and not _has_horovod():
        found -= _tried(tree)
    for value in push.values():
        found |= _roots(value)
    if "keras" in found and _keras_on_torch():
        found = found - {"keras"} | {"torch"}
    if "horovod" in found:
        return "horovod"
    if found & _TENSORFLOW:
        return "tensorflow"
    return "torch" if found & _TORCH else "none"


def _keras_on_torch() -> bool:
    import os

    return os.environ.get("KERAS_BACKEND") == "torch"


def _has_horovod() -> bool:
    from importlib.util import find_spec

    return find_spec("horovod") is not None


def _tried(tree: ast.Module) -> set[str]:
    """What is imported only where its absence may be caught."""
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    within = {id(inner) for node in tries for part in node.body for inner in ast.walk(part)}
    bare = [node for node in ast.walk(tree) if id(node) not in within]
    return set(_imported(tree)) - {name for node in bare for name in _imports_of(node)}


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        yield from _imports_of(node)


def _imports_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.split(".")[0]


def _roots(value: Any) -> set[str]:
    """Top-level packages that a value's type, or a function's globals, come from."""
    if isinstance(value, types.ModuleType):
        return {value.__name__.split(".")[0]}
    if isinstance(value, types.FunctionType):
        names = _code_names(value.__code__)
        used = [value.__globals__[name] for name in names if name in value.__globals__]
        modules = {thing.__name__ for thing in used if isinstance(thing, types.ModuleType)}
        modules |= {base.__module__ for c in used if isinstance(c, type) for base in c.__mro__}
        # What is imported within it is no global, but its name is there.
        modules |= {name for name in names if name.split(".")[0] in _FRAMEWORKS}
        return {name.split(".")[0] for name in modules | {value.__module__ or ""}}
    kind = value if isinstance(value, type) else type(value)
    return {str(base.__module__).split(".")[0] for base in kind.__mro__}


def _code_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _code_names(constant)
    return names


# --- to the ranks and back


def pack(values: dict[str, Any], explicit: set[str]) -> Packed:
    """Pickle values for the ranks.

    Functions and classes of the notebook go by value, and in the rank they live in the cell's own
    namespace, as they do in the notebook; modules and what is in them go by reference.

    Parameters
    ----------
    explicit
        Names that the user asked for; the others were found by `names_read`, and the error says how
        to leave them out.

    Raises
    ------
    UsageError
        A value cannot be pickled; names it.
    """
    try:
        return _dump(values, notebook=True)
    except Exception:
        for name, value in values.items():
            if reason := _refusal(value, notebook=True):
                raise UsageError(_cannot_be_pushed(name, reason, explicit)) from None
        raise


def _cannot_be_pushed(name: str, reason: str, explicit: set[str]) -> str:
    if name in (FUNCTION, ARGUMENTS):
        what = "function" if name == FUNCTION else "function's arguments"
        return f"The {what} cannot be sent to the devices: {reason}; create it inside the function."
    rest = "create it inside the cell"
    if name not in explicit:
        rest += f" or leave it out with --no-push {name}"
    return f"'{name}' cannot be pushed: {reason}; {rest}."


def pack_pulled(values: dict[str, Any]) -> Packed:
    """Pickle a rank's values for the notebook, which may have neither its devices nor its ranks.

    Tensors on a GPU come to the host, and a model wrapped for distributed training comes unwrapped.

    Raises
    ------
    UsageError
        A value cannot be pickled; names it.
    """
    try:
        return _dump(values, notebook=False)
    except Exception:
        for name, value in values.items():
            if reason := _refusal(value, notebook=False):
                instead = GATHER if reason == SHARDED else PICKLE
                raise UsageError(f"'{name}' cannot be pulled: {reason}; {instead}.") from None
        raise


SHARDED = "it is sharded, and rank 0 has a part of it"
GATHER = (
    "have all ranks gather it, as get_model_state_dict of torch.distributed.checkpoint.state_dict does "
    "with the option full_state_dict, and pull that"
)
PICKLE = "pull something that can be pickled, such as its state_dict() or a copy of its values"


def unpack(data: Any) -> dict[str, Any]:
    """Give back what `pack` or `pack_pulled` was given. Only for data of the same owner."""
    values: dict[str, Any] = load(data)
    return values


def same(value: Any) -> Any:
    """What an unwrapped or moved value unpickles through."""
    return value


def rank_globals() -> dict[str, Any]:
    """What the notebook's own namespace unpickles as: that of the code which the rank runs."""
    return vars(sys.modules["__main__"])


class _Notebook(dict[str, Any]):
    """Stands for the notebook's namespace within a pickle."""

    def __reduce__(self) -> tuple[Callable[[], dict[str, Any]], tuple[()]]:
        return rank_globals, ()


def _dump(values: Any, *, notebook: bool) -> Packed:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if torch := sys.modules.get("torch"):
                moved = None if notebook else _portable(torch, value)
                moved = moved or _plain_tensor(torch, value)
                if moved is not None:
                    return moved
            return super().reducer_override(value)

    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = Pickler(file, protocol=5, buffer_callback=lambda buffer: _in_band(buffer, buffers))
    if notebook:
        main = rank_globals()
        pickler.globals_ref[id(main)] = _Notebook(__name__="__main__")
    pickler.dump(values)
    return Packed(file.getvalue(), buffers)


def _in_band(buffer: pickle.PickleBuffer, buffers: list[pickle.PickleBuffer]) -> bool:
    """Whether a buffer belongs in the pickle; the others are kept aside."""
    if buffer.raw().nbytes < LARGE:
        return True
    buffers.append(buffer)
    return False


def _plain_tensor(torch: Any, value: Any) -> tuple[Any, ...] | None:
    """How a large tensor on the host travels without a copy; None: as always.

    Torch's own way writes storages into the pickle.
    """
    if (
        type(value) is not torch.Tensor
        or value.device.type != "cpu"
        or value.layout is not torch.strided
        or value.is_quantized
        or value.nbytes < LARGE
        or not (value.is_leaf and value.is_contiguous())
        or value.is_conj()
        or value.is_neg()
        or vars(value)
        or value._backward_hooks
    ):
        return None
    data = value.detach().reshape(-1).view(torch.uint8).numpy()
    return tensor, (data, value.dtype, tuple(value.shape), value.requires_grad)


def tensor(data: Any, dtype: Any, shape: tuple[int, ...], requires_grad: bool) -> Any:
    """What `_plain_tensor` unpickles through."""
    import torch

    return torch.from_numpy(data).view(dtype).reshape(shape).requires_grad_(requires_grad)


def _portable(torch: Any, value: Any) -> tuple[Any, ...] | None:
    """How a value of torch is pickled so that any process can load it; None: as always."""
    if isinstance(value, torch.nn.parallel.DistributedDataParallel):
        return same, (value.module,)
    if _is_sharded(type(value)):
        raise pickle.PicklingError(SHARDED)
    if isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta"):
        host = value.detach().cpu()
        if isinstance(value, torch.nn.Parameter):
            return torch.nn.Parameter, (host, value.requires_grad)
        return same, (host,)
    return None


def _is_sharded(kind: type) -> bool:
    """Whether values of a type belong to all ranks together; these parts of torch may not be loaded."""
    return not {"FSDPModule", "DTensor"}.isdisjoint(base.__name__ for base in kind.__mro__)


def _refusal(value: Any, *, notebook: bool) -> str:
    """Why a value cannot be pickled, in a few words; "" when it can."""
    try:
        _dump(value, notebook=notebook)
    except Exception as error:  # noqa: BLE001  # whatever a value's own reduction raises
        first = str(error).strip().partition("\n")[0].rstrip(".")
        return first or type(error).__name__
    return ""
