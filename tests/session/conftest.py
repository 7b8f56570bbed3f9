from __future__ import annotations

from pathlib import Path

import pytest
from clusters import _nodes, cluster, no_cluster, own_second_node, second_node, session

__all__ = ["_nodes", "cluster", "no_cluster", "own_second_node", "second_node", "session"]


@pytest.fixture(scope="module")
def slopes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: what they take, once and twice."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("slopes")
    for slope in (1, 2):
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "slope"], ["y"])],
            "line",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor("slope", TensorProto.FLOAT, [1], [float(slope)])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(folder / f"{slope}.onnx"))
    return folder
