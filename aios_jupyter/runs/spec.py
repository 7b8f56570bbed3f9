"""What a run is told: the same for every node (`RunSpec`), and for each rank (`RankSpec`)."""

from __future__ import annotations

from enum import StrEnum

from ..schema import DeviceKind, Run, RunKind, Slot, Struct


class Entry(StrEnum):
    """How `RunSpec.source` is to be read.

    CELL: the text of a notebook cell. SCRIPT: a path. MODULE: a module's name (`python -m`).
    FUNCTION: nothing; the pushed payload has the callable under `__aios_function__` and its
    arguments under `__aios_args__` (a pair of tuple and dict). KERNEL: a Jupyter connection file, and
    `argv` is the command of the kernel, with `{connection_file}` where its name goes; the node says
    where it listens.
    """

    CELL = "cell"
    SCRIPT = "script"
    MODULE = "module"
    FUNCTION = "function"
    KERNEL = "kernel"


# How gradients can be sent as less than they are: torch's communication hooks.
COMPRESSIONS = ("fp16", "bf16", "powersgd")


class Tracking(Struct, frozen=True, kw_only=True):
    """What the tracking server is told of a run, besides what the node sees.

    `uri` is the server's, `state` the user's state directory. `params` are what the code was given,
    `tags` where it comes from.
    """

    uri: str
    state: str
    params: dict[str, str] = {}
    tags: dict[str, str] = {}


class RunSpec(Struct, frozen=True, kw_only=True):
    """A run, the same on every node. `framework` is `torch`, `tensorflow`, `horovod` or `none`.

    `checkpoints` is where they go (a URL of fsspec), "" for the run's own directory; `resume` is a
    run of the same user whose checkpoints are gone on with. `profile`: `first` profiles rank 0, `all`
    every rank. `compress` is one of `COMPRESSIONS`, or "".
    """

    id: str
    lease: str
    kind: RunKind
    name: str
    entry: Entry
    source: str = ""
    filename: str = ""
    argv: tuple[str, ...] = ()
    cwd: str = ""
    env: dict[str, str] = {}
    python: str = ""
    framework: str = "none"
    pull: tuple[str, ...] = ()
    world_size: int = 1
    grace: float = 5.0
    max_restarts: int = 0
    checkpoints: str = ""
    resume: str = ""
    profile: str = ""
    tracking: Tracking | None = None
    compress: str = ""


class RankSpec(Struct, frozen=True, kw_only=True):
    """One rank. `devices` are all devices of the lease on this node, `device` is its own.

    `share` is how much of that device's memory is the lease's, bytes; 0: all of it.
    """

    rank: int
    local_rank: int
    local_world_size: int
    node_rank: int
    nnodes: int
    device: str
    kind: DeviceKind
    index: int
    devices: tuple[str, ...] = ()
    share: int = 0


class Rendezvous(Struct, frozen=True, kw_only=True):
    """Where the ranks meet: the address of rank 0's node and ports that are bound already.

    `port` serves torch's store (MASTER_PORT). `peers` are `host:port` of each rank in order, for
    frameworks that need one address a rank (TF_CONFIG); empty otherwise. Each attempt of a run has
    another one.
    """

    address: str
    port: int
    peers: tuple[str, ...] = ()
    attempt: int = 0


def row_of(spec: RunSpec, label: str) -> Run:
    """What the broker is told of a run that is about to be created."""
    return Run(
        id=spec.id,
        lease=spec.lease,
        session="",
        user="",
        kind=spec.kind,
        name=spec.name,
        world_size=spec.world_size,
        nodes=(),
        label=label,
        framework=spec.framework,
        max_restarts=spec.max_restarts,
        checkpoints=spec.checkpoints,
    )


def ranks_on(node: str, slots: tuple[Slot, ...]) -> tuple[RankSpec, ...]:
    """The ranks of a node; ranks are numbered in the order of the lease's slots."""
    nodes = list(dict.fromkeys(slot.node for slot in slots))
    here = [(rank, slot) for rank, slot in enumerate(slots) if slot.node == node]
    return tuple(
        RankSpec(
            rank=rank,
            local_rank=local,
            local_world_size=len(here),
            node_rank=nodes.index(node),
            nnodes=len(nodes),
            device=slot.device,
            kind=slot.kind,
            index=slot.index,
            share=slot.share,
            devices=tuple(other.device for _, other in here),
        )
        for local, (rank, slot) in enumerate(here)
    )
