"""A recipe in front of a model: raw rows go in, and are prepared as the training data was.

The recipe is a file of the model's package, so that nothing that happens in the catalogue afterwards
changes what is served. A leaf module: it imports pandas.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from ..data.recipe import Recipe
from ..data.recipe_columns import is_date, is_number
from ..data.recipe_rows import for_columns, leaves_out, source
from ..errors import NotFoundError, UsageError
from ..schema import Struct
from .columns import as_inputs, chosen
from .predictor import RECIPE, Asked, Predictor
from .signature import Signature, Tensor

_ROWS = 200


class RawField(Struct, frozen=True):
    """A raw column and the type that pandas had for it."""

    name: str
    dtype: str

    @property
    def tensor(self) -> Tensor:
        """How it is sent: numbers as FP64, dates as text, null for what is missing."""
        if self.dtype in ("bool", "boolean"):
            return Tensor(name=self.name, datatype="BOOL", shape=(-1,))
        kind = "FP64" if is_number(pd.Series(dtype=self.dtype)) else "BYTES"
        return Tensor(name=self.name, datatype=kind, shape=(-1,), missing=True)


class RowRecipe(Struct, frozen=True):
    """What lies between raw rows and a model.

    Attributes
    ----------
    fields
        The raw columns that the model's answer depends on.
    columns
        The prepared columns that the model takes, in order.
    steps
        The recipe (`Recipe.to_json`) that makes these of those; None where they are the same.
    """

    fields: tuple[RawField, ...]
    columns: tuple[str, ...]
    steps: dict[str, Any] | None = None

    def recipe(self) -> Recipe | None:
        """The recipe itself."""
        return None if self.steps is None else Recipe.from_json(self.steps, RECIPE)

    def __str__(self) -> str:
        return "" if self.steps is None else str(self.steps["recipe"])


def read(path: Path) -> RowRecipe:
    """The recipe of a package.

    Raises
    ------
    UsageError
        The file is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RowRecipe)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not a recipe that can be read: {error}.") from None


class PreparedPredictor(Asked):
    """A model with its recipe in front: its inputs are the raw columns."""

    def __init__(self, model: Predictor, rows: RowRecipe) -> None:
        self.model = model
        self._rows = rows
        self._recipe = rows.recipe()
        inputs = tuple(field.tensor for field in rows.fields)
        self.signature = Signature(inputs=inputs, outputs=model.signature.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """See `Predictor`.

        Raises
        ------
        UsageError
            The recipe refuses a row, or leaves it out, so that there is no answer for it.
        """
        frame = pd.DataFrame({f.name: _series(f, inputs[f.name]) for f in self._rows.fields})
        made, arrays = self.prepare(frame)
        if len(made) < len(frame):
            assert self._recipe is not None
            found = leaves_out(self._recipe, frame)
            assert found is not None
            raise UsageError(
                f"Row {found[1]} is one that the recipe leaves out ({found[0]}), so that there is no "
                "prediction for it; correct it, or leave it out."
            )
        return self.model.run(arrays)

    def prepare(self, frame: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """The rows of a raw frame that the recipe keeps, and the model's inputs for them.

        Raises
        ------
        UsageError
            A column is not there, or the recipe or the model does not take the rows.
        """
        names = [field.name for field in self._rows.fields]
        lost = [name for name in names if name not in frame.columns]
        if lost:
            raise UsageError(
                f"The data has no column '{lost[0]}'; the model's recipe takes {', '.join(names)}."
            )
        # By position: the rows of a part may have any index.
        raw = frame[names].reset_index(drop=True)
        made = raw if self._recipe is None else self._recipe.transform(raw)
        kept = frame.iloc[made.index.to_numpy()]
        if not len(made):
            return kept, {}
        arrays = as_inputs(made, self.model.signature, self._rows.columns)
        self.model.signature.check(arrays)
        return kept, arrays


def _series(field: RawField, values: np.ndarray) -> Any:
    """A column as the recipe met it when it learned."""
    series = pd.Series(values)
    kind = pd.Series(dtype=field.dtype)
    if is_date(kind):
        try:
            found = pd.to_datetime(series, format="mixed", utc=True)
        except (ValueError, TypeError):
            raise UsageError(
                f"Input '{field.name}' has text that is no date; write it like 2026-01-31."
            ) from None
        if "," not in field.dtype:  # without a time zone
            found = found.dt.tz_localize(None)
        return found.astype(field.dtype)
    if not is_number(kind):
        return series.astype(field.dtype)
    if not pd.api.types.is_integer_dtype(kind.dtype):
        return series
    try:
        return series.astype("Int64")
    except (ValueError, TypeError):
        return series  # fractions where there were whole numbers: as they are


@dataclass(frozen=True)
class Ahead:
    """A recipe that is to run in front of a model, and some raw rows."""

    recipe: Recipe
    raw: Any
    label: str | None

    def example(
        self, dtype: str, several: Signature | None = None
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Prepared rows as a model is trained on them: all columns but the label as one matrix.

        For one that takes `several` inputs, the column of each one's name.
        """
        made = self.recipe.transform(self.raw)
        if not len(made):
            raise UsageError(
                "The recipe leaves no row of the example; give others with input_example."
            )
        if several is not None:
            return as_inputs(made, several, chosen(list(made.columns), several))
        one = Tensor(name="input", datatype="FP64", shape=(-1, -1))
        signature = Signature(inputs=(one,), outputs=())
        columns = chosen(list(made.columns), signature, self.label)
        return as_inputs(made, signature, columns)["input"].astype(dtype)

    def row(self) -> Any:
        """The first raw row that the recipe keeps, as a frame."""
        return self.raw.loc[self.recipe.transform(self.raw).index[:1]]

    def rows_for(self, model: Signature) -> RowRecipe:
        """What this model needs of the recipe.

        Raises
        ------
        UsageError
            The recipe does not make what the model takes.
        """
        made = self.recipe.transform(self.raw)
        columns = chosen(list(made.columns), model, self.label)
        only = model.inputs[0].shape
        if len(model.inputs) == 1 and len(only) == 2 and only[1] not in (-1, len(columns)):
            raise UsageError(
                f"The model takes {only[1]} numbers for each row, and the recipe makes {len(columns)} "
                f"({', '.join(columns)}); name the label with --label, or drop columns in the recipe."
            )
        narrow, names = for_columns(self.recipe, self.raw, columns)
        return RowRecipe(
            fields=tuple(RawField(name=name, dtype=str(self.raw[name].dtype)) for name in names),
            columns=tuple(columns),
            steps=None if narrow is None else narrow.to_json(),
        )


def ahead(recipe: Any, rows: Any, label: str | None) -> Ahead:
    """A recipe (or its file, or the dataset that it made), with some raw rows.

    Parameters
    ----------
    rows
        A data frame or a list of dicts. Of anything else the rows are those of the dataset that the
        recipe learned from.

    Raises
    ------
    UsageError, NotFoundError
        There is no such recipe, or nothing says what raw rows look like.
    """
    found = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    raw = raw_rows(rows)
    if raw is None:
        if isinstance(recipe, Recipe) or Path(recipe).suffix == ".json":
            raise UsageError(
                "Nothing says what raw rows look like; pass some as input_example, as a data frame."
            )
        raw = _first_rows(str(recipe))
    found.transform(raw)
    return Ahead(found, raw.reset_index(drop=True), label)


def raw_rows(value: Any) -> Any:
    """A data frame of raw rows; None where the value is something else."""
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return pd.DataFrame(value)
    return value if isinstance(value, pd.DataFrame) else None


def _first_rows(ref: str) -> Any:
    from ..data import pieces

    try:
        entry = source(ref)
        with tempfile.TemporaryDirectory(prefix="aios-rows-") as room:
            return pieces.read(pieces.parts(entry, Path(room))[0]).head(_ROWS)
    except NotFoundError as error:
        raise UsageError(
            f"The raw rows of '{ref}' are gone ({error}); pass some as input_example."
        ) from error


def write(rows: RowRecipe, extras: Path) -> None:
    """Put the recipe into a package."""
    (extras / RECIPE).write_bytes(msgspec.json.encode(rows))
