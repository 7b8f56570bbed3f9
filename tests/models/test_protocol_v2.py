from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aios_jupyter.errors import UsageError
from aios_jupyter.models.protocol_v2 import (
    HEADER,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from aios_jupyter.models.signature import NUMPY, Signature, Tensor, as_input, datatype

MATRIX = Signature(
    inputs=(Tensor(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(Tensor(name="y", datatype="FP32", shape=(-1, 3)),),
)
NUMERIC = [dtype for name, dtype in NUMPY.items() if name != "BYTES"]


def body(**changes: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return json.dumps({"inputs": [tensor]}).encode()


@given(st.data())
def test_any_array_survives_the_wire(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(NUMERIC))
    array = data.draw(arrays.arrays(dtype, arrays.array_shapes(max_dims=4)))
    tensor = Tensor(name="a", datatype=datatype(dtype), shape=(-1,) * array.ndim)
    signature = Signature(inputs=(tensor,), outputs=(tensor,))
    sent, length = encode_request({"a": array})
    request = decode_request(sent, str(length), signature)
    np.testing.assert_array_equal(request.inputs["a"], array)
    assert request.inputs["a"].dtype == dtype
    reply, length_back = encode_response("m", "1", "", {"a": array}, request.outputs)
    back = decode_response(reply, str(length_back))
    np.testing.assert_array_equal(back["a"], array)
    assert back["a"].dtype == dtype


@given(arrays.arrays(object, st.integers(1, 5), elements=st.text(max_size=20)))
def test_text_survives_the_wire(array: np.ndarray) -> None:
    tensor = Tensor(name="a", datatype="BYTES", shape=(-1,))
    signature = Signature(inputs=(tensor,), outputs=(tensor,))
    sent, length = encode_request({"a": array})
    assert decode_request(sent, str(length), signature).inputs["a"].tolist() == array.tolist()


def test_json_data_may_be_flat_or_nested() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        request = decode_request(body(shape=[2, 2], data=data), None, MATRIX)
        assert request.inputs["x"].tolist() == [[1, 2], [3, 4]]
        assert request.inputs["x"].dtype == np.float32
        assert request.outputs == {"y": False}


def test_json_response_is_flat_and_keeps_the_id() -> None:
    reply, length = encode_response("m", "7", "abc", {"y": np.eye(2, 3)}, {"y": False})
    assert length is None
    decoded = json.loads(reply)
    assert decoded["id"] == "abc"
    assert decoded["model_version"] == "7"
    assert decoded["outputs"][0]["data"] == [1, 0, 0, 0, 1, 0]
    assert decode_response(reply, None)["y"].shape == (2, 3)


def test_outputs_can_be_chosen() -> None:
    two = Signature(inputs=MATRIX.inputs, outputs=(*MATRIX.outputs, MATRIX.inputs[0]))
    chosen = {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    request = decode_request(json.dumps(json.loads(body()) | chosen).encode(), None, two)
    assert request.outputs == {"y": True}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "not an inference request"),
        (b"{", "not an inference request"),
        (b"[]", "not an inference request"),
        (b'{"inputs": {}}', "not an inference request"),
        (b"\xff\xfe", "not an inference request"),
        (b'{"inputs": []}', "'x' is missing"),
        (b"[" * 100_000, "not an inference request"),
        (body(name="z"), "no input 'z'"),
        (body(datatype="FP64"), "is FP64"),
        (body(datatype="nonsense"), "is nonsense"),
        (body(shape=[1, 3], data=[1, 2, 3]), "has shape [1, 3]"),
        (body(shape=[2]), "has shape [2]"),
        (body(shape=[2, 2]), "needs 4"),
        (body(shape=[-1, 2]), "negative"),
        (body(shape=[0, 2], data=[]), "empty"),
        (body(shape=[10**30, 2]), "needs 2000"),
        (body(data=[[1, 2], [3]]), "ragged"),
        (body(data=["a", "b"]), "not text"),
        (body(data=[1, None]), "not mixed values"),
        (body(data=None), "not mixed values"),
        (body(data=None, parameters={"binary_data_size": 8}), "not within the body"),
        (body(data=None, parameters={"binary_data_size": "8"}), "not within the body"),
        (body(data=None, parameters={"binary_data_size": -8}), "not within the body"),
        (json.dumps({"inputs": json.loads(body())["inputs"] * 2}).encode(), "given twice"),
        (
            json.dumps(json.loads(body()) | {"outputs": [{"name": "nope"}]}).encode(),
            "no output 'nope'",
        ),
    ],
)
def test_a_bad_request_is_a_sentence(bad: bytes, says: str) -> None:
    with pytest.raises(UsageError) as error:
        decode_request(bad, None, MATRIX)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
WIRE = st.fixed_dictionaries(
    {
        "name": st.just("x") | JSON,
        "datatype": st.just("FP32") | JSON,
        "shape": st.lists(st.integers(-1, 3) | JSON, max_size=3) | JSON,
        "data": JSON,
    },
    optional={"parameters": st.fixed_dictionaries({"binary_data_size": JSON}) | JSON},
)


@settings(deadline=None)
@given(st.binary() | st.lists(WIRE).map(lambda t: json.dumps({"inputs": t}).encode()), st.text())
def test_whatever_comes_is_a_request_or_a_sentence(bad: bytes, header: str) -> None:
    for length in (None, header, str(len(bad))):
        try:
            request = decode_request(bad, length, MATRIX)
        except UsageError:
            continue
        MATRIX.check(request.inputs)


@pytest.mark.parametrize("header", ["-1", "x", "99999", "", "1e3", "²", "9" * 5000])
def test_a_bad_length_header_is_a_sentence(header: str) -> None:
    with pytest.raises(UsageError, match=HEADER):
        decode_request(body(), header, MATRIX)


def test_bytes_that_nobody_described_are_refused() -> None:
    sent, length = encode_request({"x": np.ones((1, 2), np.float32)})
    with pytest.raises(UsageError, match="binary_data_size"):
        decode_request(sent + b"more", str(length), MATRIX)
    with pytest.raises(UsageError, match="not within the body"):
        decode_request(sent[:-1], str(length), MATRIX)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("INT64", [1.5], "not fractions"),
        ("UINT8", [256], "outside 0 to 255"),
        ("UINT8", [-1], "outside 0 to 255"),
        ("INT64", [2**64], "not mixed values"),
        ("BOOL", [1], "not int64"),
        ("FP32", [True], "not true/false"),
        ("BYTES", [1], "not int64"),
        ("BYTES", [None, "a"], "text alone"),
    ],
)
def test_values_of_another_kind_are_refused(name: str, values: list[Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        as_input(Tensor(name="x", datatype=name, shape=(-1,)), values)


def test_double_precision_becomes_what_the_model_takes() -> None:
    tensor = Tensor(name="x", datatype="FP32", shape=(-1,))
    assert as_input(tensor, np.array([0.5, 1e300])).tolist() == [0.5, np.inf]


def test_inputs_must_have_as_many_samples_as_each_other() -> None:
    pair = Signature(
        inputs=tuple(Tensor(name=n, datatype="FP32", shape=(-1, 2)) for n in "ab"),
        outputs=MATRIX.outputs,
    )
    with pytest.raises(UsageError, match="different numbers of samples"):
        pair.check({"a": np.ones((1, 2), np.float32), "b": np.ones((2, 2), np.float32)})
