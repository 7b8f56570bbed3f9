"""How MLflow opens what we stored as a pickle (`loader_module` in its MLmodel file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _load_pyfunc(path: str) -> Any:
    """Called by `mlflow.pyfunc.load_model` with the path of the pickle."""
    import cloudpickle

    with Path(path).open("rb") as file:
        return cloudpickle.load(file)
