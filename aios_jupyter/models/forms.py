"""Plain JSON and MLflow's forms of it: what stands in a body as arrays, and arrays as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ..errors import UsageError
from .protocol_v2 import json_ready
from .signature import Signature, Tensor, as_input, by_column


def from_json(values: Any, signature: Signature) -> dict[str, np.ndarray]:
    """Inputs of a model from plain JSON: a list, an object by input name, or objects, one a row."""
    values = by_column(values, signature)
    if isinstance(values, dict):
        named = {signature.input(name).name: value for name, value in values.items()}
    elif len(signature.inputs) == 1:
        named = {signature.inputs[0].name: values}
    else:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        each = " for each row" if signature.of_rows else ""
        raise UsageError(f"The model takes several inputs; send an object{each} with {names}.")
    arrays = {name: as_input(signature.input(name), value) for name, value in named.items()}
    signature.check(arrays)
    return arrays


def read_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"The body is not JSON ({error}); send a JSON object.") from None


def plain(outputs: Mapping[str, np.ndarray]) -> Any:
    if len(outputs) == 1:
        return json_ready(next(iter(outputs.values())))
    return {name: json_ready(array) for name, array in outputs.items()}


def mlflow_inputs(given: dict[str, Any], signature: Signature) -> Any:
    """The four forms of MLflow's scoring protocol as `from_json` takes them."""
    for key in ("inputs", "instances"):
        if key in given:
            return given[key]
    try:
        if "dataframe_split" in given:
            frame = given["dataframe_split"]
            columns, rows = list(frame.get("columns", [])), list(frame["data"])
        elif "dataframe_records" in given:
            records = list(given["dataframe_records"])
            columns = list(records[0])
            rows = [[record[column] for column in columns] for record in records]
        else:
            raise UsageError("Send one of inputs, instances, dataframe_split or dataframe_records.")
        names = {tensor.name for tensor in signature.inputs}
        if names.issubset(columns):
            at = {name: columns.index(name) for name in names}
            return {
                tensor.name: _column([row[at[tensor.name]] for row in rows], tensor)
                for tensor in signature.inputs
            }
        if signature.of_rows:
            lost = ", ".join(
                tensor.name for tensor in signature.inputs if tensor.name not in columns
            )
            raise UsageError(f"The data frame has no column {lost}; send every column.")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise UsageError(
            "The data frame is not complete; send columns and data, each row with every column."
        ) from None
    return rows


def _column(values: list[Any], tensor: Tensor) -> list[Any]:
    """One number a row becomes a row of one where the model wants a matrix."""
    flat = not values or not isinstance(values[0], list)
    return [[value] for value in values] if flat and len(tensor.shape) == 2 else values
