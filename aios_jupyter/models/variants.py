"""What `optimize` is asked for, and what it gives. A leaf module: it imports numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .trial import Row

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Wish:
    """What to try.

    Attributes
    ----------
    int8
        Weights and activations in 8 bits.
    prune
        This share of channels goes (or of single weights, with `unstructured`); 0 for none.
    finetune
        Trains the pruned network: called with it, and with the original where it takes two.
    max_loss
        What the score may fall by: 0.005 is half a point.
    threads
        Threads that speed is measured with.
    """

    int8: bool = False
    prune: float = 0.0
    unstructured: bool = False
    finetune: Callable[..., Any] | None = None
    max_loss: float = 0.005
    threads: int = 1

    def check(self) -> None:
        """Refuse what makes no sense."""
        if not 0 <= self.prune < 1:
            raise UsageError(f"{self.prune:g} is no share to prune; give one below 1, such as 0.5.")
        if not 0 <= self.max_loss <= 1:
            raise UsageError(f"{self.max_loss:g} is no loss to allow; give one such as 0.5%.")
        if (self.finetune or self.unstructured) and not self.prune:
            raise UsageError("Nothing is pruned; say how much with --prune 0.5.")
        if self.finetune is not None and not callable(self.finetune):
            raise UsageError("The fine-tuning is not a function; give one that takes the network.")


@dataclass(frozen=True)
class Optimized:
    """What was tried, and the variant that was chosen; `publish` takes it.

    Attributes
    ----------
    rows
        Each variant with what was measured.
    baseline, chosen
        Names of the rows that gains are over, and that was chosen.
    score_name, samples, max_loss
        What was scored, on how many samples, and the loss that was allowed.
    framework, lineage
        What the model was made from.
    """

    rows: tuple[Row, ...]
    baseline: str
    chosen: str
    score_name: str
    samples: int
    max_loss: float
    framework: str
    lineage: Mapping[str, str] = field(default_factory=dict)
    content: bytes = field(default=b"", repr=False)
    example: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def row(self) -> Row:
        """The chosen variant."""
        return self.of(self.chosen)

    def of(self, name: str) -> Row:
        """The variant `name`."""
        return next(row for row in self.rows if row.name == name)

    @property
    def smaller(self) -> float:
        """How many times smaller the chosen one is."""
        return self.of(self.baseline).size / self.row.size

    @property
    def metrics(self) -> dict[str, float]:
        """What is recorded with it when it is published."""
        row = self.row
        name = {"R²": "r2"}.get(self.score_name, self.score_name)
        return {name: row.score, "bytes": float(row.size), "p50_ms": round(row.p50_ms, 4)}

    def model(self) -> onnx.ModelProto:
        """The chosen variant as an ONNX model."""
        import onnx

        return onnx.load_from_string(self.content)

    def save(self, path: str | Path) -> Path:
        """Write the chosen variant as an ONNX file."""
        target = Path(path)
        if target.suffix != ".onnx":
            raise UsageError(f"{target} is not the name of an ONNX file; end it in .onnx.")
        aside = target.with_name(f".{target.name}.part")
        try:
            aside.write_bytes(self.content)
            aside.replace(target)
        except OSError as error:
            raise UsageError(f"{target} cannot be written: {error.strerror}.") from None
        return target
