"""Run beside the Jupyter server of a browser test: a cluster with two endpoints that it can try.

"people" takes raw rows, half of which a canary answers; "pixels" gives back the image that it gets.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import pandas as pd
from onnx import TensorProto, helper

from aios_jupyter.data import Recipe
from aios_jupyter.session import Session, connect

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
RAW = pd.DataFrame(
    {"age": [31.5, None], "children": [2, 0], "member": [True, False], "city": [HOSTILE, "Ulm"]}
)


def onnx_file(path: Path, operator: str, shape: list[int | str], *weights: float) -> str:
    """A model of one operator."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [len(weights)], weights)
    node = helper.make_node(operator, ["x", "scale"] if weights else ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [scale] if weights else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return str(path)


def serve_people(session: Session, folder: Path) -> None:
    """A model of columns in two versions."""
    recipe = Recipe("fill(age, mean), ordinal(city)").fit(RAW)
    for times, alias in ((1.0, "champion"), (10.0, "challenger")):
        file = onnx_file(folder / "people.onnx", "Mul", ["n", 4], *[times] * 4)
        session.publish(file, "people", alias=alias, recipe=recipe, input_example=RAW)
    session.serve("people@champion", devices=1, canary=("challenger", 0.5))


def serve_pixels(session: Session, folder: Path) -> None:
    """A model of an image, without an example."""
    session.publish(onnx_file(folder / "pixels.onnx", "Identity", ["n", 8, 8, 3]), "pixels")
    session.serve("pixels", devices=1)


with TemporaryDirectory() as room, connect(simulate_gpus=2, label="served") as opened:
    serve_people(opened, Path(room))
    serve_pixels(opened, Path(room))
