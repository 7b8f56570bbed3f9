"""A model in the directory form that MLflow's own tools read.

A leaf module: it imports MLflow and is itself imported when a model is published.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import cloudpickle
import mlflow.onnx
import mlflow.pyfunc
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from .._version import __version__
from .package import Built
from .signature import NUMPY, Signature, Tensor


def write_files(built: Built, target: Path, extras: Path, model_id: str, run: str) -> None:
    """MLflow's directory of this model, with our extra files in it."""
    mlflow_model: Model = Model(run_id=run, model_id=model_id)
    signature = _mlflow_signature(built.signature)
    if built.main.endswith(".onnx"):
        mlflow.onnx.save_model(
            built.model,
            str(target),
            mlflow_model=mlflow_model,
            signature=signature,
            pip_requirements=_installed("onnx", "onnxruntime", "numpy"),
            save_as_external_data=False,  # `extras` has large weights already
        )
    else:
        _write_pickle(built, target, mlflow_model, signature)
    shutil.copytree(extras, target, dirs_exist_ok=True)


def _write_pickle(
    built: Built, target: Path, mlflow_model: Model, signature: ModelSignature
) -> None:
    pickled = target.parent / Path(built.main).name
    with pickled.open("wb") as file:
        cloudpickle.dump(built.model, file)
    framework = ("scikit-learn",) if built.framework == "sklearn" else ()
    mlflow.pyfunc.save_model(
        str(target),
        loader_module="aios_jupyter.models.pickled",
        data_path=str(pickled),
        mlflow_model=mlflow_model,
        signature=signature,
        pip_requirements=[
            *_installed("cloudpickle", "numpy", *framework),
            f"aios-jupyter=={__version__}",
        ],
    )


def _mlflow_signature(signature: Signature) -> ModelSignature:
    def schema(tensors: Sequence[Tensor]) -> Schema:
        named = len(tensors) > 1  # MLflow takes a plain array only where the one input has no name
        return Schema(
            [
                TensorSpec(
                    np.dtype(str) if t.datatype == "BYTES" else NUMPY[t.datatype],
                    t.shape,
                    name=t.name if named else None,
                )
                for t in tensors
            ]
        )

    return ModelSignature(inputs=schema(signature.inputs), outputs=schema(signature.outputs))


def _installed(*packages: str) -> list[str]:
    """Requirements with the versions that are installed: MLflow would take seconds to infer them."""
    return [f"{package}=={version(package)}" for package in packages]
