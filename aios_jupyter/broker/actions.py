"""What the core wants done: `state.handle` gives a list of these, `hub.enact` carries them out."""

from __future__ import annotations

from typing import Any, TypeAlias

from ..schema import Booking, Lease, Node, Owner, Request, Run, Struct
from . import records

Record: TypeAlias = (
    Owner
    | Request
    | Booking
    | Lease
    | Run
    | Node
    | records.Unconfirmed
    | records.Lasted
    | records.Used
    | records.Quota
    | records.Choice
    | records.Hour
    | records.Foretold
    | records.Hits
    | int
)


class Put(Struct):
    """Journal: the record of that kind and id is now this one."""

    kind: str
    id: str
    record: Record


class Drop(Struct):
    """Journal: the record is gone."""

    kind: str
    id: str


class Audit(Struct):
    """Note who did what."""

    what: str
    who: str
    detail: dict[str, Any]


class Granted(Struct):
    """Tell the session, and the lease's agents, that the request holds a lease."""

    request: Request
    lease: Lease


class RequestEnded(Struct):
    """Tell the session that its request ended without a lease, for `request.reason`."""

    request: Request


class EndLease(Struct):
    """Tell these agents to end all processes of the lease and to answer with RanksGone.

    The lease is named by its id alone, as an agent may hold processes of one long forgotten.
    `grace` (s) is between SIGTERM and SIGKILL, None the usual one. With `keep` its runs go on under
    another lease, and their code is kept.
    """

    lease: str
    nodes: tuple[str, ...]
    reason: str = ""
    grace: float | None = None
    keep: bool = False


class LeaseEnded(Struct):
    """Tell the session that its lease has ended, for `lease.reason`; its devices are free."""

    lease: Lease


class StopRun(Struct):
    """Tell these agents to end the ranks of the run; `grace` is as in `EndLease`."""

    run: Run
    nodes: tuple[str, ...]
    reason: str
    grace: float | None = None


class Moved(Struct):
    """Tell these agents, which had the run, that it is under another lease now, on other nodes."""

    run: Run
    nodes: tuple[str, ...]


class MeetAgain(Struct):
    """Tell the run's first agent to open a port for its next attempt, and to answer with Met."""

    run: Run
    node: str


class StartAgain(Struct):
    """Tell these agents to start the ranks of the run's attempt, which meet at that port."""

    run: Run
    address: str
    port: int


class RunEnded(Struct):
    """Tell the session that a run has ended; `run` has the end state and the reason."""

    run: Run


class Handed(Struct):
    """Tell the lease's agents that another session of its user has taken it up."""

    lease: Lease


class Notice(Struct):
    """Tell a session something that its user should know; `about` is the id of a lease or such."""

    session: str
    about: str
    text: str


Action: TypeAlias = (
    Put
    | Drop
    | Audit
    | Granted
    | RequestEnded
    | EndLease
    | LeaseEnded
    | StopRun
    | Moved
    | MeetAgain
    | StartAgain
    | RunEnded
    | Handed
    | Notice
)
