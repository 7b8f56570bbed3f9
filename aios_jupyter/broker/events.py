"""What the broker's core is told (events) and what it wants done (actions).

An event says what has happened; `State.handle` answers with actions in the order in which they are
to be carried out. `Put` and `Drop` keep the journal equal to the state and come before anything
that people or agents see of the same change.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

from ..schema import (
    Booking,
    Node,
    Owner,
    Process,
    Progress,
    RankExit,
    Request,
    Run,
    RunState,
    Struct,
)
from . import actions, records

S = TypeVar("S", bound=Struct)


def replace(struct: S, **changes: Any) -> S:
    """A copy of a struct with other values in some fields."""
    return struct.__replace__(**changes)


# --- events


class SessionOpened(Struct):
    """A session said hello, for the first time or again after its connection broke."""

    owner: Owner


class SessionLost(Struct):
    """A session's connection closed without a goodbye. `dead`: its process is known to be gone."""

    session: str
    dead: bool


class SessionClosed(Struct):
    """A session said goodbye."""

    session: str


class Submitted(Struct):
    """A session asks for devices."""

    request: Request
    admin: bool = False


class Cancelled(Struct):
    """Take a request back; one that was granted in the meantime has its lease ended."""

    request: str
    by: str
    admin: bool = False


class Reprioritized(Struct):
    """A request that waits shall have another priority."""

    request: str
    priority: int
    by: str
    admin: bool = False


class Released(Struct):
    """Give a lease back before its time."""

    lease: str
    by: str
    admin: bool = False
    reason: str = "released"


class Extended(Struct):
    """A lease shall end `time` seconds from now; None takes its end away."""

    lease: str
    time: float | None
    by: str
    admin: bool = False


class NodeJoined(Struct):
    """An agent said hello.

    `held`: leases for which it has living processes. `outside`: processes outside any lease that it
    saw before it said hello, by device, so that none of these is granted in the meantime.
    """

    node: Node
    held: tuple[str, ...] = ()
    outside: dict[str, tuple[Process, ...]] = {}


class NodeLost(Struct):
    """An agent's connection closed or went silent."""

    node: str


class NodeExpected(Struct):
    """A node will join when whoever lends its machine has one, and have about that."""

    node: Node


class NodeGone(Struct):
    """A node is gone for good, with every process on it, as whoever lent its machine knows."""

    node: str
    reason: str


class OutsideReported(Struct):
    """All processes outside any lease on a node now, by device; a device left out has none."""

    node: str
    outside: dict[str, tuple[Process, ...]]


class RunCreated(Struct):
    """A user is about to start ranks under a lease."""

    run: Run


class RunReported(Struct):
    """What a node says of a run: only what has changed. `metrics` and `detail` are merged."""

    run: str
    state: RunState | None = None
    progress: Progress | None = None
    metrics: dict[str, float] | None = None
    detail: dict[str, Any] | None = None


class RankExited(Struct):
    """A rank has ended; `final`: it cannot be started again, as its agent knows it no more."""

    run: str
    exit: RankExit
    final: bool = False


class Met(Struct):
    """A run's first node has a port at which the ranks of an attempt will meet."""

    run: str
    attempt: int
    address: str
    port: int


class StopRequested(Struct):
    """Somebody wants a run ended."""

    run: str
    by: str
    admin: bool = False
    reason: str = "stopped"


class RanksGone(Struct):
    """An agent confirms that no process of a lease is left on its node."""

    node: str
    lease: str


class PolicyChanged(Struct):
    """From now on requests are ordered by that policy; `aging` (s): not its own, but this one."""

    name: str
    by: str
    aging: float | None = None
    admin: bool = False


class WeightChanged(Struct):
    """A user's part under the policy `fair`: one of weight 2 may use twice as much."""

    user: str
    weight: float
    by: str
    admin: bool = False


class QuotaSet(Struct):
    """From now on a queue may use so much; one of that name is made where there is none."""

    queue: str
    quota: Quota
    by: str
    admin: bool = False


class QuotaRemoved(Struct):
    """A queue is no more; what waits in it and its leases go to their users' default queues."""

    queue: str
    by: str
    admin: bool = False


class LimitChanged(Struct):
    """From now on that limit holds, in seconds; None: there is none.

    `name` is `max-time` (of leases), or `idle` (after which a lease is warned, then reclaimed);
    `queue` the queue for which it holds, "" for all that have none of their own.
    """

    name: str
    seconds: float | None
    by: str
    queue: str = ""
    admin: bool = False


class SignatureDemanded(Struct):
    """From now on only models that somebody known has signed are used here, or any again."""

    required: bool
    by: str
    admin: bool = False


class Booked(Struct):
    """A user wants devices reserved."""

    booking: Booking
    admin: bool = False


class Claimed(Struct):
    """A session of the user takes up a reservation: its lease, or that which it will get."""

    booking: str
    session: str
    by: str


class FoundIdle(Struct):
    """Nothing has been computed on a lease's devices since then, for as long as the limit says."""

    lease: str
    since: float


class FoundBusy(Struct):
    """Something is computed on the devices of a lease that was found idle."""

    lease: str


class ForecastTold(Struct):
    """Somebody was told when a request will probably start: at `eta`, between `earliest` and
    `latest` (seconds since the epoch; `latest` None: nobody knows).
    """

    request: str
    eta: float
    earliest: float
    latest: float | None = None


class Tick(Struct):
    """Time has passed."""


Event: TypeAlias = (
    SessionOpened
    | SessionLost
    | SessionClosed
    | Submitted
    | Cancelled
    | Reprioritized
    | Released
    | Extended
    | NodeJoined
    | NodeLost
    | NodeExpected
    | NodeGone
    | OutsideReported
    | RunCreated
    | RunReported
    | RankExited
    | Met
    | StopRequested
    | RanksGone
    | PolicyChanged
    | WeightChanged
    | QuotaSet
    | QuotaRemoved
    | LimitChanged
    | SignatureDemanded
    | Booked
    | Claimed
    | FoundIdle
    | FoundBusy
    | ForecastTold
    | Tick
)


# --- records and actions: they are found here too

Unconfirmed = records.Unconfirmed
Lasted = records.Lasted
Used = records.Used
Quota = records.Quota
Choice = records.Choice
Hour = records.Hour
Foretold = records.Foretold
Hit = records.Hit
Hits = records.Hits
Record: TypeAlias = actions.Record

Put = actions.Put
Drop = actions.Drop
Audit = actions.Audit
Granted = actions.Granted
RequestEnded = actions.RequestEnded
EndLease = actions.EndLease
LeaseEnded = actions.LeaseEnded
StopRun = actions.StopRun
Moved = actions.Moved
MeetAgain = actions.MeetAgain
StartAgain = actions.StartAgain
RunEnded = actions.RunEnded
Handed = actions.Handed
Notice = actions.Notice
Action: TypeAlias = actions.Action
