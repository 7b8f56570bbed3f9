"""The input example of a version: what somebody who tries it begins with.

The first sample that the model was published with lies beside it, as arrays (`onnx_files.EXAMPLE`),
or as a raw row where a recipe runs in front. A leaf module: it imports numpy.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import NotFoundError, UsageError
from .onnx_files import EXAMPLE
from .predictor import named_inputs
from .protocol_v2 import dump, json_ready
from .registry import resolve
from .signature import Signature

ROW = "row_example.json"
"""The first raw row that a recipe kept, by column."""

MOST_VALUES = 200_000
"""Values that people are shown; an image of 224 by 224 in color is less."""


def save_row(signature: Signature, row: Any, directory: Path) -> None:
    """Keep a raw row, a frame, beside the recipe that takes it.

    One that could not be sent like this (a column of numbers beside text) is no example: nothing is
    kept then.
    """
    try:
        inputs = named_inputs(signature, row)
    except UsageError:
        return
    (directory / ROW).write_bytes(dump({name: _plain(array) for name, array in inputs.items()}))


def example(ref: str, signature: Signature) -> dict[str, Any]:
    """One sample by input, as JSON has it, with the samples as first dimension.

    Parameters
    ----------
    signature
        What the version takes; an example of anything else is none.

    Raises
    ------
    NotFoundError
        It was published without one, or with one that is too large to be shown.
    ClusterError
        The registry does not answer.
    """
    try:
        arrays = named_inputs(signature, _stored(ref))
    # What lies there may be damaged, or not what the model takes: then there is none.
    except (UsageError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise NotFoundError(
            f"{ref} has no input example; publish one with it (--input-example)."
        ) from None
    values = sum(array.size for array in arrays.values())
    if values > MOST_VALUES:
        raise NotFoundError(
            f"The input example of {ref} is too large to be shown: {values:,} values."
        )
    return {name: _plain(array) for name, array in arrays.items()}


def _stored(ref: str) -> Mapping[str, Any]:
    """What was kept of the example, without the other files of the version."""
    from .store import file_of, registry

    version = resolve(ref)
    kept = json.loads(version.tags.get("aios.files", "{}"))
    name = ROW if ROW in kept else EXAMPLE
    if name not in kept:
        raise FileNotFoundError(name)
    with registry() as client:
        content = file_of(client, version.name, version.version, name)
    if name == ROW:
        return msgspec.json.decode(content, type=dict[str, Any])
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _plain(array: np.ndarray) -> Any:
    """As JSON has it; what is missing is null."""
    if array.dtype.kind == "O":
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in array.flat]
        return np.array(texts, object).reshape(array.shape).tolist()
    return msgspec.json.decode(dump(json_ready(array)))
