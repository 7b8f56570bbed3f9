"""Bodies of the calls and events between a kernel and a node's agent (`broker/protocol.py`)."""

from __future__ import annotations

from typing import Any

from ..broker.messages import Version
from ..schema import Struct
from .spec import RankSpec, Rendezvous, RunSpec


class AgentHello(Version, frozen=True, kw_only=True):
    """A kernel comes to an agent; its certificate says who it is."""


class Blob(Struct, frozen=True, kw_only=True):
    """A piece of a run's payload; `last` closes it."""

    run: str
    data: bytes
    last: bool = False


class OpenRun(Struct, frozen=True, kw_only=True):
    """Ask the first node for a port where the ranks will meet. `token` admits to the lease."""

    run: str
    lease: str
    token: str
    peers: int = 0


class StartRun(Struct, frozen=True, kw_only=True):
    """Start this node's ranks."""

    spec: RunSpec
    ranks: tuple[RankSpec, ...]
    rendezvous: Rendezvous
    token: str
    payload: bool = False


class Follow(Struct, frozen=True, kw_only=True):
    """Ask for a run's events of this node after `seq`; they come as `events`.

    With `wait` they go on until the run has ended; without, the end is what there is now.
    """

    run: str
    seq: int = 0
    wait: bool = True


class Events(Struct, frozen=True, kw_only=True):
    """A batch of events. `end` says that the node has no more: all its ranks have ended."""

    run: str
    node: str
    events: tuple[dict[str, Any], ...]
    end: bool = False


class ReadFile(Struct, frozen=True, kw_only=True):
    """Read from a file in the run's directory on a node: `rank-0.log`, `pulled.pkl`."""

    run: str
    name: str
    offset: int = 0
    size: int = 4 * 1024 * 1024


class FilePart(Struct, frozen=True, kw_only=True):
    """What was read, and how large the file is now."""

    data: bytes
    total: int
