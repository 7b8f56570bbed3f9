"""The first call of a connection: what it must be, and how soon."""

from __future__ import annotations

import msgspec

from ..errors import ProtocolError
from .messages import VERSION, Version

WITHIN = 15.0  # seconds


def check(op: str, body: msgspec.Raw) -> None:
    """Whether a first call is a hello of our version.

    Raises
    ------
    ProtocolError
        It is not.
    """
    if not op.endswith("hello"):
        raise ProtocolError("The first call of a connection must be a hello.")
    try:
        version = msgspec.msgpack.decode(body, type=Version).version
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"The hello has a wrong shape: {error}.") from None
    if version != VERSION:
        raise ProtocolError(
            f"This cluster speaks protocol {VERSION} and the other side {version}; install "
            "the same version of aios-jupyter on both, then 'aios down' and 'aios up'."
        )
