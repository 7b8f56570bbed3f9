"""What the parts of the broker share: state, journal, who is connected, and how they are told.

`enact` is the only place where the core's actions become effects.
"""

from __future__ import annotations

import contextlib
import getpass
import hmac
import os
import secrets
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..config import Settings
from ..schema import Lease, Owner, Request, Run, RunState, Usage, WarmUse
from . import events as ev
from . import gang
from . import messages as msg
from .idle import Activity
from .journal import Journal
from .ledger import nodes_of
from .outlook import Outlook
from .protocol import Connection
from .state import State

# Grants and ends that no agent waits for leave together with others, at most this much later.
SOON = 0.005
# Refusals of one user that are each noted, a second; more are counted.
NOTED_REFUSALS = 10
LONGEST = 200
# Most actions are for the journal alone.
_RECORDED = (ev.Put, ev.Drop, ev.Audit)


class SessionLink:
    """A connection of a session; it sits in `Connection.context`. A shell's commands share one."""

    def __init__(self, owner: Owner, passive: bool) -> None:
        self.owner = owner
        self.passive = passive


class AgentLink:
    """The connection of a node's agent; it sits in `Connection.context`."""

    def __init__(self, node: str) -> None:
        self.node = node


class Hub:
    """The middle of the broker.

    Attributes
    ----------
    sessions, agents
        Connections by session and by node.
    outlook
        When those who wait will start.
    usage
        The last sample of each device.
    warm
        What each node keeps ready for the next runs.
    batches
        How far each batch of notebooks is.
    expected
        Of nodes that somebody else starts and ends, as Slurm does: `state` and `note`, how they are.
    owner
        Whose cluster it is.
    activity
        When something was computed last under each lease.
    changed
        Something that people see has changed.
    used
        When (monotonic) somebody last asked for something.
    ending
        The cluster is being stopped, and its agents have been told to end.
    """

    def __init__(self, directory: Path, settings: Settings, dask: str = "") -> None:
        self.settings = settings
        self.dask = dask
        self.journal = Journal(directory / "journal.sqlite", sync=settings.journal_sync)
        self.state = State(
            owner_grace=settings.owner_grace,
            node_grace=settings.reap_after,
            policy=settings.policy,
            min_run=settings.preempt_after,
            preempt_grace=settings.preempt_grace,
            rejoin_grace=settings.rejoin_grace,
            grow_after=settings.grow_after,
            grow_interval=settings.grow_interval,
            warn_before=settings.warn_before,
            end_grace=settings.end_grace,
            idle_grace=settings.idle_grace,
            reserve_limit=settings.reserve_limit * 3600,
        )
        self.activity = Activity(time.time())
        self.outlook = Outlook(self.state, self.handle)
        self.sessions: dict[str, set[Connection]] = {}
        self.agents: dict[str, Connection] = {}
        self.usage: dict[str, Usage] = {}
        self.warm: dict[str, WarmUse] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        self.owner = getpass.getuser()
        self.changed = False
        self.used = time.monotonic()
        self.ending = False
        self._refusals: dict[str, int] = {}
        self._secret = _secret(directory / "secret")

    def restore(self, *, fresh: bool = False) -> None:
        """Take up what the journal has.

        `fresh`: the whole cluster was stopped in between, so that no session's leases live on.
        """
        self.enact(self.state.restore(self.journal.load(), time.time()))
        for session in list(self.state.sessions) if fresh else ():
            self.handle(ev.SessionLost(session=session, dead=True))
        self.journal.commit()

    def handle(self, event: ev.Event, told: tuple[str, Connection] | None = None) -> None:
        """Let the core decide, and do what it says.

        Parameters
        ----------
        told
            A request and the connection that is told of its grant by the answer to this event.

        Raises
        ------
        AiosError
            The core refused; nothing has changed.
        """
        self.enact(self.decide(event), told)

    def decide(self, event: ev.Event) -> list[ev.Action]:
        """The core's answer, which is still to be enacted."""
        return self.state.handle(event, time.time())

    def enact(
        self, actions: Iterable[ev.Action], told: tuple[str, Connection] | None = None
    ) -> None:
        """Journal actions, then tell whom they concern (told after the journal's commit)."""
        actions = list(actions)
        self.journal.apply(actions, time.time())
        self.changed = self.changed or bool(actions)
        for action in actions:
            if isinstance(action, _RECORDED):
                continue
            match action:
                case ev.Granted(request=request, lease=lease):
                    self._announce(request, lease, told)
                case ev.RequestEnded(request=request):
                    self._tell_session(request.session, "request.ended", request)
                case ev.EndLease() as told_to_end:
                    end = msg.LeaseEnd(
                        lease=told_to_end.lease,
                        reason=told_to_end.reason,
                        grace=told_to_end.grace,
                        keep=told_to_end.keep,
                    )
                    self.tell_nodes(told_to_end.nodes, "lease.end", end)
                case ev.LeaseEnded(lease=lease):
                    end = msg.LeaseEnd(lease=lease.id, reason=lease.reason, confirm=False)
                    self.tell_nodes(nodes_of(lease), "lease.end", end, within=SOON)
                    self._tell_session(lease.session, "lease.ended", lease)
                case ev.StopRun(run=run, nodes=nodes, reason=reason, grace=grace):
                    stop = msg.RunStop(
                        run=run.id,
                        reason=reason,
                        attempt=run.attempt,
                        restart=run.state is RunState.RESTARTING,
                        grace=grace,
                    )
                    self.tell_nodes(nodes, "run.stop", stop)
                case ev.Moved(run=run, nodes=nodes):
                    token = self.token(self.state.leases[run.lease])
                    self.tell_nodes(nodes, "run.moved", msg.RunMoved(run=run, token=token))
                case ev.MeetAgain(run=run, node=node):
                    self.tell_nodes((node,), "run.again", self._again(run))
                case ev.StartAgain(run=run, address=address, port=port):
                    self.tell_nodes(run.nodes, "run.again", self._again(run, address, port))
                case ev.RunEnded(run=run):
                    self.tell_nodes({*run.nodes, *run.past}, "run.over", over(run))
                    self._tell_session(run.session, "run.ended", run)
                case ev.Handed(lease=lease):
                    nodes = tuple({slot.node for slot in lease.slots})
                    self.tell_nodes(nodes, "lease.granted", self.grant_for_agent(lease))
                case ev.Notice(session=session, about=about, text=text):
                    self._tell_session(session, "notice", msg.Notice(about=about, text=text))

    def audit(self, what: str, who: str, **detail: Any) -> None:
        """Keep a record of what the core does not know of: who it was, and refusals."""
        self.journal.apply([ev.Audit(what=what, who=who, detail=detail)], time.time())

    def refuse(self, op: str, who: str, about: str = "", why: str = "") -> None:
        """Keep an audit record of a refusal.

        Somebody who is refused again and again cannot fill the disk: from the eleventh in a
        second on, only their number is noted.
        """
        noted = self._refusals[who] = self._refusals.get(who, 0) + 1
        if noted <= NOTED_REFUSALS:
            self.audit("refused", who, op=op, about=about[:LONGEST], why=why[:LONGEST])

    def count_refusals(self) -> None:
        """Note how many were not noted; called once a second."""
        for who, count in self._refusals.items():
            if count > NOTED_REFUSALS:
                self.audit("refused", who, more=count - NOTED_REFUSALS)
        self._refusals.clear()

    def notify(self, user: str, about: str, text: str) -> None:
        """A word to all of a user's sessions."""
        own = [owner.id for owner in self.state.sessions.values() if owner.user == user]
        self.enact(ev.Notice(session=session, about=about, text=text) for session in own)

    def token(self, lease: Lease) -> str:
        """What admits the lease's owner to its agents: nobody else can make it."""
        return _token(self._secret, f"{lease.id}:{lease.fence}:{lease.user}")

    def grant_for_agent(self, lease: Lease) -> msg.Grant:
        """The lease, its token, and whose it is."""
        owner = self.state.sessions.get(lease.session)
        return msg.Grant(lease=lease, token=self.token(lease), owner=owner)

    def tell_nodes(self, nodes: Iterable[str], topic: str, body: Any, within: float = 0.0) -> None:
        """An event to the agents of these nodes, those that are connected."""
        for node in nodes:
            if node in self.agents:
                self.agents[node].tell(topic, body, within=within)

    def end_nodes(self) -> None:
        """Tell all agents to end, those too that are only now coming back."""
        self.ending = True
        self.tell_nodes(self.agents, "shutdown", None)

    def _announce(
        self, request: Request, lease: Lease, told: tuple[str, Connection] | None
    ) -> None:
        grant = self.grant_for_agent(lease)
        self.tell_nodes(nodes_of(lease), "lease.granted", grant, within=SOON)
        by_answer = told[1] if told and told[0] == request.id else None
        others = [c for c in self.sessions.get(request.session, ()) if c is not by_answer]
        if others:
            grant = msg.Grant(lease=lease, token=self.token(lease))
            for connection in others:
                connection.tell("granted", grant)

    def _again(self, run: Run, address: str = "", port: int = 0) -> msg.RunAgain:
        return msg.RunAgain(
            run=run,
            slots=self.state.leases[run.lease].slots[: run.world_size],
            reason=gang.why_again(run),
            moved=gang.MOVED in run.detail,
            sources=tuple(
                self.state.nodes[node].address
                for node in run.past
                if node in self.agents and node in self.state.nodes
            ),
            address=address,
            port=port,
        )

    def _tell_session(self, session: str, topic: str, body: Any) -> None:
        for connection in self.sessions.get(session, ()):
            connection.tell(topic, body)


def over(run: Run) -> msg.RunOver:
    """What agents are told of a run that has ended."""
    return msg.RunOver(id=run.id, state=run.state, reason=run.reason, ended=run.ended)


@lru_cache(maxsize=1024)
def _token(secret: bytes, text: str) -> str:
    # A grant tells it to the agent, and to the session at once.
    return hmac.digest(secret, text.encode(), "sha256").hex()


def _secret(path: Path) -> bytes:
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()
