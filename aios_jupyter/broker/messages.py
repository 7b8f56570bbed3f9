"""Bodies of the calls and events of `protocol.py`, one struct each; `schema.py` has the nouns."""

from __future__ import annotations

import hashlib
from typing import Any

from ..errors import ProtocolError
from ..schema import (
    Keep,
    Lease,
    Node,
    Owner,
    Process,
    Progress,
    RankExit,
    Request,
    Run,
    RunState,
    Slot,
    Struct,
    Usage,
    WarmUse,
)

# Of what both sides say to each other: one that speaks another is refused.
VERSION = 1


def session_id(secret: str) -> str:
    """A session's id is made from its secret, so that knowing the id does not give the session.

    Raises
    ------
    ProtocolError
        The secret is too short to be one.
    """
    if len(secret) < 16:
        raise ProtocolError("A session's secret has at least 16 characters.")
    return "s-" + hashlib.sha256(secret.encode()).hexdigest()[:16]


class Version(Struct, frozen=True, kw_only=True):
    """What every hello has."""

    version: int


class SessionHello(Version, frozen=True, kw_only=True):
    """A kernel, shell or server says who it is; `secret` proves a return to the same session.

    `passive`: it only looks on (the Jupyter server) and does not keep an idle cluster up.
    """

    owner: Owner
    secret: str
    passive: bool = False


class Welcome(Struct, frozen=True, kw_only=True):
    """The broker's answer: who it takes you for."""

    cluster: str
    user: str
    role: str
    version: str
    dask: str = ""


class StandFor(Struct, frozen=True, kw_only=True):
    """`stand`: the session stands for that process from now on, a kernel that it has started."""

    pid: int
    pid_start: int
    keep: Keep
    kernel: bool


class NodeHello(Version, frozen=True, kw_only=True):
    """An agent says what it has, and which leases and runs it still holds processes for."""

    node: Node
    held: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    outside: dict[str, tuple[Process, ...]] = {}


class NodeWelcome(Struct, frozen=True, kw_only=True):
    """Leases that are active on that node, with their tokens, and the cluster's Dask address.

    `revoked` are serial numbers (hexadecimal) of certificates that admit no longer.
    """

    grants: tuple[Grant, ...]
    dask: str = ""
    revoked: tuple[str, ...] = ()


class Serials(Struct, frozen=True, kw_only=True):
    """To an agent: serial numbers (hexadecimal) of all certificates that admit no longer."""

    serials: tuple[str, ...]


class Grant(Struct, frozen=True, kw_only=True):
    """A lease and the token that admits its owner to the agents.

    `owner` goes to agents only: its process may use the leased devices without a run.
    """

    lease: Lease
    token: str
    owner: Owner | None = None


class Submitted(Struct, frozen=True, kw_only=True):
    """Answer to `submit`: the request, and the lease where it was granted at once."""

    request: Request
    lease: Lease | None = None
    token: str = ""


class ById(Struct, frozen=True, kw_only=True):
    """A call about one thing."""

    id: str
    reason: str = ""


class ExtendBy(Struct, frozen=True, kw_only=True):
    """`extend`: the lease ends `time` seconds from now; None takes its end away."""

    id: str
    time: float | None


class BatchTold(Struct, frozen=True, kw_only=True):
    """`batch.tell`: how far a batch of notebooks is; those that are not named here wait.

    `over`: nothing of it runs any more, and nothing will. `directory` is where its results are, on
    the machine of whoever tells.
    """

    id: str
    label: str
    total: int
    directory: str = ""
    succeeded: int = 0
    failed: int = 0
    running: int = 0
    over: bool = False


class Reprioritize(Struct, frozen=True, kw_only=True):
    """`reprioritize`: a request that waits has this priority from now on."""

    id: str
    priority: int


class Notice(Struct, frozen=True, kw_only=True):
    """To a session: something that its user should know of a lease or reservation (`about`)."""

    about: str
    text: str


class Claim(Struct, frozen=True, kw_only=True):
    """Answer to `claim`: when the reservation starts, and its grant once it has."""

    start: float
    grant: Grant | None = None


class PolicyChoice(Struct, frozen=True, kw_only=True):
    """`policy.set`: how requests are ordered from now on; None leaves `name` as it is.

    `aging` (s) is after how long a request goes first, `weights` are users' parts under `fair`.
    `idle` (s) by queue is after how long without computing a lease is warned, "" for all queues;
    `max_time` (s) how long a lease may last; 0 takes such a limit away.
    """

    name: str | None = None
    aging: float | None = None
    weights: dict[str, float] = {}
    idle: dict[str, float] = {}
    max_time: float | None = None


class Vouched(Struct, frozen=True, kw_only=True):
    """Answer to `trust.get`: whether models have to be signed, and whose signatures count.

    `authority` is the certificate (PEM) of the cluster's authority, `revoked` are serial numbers
    (hexadecimal) of certificates of it that count no longer.
    """

    required: bool
    authority: str
    revoked: tuple[str, ...] = ()


class SignatureChoice(Struct, frozen=True, kw_only=True):
    """`trust.set`: whether only models that somebody known has signed are used from now on."""

    required: bool


# In a `QuotaChange`: no limit from now on.
NO_LIMIT = -1


class QuotaChange(Struct, frozen=True, kw_only=True):
    """`quota.set` and `quota.remove`: numbers that are None stay as they are, -1 takes a limit away.

    Members too stay where `members` is None.
    """

    name: str
    gpus: int | None = None
    cpus: int | None = None
    borrow: int | None = None
    user_devices: int | None = None
    user_leases: int | None = None
    weight: float | None = None
    members: tuple[str, ...] | None = None


class NodeReport(Struct, frozen=True, kw_only=True):
    """One second of a node: usage of each device, processes outside any lease, and warm ones."""

    usage: tuple[Usage, ...]
    outside: dict[str, tuple[Process, ...]] = {}
    warm: WarmUse = WarmUse()


class RunReport(Struct, frozen=True, kw_only=True):
    """What a node says of a run: only what has changed."""

    run: str
    state: RunState | None = None
    progress: Progress | None = None
    metrics: dict[str, float] | None = None
    detail: dict[str, Any] | None = None


class RankReport(Struct, frozen=True, kw_only=True):
    """A rank has ended; `final`: no node is left that could start it again."""

    run: str
    exit: RankExit
    final: bool = False


class RunMet(Struct, frozen=True, kw_only=True):
    """The run's first node has a port where the ranks of that attempt will meet."""

    run: str
    attempt: int
    address: str
    port: int


class Refused(Struct, frozen=True, kw_only=True):
    """An agent has refused somebody something."""

    who: str
    op: str
    about: str = ""
    why: str = ""


class UserChange(Struct, frozen=True, kw_only=True):
    """The owner of the authority has given somebody access, or taken it away (`what`)."""

    what: str
    name: str
    role: str = ""


class Records(Struct, frozen=True, kw_only=True):
    """`audit`: the newest `limit` records."""

    limit: int = 200


class LeaseEnd(Struct, frozen=True, kw_only=True):
    """To an agent: end all processes of this lease and, where asked to `confirm`, say `node.gone`.

    `grace` (s) is between SIGTERM and SIGKILL, None the agent's own `stop_grace`. With `keep` the runs
    of the lease go on under another one: their code stays.
    """

    lease: str
    reason: str = ""
    confirm: bool = True
    grace: float | None = None
    keep: bool = False


class RunStop(Struct, frozen=True, kw_only=True):
    """To an agent: end the ranks of this run; `restart`: those of this attempt alone.

    `grace` is as in `LeaseEnd`.
    """

    run: str
    reason: str = ""
    attempt: int = 0
    restart: bool = False
    grace: float | None = None


class RunAgain(Struct, frozen=True, kw_only=True):
    """To an agent: start the ranks again, to meet at that port; without one, open it and tell.

    `slots` are the devices of the run's attempt, one for each rank; `reason` is why there is another
    than the one before, and `moved` says that it had not failed. An agent that has no part of the run
    yet asks those of the other slots for it, and those at the addresses `sources`, which had it before.
    """

    run: Run
    slots: tuple[Slot, ...]
    reason: str = ""
    moved: bool = False
    sources: tuple[str, ...] = ()
    address: str = ""
    port: int = 0


class RunMoved(Struct, frozen=True, kw_only=True):
    """To an agent that had this run: it is on other nodes now, which may get it by that token."""

    run: Run
    token: str


class RunOver(Struct, frozen=True, kw_only=True):
    """To an agent: a run has ended for good, as the broker judges it."""

    id: str
    state: RunState
    reason: str = ""
    ended: float | None = None


class RunCreated(Struct, frozen=True, kw_only=True):
    """To an agent: the broker knows of this run, so its ranks may be started.

    `ranks` are those that belong on this node.
    """

    run: Run
    ranks: tuple[int, ...]
