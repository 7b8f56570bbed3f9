"""Machines that are only lent: who waits for those to come, and what becomes of those that are gone."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from worlds import World, make_node

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.demand import demand_of
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.reasons import why
from aios_jupyter.errors import AiosError, AllocationError, ConflictError
from aios_jupyter.schema import Booking, LeaseState, Node, RequestState, RunState, Want

DAY, HOUR = 86400.0, 3600.0


def to_come(name: str = "job", gpus: int = 2) -> Node:
    return make_node(name, gpus=gpus).__replace__(address="", host="", pid=0)


def gone(world: World, node: str = "job", reason: str = "Slurm job 7 was cancelled") -> None:
    world.do(ev.NodeGone(node=node, reason=reason))


def test_who_asks_for_what_is_to_come_waits_for_it_however_long_that_takes() -> None:
    world = World(make_node("here", slots=2))
    world.do(ev.NodeExpected(node=to_come()))
    request = world.ask(2)
    assert world.state.reason(request.id) == "NodeExpected(job)"
    told = why(world.state, request, "NodeExpected(job)", 1)
    assert told == "It waits for node job, which is yet to come; 'aios node ls' says why."
    world.pass_time(30 * DAY)
    world.do(ev.NodeExpected(node=to_come()))
    world.restart()
    world.open("s")
    world.pass_time(DAY)
    assert world.state.is_expected("job")
    assert world.state_of(request) is RequestState.QUEUED
    world.do(ev.NodeJoined(node=make_node("job", gpus=2)))
    assert world.devices(request) == ["job-g0", "job-g1"]
    assert not world.state.is_expected("job")


def test_who_waits_for_a_node_that_never_comes_is_told() -> None:
    world = World(make_node("here", gpus=1))
    world.do(ev.NodeExpected(node=to_come()))
    request, other = world.ask(3), world.ask(1, time=60)
    gone(world)
    assert world.state_of(request) is RequestState.ENDED
    assert world.state_of(other) is RequestState.GRANTED
    assert "job" not in world.state.nodes
    assert ("node", "job") not in world.journal


def test_devices_mean_those_to_come_where_there_are_no_others() -> None:
    world = World(make_node("here", slots=2))
    world.do(ev.NodeExpected(node=to_come()))
    assert world.state_of(world.ask(2, Want.DEVICE)) is RequestState.QUEUED
    assert world.state_of(world.ask(2, Want.CPU)) is RequestState.GRANTED


def test_a_node_that_is_gone_takes_its_leases_along_at_once() -> None:
    world = World(make_node("here", gpus=1), make_node("job", gpus=2))
    lease = world.lease(2, node="job")
    run = world.run(lease)
    next_one = world.ask(2)
    gone(world)
    assert world.state.runs[run.id].state is RunState.FAILED
    assert "node job is gone: Slurm job 7 was cancelled" in world.state.runs[run.id].reason
    assert lease.id not in world.state.leases
    # Nothing is left there that anybody would have to confirm.
    assert not [key for key in world.journal if key[0] == "unconfirmed"]
    assert world.state_of(next_one) is RequestState.ENDED
    gone(world)


def test_a_lease_that_was_ending_on_a_node_that_is_gone_is_over() -> None:
    world = World(make_node("here", gpus=1), make_node("job", gpus=1))
    lease = world.lease(2)
    world.run(lease)
    world.release(lease)
    assert world.state.leases[lease.id].state is LeaseState.ENDING
    world.gone("here", lease)
    gone(world)
    assert lease.id not in world.state.leases
    assert world.state_of(world.ask(1)) is RequestState.GRANTED


def test_a_run_that_may_shrink_goes_on_without_it() -> None:
    world = World(make_node("here", gpus=1), make_node("job", gpus=1))
    lease = world.lease(2, least=1)
    run = world.run(lease, max_restarts=1, least=1)
    gone(world)
    world.exit(run, 0, code=-15)
    world.pass_time(20.0)
    again = world.state.runs[run.id]
    assert (again.state, again.nodes) == (RunState.STARTING, ("here",)), again


def test_nothing_is_kept_idle_for_who_waits_for_what_is_to_come() -> None:
    world = World(make_node("here", gpus=1))
    world.do(ev.NodeExpected(node=to_come()))
    first = world.ask(2)
    assert world.state_of(world.ask(1)) is RequestState.GRANTED
    world.do(ev.NodeJoined(node=make_node("job", gpus=2)))
    assert world.devices(first) == ["job-g0", "job-g1"]


def lent(world: World, hours: float = 8.0, gpus: int = 2, name: str = "job") -> float:
    """A node that is there for so long; when it goes."""
    until = world.now + hours * HOUR
    world.do(ev.NodeJoined(node=make_node(name, gpus=gpus).__replace__(until=until)))
    return until


def test_nobody_is_granted_a_machine_for_longer_than_it_is_lent() -> None:
    world = World(make_node("here", slots=1))
    lent(world)
    long, short = world.ask(1, time=9 * HOUR), world.ask(1, time=7 * HOUR)
    assert world.devices(short) == ["job-g0"]
    assert world.state.reason(long.id) == "NodeEnds(job)"
    told = why(world.state, long, "NodeEnds(job)", 1)
    assert "node job is lent for less time than it asks for" in told
    world.do(ev.NodeJoined(node=make_node("stays", gpus=1)))
    assert world.devices(long) == ["stays-g0"]


def test_who_gives_no_time_has_it_to_its_end_but_not_for_a_moment() -> None:
    world = World(make_node("here", slots=1))
    until = lent(world)
    first = world.lease()
    assert first.expires == until
    world.pass_time(8 * HOUR - 59)
    late = world.ask()
    assert world.state.reason(late.id) == "NodeEnds(job)"
    world.pass_time(60)
    assert first.id not in world.state.leases
    assert world.state_of(late) is RequestState.QUEUED
    # Who is lent one for longer has what was asked for.
    world.do(ev.NodeJoined(node=make_node("job", gpus=2).__replace__(until=until + HOUR)))
    assert world.devices(late) == ["job-g0"]


def test_a_gang_ends_with_the_first_of_its_machines() -> None:
    world = World(make_node("here", gpus=1))
    later, sooner = lent(world, 8, 1, "long"), lent(world, 2, 1, "short")
    assert world.lease(3).expires == sooner < later


def test_a_lease_is_extended_as_far_as_its_machine_is_lent() -> None:
    world = World(make_node("here", slots=1))
    until = lent(world)
    lease = world.lease(time=HOUR)

    def extend(time: float | None) -> float | None:
        world.do(ev.Extended(lease=lease.id, time=time, by="ana"))
        return world.state.leases[lease.id].expires

    with pytest.raises(
        ConflictError, match="8 h more at most, as node job is only lent until then"
    ):
        extend(9 * HOUR)
    assert extend(8 * HOUR) == until
    assert extend(HOUR) == world.now + HOUR
    assert extend(None) == until


def test_what_is_lent_is_reserved_only_within_its_time() -> None:
    world = World(make_node("here", slots=1))
    lent(world)

    def reserve(hours: float) -> None:
        booking = Booking(
            id=f"b{hours}",
            session="s",
            user="ana",
            want=Want.GPU,
            count=1,
            start=world.now + 2 * HOUR,
            time=hours * HOUR,
        )
        world.do(ev.Booked(booking=booking, admin=True))

    with pytest.raises(AllocationError, match="Only 0 of 1 can be promised"):
        reserve(7)
    reserve(6)
    world.pass_time(2 * HOUR)
    (lease,) = world.state.leases.values()
    assert lease.slots[0].node == "job"


def test_an_end_is_known_after_a_restart_and_forgotten_with_its_node() -> None:
    world = World(make_node("here", gpus=1))
    until = lent(world)
    world.restart()
    world.open("s")
    world.do(ev.NodeJoined(node=make_node("here", gpus=1)))
    world.do(ev.NodeJoined(node=make_node("job", gpus=2).__replace__(until=until)))
    waits = world.ask(3, time=9 * HOUR)
    assert world.state_of(waits) is RequestState.QUEUED
    gone(world)
    world.do(ev.NodeJoined(node=make_node("job", gpus=2)))
    assert world.state_of(waits) is RequestState.ENDED
    assert world.state_of(world.ask(3, time=9 * HOUR)) is RequestState.GRANTED


def test_the_first_of_a_line_that_fits_no_machine_in_time_holds_up_nobody_who_does() -> None:
    world = World(make_node("here", slots=1))
    lent(world, 8, 2)
    world.lease(1, time=HOUR)
    first = world.ask(2, time=7.5 * HOUR)
    assert world.state_of(first) is RequestState.QUEUED
    assert world.state_of(world.ask(1, time=0.5 * HOUR)) is RequestState.GRANTED


JOBS = ("here", "j1", "j2")
TIMES = st.sampled_from([None, 30.0, 90.0, 600.0])


class Lending(RuleBasedStateMachine):
    """Machines come and go as they please, and so do those who lease them."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(make_node("here", gpus=1, slots=1))

    def do(self, event: ev.Event) -> None:
        with contextlib.suppress(AiosError):
            self.world.do(event)

    @rule(job=st.sampled_from(JOBS[1:]))
    def expect(self, job: str) -> None:
        self.do(ev.NodeExpected(node=to_come(job)))

    @rule(job=st.sampled_from(JOBS), lasts=st.sampled_from([None, 20.0, 200.0, 900.0]))
    def join(self, job: str, lasts: float | None) -> None:
        # A machine is lent for longer at times, and never for less.
        known = self.world.state.nodes.get(job)
        until = None if lasts is None or job == "here" else self.world.now + lasts
        if known and known.address and known.until and until:
            until = max(until, known.until)
        elif known and known.address:
            until = known.until
        node = make_node(job, gpus=2, slots=1).__replace__(until=until)
        self.do(ev.NodeJoined(node=node, held=tuple(self.world.state.leases)))

    @rule(job=st.sampled_from(JOBS))
    def lose(self, job: str) -> None:
        self.do(ev.NodeLost(node=job))

    @rule(job=st.sampled_from(JOBS[1:]))
    def end(self, job: str) -> None:
        self.do(ev.NodeGone(node=job, reason="it was cancelled"))
        assert job not in self.world.state.nodes
        assert not any(s.node == job for x in self.world.state.leases.values() for s in x.slots)

    @rule(count=st.integers(1, 4), time=TIMES, starts=st.booleans())
    def ask(self, count: int, time: float | None, starts: bool) -> None:
        with contextlib.suppress(AiosError):
            request = self.world.ask(count, time=time)
            if request.lease and starts:
                self.world.run(self.world.state.leases[request.lease])

    @precondition(lambda self: self.world.state.leases)
    @rule(index=st.integers(0, 9), time=TIMES, release=st.booleans())
    def change(self, index: int, time: float | None, release: bool) -> None:
        leases = list(self.world.state.leases)
        lease = leases[index % len(leases)]
        if release:
            self.do(ev.Released(lease=lease, by="ana"))
        else:
            self.do(ev.Extended(lease=lease, time=time, by="ana"))

    @precondition(lambda self: self.world.state.leases)
    @rule(index=st.integers(0, 9), node=st.sampled_from(JOBS))
    def confirm(self, index: int, node: str) -> None:
        leases = list(self.world.state.leases)
        self.do(ev.RanksGone(node=node, lease=leases[index % len(leases)]))

    @rule(seconds=st.sampled_from([1.0, 15.0, 61.0, 300.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule()
    def restart(self) -> None:
        self.world.restart()
        self.world.open("s")

    @invariant()
    def nobody_holds_a_machine_for_longer_than_it_is_lent(self) -> None:
        state = self.world.state
        for lease in state.leases.values():
            ends = [state.nodes[slot.node].until for slot in lease.slots]
            until = min((end for end in ends if end is not None), default=None)
            if lease.state is LeaseState.ACTIVE and until is not None:
                assert lease.expires is not None
                assert lease.expires <= until

    @invariant()
    def nothing_is_held_on_a_machine_that_is_to_come(self) -> None:
        state = self.world.state
        homes = {device.id: node.id for node in state.nodes.values() for device in node.devices}
        assert not any(state.is_expected(homes[device]) for device in state.holder)

    @invariant()
    def the_journal_has_it_all(self) -> None:
        records = {(kind, id): record for kind, id, record in self.world.state.records()}
        assert self.world.journal == records

    @invariant()
    def who_waits_alone_is_not_kept_from_what_is_free(self) -> None:
        state = self.world.state
        waiting = state.queue()
        if len(waiting) == 1 and state.fleet.fits(Pool.ACCELERATOR, demand_of(waiting[0])):
            assert state.reason(waiting[0].id).startswith("NodeEnds")


TestLending = Lending.TestCase
TestLending.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
