"""Idle leases: found by what nodes report, warned, and ended unless something is computed."""

from __future__ import annotations

from typing import Any

import pytest
from simulated import HOUR, Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.idle import BUSY, Activity
from aios_jupyter.errors import AccessError, UsageError
from aios_jupyter.schema import LeaseState, Owner, Run, RunKind, Usage

LIMIT, GRACE = 1800.0, 300.0


class World(Cluster):
    """A cluster that looks for idle leases, once a minute."""

    def __init__(self, limit: float | None = LIMIT) -> None:
        super().__init__("fifo")
        self.activity = Activity(0.0)
        if limit:
            self.set_limit(limit)

    def set_limit(self, seconds: float | None, queue: str = "", admin: bool = True) -> None:
        self.do(ev.LimitChanged(name="idle", queue=queue, seconds=seconds, by="root", admin=admin))

    def sample(self, device: str, utilization: float | None) -> None:
        usage = [Usage(device=device, utilization=utilization)]
        self.activity.sampled(self.state, usage, self.now)

    def sweep(self) -> list[Any]:
        found = list(self.activity.findings(self.state, self.now))
        for event in found:
            self.do(event)
        return found

    def minutes(self, count: int, utilization: float | None = 0.0) -> None:
        for _ in range(count):
            self.wait(60.0)
            for device in list(self.state.holder):
                self.sample(device, utilization)
            self.sweep()

    def held(self, count: int = 1, **wish: Any) -> str:
        return str(self.state.requests[self.ask(count, **wish)].lease)

    def run(self, lease: str, kind: RunKind = RunKind.TRAIN) -> None:
        held = self.state.leases[lease]
        self.do(
            ev.RunCreated(
                run=Run(
                    id="x1", lease=lease, session=held.session, user=held.user,
                    kind=kind, name="t", world_size=1, nodes=("g",),
                )
            )
        )  # fmt: skip


def test_an_idle_lease_is_warned_and_then_ended_with_the_reason() -> None:
    world = World()
    lease = world.held()
    world.minutes(29)
    assert world.state.leases[lease].idle_since is None
    world.minutes(1)
    found = world.state.leases[lease]
    assert (found.idle_since, found.idle_ends) == (0.0, LIMIT + GRACE)
    (notice,) = [a for a in world.told if isinstance(a, ev.Notice)]
    assert notice.text == (
        f"Nothing has been computed on lease {lease} for 30 min: it ends in 5 min unless it is used."
    )
    world.minutes(5)
    assert lease not in world.state.leases
    (request,) = world.state.requests.values()
    assert request.reason == "idle for 35 min"


@pytest.mark.parametrize("utilization", [BUSY + 0.1, 100.0, None])
def test_what_computes_or_cannot_be_measured_is_not_idle(utilization: float | None) -> None:
    world = World()
    lease = world.held()
    world.minutes(90, utilization)
    assert world.state.leases[lease].idle_since is None


def test_one_busy_device_keeps_the_whole_lease() -> None:
    world = World()
    lease = world.held(2)
    busy = world.state.leases[lease].slots[1].device
    for _ in range(60):
        world.minutes(1)
        world.sample(busy, 50.0)
    assert world.state.leases[lease].idle_since is None


def test_computing_again_takes_the_warning_back() -> None:
    world = World()
    lease = world.held()
    world.minutes(32)
    assert world.state.leases[lease].idle_since is not None
    world.minutes(1, 40.0)
    assert world.state.leases[lease].idle_since is None
    world.minutes(29)
    assert world.state.leases[lease].idle_since is None
    world.minutes(2)
    assert world.state.leases[lease].idle_since == 33 * 60.0


def test_a_run_that_says_how_far_it_is_computes_and_one_that_hangs_is_named() -> None:
    world = World()
    lease = world.held()
    world.run(lease)
    for _ in range(40):
        world.minutes(1)
        world.activity.note(lease, world.now)
    assert world.state.leases[lease].idle_since is None
    world.minutes(30)
    assert "though its run x1 has not ended (does it hang?)" in world.told[-1].text
    world.minutes(5)
    assert world.state.leases[lease].state is LeaseState.ENDING
    end = next(a for a in world.told if isinstance(a, ev.EndLease))
    assert (end.grace, end.reason) == (30.0, "idle for 35 min")


def test_without_a_limit_nothing_is_idle_and_each_queue_has_its_own() -> None:
    world = World(limit=None)
    lease = world.held()
    world.minutes(300)
    assert world.state.leases[lease].idle_since is None
    world.set_limit(60.0, queue="batch")
    world.minutes(5)
    assert world.state.leases[lease].idle_since is None, "it is in no queue of that name"
    world.set_limit(60.0)
    world.minutes(1)
    assert world.state.leases[lease].idle_since is not None
    world.set_limit(None)
    assert world.state.leases[lease].idle_since is None
    world.minutes(30)
    assert lease in world.state.leases


def test_while_its_node_is_down_nobody_knows() -> None:
    world = World()
    lease = world.held()
    world.wait(29 * 60.0)
    world.do(ev.NodeLost(node="g"))
    world.wait(50.0)
    world.do(ev.Tick())
    world.now = LIMIT + 30.0
    assert world.sweep() == []
    assert world.state.leases[lease].idle_since is None


def test_after_a_restart_it_begins_anew_and_a_warned_lease_has_its_grace_again() -> None:
    world = World()
    warned = world.held()
    world.minutes(32)
    assert world.state.leases[warned].idle_ends == LIMIT + GRACE
    nodes = list(world.state.nodes.values())
    world.restart()
    world.activity = Activity(world.now)
    for node in nodes:
        world.do(ev.NodeJoined(node=node))
    world.do(ev.SessionOpened(owner=Owner(id="ana", user="ana")))
    assert world.state.idle_limits == {"": LIMIT}
    assert world.state.leases[warned].idle_ends == world.now + GRACE
    other = world.held()
    world.minutes(4)
    assert {warned, other} <= world.state.leases.keys()
    world.minutes(1)
    assert warned not in world.state.leases
    assert world.state.leases[other].idle_since is None


def test_a_clock_that_jumps_back_makes_nothing_idle() -> None:
    world = World()
    world.now = HOUR
    lease = world.held()
    world.sample(world.state.leases[lease].slots[0].device, 90.0)
    world.now = 600.0
    world.do(ev.Tick())
    assert world.sweep() == []
    world.minutes(29)
    assert world.state.leases[lease].idle_since is None
    world.minutes(2)
    assert world.state.leases[lease].idle_since is not None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_limits_that_make_no_sense_are_refused(seconds: float) -> None:
    world = World()
    with pytest.raises(UsageError):
        world.set_limit(seconds)
    assert world.state.idle_limits == {"": LIMIT}


def test_only_admins_set_limits_and_only_those_that_there_are() -> None:
    world = World()
    with pytest.raises(AccessError):
        world.set_limit(60.0, admin=False)
    for name, queue in (("sleep", ""), ("max-time", "batch")):
        wrong = ev.LimitChanged(name=name, queue=queue, seconds=5.0, by="root", admin=True)
        with pytest.raises(UsageError):
            world.do(wrong)


def test_a_lease_with_a_limit_of_its_own_needs_no_policy() -> None:
    world = World(limit=None)
    own, other = world.held(idle=600.0), world.held()
    world.minutes(10)
    assert world.state.leases[own].idle_since is not None
    world.minutes(5)
    assert list(world.state.leases) == [other]


def test_of_two_limits_the_shorter_one_counts() -> None:
    world = World()
    short, long = world.held(idle=600.0), world.held(idle=9000.0)
    world.minutes(10)
    idle = {id: lease.idle_since for id, lease in world.state.leases.items()}
    assert idle == {short: 0.0, long: None}
    world.minutes(20)
    assert world.state.leases[long].idle_since is not None


def test_a_kernel_is_told_what_it_keeps_and_its_node_is_asked_before_its_devices_are_free() -> None:
    world = World()
    lease = world.held()
    session = world.state.leases[lease].session
    owner = world.state.sessions[session]
    world.do(ev.SessionOpened(owner=ev.replace(owner, pid=7, kernel=True)))
    world.minutes(30)
    (notice,) = [a for a in world.told if isinstance(a, ev.Notice)]
    assert "the kernel's variables too, unless it has something on a GPU" in notice.text
    world.minutes(5)
    assert world.state.leases[lease].state is LeaseState.ENDING
    world.do(ev.RanksGone(lease=lease, node="g"))
    assert lease not in world.state.leases


def test_a_kernel_on_the_node_of_its_devices_is_told_that_it_ends_with_them() -> None:
    world = World()
    lease = world.held()
    world.run(lease, RunKind.KERNEL)
    world.minutes(40)
    notice = next(a for a in world.told if isinstance(a, ev.Notice))
    assert "ended with its variables" in notice.text
    assert "does it hang" not in notice.text
    assert next(a for a in world.told if isinstance(a, ev.EndLease)).lease == lease
