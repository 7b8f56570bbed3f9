"""The tensors of the Open Inference Protocol v2 (KServe, Triton): JSON and binary form.

Pure: bytes in, arrays out, and back; both the server and the client use it. A leaf module: it
imports numpy and is itself imported only by what serves, loads or asks a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import orjson

from ..errors import UsageError
from .signature import NUMPY, Signature, Tensor, as_input, datatype, listed

HEADER = "Inference-Header-Content-Length"
"""The HTTP header that tells where JSON ends and raw tensor bytes begin."""


class WireTensor(msgspec.Struct):
    """An input or output as it stands in the JSON."""

    shape: list[int]
    datatype: str
    name: str = ""
    data: Any = None
    parameters: dict[str, Any] = {}


class WireOutput(msgspec.Struct):
    """An output that the client asks for."""

    name: str
    parameters: dict[str, Any] = {}


class WireRequest(msgspec.Struct):
    """The JSON of an inference request."""

    inputs: list[WireTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[WireOutput] = []


_request_decoder = msgspec.json.Decoder(WireRequest)


class Request(msgspec.Struct):
    """A request, decoded: arrays by input name; for each output asked for, whether binary."""

    id: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, bool]


def decode_request(body: bytes, header: str | None, signature: Signature) -> Request:
    """Read an inference request.

    Parameters
    ----------
    body
        The HTTP body: JSON, or JSON followed by raw tensors.
    header
        The value of `Inference-Header-Content-Length`, None where it was not sent.

    Raises
    ------
    UsageError
        The body is not a request that this model takes.
    """
    json, raw = _split(body, header)
    try:
        wire = _request_decoder.decode(json)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"The body is not an inference request in JSON: {error}.") from None
    inputs: dict[str, np.ndarray] = {}
    offset = 0
    for item in wire.inputs:
        tensor = signature.input(item.name)
        if tensor.name in inputs:
            raise UsageError(f"Input {tensor.name!r} is given twice; give it once.")
        if item.datatype != tensor.datatype:
            raise UsageError(
                f"Input {tensor.name!r} is {item.datatype}; the model takes {tensor.datatype}."
            )
        size = item.parameters.get("binary_data_size")
        if size is None:
            array = as_input(tensor, item.data).ravel()
        else:
            array = _from_bytes(tensor, raw, offset, size)
            offset += size
        inputs[tensor.name] = _shaped(tensor, array, item.shape)
    if offset != len(raw):
        raise UsageError(
            f"The request carries {len(raw)} bytes of tensors and describes {offset}; make "
            "binary_data_size match."
        )
    signature.check(inputs)
    return Request(wire.id, inputs, _asked(wire, signature))


def _split(body: bytes, header: str | None) -> tuple[bytes | memoryview, memoryview]:
    if header is None:
        return body, memoryview(b"")
    digits = len(header) < 20 and header.isascii() and header.isdigit()
    if not digits or int(header) > len(body):
        raise UsageError(f"{HEADER}: {header[:20]!r} is not a length within the body; correct it.")
    view = memoryview(body)
    return view[: int(header)], view[int(header) :]


def _shaped(tensor: Tensor, array: np.ndarray, shape: list[int]) -> np.ndarray:
    count = 1
    for size in shape:
        if size < 0:
            raise UsageError(f"Input {tensor.name!r} has a negative size in {shape}; correct it.")
        count *= size
    if count != array.size:
        raise UsageError(
            f"Input {tensor.name!r} has {array.size} values, but its shape {shape} needs {count}."
        )
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):
        raise UsageError(f"Input {tensor.name!r} cannot have the shape {shape}.") from None


def _asked(wire: WireRequest, signature: Signature) -> dict[str, bool]:
    default = bool(wire.parameters.get("binary_data_output", False))
    if not wire.outputs:
        return {tensor.name: default for tensor in signature.outputs}
    known = {tensor.name for tensor in signature.outputs}
    for output in wire.outputs:
        if output.name not in known:
            raise UsageError(
                f"The model has no output {output.name!r}; it gives {listed(signature.outputs)}."
            )
    return {o.name: bool(o.parameters.get("binary_data", default)) for o in wire.outputs}


def encode_response(
    model: str, version: str, id: str, arrays: Mapping[str, np.ndarray], asked: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an inference response, and the length of its JSON where tensors follow it."""
    outputs, parts = [], []
    for name, binary in asked.items():
        array = np.ascontiguousarray(arrays[name])
        item: dict[str, Any] = {
            "name": name,
            "datatype": datatype(array.dtype),
            "shape": array.shape,
        }
        if binary:
            raw = _to_bytes(array)
            item["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            item["data"] = json_ready(array.ravel())
        outputs.append(item)
    reply: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if id:
        reply["id"] = id
    json = dump(reply)
    return (b"".join((json, *parts)), len(json)) if parts else (json, None)


def dump(value: Any) -> bytes:
    """JSON of plain values and numeric arrays; NaN and infinities become null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_ready(array: np.ndarray) -> Any:
    """`array` as `dump` takes it: text and half floats need help."""
    if array.dtype.kind in "OUS":
        return [_text(value) for value in array.tolist()] if array.ndim == 1 else _nested(array)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return np.ascontiguousarray(array)


def _nested(array: np.ndarray) -> Any:
    return [json_ready(part) for part in array] if array.ndim else _text(array.item())


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def encode_request(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, int]:
    """A binary request for all outputs in binary form, and the length of its JSON."""
    inputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, array in arrays.items():
        if array.dtype.kind == "O" and any(value is None for value in array.flat):
            # Bytes cannot say that a text is missing.
            data = [None if value is None else _text(value) for value in array.ravel().tolist()]
            inputs.append({"name": name, "shape": array.shape, "datatype": "BYTES", "data": data})
            continue
        raw = _to_bytes(np.ascontiguousarray(array))
        parts.append(raw)
        inputs.append(
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatype(array.dtype),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
    json = dump({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return b"".join((json, *parts)), len(json)


class _WireReply(msgspec.Struct):
    outputs: list[WireTensor]


def decode_response(body: bytes, header: str | None) -> dict[str, np.ndarray]:
    """The arrays of a response by output name (copies: they may be written to)."""
    json, raw = _split(body, header)
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for item in msgspec.json.decode(json, type=_WireReply).outputs:
        tensor = Tensor(name=item.name, datatype=item.datatype, shape=tuple(item.shape))
        size = item.parameters.get("binary_data_size")
        if size is None:
            array = np.array(item.data, NUMPY[item.datatype])
        else:
            array = _from_bytes(tensor, raw, offset, size).copy()
            offset += size
        arrays[item.name] = array.reshape(item.shape)
    return arrays


# --- raw tensors: little-endian; BYTES as 4-byte length and content, one after another -----------


def _to_bytes(array: np.ndarray) -> bytes:
    if array.dtype.kind not in "OUS":
        return array.tobytes()
    parts = []
    for value in array.ravel().tolist():
        raw = value if isinstance(value, bytes) else str(value).encode()
        parts.append(len(raw).to_bytes(4, "little") + raw)
    return b"".join(parts)


def _from_bytes(tensor: Tensor, raw: memoryview, offset: int, size: Any) -> np.ndarray:
    if type(size) is not int or size < 0 or offset + size > len(raw):
        raise UsageError(
            f"Tensor {tensor.name!r} has binary_data_size {size!r}, which is not within the body; "
            "correct it."
        )
    part = raw[offset : offset + size]
    if tensor.datatype == "BYTES":
        return _strings(tensor, part)
    dtype = NUMPY[tensor.datatype]
    if size % dtype.itemsize:
        raise UsageError(
            f"Tensor {tensor.name!r} has {size} bytes, not a multiple of {dtype.itemsize} "
            f"({tensor.datatype})."
        )
    return np.frombuffer(part, dtype)


def _strings(tensor: Tensor, part: memoryview) -> np.ndarray:
    values: list[str] = []
    at = 0
    while at < len(part):
        end = at + 4 + int.from_bytes(part[at : at + 4], "little")
        if at + 4 > len(part) or end > len(part):
            raise UsageError(
                f"Tensor {tensor.name!r} has a text longer than its bytes; correct it."
            )
        try:
            values.append(bytes(part[at + 4 : end]).decode())
        except UnicodeDecodeError:
            raise UsageError(f"Tensor {tensor.name!r} has text that is not UTF-8.") from None
        at = end
    return np.array(values, object)
