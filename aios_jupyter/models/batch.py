"""Predictions for a whole dataset: parts on the cluster's workers, the result a new dataset.

A leaf module: it imports numpy, pandas and pyarrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..data import pieces, storage
from ..data.catalog import Catalog, Entry, check_name
from ..data.prepare import FileParts
from ..errors import AiosError, UsageError
from .columns import as_inputs, chosen
from .predictor import Package, Predictor, open_package
from .prepared import PreparedPredictor
from .signature import NUMPY, Signature, as_input, check_tensor

ROWS = 2000
"""Samples of a part, where they are no table."""

_TOGETHER = 256
_ROW = "row"


def predict_dataset(
    package: Package,
    ref: str,
    src: str | Entry,
    dst: str,
    *,
    client: Any = None,
    on_progress: Callable[[int, int], None] | None = None,
    allow_pickle: bool = False,
) -> Entry:
    """Make dataset `dst`: what `src` has, with a model's predictions beside it.

    A table keeps its columns. The model's inputs are columns of those names; a model with one input
    of several numbers takes all columns but the label, in their order. Of images and other arrays
    the result has the row and the label; whole numbers up to 255 are divided by it for a model that
    takes fractions.

    Where a recipe runs in front of the model, it takes raw rows; those that the recipe drops are not in
    the result. Class scores become `prediction` (the class) and `score`.

    Parameters
    ----------
    package, ref
        The model's files, and its name and version for the lineage.
    client
        `distributed.Client` of the cluster whose workers do it; None: this process.

    Raises
    ------
    UsageError, NotFoundError
        The data does not fit the model, or is not there.
    ClusterError
        The cluster lost the work.
    """
    check_name(dst)
    catalog = Catalog()
    entry = catalog.get(src)
    signature = open_package(package, threads=1, allow_pickle=allow_pickle).signature
    with storage.scratch(dst) as room, storage.scratch(dst) as aside:
        room.mkdir()
        arrays = ""
        if len(signature.inputs) == 1 and len(signature.inputs[0].shape) > 2:
            found, arrays = _from_arrays(catalog, entry, room)
        else:
            found = pieces.parts(entry, room)
        work = Predict(package, str(room), arrays, allow_pickle)
        parts = FileParts(found, client, on_progress)
        parts.map(work)
        files = [room / f"part-{number:06}.parquet" for number in range(len(found))]
        pieces.join(files, aside)
        return pieces.keep(aside, dst, catalog, made_from=[entry], how=f"predicted by {ref}")


def _from_arrays(catalog: Catalog, entry: Entry, room: Path) -> tuple[list[pieces.Part], str]:
    """Numbers of rows and labels as a table, and the array that they count."""
    x, y = catalog.load(entry)
    place = room / "x.npy"
    np.save(place, x)
    columns: dict[str, Any] = {_ROW: np.arange(len(x))}
    if y is not None:
        columns["label"] = y
    table = room / "source.parquet"
    parquet.write_table(pa.table(columns), table, row_group_size=ROWS)
    groups = -(-len(x) // ROWS)
    return [pieces.Part(str(table), (group,)) for group in range(groups)], str(place)


class Predict:
    """Predicts for one part and writes it; gives its rows. Travels to workers."""

    def __init__(self, package: Package, room: str, arrays: str, allow_pickle: bool) -> None:
        self.package, self.room, self.arrays = package, room, arrays
        self.allow_pickle = allow_pickle

    def __call__(self, frame: Any, number: int) -> int:
        model = _opened(self.package, self.allow_pickle)
        if self.arrays:
            x = np.load(self.arrays, mmap_mode="r")[frame[_ROW].to_numpy("int64")]
            inputs = {model.signature.inputs[0].name: _as_images(x, model.signature)}
        elif isinstance(model, PreparedPredictor):
            frame, inputs = model.prepare(frame)
            model = model.model
        else:
            columns = chosen(list(frame.columns), model.signature)
            inputs = as_inputs(frame, model.signature, columns)
        try:
            outputs = _run(model, inputs, len(frame))
        except AiosError:
            raise
        except Exception as error:  # the model itself, on inputs that match its signature
            raise UsageError(f"The model failed on part {number} of the data: {error}") from error
        made = frame.assign(**_named(outputs))
        try:
            pieces.write(made, Path(self.room) / f"part-{number:06}.parquet")
        except OSError as error:
            raise storage.unwritable(self.room, error) from None
        return len(made)


_open: dict[str, Predictor] = {}


def _opened(package: Package, allow_pickle: bool) -> Predictor:
    """The model, opened once in each process for as long as it is asked for."""
    if package.path not in _open:
        _open.clear()
        _open[package.path] = open_package(package, threads=1, allow_pickle=allow_pickle)
    return _open[package.path]


def _run(model: Predictor, inputs: dict[str, Any], rows: int) -> dict[str, np.ndarray]:
    """Outputs for all rows, some at a time."""
    made = []
    if not rows:
        return {
            tensor.name: np.zeros((0, *map(abs, tensor.shape[1:])), NUMPY[tensor.datatype])
            for tensor in model.signature.outputs
        }
    for start in range(0, rows, _TOGETHER):
        some = {name: array[start : start + _TOGETHER] for name, array in inputs.items()}
        model.signature.check(some)
        made.append(model.run(some))
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


def _as_images(x: np.ndarray, signature: Signature) -> np.ndarray:
    """`x` as the model takes it: of its type, with an axis of length 1 or the channels in front."""
    tensor = signature.inputs[0]
    if x.dtype == np.uint8 and NUMPY[tensor.datatype].kind == "f":
        x = x / np.float32(255)
    want = tensor.shape[1:]
    if x.ndim + 1 == len(tensor.shape):
        x = x[:, None] if want[0] in (-1, 1) else x[..., None]
    elif x.ndim == 4 and x.shape[1] != want[0] and x.shape[3] == want[0]:
        x = x.transpose(0, 3, 1, 2)
    array = np.ascontiguousarray(as_input(tensor, x))
    check_tensor(tensor, array)
    return array


def _named(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Outputs as columns."""
    found: dict[str, Any] = {}
    for name, array in outputs.items():
        prefix = "" if len(outputs) == 1 else f"{name}_"
        if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f":
            found[f"{prefix}prediction"] = array.argmax(1)
            found[f"{prefix}score"] = array.max(1)
        elif array.ndim > 1 and math.prod(array.shape[1:]) > 1:
            found[f"{prefix}prediction"] = [row.ravel().tolist() for row in array]
        else:
            found[f"{prefix}prediction"] = array.reshape(len(array))
    return found
