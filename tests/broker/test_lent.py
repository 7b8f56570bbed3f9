"""Machines that are only lent: who waits for those to come, and what becomes of those that are gone."""

from __future__ import annotations

from worlds import World, make_node

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.reasons import why
from aios_jupyter.schema import LeaseState, Node, RequestState, RunState, Want

DAY = 86400.0


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
