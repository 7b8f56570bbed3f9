"""Models that other tools put in the registry: opened as MLflow opens them, where that is allowed.

Opening one runs whatever its flavor says, most often a pickle. A leaf module: it imports numpy, and
MLflow where a model is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .predictor import DESCRIPTION, first_line, named_inputs
from .quiet import quiet
from .signature import Signature, Tensor, datatype

if TYPE_CHECKING:
    from mlflow.types import Schema

__all__ = ["DESCRIPTION", "ForeignPredictor"]


class ForeignPredictor:
    """A model in MLflow's directory form, of any flavor."""

    def __init__(self, root: Path) -> None:
        with quiet("mlflow"):
            import mlflow.pyfunc
            from mlflow.models import Model

            described = Model.load(str(root)).signature
            if described is None or described.inputs is None:
                raise UsageError(
                    "This model has no signature, so that nothing says what it takes; register it "
                    "again with one (mlflow.models.infer_signature)."
                )
            try:
                self._model = mlflow.pyfunc.load_model(str(root))
            except Exception as error:  # a flavor's loader can raise anything
                raise UsageError(
                    f"This model cannot be opened here ({first_line(error)}); install what it was "
                    "made with."
                ) from error
        self._columns = not described.inputs.is_tensor_spec()
        outputs = () if described.outputs is None else _tensors(described.outputs, "output")
        self.signature = Signature(
            inputs=_tensors(described.inputs, "input"),
            outputs=outputs[:1] or (Tensor(name="output", datatype="FP64", shape=(-1,)),),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """What the model gives, as one output."""
        given: Any = dict(inputs)
        if self._columns:
            import pandas as pd

            given = pd.DataFrame({name: array.reshape(-1) for name, array in inputs.items()})
        elif len(given) == 1:
            given = next(iter(given.values()))
        return {self.signature.outputs[0].name: np.asarray(self._model.predict(given))}

    def predict(self, x: Any) -> Any:
        """As other predictors."""
        return next(iter(self.run(named_inputs(self.signature, x)).values()))


def _tensors(schema: Schema, unnamed: str) -> tuple[Tensor, ...]:
    found = []
    for column in schema.inputs:
        name = column.name or unnamed
        if schema.is_tensor_spec():
            found.append(
                Tensor(name=name, datatype=datatype(column.type), shape=tuple(column.shape))
            )
        else:  # a column of a data frame: one value for each sample
            kind = datatype(np.dtype(column.type.to_numpy()))
            found.append(Tensor(name=name, datatype=kind, shape=(-1, 1)))
    return tuple(found)
