"""Make a model smaller and quicker, and say what that costs on the user's own data.

    torch, Keras ── ONNX ─────────── int8
      │       └──── LiteRT int8
      └── pruned, tuned ── ONNX ──── int8

Every variant that is made is measured: bytes, time for one sample, samples a second, score. A gain
that the measurement does not clearly show is not claimed. A leaf module: it imports numpy, and
torch, onnx and ONNX Runtime's quantization where a variant needs them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .keras_export import KerasNet, is_keras
from .onnx_files import save_and_open
from .predictor import ONNX_MODEL, OnnxPredictor, Predictor, first_line, named_inputs
from .trial import Row, Score, choose, judged, outputs_of, scoring, speeds, within
from .variants import Optimized, Wish

__all__ = ["FLOAT", "Optimized", "Wish", "optimize"]

if TYPE_CHECKING:
    from .predictor import Package
    from .torch_variants import TorchModel

FLOAT = "float32"
TORCH = "torch"
LITERT = "LiteRT int8"
LEAST_SAMPLES = 20
CALIBRATION = 256
SPEED_SAMPLES = 64

Advance = Callable[[str], None]


def optimize(
    model: Any,
    data: tuple[Any, Any],
    wish: Wish,
    *,
    calibrate: Any = None,
    score: Score | None = None,
    on_step: Advance = lambda text: None,
) -> Optimized:
    """Try what `wish` says, measure it on `data`, and choose the smallest within the loss.

    Parameters
    ----------
    model
        A torch module, a Keras model, an ONNX model or its path, or the name of a published one
        ("digits@champion").
    data
        Samples and labels; labels may be None, and then variants are held against the original.
    calibrate
        Samples to take the ranges for int8 from; a quarter of `data` otherwise, which is then not
        part of what is measured.
    score
        `score(outputs, labels)`, higher is better, instead of accuracy or R².
    on_step
        Told in a few words what happens next.

    Raises
    ------
    UsageError
        The model, the data or what is wished makes no sense, or cannot be done.
    NotFoundError
        There is no such published model.
    """
    wish.check()
    with tempfile.TemporaryDirectory(prefix="aios-optimize-") as scratch:
        trial = _Trial(Path(scratch), wish, on_step)
        source = trial.open(model, data[0])
        samples, labels, ranges = _divided(source.predictor, data, calibrate)
        trial.prepare(samples, labels, ranges, score)
        return trial.run(source)


def _divided(
    predictor: Predictor, data: tuple[Any, Any], calibrate: Any
) -> tuple[dict[str, np.ndarray], np.ndarray | None, dict[str, np.ndarray]]:
    """Samples to measure on, their labels, and samples to take ranges from."""
    inputs = named_inputs(predictor.signature, data[0])
    labels = None if data[1] is None else np.asarray(data[1])
    rows = len(next(iter(inputs.values())))
    if rows < LEAST_SAMPLES:
        raise UsageError(f"{rows} samples say too little; give {LEAST_SAMPLES} or more.")
    if labels is not None and len(labels) != rows:
        raise UsageError(f"There are {rows} samples and {len(labels)} labels; give one for each.")
    if calibrate is not None:
        ranges = named_inputs(predictor.signature, calibrate)
        return inputs, labels, {name: array[:CALIBRATION] for name, array in ranges.items()}
    # Data may be sorted by class: every fourth sample is as good as any.
    chosen = np.zeros(rows, bool)
    chosen[:: max(4, -(-rows // CALIBRATION))] = True
    ranges = {name: array[chosen] for name, array in inputs.items()}
    rest = {name: array[~chosen] for name, array in inputs.items()}
    return rest, None if labels is None else labels[~chosen], ranges


@dataclass(frozen=True)
class _Source:
    """The model as it came: open, as ONNX, and as torch where it is that."""

    predictor: Predictor
    path: Path
    framework: str
    torch: TorchModel | None = None
    keras: KerasNet | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


class _Trial:
    """Makes variants as files, and measures them."""

    def __init__(self, scratch: Path, wish: Wish, on_step: Advance) -> None:
        self._scratch = scratch
        self._wish = wish
        self._say = on_step
        self._files: dict[str, Path] = {}
        self._open: dict[str, Predictor] = {}
        self._sizes: dict[str, int] = {}
        self._scores: dict[str, float] = {}
        self._notes: dict[str, str] = {}

    # --- what comes in

    def open(self, model: Any, x: Any) -> _Source:
        torch = sys.modules.get("torch")  # a torch module cannot exist where torch was not imported
        if torch is not None and isinstance(model, torch.nn.Module):
            from .torch_variants import TorchModel

            self._say("exporting to ONNX")
            own = TorchModel(model, x)
            path = own.export(self._folder())
            predictor = OnnxPredictor(os.fspath(path), threads=self._wish.threads)
            return _Source(predictor, path, "torch", own)
        if self._wish.prune:
            raise UsageError(
                "Only a torch network can be pruned; give the network itself rather than a stored "
                "model."
            )
        if is_keras(model):
            self._say("exporting to ONNX")
            net = KerasNet(model, x)
            path = self._folder() / ONNX_MODEL
            net.compare(save_and_open(net.export(), path.parent))
            predictor = OnnxPredictor(os.fspath(path), threads=self._wish.threads)
            return _Source(predictor, path, "keras", keras=net)
        path, framework, lineage = self._stored(model)
        predictor = OnnxPredictor(os.fspath(path), threads=self._wish.threads)
        return _Source(predictor, path, framework, lineage=lineage)

    def _stored(self, model: Any) -> tuple[Path, str, dict[str, str]]:
        import onnx

        folder = self._folder()
        lineage: dict[str, str] = {}
        framework = "onnx"
        if isinstance(model, str) and not model.endswith(".onnx"):
            package = _package(model)
            framework = package.framework or framework
            lineage = {"optimized_from": f"{package.name}/{package.version}"}
            model = Path(package.path) / package.main
        if isinstance(model, str | Path):
            if not Path(model).is_file():
                raise UsageError(f"{model} is not an ONNX file; give the path of one.")
            try:
                model = onnx.load(os.fspath(model))
            except Exception as error:  # protobuf raises classes of its own
                raise UsageError(f"{model} is not an ONNX model: {first_line(error)}.") from error
        if type(model).__name__ != "ModelProto":
            raise UsageError(
                f"A {type(model).__name__} cannot be optimized; give a torch module, a Keras "
                "model, an ONNX model or its path, or the name of a published one."
            )
        if self._wish.int8:
            from .quantize import is_quantized

            if is_quantized(model):
                raise UsageError("This model is int8 already; there is nothing to gain.")
        save_and_open(model, folder)
        return folder / ONNX_MODEL, framework, lineage

    def prepare(
        self,
        samples: dict[str, np.ndarray],
        labels: np.ndarray | None,
        ranges: dict[str, np.ndarray],
        score: Score | None,
    ) -> None:
        self._samples, self._labels, self._ranges = samples, labels, ranges
        self._custom = score

    # --- what is made of it

    def run(self, source: _Source) -> Optimized:
        outputs = outputs_of(source.predictor, self._samples)
        self._score_name, self._score = (
            scoring(outputs, self._labels)
            if not self._custom
            else (
                "score",
                self._custom,
            )
        )
        if source.torch is not None:
            self._add_torch(source.torch)
        self._add(FLOAT, source.path)
        bases = [(FLOAT, source.path)]
        if self._wish.prune and source.torch is not None:
            bases.append(self._pruned(source.torch))
        if self._wish.int8:
            for name, path in bases:
                self._int8(name, path)
            if source.keras is not None:
                self._litert(source.keras, source.predictor)
        return self._result(source)

    def _pruned(self, net: TorchModel) -> tuple[str, Path]:
        share, sparse = self._wish.prune, self._wish.unstructured
        name = f"{share:.0%} {'zeros' if sparse else 'fewer channels'}"
        self._say(f"pruning {share:.0%}" + (", training" if self._wish.finetune else ""))
        smaller = net.pruned(share, unstructured=sparse, finetune=self._wish.finetune)
        path = smaller.export(self._folder())
        self._add(name, path)
        if sparse:
            self._notes[name] = "zeros are stored like other numbers: no smaller file"
        return name, path

    def _int8(self, base: str, path: Path) -> None:
        from . import quantize

        self._say(f"int8 of {base}")
        prepared = self._folder() / "model.onnx"
        quantize.prepare(path, prepared)
        name = "int8" if base == FLOAT else f"{base}, int8"
        floor = self._scores[FLOAT] - self._wish.max_loss
        for recipe in quantize.RECIPES:
            called = f"{name} ({recipe.text})" if recipe.text else name
            target = self._folder() / "model.onnx"
            if not quantize.quantize(prepared, target, self._ranges, recipe):
                continue
            self._add(called, target)
            if within(floor - self._scores[called], 0.0) or self._lost(base):
                return

    def _litert(self, net: KerasNet, original: Predictor) -> None:
        """Measured beside the others; it is no ONNX model, so that it is not what is published."""
        from .litert import LiteRtPredictor, convert

        self._say("LiteRT int8")
        content = convert(net, self._ranges)
        predictor = LiteRtPredictor(content, original.signature, threads=self._wish.threads)
        self._open[LITERT], self._sizes[LITERT] = predictor, len(content)
        self._scores[LITERT] = self._scored(predictor)
        self._notes[LITERT] = "aios export … --to litert --calibrate X"

    def _lost(self, base: str) -> bool:
        """Whether a base is over the allowed loss by itself: no recipe brings that back."""
        return not within(self._scores[FLOAT] - self._scores[base], self._wish.max_loss)

    def _folder(self) -> Path:
        path = self._scratch / f"{len(list(self._scratch.iterdir()))}"
        path.mkdir()
        return path

    def _add_torch(self, net: TorchModel) -> None:
        self._open[TORCH] = net
        self._sizes[TORCH] = net.size
        self._scores[TORCH] = self._scored(net)

    def _add(self, name: str, path: Path) -> None:
        self._files[name] = path
        self._open[name] = OnnxPredictor(os.fspath(path), threads=self._wish.threads)
        self._sizes[name] = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        self._scores[name] = self._scored(self._open[name])

    def _scored(self, predictor: Predictor) -> float:
        value = self._score(outputs_of(predictor, self._samples), self._labels)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UsageError(f"The score gave {value!r}; let it give a number.") from None

    # --- what comes out

    def _result(self, source: _Source) -> Optimized:
        self._say("measuring")
        some = {name: array[:SPEED_SAMPLES] for name, array in self._samples.items()}
        threads: AbstractContextManager[None] = nullcontext()
        if source.torch is not None:
            threads = source.torch.threads(self._wish.threads)
        with threads:
            measured = speeds(self._open, some, baseline=FLOAT)
        rows = [
            Row(
                name=name,
                size=self._sizes[name],
                score=self._scores[name],
                p50_ms=speed.p50_ms,
                p95_ms=speed.p95_ms,
                per_second=speed.per_second,
                gain=speed.gain,
                clear=speed.clear,
                stored=name in self._files,
                note=self._notes.get(name, ""),
            )
            for name, speed in measured.items()
        ]
        rows = judged(rows, FLOAT, self._wish.max_loss)
        chosen = choose(rows, FLOAT).name
        lineage = {**source.lineage, "optimized": chosen}
        return Optimized(
            rows=tuple(rows),
            baseline=FLOAT,
            chosen=chosen,
            score_name=self._score_name,
            samples=len(next(iter(self._samples.values()))),
            max_loss=self._wish.max_loss,
            framework=source.framework,
            lineage=lineage,
            content=self._content(chosen),
            example={name: array[:2] for name, array in self._samples.items()},
        )

    def _content(self, name: str) -> bytes:
        """The variant in one piece, also where its weights lie beside it."""
        import onnx

        path = self._files[name]
        if path.stat().st_size == self._sizes[name]:
            return path.read_bytes()
        return bytes(onnx.load(os.fspath(path)).SerializeToString())


def _package(ref: str) -> Package:
    """The checked files of a published model."""
    from .predictor import verify
    from .registry import fetch

    package = fetch(ref)
    if package.pickled:
        raise UsageError(f"{ref} is a pickle, which cannot be optimized; publish it as ONNX.")
    verify(package)
    return package
