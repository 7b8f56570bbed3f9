"""Open a model's files and run it: checked against their recorded hashes, and without torch.

A leaf module: it imports numpy, and ONNX Runtime where a session is opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import AccessError, ConflictError, UsageError
from ..schema import Struct
from .signature import NUMPY, Signature, Tensor, as_input, by_column, datatype

if TYPE_CHECKING:
    import onnxruntime

ONNX_MODEL = "model.onnx"
PICKLED_MODEL = "data/model.pkl"  # where MLflow puts the file of a loader module
RECIPE = "recipe.json"  # what prepares rows for the model (`prepared.py`)
DESCRIPTION = "MLmodel"  # the file in which MLflow says how a model is opened
_CHUNK = 1 << 20


class Package(Struct):
    """A model version's files on this machine.

    `files` are paths below `path` with their sha256; empty for a version that something else
    registered. `main` is the file that holds the model.
    """

    name: str
    version: int
    path: str
    main: str
    files: dict[str, str] = {}
    framework: str = ""

    @property
    def pickled(self) -> bool:
        """Whether opening it runs code that is in the file."""
        return not self.main.endswith(".onnx")

    @property
    def prepares(self) -> bool:
        """Whether a recipe runs in front of the model."""
        return RECIPE in self.files


class Predictor(Protocol):
    """A model that is open."""

    signature: Signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name for inputs that match the signature exactly."""

    def predict(self, x: Any) -> Any:
        """The output for `x`: an array, lists, or a dict of them where there are more inputs.

        Values are converted to the model's types. Gives an array, or a dict of arrays by output
        name where the model has more than one output.

        Raises
        ------
        UsageError
            The shape or type does not match the signature.
        """


def open_package(
    package: Package, *, threads: int | None = None, allow_pickle: bool = False
) -> Predictor:
    """Check the files of `package` and open its model.

    Parameters
    ----------
    threads
        Threads of the model; None follows `OMP_NUM_THREADS`, or takes the processors there are.
    allow_pickle
        Whether a pickled model may be opened, which runs code that is in its file.

    Raises
    ------
    ConflictError
        A file is missing or was changed since the model was published.
    AccessError
        The model is a pickle and `allow_pickle` was not given.
    UsageError
        The file is not a model that can be opened.
    """
    if package.pickled and not allow_pickle:
        kind = "is a pickle" if package.main != DESCRIPTION else "was stored by another tool"
        raise AccessError(
            f"{package.name}/{package.version} {kind}, which runs code when it is opened; "
            "pass allow_pickle=True (--allow-pickle) if you trust who published it."
        )
    content = verify(package)
    model = _opened(package, content, threads)
    if not package.prepares:
        return model
    from .prepared import PreparedPredictor, read

    return PreparedPredictor(model, read(Path(package.path) / RECIPE))


def _opened(package: Package, content: bytes | str, threads: int | None) -> Predictor:
    if package.main == DESCRIPTION:
        from .foreign import ForeignPredictor

        return ForeignPredictor(Path(package.path))
    if package.pickled:
        return PickledPredictor.load(content, Path(package.path))
    return OnnxPredictor(content, threads=threads)


def verify(package: Package) -> bytes | str:
    """Compare each file with its hash; the model's own bytes, or its path where it has more files.

    The bytes are the ones that were hashed: a file changed in between is not what gets opened.
    """
    root = Path(package.path)
    if package.files and package.main not in package.files:
        raise ConflictError(
            f"{package.name}/{package.version} was changed after it was published ({package.main} is "
            "none of its files); publish the model again."
        )
    main = b""
    for name, expected in {**dict.fromkeys([package.main], ""), **package.files}.items():
        digest = hashlib.sha256()
        try:
            with (root / name).open("rb") as file:
                if name == package.main:
                    main = file.read()
                    digest.update(main)
                else:
                    while chunk := file.read(_CHUNK):
                        digest.update(chunk)
        except FileNotFoundError:
            raise ConflictError(
                f"{package.name}/{package.version} lacks its file {name}; publish the model again."
            ) from None
        if expected and digest.hexdigest() != expected:
            raise ConflictError(
                f"{package.name}/{package.version} was changed after it was published ({name} has "
                "another sha256); publish the model again."
            )
    if any(name.startswith(package.main + ".") for name in package.files):
        return str(root / package.main)  # external weights are found beside the file
    return main


def file_hashes(root: Path) -> dict[str, str]:
    """sha256 of each file below `root`, by relative path."""
    hashes = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        hashes[path.relative_to(root).as_posix()] = digest.hexdigest()
    return hashes


class Asked:
    """`predict` for what has `run`."""

    signature: Signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        raise NotImplementedError

    def predict(self, x: Any) -> Any:
        outputs = self.run(named_inputs(self.signature, x))
        return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def named_inputs(signature: Signature, x: Any) -> dict[str, np.ndarray]:
    """`x` (array, lists, tensor, tuple or dict of them) as arrays that match `signature`."""
    x = by_column(x, signature)
    if isinstance(x, Mapping):
        given = {signature.input(str(name)).name: value for name, value in x.items()}
    elif len(signature.inputs) == 1:
        given = {signature.inputs[0].name: x}
    elif isinstance(x, tuple) and len(x) == len(signature.inputs):
        given = {t.name: value for t, value in zip(signature.inputs, x, strict=True)}
    else:
        names = ", ".join(t.name for t in signature.inputs)
        raise UsageError(f"The model takes several inputs; give a dict with {names}.")
    arrays = {name: as_input(signature.input(name), plain(v)) for name, v in given.items()}
    signature.check(arrays)
    return arrays


def plain(value: Any) -> Any:
    """A tensor (torch, TensorFlow) or a data frame as something numpy takes."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has no such type
            value = value.float()
    return value.numpy() if hasattr(value, "numpy") else value


class OnnxPredictor(Asked):
    """A model in ONNX Runtime."""

    def __init__(self, model: bytes | str, *, threads: int | None = None) -> None:
        self._session = _session(model, threads)
        self._names = [output.name for output in self._session.get_outputs()]
        self.signature = Signature(
            inputs=_tensors(self._session.get_inputs()),
            outputs=_tensors(self._session.get_outputs()),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        values = self._session.run(self._names, inputs)
        return dict(zip(self._names, values, strict=True))


def _session(model: bytes | str, threads: int | None) -> onnxruntime.InferenceSession:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    # Threads that spin between calls would take processor time from everything else here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [
        provider
        for provider in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if provider in onnxruntime.get_available_providers()
    ]
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime has a class for each kind, without a common base
        raise UsageError(f"ONNX Runtime cannot open this model: {first_line(error)}.") from error


def default_threads() -> int:
    """`OMP_NUM_THREADS`, or the processors this process may use."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdigit() and int(text) > 0:
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_ONNX_DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    **{
        f"{sign}int{bits}": f"{sign}int{bits}".upper()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def _tensors(nodes: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=node.name,
            datatype=_onnx_datatype(node.name, node.type),
            shape=tuple(size if isinstance(size, int) else -1 for size in node.shape),
        )
        for node in nodes
    )


def _onnx_datatype(name: str, kind: str) -> str:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    if inner == kind or inner not in _ONNX_DATATYPES:
        raise UsageError(
            f"The model's {name!r} is a {kind}; export it with plain tensors (for scikit-learn: "
            "without zipmap)."
        )
    return _ONNX_DATATYPES[inner]


class PickledPredictor(Asked):
    """An object with `predict`. Whoever unpickles one has said that its file is trusted."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self._model = model
        self.signature = signature

    @classmethod
    def load(cls, content: bytes | str, root: Path) -> PickledPredictor:
        """The object in a file's content, whose signature lies in `root`."""
        import cloudpickle
        import msgspec

        assert isinstance(content, bytes)  # a pickle is one file
        signature = msgspec.json.decode((root / "signature.json").read_bytes(), type=Signature)
        try:
            return cls(cloudpickle.loads(content), signature)
        except Exception as error:  # a pickle's code can raise anything
            raise UsageError(
                f"The pickled model cannot be opened here ({first_line(error)}); install what it "
                "was made with."
            ) from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        output = np.asarray(self._model.predict(next(iter(inputs.values()))))
        return {self.signature.outputs[0].name: output}


def signature_of(array: np.ndarray, output: np.ndarray) -> Signature:
    """The signature of a model seen once, with a free number of samples."""

    def tensor(name: str, a: np.ndarray) -> Tensor:
        return Tensor(name=name, datatype=datatype(a.dtype), shape=(-1, *a.shape[1:]))

    return Signature(inputs=(tensor("input", array),), outputs=(tensor("output", output),))


def zeros(signature: Signature) -> dict[str, np.ndarray] | None:
    """One sample of zeros; None where a dimension other than the first is free."""
    if any(-1 in tensor.shape[1:] or tensor.datatype == "BYTES" for tensor in signature.inputs):
        return None
    return {
        tensor.name: np.zeros([abs(size) for size in tensor.shape], NUMPY[tensor.datatype])
        for tensor in signature.inputs
    }


def first_line(error: BaseException) -> str:
    """What an error says, in one line without a full stop at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
