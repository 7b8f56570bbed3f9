"""What an endpoint and the other machines of its replicas say to each other (`hosts.py`, `host.py`).

On the wire of `broker.protocol`: the machine connects and says hello; both show a certificate that
was made for this endpoint alone.
"""

from __future__ import annotations

from typing import Any

from ..schema import Struct

BEAT_SECONDS = 2.0
SILENT_SECONDS = 10.0
"""Who has said nothing for so long is out of reach."""


class Joining(Struct, frozen=True, kw_only=True):
    """A machine's hello: how many replicas it has room for, and GPUs for them, one each in turn."""

    version: int
    node: str
    slots: int
    devices: tuple[str, ...] = ()


class Start(Struct, frozen=True, kw_only=True):
    """Start a replica, which is `id` from now on."""

    id: int
    device: str = ""


class Told(Struct, frozen=True, kw_only=True):
    """An order for a replica, whose files and certificate are still those of the endpoint's machine."""

    id: int
    order: dict[str, Any]


class Signal(Struct, frozen=True, kw_only=True):
    """A signal for a replica."""

    id: int
    number: int


class Listening(Struct, frozen=True, kw_only=True):
    """Where a replica is reached by the relay."""

    id: int
    address: str


class Line(Struct, frozen=True, kw_only=True):
    """What a replica has said."""

    id: int
    data: bytes


class Exited(Struct, frozen=True, kw_only=True):
    """A replica has ended."""

    id: int
    status: int


class AskFiles(Struct, frozen=True, kw_only=True):
    """Which files does this version have? Answered by a list of names."""

    name: str
    version: int


class AskPart(Struct, frozen=True, kw_only=True):
    """The bytes of a file from an offset on; fewer than `PART` of them are the last."""

    name: str
    version: int
    file: str
    offset: int


PART = 4 << 20


class Door(Struct, frozen=True, kw_only=True):
    """The endpoint's certificate and key as PEM, "" where it has none."""

    certificate: str = ""
    key: str = ""


class Numbers(Struct, frozen=True, kw_only=True):
    """Files of `prometheus_client` that have changed, by name."""

    files: dict[str, bytes]


class Summed(Struct, frozen=True, kw_only=True):
    """The numbers of all replicas, as Prometheus reads them."""

    text: bytes
