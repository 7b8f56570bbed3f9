from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import until

from aios_jupyter.errors import ConflictError, NotFoundError, UsageError
from aios_jupyter.session import Session

X = np.ones((1, 2), np.float32)


@pytest.fixture(scope="module")
def slopes(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_an_endpoint_follows_its_alias_and_is_asked_by_it(session: Session, slopes: Path) -> None:
    for slope in (1, 2):
        session.publish(str(slopes / f"{slope}.onnx"), "followed")
    session.promote("followed/1", "champion")
    endpoint = session.serve("followed@champion", replicas=2, devices=2)
    assert endpoint.version == "1"
    assert len(session.model_card("followed/1").edges) == 1
    assert session.predict("followed@champion", X).tolist() == [[1, 1]]
    session.promote("followed/2", "champion")
    # Also in the moment in which the alias has moved and the endpoint has not.
    until(
        lambda: session.predict("followed@champion", X).tolist() == [[2, 2]], "the new version", 60
    )
    until(lambda: session.endpoints()[0]["model"] == "followed/2", "the broker to hear of it", 60)
    assert session.rollback("followed", "champion").version == 1
    until(lambda: session.predict("followed", X).tolist() == [[1, 1]], "the old version", 60)
    with pytest.raises(ConflictError, match="is live"):
        session.serve("followed", name="followed")
    session.stop_endpoint("followed")
    assert session.endpoints() == []
    with pytest.raises(NotFoundError, match="Nobody serves"):
        session.predict("followed@champion", X)


def test_what_cannot_be_served_takes_no_device(session: Session, slopes: Path) -> None:
    session.publish(str(slopes / "1.onnx"), "lonely")
    held = len(session.status()["leases"])
    with pytest.raises(NotFoundError, match="no alias 'challenger'"):
        session.serve("lonely", canary=("challenger", 0.1))
    with pytest.raises(UsageError, match="model"):
        session.serve("a b")
    assert len(session.status()["leases"]) == held
