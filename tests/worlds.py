"""The broker's core with a clock, for tests that tell it what happens and look at what it does."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.state import State
from aios_jupyter.schema import (
    Device,
    DeviceKind,
    Lease,
    Node,
    Owner,
    RankExit,
    Request,
    RequestState,
    Run,
    RunKind,
    Want,
)

A = TypeVar("A")
GB = 10**9


def make_node(
    name: str, gpus: int = 0, slots: int = 0, memory: int = 16 * GB, port: int = 1
) -> Node:
    return Node(
        id=name,
        host=f"{name}.example",
        address=f"{name}:{port}",
        pid=1,
        devices=(
            *(
                Device(id=f"{name}-g{i}", kind=DeviceKind.GPU, name="A", index=i, memory=memory)
                for i in range(gpus)
            ),
            *(
                Device(id=f"{name}-c{i}", kind=DeviceKind.CPU, name="CPU slot", index=i)
                for i in range(slots)
            ),
        ),
    )


class World:
    """A core with a clock, and short words for what is told to it."""

    def __init__(self, *nodes: Node, **settings: float) -> None:
        self.settings = settings
        self.state = State(**settings)
        self.now = 1000.0
        self.actions: list[ev.Action] = []
        self.journal: dict[tuple[str, str], Any] = {}
        self.names = (f"{n}" for n in itertools.count(1))
        for node in nodes:
            self.do(ev.NodeJoined(node=node))
        self.open("s", "ana")

    def do(self, event: ev.Event) -> list[ev.Action]:
        self.record(self.state.handle(event, self.now))
        return self.actions

    def record(self, actions: list[ev.Action]) -> None:
        self.actions = actions
        for action in actions:
            if isinstance(action, ev.Put):
                self.journal[action.kind, action.id] = action.record
            elif isinstance(action, ev.Drop):
                del self.journal[action.kind, action.id]

    def restart(self) -> None:
        self.state = State(**self.settings)
        records = [(kind, id, record) for (kind, id), record in self.journal.items()]
        self.record(self.state.restore(records, self.now))

    def got(self, kind: type[A]) -> list[A]:
        """Actions of that kind which the last event led to."""
        return [action for action in self.actions if isinstance(action, kind)]

    def open(self, session: str, user: str = "ana", **fields: Any) -> None:
        self.do(ev.SessionOpened(owner=Owner(id=session, user=user, **fields)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(ev.Tick())

    def ask(
        self, count: int = 1, want: Want = Want.GPU, session: str = "s", **fields: Any
    ) -> Request:
        fields.setdefault("id", f"r{next(self.names)}")
        user = self.state.sessions[session].user
        request = Request(session=session, user=user, want=want, count=count, **fields)
        self.do(ev.Submitted(request=request))
        return self.state.requests[request.id]

    def lease(self, count: int = 1, want: Want = Want.GPU, **fields: Any) -> Lease:
        return self.state.leases[self.ask(count, want, **fields).lease]

    def run(self, lease: Lease, **fields: Any) -> Run:
        fields.setdefault("id", f"x{next(self.names)}")
        fields.setdefault("user", lease.user)
        fields.setdefault("world_size", len(lease.slots))
        fields.setdefault("nodes", tuple(dict.fromkeys(slot.node for slot in lease.slots)))
        run = Run(lease=lease.id, session="s", kind=RunKind.TRAIN, name="t", **fields)
        self.do(ev.RunCreated(run=run))
        return self.state.runs[run.id]

    def exit(self, run: Run, rank: int, code: int = 0, reason: str = "") -> Run:
        exit = RankExit(rank=rank, code=code, time=self.now, reason=reason)
        self.do(ev.RankExited(run=run.id, exit=exit))
        return self.state.runs[run.id]

    def release(self, lease: Lease, by: str = "ana", admin: bool = False) -> None:
        self.do(ev.Released(lease=lease.id, by=by, admin=admin))

    def gone(self, node: str, lease: Lease) -> None:
        self.do(ev.RanksGone(node=node, lease=lease.id))

    def devices(self, request: Request) -> list[str]:
        lease = self.state.leases[self.state.requests[request.id].lease]
        return [slot.device for slot in lease.slots]

    def state_of(self, request: Request) -> RequestState:
        return self.state.requests[request.id].state
