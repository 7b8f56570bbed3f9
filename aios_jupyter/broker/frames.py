"""Frames of the wire: how a message becomes bytes and back.

A frame is a 4-byte big-endian length and one msgpack array, tagged by its first element:

    ["call",  id, op, body]        asks; answered by "reply" or "fail" with the same id
    ["reply", id, body]
    ["fail",  id, kind, message]   `kind` names a class of `errors.py`
    ["event", topic, body]         told, never answered
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import ProtocolError

MAX_FRAME = 64 * 1024 * 1024


class Call(msgspec.Struct, tag="call", array_like=True, frozen=True):
    """Asks."""

    id: int
    op: str
    body: msgspec.Raw


class Reply(msgspec.Struct, tag="reply", array_like=True, frozen=True):
    """Answers a call."""

    id: int
    body: msgspec.Raw


class Fail(msgspec.Struct, tag="fail", array_like=True, frozen=True):
    """Refuses a call."""

    id: int
    kind: str
    message: str


class Event(msgspec.Struct, tag="event", array_like=True, frozen=True):
    """Tells."""

    topic: str
    body: msgspec.Raw


decode = msgspec.msgpack.Decoder(Call | Reply | Fail | Event).decode
_encode_into = msgspec.msgpack.Encoder().encode_into


def encode(message: tuple[Any, ...]) -> bytearray:
    """A message, its tag first, with its length before it.

    Raises
    ------
    ProtocolError
        It is longer than `MAX_FRAME` bytes.
    """
    data = bytearray()
    _encode_into(message, data, 4)
    size = len(data) - 4
    if size > MAX_FRAME:
        raise ProtocolError(
            f"A message of {size} bytes is over the limit of {MAX_FRAME}; send less."
        )
    data[:4] = size.to_bytes(4, "big")
    return data
