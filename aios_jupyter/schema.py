"""What crosses a process boundary: frozen structs and enums.

Each struct is a `msgspec.Struct`: it validates types when it is decoded, encodes to msgpack on the
wire and in the journal, and to JSON for the sidebar. Times are seconds since the epoch, durations
seconds, memory bytes, utilization percent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, dataclass_transform

import msgspec


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base; each subclass says `frozen` and `kw_only` for type checkers.

    Unknown fields from a newer peer are ignored.
    """


class DeviceKind(StrEnum):
    """What a device is."""

    GPU = "gpu"
    MIG = "mig"
    SIMULATED = "simulated"
    CPU = "cpu"


# The queue of whoever is a member of no other.
DEFAULT_QUEUE = "default"

ACCELERATORS = frozenset({DeviceKind.GPU, DeviceKind.MIG, DeviceKind.SIMULATED})


class Want(StrEnum):
    """What a request asks for.

    GPU is strict: accelerators only. DEVICE takes accelerators where the cluster has any and CPU
    slots where it has none. CPU takes CPU slots.
    """

    GPU = "gpu"
    DEVICE = "device"
    CPU = "cpu"


class Device(Struct, frozen=True, kw_only=True):
    """One thing that can be leased. `id` is unique in the cluster (NVML UUID, or node + index)."""

    id: str
    kind: DeviceKind
    name: str
    index: int
    memory: int = 0


class Process(Struct, frozen=True, kw_only=True):
    """A process seen on a device."""

    pid: int
    memory: int = 0
    name: str = ""
    user: str = ""


class Usage(Struct, frozen=True, kw_only=True):
    """One sample of one device; None where it cannot be measured."""

    device: str
    utilization: float | None = None
    memory_used: int | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    processes: tuple[Process, ...] = ()


class WarmUse(Struct, frozen=True, kw_only=True):
    """What a node keeps ready for the next runs: processes with frameworks imported, and their bytes."""

    frameworks: tuple[str, ...] = ()
    processes: int = 0
    memory: int = 0


class Node(Struct, frozen=True, kw_only=True):
    """One machine: who it is and what it offers. `address` is its agent's `host:port`.

    `until` is when it is leased no more, as it is only lent; None: it stays.
    """

    id: str
    host: str
    address: str
    pid: int
    devices: tuple[Device, ...]
    cpus: int = 0
    memory: int = 0
    version: str = ""
    until: float | None = None


class Keep(StrEnum):
    """What keeps a session's leases alive.

    CONNECTION: an open connection (a kernel). PROCESS: a process on the broker's machine (the
    shell from which `aios alloc` was typed), watched by pid and start time.
    """

    CONNECTION = "connection"
    PROCESS = "process"


class Owner(Struct, frozen=True, kw_only=True):
    """A session: one kernel, shell or server that talks to the broker.

    `user` is the name on its certificate, put there by the broker and never by the peer.
    `pid_start` is the process's start time (clock ticks since boot on Linux), so that a reused pid
    is not mistaken for it. `label` is what people see: a notebook's name, "terminal", "server".
    `kernel`: the process was started with the session's devices, and what it has on one of them
    goes with the lease.
    """

    id: str
    user: str
    host: str = ""
    pid: int = 0
    pid_start: int = 0
    label: str = ""
    keep: Keep = Keep.CONNECTION
    kernel: bool = False


class Scope(StrEnum):
    """What a lease lasts for, apart from its time.

    SESSION: until its session ends. CELL: until its last run has ended, or its session. DETACHED:
    until its last run has ended, whatever becomes of the session (endpoints). RESERVED: until its
    time is over, whatever becomes of runs and sessions; each session of its user may take it up.
    """

    SESSION = "session"
    CELL = "cell"
    DETACHED = "detached"
    RESERVED = "reserved"


class Placement(StrEnum):
    """How a gang is laid out.

    PACK: on the fewest nodes. SPREAD: on as many nodes as there are, in turns. NODE: on one node.
    """

    PACK = "pack"
    SPREAD = "spread"
    NODE = "node"


class RequestState(StrEnum):
    """A request waits, holds a lease, or has ended with a reason."""

    QUEUED = "queued"
    GRANTED = "granted"
    ENDED = "ended"


# Most of a request, a slot and a lease is as it is by default, and is left out on the wire and in the
# journal: it is read back as the default of whoever reads, which therefore must not change.
class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for a gang of `count` devices. `id` is made by the client: a retry is the same.

    `time` is the lease's length, None for no limit; `scope` what it lasts for.
    `priority` above 0 is an admin's to give. `predicted` is how long the lease would last by what
    this user's earlier ones did, None when there were none; the broker's to say.
    `queue` is whose quota it takes from, "" for the user's default. A `preemptible` lease may be
    taken away, and its request then waits again: since `requeued`, having waited for `waited`
    seconds and run for `ran` before that. `attained` is what of that, in device-seconds, the
    policies `las` and `gittins` go by; `behind` is the place in the line, under `priority`, of who
    took its devices.

    `batch` is the batch of notebooks that it is of, "" for none.

    `idle` is after how many seconds without computing the lease is warned, whatever else is set.

    `least` devices will do where `count` are not free (0: no fewer than `count`). Of each device
    `memory` is the least, or with `share` the part that is wanted; `model` is what its name
    contains, in any case; `cpus` and `host_memory` (bytes) are what of its node comes with it. All are
    of the node `node` where it names one.
    """

    id: str
    session: str
    user: str
    want: Want
    count: int
    memory: int = 0
    time: float | None = None
    label: str = ""
    scope: Scope = Scope.SESSION
    priority: int = 0
    queue: str = ""
    batch: str = ""
    preemptible: bool = False
    idle: float | None = None
    predicted: float | None = None
    least: int = 0
    model: str = ""
    share: bool = False
    placement: Placement = Placement.PACK
    cpus: int = 0
    host_memory: int = 0
    node: str = ""
    submitted: float = 0.0
    requeued: float | None = None
    waited: float = 0.0
    ran: float = 0.0
    attained: float = 0.0
    behind: float | None = None
    state: RequestState = RequestState.QUEUED
    lease: str = ""
    reason: str = ""


class Slot(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device within a lease, and how to reach its node's agent.

    `share` is how much of the device's memory the lease has, bytes; 0: the whole device. `cpus` and
    `host_memory` (bytes) are what it has of the node beside that.
    """

    node: str
    device: str
    kind: DeviceKind
    index: int
    address: str
    share: int = 0
    cpus: int = 0
    host_memory: int = 0


class Booking(Struct, frozen=True, kw_only=True):
    """A reservation: `count` devices for one user from `start` for `time` seconds.

    `id` is made by the client: a retry is the same. `devices` are those that are promised, of the
    pool `pool`: both the broker's to say. The lease is granted to `session` if it is open then. A reservation that has
    started is a lease with the field `booking`.
    """

    id: str
    session: str
    user: str
    want: Want
    count: int
    start: float
    time: float
    memory: int = 0
    label: str = ""
    pool: str = ""
    devices: tuple[str, ...] = ()

    @property
    def end(self) -> float:
        """When it is over, seconds since the epoch."""
        return self.start + self.time


class LeaseState(StrEnum):
    """ACTIVE until its end; ENDING while its processes are not yet confirmed gone."""

    ACTIVE = "active"
    ENDING = "ending"


class Lease(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Devices granted to a session. `fence` rises with every grant of the cluster.

    `used` turns true with the first run: only then can there be processes to wait for. `predicted`,
    `queue`, `batch`, `preemptible`, `priority`, `idle`, `ran` and `attained` are the request's, `booking` is the
    reservation that it comes from. A lease that was `preempted` is ending so that others can have
    its devices. `warned`: its session has been told of its end. `idle_since` is set when it was
    found idle, and it ends at `idle_ends` unless it computes again. `grace` is between SIGTERM and
    SIGKILL for its ranks, None the usual one. The runs of one that `resumes` go on under the next lease
    of its request.
    """

    id: str
    request: str
    session: str
    user: str
    slots: tuple[Slot, ...]
    fence: int
    granted: float
    expires: float | None = None
    predicted: float | None = None
    label: str = ""
    scope: Scope = Scope.SESSION
    queue: str = DEFAULT_QUEUE
    batch: str = ""
    preemptible: bool = False
    priority: int = 0
    idle: float | None = None
    ran: float = 0.0
    attained: float = 0.0
    state: LeaseState = LeaseState.ACTIVE
    preempted: bool = False
    used: bool = False
    reason: str = ""
    booking: str = ""
    warned: bool = False
    idle_since: float | None = None
    idle_ends: float | None = None
    grace: float | None = None
    resumes: bool = False


class RunKind(StrEnum):
    """What a run is for. REPLICAS: those of an endpoint on another node."""

    TRAIN = "train"
    RUN = "run"
    ENDPOINT = "endpoint"
    REPLICAS = "replicas"
    KERNEL = "kernel"


class RunState(StrEnum):
    """STARTING, RUNNING and RESTARTING are live; STOPPING has been told to end; the others are ends.

    RESTARTING: a rank has failed, or the devices are to be others, and when all ranks are gone and
    there are devices all are started again.
    """

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


LIVE = frozenset({RunState.STARTING, RunState.RUNNING, RunState.RESTARTING, RunState.STOPPING})


class Origin(StrEnum):
    """Why a rank ended: OWN, of itself; PEER, as it lost another rank, by what it said; TOLD, as it
    was told to.
    """

    OWN = "own"
    PEER = "peer"
    TOLD = "told"


class RankExit(Struct, frozen=True, kw_only=True):
    """How a rank ended: exit `code`, or negative signal number as `subprocess` gives it.

    `reason` is one sentence ("rank 1 was killed by SIGKILL"), `traceback` the rank's own. `attempt`
    is the run's that the rank belonged to.
    """

    rank: int
    code: int
    time: float
    reason: str = ""
    traceback: str = ""
    attempt: int = 0
    origin: Origin = Origin.OWN


class Progress(Struct, frozen=True, kw_only=True):
    """How far a run is: `done` of `total` units (total 0 when unknown)."""

    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    label: str = ""


class Run(Struct, frozen=True, kw_only=True):
    """Code running, or that ran, on the devices of a lease: one rank per slot.

    `attempt` rises from 0 with each restart. Those after a failure are `max_restarts` at most;
    `uncounted` are the others: after it was preempted, or to have more devices. A restart may have
    `least` to `most` ranks (the broker's to say). `checkpoints` is where those are that any node can
    read, "" where there is no such place. `batch` is the batch of notebooks that it is of.

    A run whose lease was taken waits without one for `awaits`, that lease's request. `past` are nodes
    that it was on under earlier leases. `begun` is when this attempt was (the broker's to say, all three).
    """

    id: str
    lease: str
    session: str
    user: str
    kind: RunKind
    name: str
    world_size: int
    nodes: tuple[str, ...]
    label: str = ""
    framework: str = ""
    state: RunState = RunState.STARTING
    started: float = 0.0
    ended: float | None = None
    progress: Progress = Progress()
    metrics: dict[str, float] = {}
    exits: tuple[RankExit, ...] = ()
    reason: str = ""
    detail: dict[str, Any] = {}
    attempt: int = 0
    max_restarts: int = 0
    uncounted: int = 0
    least: int = 0
    most: int = 0
    checkpoints: str = ""
    awaits: str = ""
    past: tuple[str, ...] = ()
    begun: float = 0.0
    batch: str = ""
