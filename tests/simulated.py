"""A core of the broker on simulated time."""

from __future__ import annotations

from typing import Any

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.state import State
from aios_jupyter.schema import Device, DeviceKind, Node, Owner, Request, Run, RunKind, Want

HOUR = 3600.0


class Cluster:
    """A core on simulated time, with one node of GPUs and one of CPU slots."""

    def __init__(self, policy: str, gpus: int = 8, slots: int = 2) -> None:
        self.state = State(policy=policy)
        self.now = 0.0
        self.count = 0
        self.started: dict[str, float] = {}
        self.records: dict[tuple[str, str], Any] = {}
        self.told: list[ev.Action] = []
        self.audits: list[ev.Audit] = []
        for name, kind, number in (("g", DeviceKind.GPU, gpus), ("c", DeviceKind.CPU, slots)):
            devices = tuple(
                Device(id=f"{name}{i}", kind=kind, name="", index=i, memory=1)
                for i in range(number)
            )
            node = Node(id=name, host=name, address=f"{name}:1", pid=1, devices=devices)
            self.do(ev.NodeJoined(node=node))

    def do(self, event: ev.Event) -> None:
        for action in self.state.handle(event, self.now):
            if isinstance(action, ev.Put):
                self.records[action.kind, action.id] = action.record
            elif isinstance(action, ev.Drop):
                del self.records[action.kind, action.id]
            elif isinstance(action, ev.Granted):
                self.started[action.request.id] = self.now
            elif isinstance(action, ev.Audit):
                self.audits.append(action)
            else:
                self.told.append(action)

    def ask(self, count: int = 1, user: str = "ana", admin: bool = False, **wish: Any) -> str:
        """Submit a request; returns its id."""
        if user not in self.state.sessions:
            self.do(ev.SessionOpened(owner=Owner(id=user, user=user)))
        self.count += 1
        wish.setdefault("want", Want.GPU)
        request = Request(id=f"r{self.count}", session=user, user=user, count=count, **wish)
        self.do(ev.Submitted(request=request, admin=admin))
        return request.id

    def release(self, request: str, after: float = 0.0) -> None:
        """Some seconds later, the request's lease is given back."""
        self.now += after
        found = self.state.requests[request]
        self.do(ev.Released(lease=found.lease, by=found.user))

    def wait(self, seconds: float) -> None:
        """Time passes, with every deadline of the core on its time."""
        until = self.now + seconds
        while (due := self.state.next_deadline()) is not None and due <= until:
            self.now = due
            self.do(ev.Tick())
        self.now = until

    def choose(self, name: str, **options: Any) -> None:
        self.do(ev.PolicyChanged(name=name, by="root", admin=True, **options))

    def queue(self, pool: Pool = Pool.ACCELERATOR) -> list[str]:
        return [request.id for request in self.state.queue(pool)]

    def restart(self) -> None:
        self.state = State(policy="fifo")
        records = [(kind, id, record) for (kind, id), record in self.records.items()]
        for action in self.state.restore(records, self.now):
            if isinstance(action, ev.Put):
                self.records[action.kind, action.id] = action.record


def give(cluster: Cluster, queue: str, gpus: int | None = None, *members: str, **more: Any) -> None:
    """Say what a queue may use."""
    nominal = {} if gpus is None else {Pool.ACCELERATOR.value: gpus}
    quota = ev.Quota(nominal=nominal, members=members, **more)
    cluster.do(ev.QuotaSet(queue=queue, quota=quota, by="root", admin=True))


def teams(policy: str = "fifo", **limits: Any) -> Cluster:
    """Eight GPUs: team a (ana) has four, team b (bob) three, and the rest is for others."""
    cluster = Cluster(policy)
    give(cluster, "a", 4, "ana", **limits)
    give(cluster, "b", 3, "bob", **limits)
    return cluster


def run_on(cluster: Cluster, request: str) -> Run:
    """A run on all devices of the request's lease, which are GPUs: it has processes from now on."""
    lease = cluster.state.leases[cluster.state.requests[request].lease]
    run = Run(
        id=f"x{lease.fence}",
        lease=lease.id,
        session=lease.session,
        user=lease.user,
        kind=RunKind.TRAIN,
        name="t",
        world_size=len(lease.slots),
        nodes=("g",),
    )
    cluster.do(ev.RunCreated(run=run))
    return run
