from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aios_jupyter.errors import UsageError
from aios_jupyter.models.package import build
from aios_jupyter.models.predictor import OnnxPredictor


class Pair(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"difference": a - b, "product": a * b}


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Noise(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(3, 3)
        self.b = torch.nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def opened(model: Any, extras: Path, example: Any) -> OnnxPredictor:
    build(model, extras, example)
    return OnnxPredictor(str(extras / "model.onnx"))


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_batch_is_free_whatever_the_example(tmp_path: Path, rows: int) -> None:
    predictor = opened(torch.nn.Linear(4, 2), tmp_path, np.zeros((rows, 4)))
    assert predictor.signature.batched
    for count in (1, 2, 7):
        assert predictor.predict(np.zeros((count, 4))).shape == (count, 2)


def test_wrappers_are_taken_off(tmp_path: Path) -> None:
    import torch.distributed as dist

    net = torch.nn.Linear(4, 2)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        (tmp_path / "extras").mkdir()
        predictor = opened(
            torch.compile(wrapped, backend="eager"), tmp_path / "extras", torch.ones(1, 4)
        )
    finally:
        dist.destroy_process_group()
    np.testing.assert_allclose(
        predictor.predict(np.ones((1, 4))), net(torch.ones(1, 4)).detach().numpy(), atol=1e-5
    )


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_inputs_by_name_in_any_order_and_several_outputs(tmp_path: Path, order: str) -> None:
    values = {"a": np.full((1, 3), 5.0), "b": np.full((1, 3), 2.0)}
    predictor = opened(Pair(), tmp_path, {name: values[name] for name in order})
    assert [t.name for t in predictor.signature.inputs] == ["a", "b"]
    outputs = predictor.predict(values)
    assert outputs["output_0"].tolist() == [[3, 3, 3]]
    assert outputs["output_1"].tolist() == [[10, 10, 10]]


def test_inputs_by_position(tmp_path: Path) -> None:
    predictor = opened(Pair(), tmp_path, (np.ones((1, 3)), np.ones((1, 3))))
    outputs = predictor.predict((np.full((2, 3), 5.0), np.full((2, 3), 2.0)))
    assert outputs["output_0"].tolist() == [[3, 3, 3]] * 2


def test_integers_stay_integers(tmp_path: Path) -> None:
    predictor = opened(torch.nn.Embedding(10, 3), tmp_path, np.array([[1, 2], [3, 4]]))
    assert predictor.signature.inputs[0].datatype == "INT64"
    assert predictor.predict([[1, 2]]).shape == (1, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_becomes_single_and_double_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    predictor = opened(torch.nn.Linear(4, 2).to(dtype), tmp_path, torch.ones(2, 4, dtype=dtype))
    expected = "FP64" if dtype == torch.float64 else "FP32"
    assert predictor.signature.inputs[0].datatype == expected


def test_shared_weights_are_stored(tmp_path: Path) -> None:
    opened(Tied(), tmp_path, np.ones((1, 3)))
    assert (tmp_path / "weights.safetensors").stat().st_size > 0
    assert (tmp_path / "input_example.npz").exists()


@pytest.mark.parametrize(
    ("model", "example", "says"),
    [
        (Branch(), np.ones((1, 3)), "cannot be exported to ONNX (Could not guard"),
        (Noise(), np.ones((1, 3)), "differs from the model itself"),
        (torch.nn.Linear(4, 2), np.ones(4), "the batch"),
        (torch.nn.Linear(4, 2), np.ones((0, 4)), "at least one"),
        (torch.nn.Linear(4, 2), np.ones((1, 5)), "fails on the input example"),
        (torch.nn.Linear(4, 2), "text", "is no array"),
        (torch.nn.Linear(4, 2), {"nope": np.ones((1, 4))}, "does not fit forward()"),
        (torch.nn.Flatten(0), np.ones((1, 4)), "first dimension"),
        (Pair(), (np.ones((1, 3)), np.ones((2, 3))), "same number of samples"),
        (object(), None, "cannot be published"),
        ("missing.onnx", None, "is not an ONNX file"),
    ],
)
def test_what_cannot_be_published_is_a_sentence(
    tmp_path: Path, model: Any, example: Any, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        build(model, tmp_path, example)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_onnx_model(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(UsageError, match="ONNX"):
        build(path, tmp_path, None)
