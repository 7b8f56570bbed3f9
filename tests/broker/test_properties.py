"""The promises of the broker, against random histories with crashes.

The machine plays everybody else: sessions, agents with real processes, a clock that jumps, and a
journal. What it checks comes from its own bookkeeping wherever the core could be wrong about it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.state import State
from aios_jupyter.errors import AccessError, AiosError
from aios_jupyter.schema import (
    ACCELERATORS,
    LIVE,
    Booking,
    Device,
    DeviceKind,
    Keep,
    Lease,
    LeaseState,
    Node,
    Origin,
    Owner,
    Placement,
    Process,
    Progress,
    RankExit,
    Request,
    RequestState,
    Run,
    RunKind,
    RunState,
    Scope,
    Want,
)

OWNER_GRACE, NODE_GRACE, UNUSED_GRACE, NODE_MEMORY = 60.0, 60.0, 60.0, 600.0
WARN_BEFORE, IDLE_GRACE, RESERVE_LIMIT = 10.0, 30.0, 2000.0
GB = 10**9


def devices(node: str, gpus: tuple[int, ...], slots: int) -> tuple[Device, ...]:
    return (
        *(
            Device(
                id=f"{node}-g{i}",
                kind=DeviceKind.SIMULATED,
                name=f"Simulated {size}",
                index=i,
                memory=size * GB,
            )
            for i, size in enumerate(gpus)
        ),
        *(
            Device(id=f"{node}-c{i}", kind=DeviceKind.CPU, name="", index=i, memory=4 * GB)
            for i in range(slots)
        ),
    )


# Hundreds of examples each: on a busy machine they take long, and a limit met looks like a flaw.
pytestmark = pytest.mark.timeout(900)

# What each machine offers when it is healthy, and at times when a device has fallen out.
MACHINES = {
    "n0": (devices("n0", (16, 16), 1), devices("n0", (16,), 1)),
    "n1": (devices("n1", (8,), 1), devices("n1", (), 1)),
}
SIZES = {device.id: device.memory for offers in MACHINES.values() for device in offers[0]}
CORES, HOST_MEMORY = {"n0": 4, "n1": 2}, {"n0": 32 * GB, "n1": 16 * GB}
# What requests ask for beside a number of devices.
EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"memory": 8 * GB},
    {"memory": 16 * GB},
    {"model": "simulated 16"},
    {"least": 1},
    {"least": 1, "time": 5.0},
    {"least": 2, "count": 3},
    {"memory": 4 * GB, "share": True},
    {"memory": 4 * GB, "share": True, "least": 1, "count": 3},
    {"memory": 8 * GB, "share": True, "time": 5.0},
    {"memory": 12 * GB, "share": True},
    {"placement": Placement.NODE},
    {"placement": Placement.SPREAD},
    {"node": "n0"},
    {"node": "n1", "least": 1},
    {"placement": Placement.NODE, "least": 1},
    {"cpus": 1},
    {"cpus": 2},
    {"cpus": 3, "memory": 4 * GB, "share": True},
    {"host_memory": 12 * GB},
    {"host_memory": 20 * GB},
)
OWNERS = {
    owner.id: owner
    for owner in (
        Owner(id="s0", user="ana", pid=1),
        Owner(id="s1", user="ana", pid=2, keep=Keep.PROCESS),
        Owner(id="s2", user="bob", pid=3),
    )
}
nodes = st.sampled_from(sorted(MACHINES))
sessions = st.sampled_from(sorted(OWNERS))
users = st.sampled_from(["ana", "bob"])
number = st.integers(0, 1000)


def new_state(policy: str) -> State:
    return State(
        policy=policy,
        owner_grace=OWNER_GRACE,
        node_grace=NODE_GRACE,
        unused_grace=UNUSED_GRACE,
        node_memory=NODE_MEMORY,
        warn_before=WARN_BEFORE,
        idle_grace=IDLE_GRACE,
        reserve_limit=RESERVE_LIMIT,
        grow_after=2.0,
        grow_interval=5.0,
    )


def pool_of(kind: DeviceKind) -> Pool:
    return Pool.ACCELERATOR if kind in ACCELERATORS else Pool.CPU


def will_do(node: str, device: Device, request: Request) -> bool:
    """Whether a node's device has what is asked for, were it free."""
    if request.node not in ("", node):
        return False
    if request.share and device.kind is DeviceKind.CPU:
        return False
    return device.memory >= request.memory and request.model in device.name.lower()


def cores_for(request: Request, line: Pool) -> int:
    """How many of its node's cores each device of a request takes."""
    return max(1, request.cpus) if line is Pool.CPU else request.cpus


_ENDING = (RunState.STOPPING, RunState.FAILED, RunState.STOPPED)


class Broker(RuleBasedStateMachine):
    policy = "fifo"
    # Whether admins change quotas, too.
    quotas = False

    def __init__(self) -> None:
        super().__init__()
        self.state = new_state(self.policy)
        self.now = self.ticked = 1000.0
        self.journal: dict[tuple[str, str], Any] = {}
        self.fence = 0
        self.accepted: list[str] = []
        self.names = 0
        # What is true on the machines: devices with processes of a lease, who was told to end.
        self.connected: set[str] = set()
        self.processes: dict[str, dict[str, set[str]]] = {node: {} for node in MACHINES}
        self.told_to_end: set[tuple[str, str]] = set()
        # The state has not seen an event since it was restored, or since the clock was moved.
        self.unseen = False
        self.lost_at: dict[str, float] = {}
        self.down_at: dict[str, float] = {}
        # Leases, of whenever, that have parts of devices.
        self.sharing: set[str] = set()

    @initialize()
    def begin(self) -> None:
        for node in MACHINES:
            self.join(node, healthy=True, alive=True)
        for session in OWNERS:
            self.open_session(session)

    # --- the shell around the core

    def do(self, event: ev.Event) -> list[ev.Action] | AiosError:
        before = self.everything()
        try:
            actions = self.state.handle(event, self.now)
        except AiosError as error:
            refused = error
        else:
            self.unseen = False
            self.check_order(actions)
            self.check_grants(actions)
            self.carry_out(actions)
            return actions
        assert self.everything() == before, "a refused event has changed something"
        return refused

    def everything(self) -> Any:
        state = self.state
        return (
            list(state.records()),
            [request.id for request in state.queue()],
            dict(state.holder),
            dict(state.outside),
            state._fence,
        )

    def carry_out(self, actions: list[ev.Action]) -> None:
        for action in actions:
            match action:
                case ev.Put(kind=kind, id=id, record=record):
                    self.journal[kind, id] = record
                case ev.Drop(kind=kind, id=id):
                    del self.journal[kind, id]
                case ev.EndLease(lease=lease, nodes=to):
                    assert to
                    known = self.state.leases.get(lease)
                    assert not (known and known.preempted and not known.preemptible), "taken"
                    assert set(to) <= self.connected, "told a node that is not there"
                    self.told_to_end |= {(node, lease) for node in to}
                case ev.Granted(lease=lease):
                    self.fence = lease.fence
                case ev.Notice(session=session, text=text):
                    assert session in OWNERS
                    assert text
                case ev.RequestEnded(request=request):
                    assert request.state is RequestState.ENDED
                    assert request.reason
                case ev.RunEnded(run=run):
                    assert run.state not in LIVE
                    assert run.ended == self.now
                    assert run.reason or run.state is RunState.SUCCEEDED

    def check_order(self, actions: list[ev.Action]) -> None:
        """Promise 3: in the journal before anybody sees it, and with a rising fence."""
        written: dict[tuple[str, str], Any] = {}
        fence = self.fence
        for action in actions:
            match action:
                case ev.Put(kind=kind, id=id, record=record):
                    written[kind, id] = record
                case ev.Granted(request=request, lease=lease):
                    assert written["lease", lease.id] == lease
                    assert written["request", request.id] == request
                    assert lease.fence > fence
                    assert written["counter", "fence"] >= lease.fence
                    assert lease.id == f"L{lease.fence}"
                    fence = lease.fence
                case ev.RequestEnded(request=request):
                    assert written["request", request.id] == request
                case ev.RunEnded(run=run):
                    assert written["run", run.id] == run

    def check_grants(self, actions: list[ev.Action]) -> None:
        """Promises 2, 5 and 8, and the order of the queue, for each new grant."""
        beside = (
            len({pool_of(a.lease.slots[0].kind) for a in actions if isinstance(a, ev.Granted)}) > 1
        )
        for action in actions:
            if not isinstance(action, ev.Granted):
                continue
            request, lease = action.request, action.lease
            assert len({slot.device for slot in lease.slots}) == len(lease.slots)
            self.check_layout(request, lease)
            kinds = {pool_of(slot.kind) for slot in lease.slots}
            assert len(kinds) == 1
            if request.want is not Want.DEVICE:
                wanted = Pool.CPU if request.want is Want.CPU else Pool.ACCELERATOR
                assert kinds == {wanted}
            for slot in lease.slots:
                assert slot.node in self.connected
                assert self.spec(slot.node, slot.device).memory >= request.memory
                assert slot.device not in self.state.outside
                assert not any(
                    slot.device in on and not (request.share and id in self.sharing)
                    for id, on in self.processes[slot.node].items()
                ), "still in use"
            if request.share:
                self.sharing.add(lease.id)
            (line,) = kinds
            self.check_promised(lease)
            if lease.booking:
                continue
            self.check_quota(request, lease, line)
            head = next(iter(self.state.queue(line)), None)
            if head is None or (beside and (head.cpus or head.host_memory)):
                continue  # lines share the nodes' cores and memory, and reserve each for itself
            if self.before(head, request) and self.state.leases.get(lease.id) == lease:
                # What it was let past for; it may be expected to last longer once it has begun.
                length = self.state.length_behind(head.id, request)
                ends = {lease.id: math.inf if length is None else self.now + length}
                without = self.earliest(head, line, {lease.id: self.now})
                assert self.earliest(head, line, ends) <= without, "overtaken and delayed"
                suits = [
                    slot
                    for slot in lease.slots
                    if self.suits(slot.node, slot.device, head)
                    and not self.promised(slot.device, self.now, head.time)
                ]
                assert not suits or without < math.inf, "overtaken for an unknown time"

    def check_quota(self, request: Request, lease: Lease, line: Pool) -> None:
        """Nobody is granted more than their queue and they themselves may have."""
        assert (lease.queue, lease.preemptible) == (request.queue, request.preemptible)
        if lease.id in self.state.leases:
            most, own, number = self.left(request.queue, request.user, line)
            assert most >= 0, "the queue is over its quota"
            assert own >= 0, "the user is over their limit"
            assert number >= 0, "the user has too many leases"

    def left(self, queue: str, user: str, line: Pool) -> tuple[float, float, float]:
        """How many more devices a queue and a user may have, and leases the user, by counting."""
        quota = self.state.quota(queue)
        held = [lease for lease in self.state.leases.values() if lease.queue == queue]
        theirs = [lease for lease in held if lease.user == user]
        most = own = number = math.inf
        if line in quota.nominal and quota.borrow is not None:
            most = quota.nominal[line] + quota.borrow - self.devices_of(held, line)
        if quota.user_devices is not None:
            own = quota.user_devices - self.devices_of(theirs, line)
        if quota.user_leases is not None:
            number = quota.user_leases - len(theirs)
        return most, own, number

    def devices_of(self, leases: list[Lease], line: Pool) -> int:
        return sum(pool_of(slot.kind) is line for lease in leases for slot in lease.slots)

    def held_back(self, request: Request, line: Pool) -> str:
        """Why a quota keeps a request waiting, "" where none does."""
        most, own, number = self.left(request.queue, request.user, line)
        own = 0 if number <= 0 else own
        if (request.least or request.count) <= min(most, own):
            return ""
        return "Quota(user)" if own < most else f"Quota(queue {request.queue})"

    def check_promised(self, lease: Lease) -> None:
        """Nobody is granted a device that somebody else has reserved for the lease's time."""
        for slot in lease.slots:
            length = None if lease.expires is None else lease.expires - self.now
            assert not self.promised(slot.device, self.now, length), "granted what is reserved"

    def promised(self, device: str, start: float, length: float | None) -> bool:
        """Whether a device is reserved at any time in that time."""
        end = math.inf if length is None else start + length
        return any(
            device in booking.devices and booking.start < end and booking.end > start
            for booking in self.state.bookings.values()
        )

    def check_layout(self, request: Request, lease: Lease) -> None:
        """As many as were asked for, of the right model, on the right nodes."""
        number = len(lease.slots)
        assert (request.least or request.count) <= number <= request.count
        on = Counter(slot.node for slot in lease.slots)
        if request.placement is Placement.NODE:
            assert len(on) == 1
        for slot in lease.slots:
            assert request.model in self.spec(slot.node, slot.device).name.lower()
            assert request.node in ("", slot.node)
            assert slot.share == (request.memory if request.share else 0)

    def before(self, head: Request, request: Request) -> bool:
        """Whether the policy puts a request that waits before one that was granted."""
        policy = self.state.policy
        if policy.by_user or policy.suspends or self.state._queue.aged(head.id):
            return False
        if self.quotas:  # who is within the nominal quota goes first
            return False
        # One of the two may be the one that was submitted just now.
        order = [*self.accepted, request.id, head.id]
        first, second = ((policy.key(r), order.index(r.id)) for r in (head, request))
        return first < second

    def suits(self, node: str, device: str, request: Request) -> bool:
        """Whether a device will be the request's to take once nobody holds it."""
        return (
            node in self.connected
            and device not in self.state.outside
            and device not in self.state.fleet._blocked
            and will_do(node, self.spec(node, device), request)
        )

    def earliest(self, request: Request, line: Pool, ends: dict[str, float]) -> float:
        """When a request can start by the ends of leases and reservations, by trying every one.

        Ends that are not among `ends` are as far known as counts for a request that is the first.
        """
        known = {
            lease.id: self.state.end_before(request.id, lease, self.now)
            for lease in self.state.leases.values()
        }
        ends = {id: math.inf if end is None else end for id, end in known.items()} | ends
        times = {self.now, *ends.values(), *(b.end for b in self.state.bookings.values())}
        for when in sorted(time for time in times if self.now <= time < math.inf):
            held = [lease for lease in self.state.leases.values() if ends[lease.id] > when]
            if self.fits(request, line, held, when=when):
                return when
        return math.inf

    def fits(
        self,
        request: Request,
        line: Pool,
        held: Iterable[Lease],
        outside: bool = False,
        when: float | None = None,
    ) -> bool:
        """Whether a request could start beside these leases.

        `outside`: and all else out of use. `when`: and beside what is reserved from then on.
        """
        found = [
            self.room(self.state.nodes[node], request, line, held, outside, when)
            for node in self.connected & self.state.nodes.keys()
        ]
        most = max(found, default=0) if request.placement is Placement.NODE else sum(found)
        return most >= (request.least or request.count)

    def room(
        self,
        node: Node,
        request: Request,
        line: Pool,
        held: Iterable[Lease],
        outside: bool,
        when: float | None,
    ) -> int:
        """How many devices a node could give to a request beside these leases."""
        here = [
            (slot, self.state.requests[lease.request])
            for lease in held
            for slot in lease.slots
            if slot.node == node.id
        ]
        number = reserved = 0
        for device in node.devices:
            others = [other for slot, other in here if slot.device == device.id]
            if when is not None and self.promised(device.id, when, request.time):
                usable = device.id not in self.state.outside
                usable = usable and device.id not in self.state.fleet._blocked
                reserved += usable and not others and device.kind is DeviceKind.CPU
                continue
            suits = outside or self.suits(node.id, device.id, request)
            wanted = will_do(node.id, device, request)
            if pool_of(device.kind) is not line or not suits or not wanted:
                continue
            if request.share:
                shared = sum(other.memory for other in others) + request.memory <= device.memory
                number += all(other.share for other in others) and shared
            else:
                number += not others
        if cores := cores_for(request, line):
            used = reserved + sum(cores_for(other, pool_of(slot.kind)) for slot, other in here)
            number = min(number, max(0, CORES[node.id] - used) // cores)
        if request.host_memory:
            used = sum(other.host_memory for _, other in here)
            number = min(number, (HOST_MEMORY[node.id] - used) // request.host_memory)
        return number

    def spec(self, node: str, device: str) -> Device:
        return next(d for d in self.state.nodes[node].devices if d.id == device)

    def pick(self, table: dict[str, Any], index: int) -> Any:
        return list(table.values())[index % len(table)]

    # --- sessions

    def open_session(self, session: str) -> None:
        self.do(ev.SessionOpened(owner=OWNERS[session]))
        self.lost_at.pop(session, None)

    @rule(session=sessions, what=st.sampled_from(["open", "lost", "lost", "dead", "closed"]))
    def session_comes_or_goes(self, session: str, what: str) -> None:
        if what == "open":
            self.open_session(session)
        elif what == "closed":
            self.close_session(session)
        else:
            self.lose_session(session, dead=what == "dead")

    def lose_session(self, session: str, dead: bool) -> None:
        self.do(ev.SessionLost(session=session, dead=dead))
        if dead:
            self.lost_at.pop(session, None)
            assert session not in self.state.sessions
        elif session in self.state.sessions:
            self.lost_at.setdefault(session, self.now)

    def close_session(self, session: str) -> None:
        self.do(ev.SessionClosed(session=session))
        self.lost_at.pop(session, None)
        assert session not in self.state.sessions

    # --- requests and leases

    def submit(self, session: str, **wish: Any) -> list[ev.Action] | AiosError:
        # What a peer says of the state of its request must not be believed.
        request = Request(
            id=self.new_name("r"),
            session=session,
            user=OWNERS[session].user,
            state=RequestState.GRANTED,
            lease="L1",
            **wish,
        )
        answer = self.do(ev.Submitted(request=request))
        if isinstance(answer, list):
            self.accepted.append(request.id)
            assert self.journal["request", request.id].count == request.count
        return answer

    def new_name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def ensure_open(self, session: str) -> None:
        if session not in self.state.sessions:
            self.open_session(session)

    @rule(
        session=sessions,
        want=st.sampled_from(Want),
        count=st.integers(1, 3),
        extra=st.one_of(st.just({}), st.sampled_from(EXTRAS)),
        time=st.sampled_from([None, None, 5.0, 100.0]),
        priority=st.sampled_from([0, 0, -1]),
        scope=st.sampled_from(Scope),
        queue=st.sampled_from(["", "", "default", "team"]),
        preemptible=st.booleans(),
    )
    def submit_a_wish(self, session: str, extra: dict[str, Any], **wish: Any) -> None:
        self.ensure_open(session)
        self.submit(session, **(wish | extra))

    @rule(
        session=sessions,
        extras=st.lists(st.sampled_from(EXTRAS), min_size=2, max_size=6),
        want=st.sampled_from([Want.GPU, Want.GPU, Want.CPU]),
        time=st.sampled_from([None, 5.0, 100.0]),
    )
    def submit_several(
        self, session: str, extras: list[dict[str, Any]], want: Want, time: float | None
    ) -> None:
        self.ensure_open(session)
        for extra in extras:
            self.submit(session, **({"want": want, "count": 1, "time": time} | extra))
            self.a_device_has_at_most_one_lease()

    @rule(
        session=sessions,
        count=st.integers(1, 3),
        scope=st.sampled_from(Scope),
        extra=st.sampled_from([{}, {"preemptible": True}, {"memory": 4 * GB, "share": True}]),
    )
    def submit_and_run(self, session: str, count: int, scope: Scope, extra: dict[str, Any]) -> None:
        self.ensure_open(session)
        answer = self.submit(session, want=Want.GPU, count=count, scope=scope, **extra)
        for action in answer if isinstance(answer, list) else ():
            if isinstance(action, ev.Granted):
                self.start(self.new_run(action.lease))

    @rule(
        session=sessions,
        other=sessions,
        used=st.booleans(),
        ran=st.sampled_from([0.0, 61.0, 700.0]),
        count=st.integers(1, 3),
    )
    def fill_and_be_preempted(
        self, session: str, other: str, used: bool, ran: float, count: int
    ) -> None:
        """What may be taken holds all it can get, and then somebody comes who may go first."""
        self.ensure_open(session)
        for _ in range(3):
            answer = self.submit(session, want=Want.GPU, count=1, preemptible=True, priority=-1)
            for action in answer if isinstance(answer, list) else ():
                if used and isinstance(action, ev.Granted):
                    self.start(self.new_run(action.lease))
        self.tick(ran)
        self.ensure_open(other)
        self.submit(other, want=Want.GPU, count=count)

    @rule(session=sessions)
    def train(self, session: str) -> None:
        self.submit_and_run(session, count=2, scope=Scope.SESSION, extra={})

    @rule(
        session=sessions,
        want=st.sampled_from(Want),
        wish=st.sampled_from(
            [
                {"count": 0},
                {"count": 1, "memory": 99 * GB},
                {"count": 99},
                {"count": 1, "time": 0.0},
                {"count": 2, "least": 3},
                {"count": 2, "least": -1},
                {"count": 1, "share": True},
                {"count": 1, "share": True, "memory": 99 * GB},
                {"count": 1, "model": "h100"},
                {"count": 1, "node": "n7"},
                {"count": 4, "node": "n1"},
                {"count": 3, "placement": Placement.NODE},
                {"count": 1, "cpus": 99},
                {"count": 1, "cpus": -1},
                {"count": 3, "cpus": 3},
                {"count": 1, "host_memory": 2**63},
            ]
        ),
    )
    def submit_nonsense(self, session: str, want: Want, wish: dict[str, Any]) -> None:
        assert isinstance(self.submit(session, want=want, **wish), AiosError)

    @precondition(lambda self: self.state.requests)
    @rule(session=sessions, index=number)
    def submit_again(self, session: str, index: int) -> None:
        request = self.pick(self.state.requests, index)
        again = request.__replace__(session=session, user=OWNERS[session].user)
        answer = self.do(ev.Submitted(request=again))
        if session == request.session:
            assert answer == [], "a retry is the same request"
        else:
            assert isinstance(answer, AccessError)

    @precondition(lambda self: self.state.requests)
    @rule(index=number, by=users, admin=st.booleans())
    def cancel(self, index: int, by: str, admin: bool) -> None:
        request = self.pick(self.state.requests, -1 - index)
        answer = self.do(ev.Cancelled(request=request.id, by=by, admin=admin))
        assert isinstance(answer, AccessError) == (by != request.user and not admin)

    @precondition(lambda self: self.state.requests)
    @rule(index=number, by=users, admin=st.booleans(), priority=st.sampled_from([-1, 0, 2]))
    def reprioritize(self, index: int, by: str, admin: bool, priority: int) -> None:
        request = self.pick(self.state.requests, index)
        answer = self.do(
            ev.Reprioritized(request=request.id, priority=priority, by=by, admin=admin)
        )
        if isinstance(answer, AiosError):
            assert self.state.requests[request.id].priority == request.priority
        else:
            assert admin or (by == request.user and priority <= max(0, request.priority))

    @precondition(lambda self: self.state.leases)
    @rule(index=number, by=users, admin=st.booleans())
    def release(self, index: int, by: str, admin: bool) -> None:
        lease = self.pick(self.state.leases, index)
        answer = self.do(ev.Released(lease=lease.id, by=by, admin=admin))
        assert isinstance(answer, AccessError) == (by != lease.user and not admin)

    @precondition(lambda self: self.state.leases)
    @rule(index=number, by=users, time=st.sampled_from([None, 1.0, 300.0, -1.0]))
    def extend(self, index: int, by: str, time: float | None) -> None:
        lease = self.pick(self.state.leases, index)
        answer = self.do(ev.Extended(lease=lease.id, time=time, by=by))
        assert isinstance(answer, AccessError) == (by != lease.user)

    # --- quotas

    @precondition(lambda self: self.quotas)
    @rule(
        queue=st.sampled_from(["team", "team", "other", "default"]),
        nominal=st.dictionaries(st.sampled_from(list(Pool)), st.integers(0, 3), max_size=2),
        borrow=st.sampled_from([None, None, 0, 1]),
        user_devices=st.sampled_from([None, None, 1, 2]),
        user_leases=st.sampled_from([None, None, 1]),
        weight=st.sampled_from([1.0, 1.0, 4.0]),
        members=st.sampled_from([(), ("ana",), ("ana", "bob")]),
        admin=st.sampled_from([True, True, True, False]),
    )
    def set_quota(self, queue: str, admin: bool, **quota: Any) -> None:
        nominal = {pool.value: number for pool, number in quota.pop("nominal").items()}
        wanted = ev.Quota(nominal=nominal, **quota)
        answer = self.do(ev.QuotaSet(queue=queue, quota=wanted, by="root", admin=admin))
        assert isinstance(answer, AccessError) == (not admin)
        if isinstance(answer, list):
            assert self.state.quota(queue) == wanted

    @precondition(lambda self: self.quotas)
    @rule(queue=st.sampled_from(["team", "other"]))
    def remove_quota(self, queue: str) -> None:
        self.do(ev.QuotaRemoved(queue=queue, by="root", admin=True))
        for lease in self.state.leases.values():
            assert lease.queue != queue
        for request in self.state.queue():
            assert request.queue != queue

    # --- reservations and other times

    def reserve(self, session: str, admin: bool = False, **wish: Any) -> Any:
        """The reservation, or the error."""
        self.ensure_open(session)
        # Which devices it gets is not the peer's to say.
        booking = Booking(
            id=self.new_name("b"),
            session=session,
            user=OWNERS[session].user,
            devices=("n0-g0", "n0-g1"),
            **wish,
        )
        answer = self.do(ev.Booked(booking=booking, admin=admin))
        if isinstance(answer, AiosError):
            return answer
        kept = self.state.bookings[booking.id]
        assert len(set(kept.devices)) == booking.count
        again = booking.__replace__(start=1.0)
        assert self.do(ev.Booked(booking=again)) == [], "a retry is the same reservation"
        own = [b for b in self.state.bookings.values() if b.user == booking.user]
        assert admin or sum(b.count * b.time for b in own) <= RESERVE_LIMIT
        return kept

    @rule(
        session=sessions,
        want=st.sampled_from([Want.GPU, Want.GPU, Want.CPU]),
        count=st.integers(1, 3),
        ahead=st.sampled_from([1.0, 5.0, 60.0, 100.0]),
        time=st.sampled_from([10.0, 100.0, 300.0, 700.0]),
        memory=st.sampled_from([0, 0, 16 * GB]),
        admin=st.booleans(),
        asks=st.lists(
            st.tuples(st.integers(1, 3), st.sampled_from([None, 1.0, 5.0, 100.0, 400.0])),
            max_size=3,
        ),
    )
    def reserve_and_ask(
        self,
        session: str,
        ahead: float,
        asks: list[tuple[int, float | None]],
        **wish: Any,
    ) -> None:
        self.reserve(session, start=self.now + ahead, **wish)
        for count, time in asks:
            self.submit(session, want=wish["want"], count=count, time=time)

    @rule(
        session=sessions,
        wrong=st.sampled_from(
            [
                {"count": 0},
                {"count": -1},
                {"count": 99},
                {"memory": 99 * GB},
                {"start": 999.0 - 1e6},
                {"start": math.nan},
                {"start": 1e12},
                {"time": 0.0},
                {"time": math.inf},
                {"time": 1e9},
            ]
        ),
    )
    def reserve_nonsense(self, session: str, wrong: dict[str, Any]) -> None:
        wish = {"want": Want.GPU, "count": 1, "start": self.now + 5.0, "time": 10.0}
        assert isinstance(self.reserve(session, **{**wish, **wrong}), AiosError)

    @precondition(lambda self: self.state.bookings)
    @rule(early=st.sampled_from([0.0, 0.0, 0.5]))
    def wait_for_a_reservation(self, early: float) -> None:
        """The clock goes to a reservation's start, by way of all that is due before."""
        start = min(booking.start for booking in self.state.bookings.values()) - early
        while (due := self.state.next_deadline()) is not None and due < start:
            self.tick(max(0.0, due - self.now))
        if start > self.now:
            self.tick(start - self.now)

    @precondition(lambda self: self.state.bookings)
    @rule(index=number, by=users, session=sessions)
    def claim(self, index: int, by: str, session: str) -> None:
        self.ensure_open(session)
        known = [*self.state.bookings, *self.state._lease_of]
        id = known[index % len(known)]
        user = self.user_of(id)
        answer = self.do(ev.Claimed(booking=id, session=session, by=OWNERS[session].user))
        assert isinstance(answer, AccessError) == (OWNERS[session].user != user)
        if isinstance(answer, list) and id in self.state._lease_of:
            assert self.state.leases[self.state._lease_of[id]].session == session

    @precondition(lambda self: self.state.bookings)
    @rule(index=number, by=users)
    def cancel_reservation(self, index: int, by: str) -> None:
        known = [*self.state.bookings, *self.state._lease_of]
        id = known[index % len(known)]
        user = self.user_of(id)
        answer = self.do(ev.Cancelled(request=id, by=by))
        assert isinstance(answer, AccessError) == (by != user)
        if isinstance(answer, list):
            assert id not in self.state.bookings

    def user_of(self, booking: str) -> str:
        state = self.state
        if booking in state.bookings:
            return state.bookings[booking].user
        return state.leases[state._lease_of[booking]].user

    @rule(seconds=st.sampled_from([None, 50.0]), name=st.sampled_from(["idle", "max-time"]))
    def limit(self, seconds: float | None, name: str) -> None:
        answer = self.do(ev.LimitChanged(name=name, seconds=seconds, by="root", admin=True))
        assert isinstance(answer, list)
        assert isinstance(
            self.do(ev.LimitChanged(name=name, seconds=seconds, by="ana")), AccessError
        )

    @precondition(lambda self: self.state.leases)
    @rule(index=number, idle=st.booleans(), ago=st.sampled_from([0.0, 50.0, -10.0]))
    def find_idle_or_busy(self, index: int, idle: bool, ago: float) -> None:
        id = self.pick(self.state.leases, index).id
        if idle:
            self.do(ev.FoundIdle(lease=id, since=self.now - ago))
        else:
            self.do(ev.FoundBusy(lease=id))
            assert self.state.leases[id].state is LeaseState.ENDING or (
                self.state.leases[id].idle_since is None
            )

    @precondition(lambda self: self.state.requests)
    @rule(index=number, ahead=st.sampled_from([0.0, 60.0, 3600.0]))
    def tell_a_forecast(self, index: int, ahead: float) -> None:
        request = self.pick(self.state.requests, index)
        eta = self.now + ahead
        self.do(ev.ForecastTold(request=request.id, eta=eta, earliest=self.now, latest=eta))

    # --- nodes

    @rule(node=nodes, healthy=st.sampled_from([True, True, True, False]), alive=st.booleans())
    def join(self, node: str, healthy: bool, alive: bool) -> None:
        """An agent connects; `alive`: it and its processes outlived what came before."""
        if not alive:
            self.processes[node].clear()
            self.told_to_end = {pair for pair in self.told_to_end if pair[0] != node}
        self.connected.add(node)
        self.down_at.pop(node, None)
        offer = MACHINES[node][0 if healthy else 1]
        port = 1 if healthy else 2
        self.do(
            ev.NodeJoined(
                node=Node(
                    id=node,
                    host=node,
                    address=f"{node}:{port}",
                    pid=1,
                    devices=offer,
                    cpus=CORES[node],
                    memory=HOST_MEMORY[node],
                ),
                held=tuple(self.processes[node]),
            )
        )
        for lease in self.state.leases.values():
            for slot in lease.slots:
                if slot.node == node and lease.state is LeaseState.ACTIVE:
                    assert slot.address == f"{node}:{port}"

    @precondition(lambda self: self.connected)
    @rule(node=nodes)
    def disconnect(self, node: str) -> None:
        if node in self.connected:
            self.down_at[node] = self.now
        self.connected.discard(node)
        self.do(ev.NodeLost(node=node))

    @precondition(lambda self: self.connected)
    @rule(node=nodes, index=number, busy=st.sampled_from([True, True, False]))
    def use_outside(self, node: str, index: int, busy: bool) -> None:
        device = MACHINES[node][0][index % len(MACHINES[node][0])]
        outside = {device.id: (Process(pid=index + 1),)} if busy else {}
        self.do(ev.OutsideReported(node=node, outside=outside))

    def agent_confirms(self, node: str, lease: str) -> None:
        self.told_to_end.discard((node, lease))
        self.processes[node].pop(lease, None)
        if node in self.connected:
            self.do(ev.RanksGone(node=node, lease=lease))

    @precondition(lambda self: self.told_to_end)
    @rule(index=number)
    def confirm(self, index: int) -> None:
        pairs = sorted(self.told_to_end)
        self.agent_confirms(*pairs[index % len(pairs)])

    @precondition(lambda self: self.state.leases)
    @rule(node=nodes, index=number)
    def confirm_what_nobody_asked(self, node: str, index: int) -> None:
        lease = self.pick(self.state.leases, index).id
        if node in self.connected and lease not in self.processes[node]:
            self.do(ev.RanksGone(node=node, lease=lease))
            self.told_to_end.discard((node, lease))

    # --- runs

    def new_run(self, lease: Lease) -> Run:
        return Run(
            id=self.new_name("x"),
            lease=lease.id,
            session=lease.session,
            user=lease.user,
            kind=RunKind.TRAIN,
            name="t",
            world_size=len(lease.slots),
            nodes=tuple(dict.fromkeys(slot.node for slot in lease.slots)),
            state=RunState.FAILED,
        )

    def start(self, run: Run) -> None:
        assert isinstance(self.do(ev.RunCreated(run=run)), list)
        lease = self.state.leases[run.lease]
        assert lease.used
        for slot in lease.slots:
            if slot.node in self.connected:
                self.processes[slot.node].setdefault(lease.id, set()).add(slot.device)

    @precondition(lambda self: self.state.leases)
    @rule(index=number, restarts=st.sampled_from([0, 0, 1, 2]))
    def create_run(self, index: int, restarts: int) -> None:
        lease: Lease = self.pick(self.state.leases, index)
        if lease.state is LeaseState.ACTIVE:
            self.start(self.new_run(lease).__replace__(max_restarts=restarts))
        else:
            assert isinstance(self.do(ev.RunCreated(run=self.new_run(lease))), AiosError)

    @precondition(lambda self: self.state.leases)
    @rule(
        index=number,
        wrong=st.sampled_from(
            [{"user": "eve"}, {"world_size": 9}, {"world_size": 0}, {"nodes": ("n9",)}]
        ),
    )
    def create_a_wrong_run(self, index: int, wrong: dict[str, Any]) -> None:
        run = self.new_run(self.pick(self.state.leases, index)).__replace__(**wrong)
        assert isinstance(self.do(ev.RunCreated(run=run)), AiosError)

    @precondition(lambda self: self.state.runs)
    @rule(index=number, state=st.sampled_from([None, *RunState]), done=st.integers(0, 9))
    def report(self, index: int, state: RunState | None, done: int) -> None:
        run = self.pick(self.state.runs, index)
        progress = Progress(done=done, total=9)
        said = {"progress": progress, "metrics": {"a": done}, "detail": {"checkpoint": done}}
        self.do(ev.RunReported(run=run.id, state=state, **said))
        assert (self.state.runs[run.id].state in LIVE) == (run.state in LIVE)

    @precondition(lambda self: self.state.runs)
    @rule(
        index=number,
        rank=st.integers(0, 3),
        code=st.sampled_from([0, 0, 1, -9]),
        stale=st.sampled_from([False, False, True]),
        final=st.sampled_from([False, False, True]),
        origin=st.sampled_from(Origin),
    )
    def exit_rank(
        self, index: int, rank: int, code: int, stale: bool, final: bool, origin: Origin
    ) -> None:
        run: Run = self.pick(self.state.runs, index)
        exit = RankExit(
            rank=rank, code=code, time=self.now, attempt=run.attempt - stale, origin=origin
        )
        lease = self.state.leases.get(run.lease)
        slots = lease.slots[: run.world_size] if lease and run.state in LIVE else ()
        if rank < len(slots):
            others = set(run.nodes) - {slots[rank].node}
            final = final and not any(map(self.state.node_up, others))
        actions = self.do(ev.RankExited(run=run.id, exit=exit, final=final))
        assert isinstance(actions, list)
        after = self.state.runs[run.id]
        if stale or run.awaits:
            assert after == run, "an exit of an earlier attempt changes nothing"
            return
        new = rank < run.world_size and rank not in {known.rank for known in run.exits}
        counted = new and run.state in LIVE
        again = run.attempt - run.uncounted < run.max_restarts and not final
        if counted and code and run.state in (RunState.STARTING, RunState.RUNNING):
            why = after.detail["failures"][-1]["reason"] if again else after.reason
            assert f"rank {rank}" in why
            states = (RunState.RESTARTING, RunState.STARTING) if again else _ENDING
            assert after.state in states
        if counted and final and code:
            assert after.state in _ENDING
        if run.state in LIVE:
            exited = {known.rank for known in run.exits} | ({rank} if counted else set())
            left = {slot.node for number, slot in enumerate(slots) if number not in exited}
            restarted = after.attempt == run.attempt + 1
            assert restarted == any(isinstance(a, ev.MeetAgain) for a in actions)
            if any(map(self.state.node_up, left)):
                assert after.state in LIVE
                assert not restarted, "ranks of the attempt before are at work"
            elif not left:
                waits = after.state is RunState.RESTARTING
                assert restarted or waits or after.state not in LIVE
                ending = lease is not None and lease.state is not LeaseState.ACTIVE
                lost = not all(map(self.state.node_up, run.nodes))
                assert not waits or ending or lost, "nothing to wait for"
            assert not restarted or after.state is RunState.STARTING
        assert after.attempt - after.uncounted <= after.max_restarts

    @precondition(lambda self: self.state.runs)
    @rule(index=number, stale=st.booleans())
    def meet(self, index: int, stale: bool) -> None:
        run: Run = self.pick(self.state.runs, index)
        met = ev.Met(run=run.id, attempt=run.attempt - stale, address="n", port=1)
        actions = self.do(met)
        assert isinstance(actions, list)
        started = any(isinstance(action, ev.StartAgain) for action in actions)
        assert started == (run.state is RunState.STARTING and not stale)

    @precondition(lambda self: self.state.runs)
    @rule(index=number, by=users)
    def stop_run(self, index: int, by: str) -> None:
        run = self.pick(self.state.runs, index)
        answer = self.do(ev.StopRequested(run=run.id, by=by, reason=f"stopped by {by}"))
        assert isinstance(answer, AccessError) == (by != run.user)

    # --- time and crashes

    @rule(seconds=st.sampled_from([0.0, 1.0, 1.0, 10.0, 61.0, 61.0, 700.0, -5.0, -3600.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        if self.now < self.ticked:
            for table in (self.lost_at, self.down_at):
                table.update({key: min(since, self.now) for key, since in table.items()})
        self.ticked = self.now
        self.do(ev.Tick())
        self.check_deadlines()

    def check_deadlines(self) -> None:
        """Promise 5: who is gone for longer than the grace holds nothing, on no machine."""
        for lease in self.state.leases.values():
            if lease.state is LeaseState.ACTIVE:
                assert lease.expires is None or lease.expires > self.now
                assert lease.idle_ends is None or lease.idle_ends > self.now
                if lease.expires is not None and not lease.warned:
                    assert lease.expires - self.now > WARN_BEFORE or (
                        lease.expires - self.now > 0.1 * (lease.expires - lease.granted)
                    )
        for booking in self.state.bookings.values():
            assert booking.end > self.now
        for session, since in list(self.lost_at.items()):
            if OWNERS[session].keep is Keep.CONNECTION and self.now - since >= OWNER_GRACE:
                assert session not in self.state.sessions
                del self.lost_at[session]
        for node, since in self.down_at.items():
            if self.now - since >= NODE_GRACE:
                for lease in self.state.leases.values():
                    if any(slot.node == node for slot in lease.slots):
                        assert lease.state is LeaseState.ENDING
            if self.now - since >= NODE_MEMORY:
                assert node not in self.state.nodes
        deadline = self.state.next_deadline()
        assert deadline is None or deadline > self.now

    @rule()
    def crash(self) -> None:
        self.tick(0.0)
        self.restart([request.id for request in self.state.queue()])

    def restart(self, queue: list[str]) -> None:
        self.state = new_state(self.policy)
        for node in MACHINES:
            if node in self.connected or node in self.down_at:
                self.down_at[node] = self.now
        self.connected.clear()
        self.unseen = True
        self.ticked = self.now
        records = [(kind, id, record) for (kind, id), record in self.journal.items()]
        actions = self.state.restore(records, self.now)
        self.check_order(actions)
        self.carry_out(actions)
        self.lost_at = dict.fromkeys(self.state.sessions, self.now)
        again = [request.id for request in self.state.queue()]
        # Two go by leases that may have ended too, as do those who are within a quota.
        if not (self.quotas or self.state.policy.by_user or self.policy == "gittins"):
            assert again == [id for id in queue if id in again], "the queue's order"
        for name in set(queue) - set(again):
            assert self.state.requests[name].reason

    @rule(session=sessions, submits=st.booleans())
    def crash_before_anything_is_written(self, session: str, submits: bool) -> None:
        """What was decided but not committed has been seen by nobody, and never happened."""
        self.ensure_open(session)
        event: ev.Event = ev.SessionClosed(session=session)
        if submits:
            user = OWNERS[session].user
            event = ev.Submitted(
                request=Request(id="lost", session=session, user=user, want=Want.CPU, count=1)
            )
        self.tick(0.0)
        queue = [request.id for request in self.state.queue()]
        try:
            self.state.handle(event, self.now)
        except AiosError:
            assert submits  # every node has been forgotten
        self.restart(queue)
        assert "lost" not in self.state.requests

    # --- what always holds

    @invariant()
    def a_device_has_at_most_one_lease(self) -> None:
        """Promise 1."""
        holders: dict[str, list[Lease]] = {}
        cores, memory = Counter[str](), Counter[str]()
        for lease in self.state.leases.values():
            request = self.state.requests[lease.request]
            for slot in lease.slots:
                holders.setdefault(slot.device, []).append(lease)
                cores[slot.node] += cores_for(request, pool_of(slot.kind))
                memory[slot.node] += request.host_memory
        assert self.state.holder.keys() == holders.keys()
        for device, leases in holders.items():
            assert self.state.holder[device] in {lease.id for lease in leases}
            shares = self.state.fleet.shares(device)
            requests = {lease.id: self.state.requests[lease.request] for lease in leases}
            assert shares == {id: r.memory if r.share else 0 for id, r in requests.items()}
            if len(leases) > 1:
                assert all(shares.values()), "a share beside a lease of the whole device"
            assert sum(shares.values()) <= SIZES[device], "more than there is"
        assert all(cores[node] <= CORES[node] for node in cores)
        assert all(memory[node] <= HOST_MEMORY[node] for node in memory)
        on_device: dict[str, set[str]] = {}
        for held in self.processes.values():
            for lease_id, on in held.items():
                for device in on:
                    on_device.setdefault(device, set()).add(lease_id)
        assert all(len(ids) == 1 or ids <= self.sharing for ids in on_device.values()), (
            "processes of two leases on one device"
        )

    @invariant()
    def a_gang_is_whole(self) -> None:
        """Promise 2."""
        for lease in self.state.leases.values():
            request = self.state.requests[lease.request]
            assert (request.least or request.count) <= len(lease.slots) <= request.count

    @invariant()
    def the_journal_has_it_all(self) -> None:
        """Promise 3: what a restart would read is what is."""
        records = {(kind, id): record for kind, id, record in self.state.records()}
        assert self.journal == records

    @invariant()
    def what_was_accepted_is_queued_granted_or_ended(self) -> None:
        """Promise 4."""
        queue = {request.id for request in self.state.queue()}
        for name in self.accepted:
            request = self.state.requests[name]
            assert (request.state is RequestState.QUEUED) == (name in queue)
            if request.state is RequestState.GRANTED:
                lease = self.state.leases[request.lease]
                assert lease.state is LeaseState.ACTIVE or self.comes_back(lease)
            elif request.state is RequestState.ENDED:
                assert request.reason
            else:
                assert self.state.reason(name)
        for lease in self.state.leases.values():
            granted = self.state.requests[lease.request].state is RequestState.GRANTED
            if granted:
                assert lease.state is LeaseState.ACTIVE or self.comes_back(lease)
            else:
                assert lease.state is LeaseState.ENDING
                assert lease.reason

    def comes_back(self, lease: Lease) -> bool:
        """Whether a lease was taken for others and its request is to wait again."""
        again = lease.scope is Scope.SESSION or lease.resumes
        return lease.preempted and lease.preemptible and again

    @invariant()
    def forecasts_are_of_those_who_wait(self) -> None:
        queue = {request.id for request in self.state.queue()}
        assert self.state._foretold.keys() <= queue
        for pool in Pool:
            for hit in self.state.hits(pool).hits:
                assert hit.ahead >= 0

    @invariant()
    def nobody_holds_anything_without_a_session(self) -> None:
        """Promise 5."""
        for lease in self.state.leases.values():
            apart = lease.scope in (Scope.DETACHED, Scope.RESERVED)
            if lease.state is LeaseState.ACTIVE and not apart:
                assert lease.session in self.state.sessions
        for request in self.state.queue():
            assert request.session in self.state.sessions or request.id in self.awaited()
        for run in self.state.runs.values():
            assert run.state not in LIVE or run.lease in self.state.leases or run.awaits
        for request in self.awaited():
            assert self.state.requests[request].state is RequestState.QUEUED

    def awaited(self) -> set[str]:
        """Requests for whose lease a run waits."""
        live = [run for run in self.state.runs.values() if run.state in LIVE]
        return {run.awaits for run in live if run.awaits}

    @invariant()
    def what_fits_does_not_wait(self) -> None:
        """The head of each line waits only while it does not fit, and says what it lacks."""
        state = self.state
        for pool in Pool:
            head = state._queue.head(pool)
            if head is None:
                continue
            request = state.requests[head]
            reason = state.reason(head)
            assert not self.fits(request, pool, state.leases.values(), when=self.now)
            if self.fits(request, pool, state.leases.values()):
                assert self.keeps(reason)
                continue
            assert (reason == "NodeDown") != self.fits(request, pool, (), outside=True)
            blocked, state.fleet._blocked = state.fleet._blocked, {}
            assert (reason == "Resources") == self.fits(request, pool, ())
            state.fleet._blocked = blocked

    def keeps(self, reason: str) -> bool:
        """Whether a reason names a reservation that keeps a device that could be had without it."""
        booking = self.state.bookings[reason.removeprefix("Reservation(for ").rstrip(")")]
        fleet = self.state.fleet
        free = fleet.branch()
        return any(
            free.has(fleet.slot(id)) or any(fleet.shares(id).values())
            for id in booking.devices
            if id in fleet
        )

    @invariant()
    def what_is_reserved_can_be_had(self) -> None:
        """A device is given to who reserved it at the time: nobody holds it for longer."""
        state = self.state
        for booking in state.bookings.values():
            assert len(set(booking.devices)) == booking.count
            others = [b for b in state.bookings.values() if b.id != booking.id]
            for other in others:
                apart = other.end <= booking.start or booking.end <= other.start
                assert apart or not set(other.devices) & set(booking.devices)
            for device in booking.devices:
                for lease in map(state.leases.__getitem__, state.fleet.shares(device)):
                    if lease.state is not LeaseState.ACTIVE:
                        continue
                    assert lease.expires is not None
                    assert lease.expires <= booking.start, f"held beyond {booking.start}"
            if booking.start > self.now or booking.end <= self.now or self.unseen:
                continue
            # A CPU slot needs a core of its node, which leases may have otherwise.
            stock = state.fleet.branch()
            free = {
                device.id
                for node in self.connected & state.nodes.keys()
                for device in state.nodes[node].devices
                if pool_of(device.kind) is Pool(booking.pool)
                and device.memory >= booking.memory
                and not (device.id in state.holder or device.id in state.outside)
                and device.id not in state.fleet._blocked
                and stock.has(state.fleet.slot(device.id))
            }
            spare = {
                id
                for id in free - set(booking.devices)
                if not self.promised(id, self.now, booking.end - self.now)
            }
            assert not spare, "it could have another device"
            assert not set(booking.devices) <= free, "it has begun and could start"

    @invariant()
    def who_waits_behind_knows_why(self) -> None:
        """Promise 7: what would fit names for whom the devices are kept, and only that does."""
        state = self.state
        for pool in Pool:
            queue = state.queue(pool)
            head = queue[0] if queue else None
            for request in queue:
                reason = state.reason(request.id)
                held = self.held_back(request, pool)
                if held:
                    assert reason == held
                elif request is head:
                    continue
                elif not self.fits(request, pool, state.leases.values()):
                    assert reason == "Priority"
                elif not self.fits(request, pool, state.leases.values(), when=self.now):
                    assert self.keeps(reason)
                else:
                    assert reason == f"Reservation(for {head.id})"

    def teardown(self) -> None:
        """Once every node is back and has confirmed, nothing is left half ended."""
        for node in MACHINES:
            self.join(node, healthy=True, alive=True)
        while self.told_to_end:
            self.agent_confirms(*min(self.told_to_end))
        state = self.state
        assert all(lease.state is LeaseState.ACTIVE for lease in state.leases.values())
        assert not state.fleet._blocked
        assert not state._unconfirmed
        for held in self.processes.values():
            for lease in held:
                assert state.leases[lease].state is LeaseState.ACTIVE
        for session in OWNERS:
            self.close_session(session)
        assert not state.queue()
        apart = (Scope.DETACHED, Scope.RESERVED)
        assert all(lease.scope in apart or lease.used for lease in state.leases.values())


TestBroker = Broker.TestCase
TestBroker.settings = settings(
    max_examples=250,
    stateful_step_count=80,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Sjf(Broker):
    policy = "sjf"


class Priority(Broker):
    policy = "priority"


class Fair(Broker):
    policy = "fair"


class Las(Broker):
    policy = "las"


class Gittins(Broker):
    policy = "gittins"


class Limited(Broker):
    quotas = True


class LimitedFair(Broker):
    policy = "fair"
    quotas = True


class LimitedLas(Broker):
    policy = "las"
    quotas = True


class Reserving(Broker):
    """Healthy machines and few surprises, so that reservations and requests meet."""

    session_comes_or_goes = submit_nonsense = submit_again = reserve_nonsense = limit = None
    disconnect = use_outside = confirm_what_nobody_asked = create_a_wrong_run = report = None
    stop_run = exit_rank = find_idle_or_busy = crash_before_anything_is_written = None

    @rule()
    def crash(self) -> None:
        super().crash()
        for node in MACHINES:
            self.join(node, healthy=True, alive=True)


TestReserving = Reserving.TestCase
TestReserving.settings = settings(TestBroker.settings, max_examples=150)
TestSjf, TestPriority, TestFair = Sjf.TestCase, Priority.TestCase, Fair.TestCase
TestLas, TestGittins, TestLimited = Las.TestCase, Gittins.TestCase, Limited.TestCase
TestLimitedFair, TestLimitedLas = LimitedFair.TestCase, LimitedLas.TestCase
OTHERS = (
    *(TestSjf, TestPriority, TestFair, TestLas, TestGittins),
    *(TestLimited, TestLimitedFair, TestLimitedLas),
)
for other in OTHERS:
    other.settings = settings(TestBroker.settings, max_examples=60)
