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
    """Start this node's ranks.

    `payload`: there are pushed values. `shared`: the kernel and this node see the same memory; pushed
    values are there, and large ones may be given back so.
    """

    spec: RunSpec
    ranks: tuple[RankSpec, ...]
    rendezvous: Rendezvous
    token: str
    payload: bool = False
    shared: bool = False


class CopyRun(Struct, frozen=True, kw_only=True):
    """From the agent of another node that is to have ranks of the run: ask for its `StartRun`."""

    run: str
    token: str


class CopyPushed(CopyRun, frozen=True, kw_only=True):
    """The same for a part of the pushed values."""

    offset: int = 0
    size: int = 4 * 1024 * 1024


class Follow(Struct, frozen=True, kw_only=True):
    """Ask for a run's events of this node after `seq`; they come as `events` with the same `tag`.

    With `wait` they go on until the run has ended; without, the end is what there is now.
    """

    run: str
    seq: int = 0
    wait: bool = True
    tag: str = ""


class Events(Struct, frozen=True, kw_only=True):
    """A batch of events. `end` says that the node has no more: all its ranks have ended."""

    run: str
    node: str
    events: tuple[dict[str, Any], ...]
    end: bool = False
    tag: str = ""


class ReadFile(Struct, frozen=True, kw_only=True):
    """Read from a file in the run's directory on a node: `rank-0.log`, `pulled.pkl`."""

    run: str
    name: str
    offset: int = 0
    size: int = 4 * 1024 * 1024


class Inspect(Struct, frozen=True, kw_only=True):
    """Ask what the ranks of a run are doing on this node: one rank, or all (-1)."""

    run: str
    rank: int = -1


class Frame(Struct, frozen=True, kw_only=True):
    """A call. `users`: it is not of a library; then `source` has the line where it can be read."""

    function: str
    file: str
    line: int
    users: bool = False
    source: str = ""


class Stack(Struct, frozen=True, kw_only=True):
    """A thread's calls, the innermost first. `active`: it was running, not waiting; None: unknown."""

    name: str
    active: bool | None = None
    frames: tuple[Frame, ...] = ()


class RankStacks(Struct, frozen=True, kw_only=True):
    """What a rank is doing, or what it did when it failed.

    `note` says what is missing, and why. `failure` is for a rank that has raised: its frames with
    their variables, as text; it has no `pid` then.
    """

    rank: int
    pid: int = 0
    device: str = ""
    threads: tuple[Stack, ...] = ()
    note: str = ""
    failure: str = ""


class KernelSignal(Struct, frozen=True, kw_only=True):
    """`kernel.signal`: send that signal to a kernel and what it has started."""

    run: str
    number: int


class KernelSeen(Struct, frozen=True, kw_only=True):
    """Answer to `kernel.attend`, and again as `kernel.ended`: how a kernel is.

    `code` is how it has ended, None while it runs.
    """

    run: str
    pid: int = 0
    code: int | None = None
    reason: str = ""


class FilePart(Struct, frozen=True, kw_only=True):
    """What was read, and how large the file is now."""

    data: bytes
    total: int
