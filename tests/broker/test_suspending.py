"""Detached runs whose lease is taken: they wait without one, and go on under the next."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import World, make_node

from aios_jupyter.broker import events as ev
from aios_jupyter.schema import (
    Lease,
    LeaseState,
    Origin,
    RankExit,
    Request,
    RequestState,
    Run,
    RunState,
    Scope,
    Want,
)


def world_of(*gpus: int) -> World:
    nodes = (make_node(name, gpus=number) for name, number in zip("nmk", gpus, strict=False))
    return World(*nodes, policy="priority", node_grace=60.0)  # type: ignore[arg-type]


def detached(world: World, count: int = 2, **fields: Any) -> Lease:
    world.open("d")
    return world.lease(count, session="d", scope=Scope.DETACHED, preemptible=True, **fields)


def taken(world: World, count: int) -> Request:
    """Somebody of a higher priority asks."""
    world.open("high", "bob")
    request = Request(
        id=f"r{next(world.names)}",
        session="high",
        user="bob",
        want=Want.GPU,
        count=count,
        priority=1,
    )
    world.do(ev.Submitted(request=request, admin=True))
    return world.state.requests[request.id]


def stops(world: World, run: Run, origin: Origin = Origin.TOLD, code: int = -15) -> None:
    for rank in range(run.world_size):
        attempt = world.state.runs[run.id].attempt
        exit = RankExit(rank=rank, code=code, time=world.now, attempt=attempt, origin=origin)
        world.do(ev.RankExited(run=run.id, exit=exit))


def suspended(world: World, **fields: Any) -> tuple[Lease, Run, Request]:
    """A detached run that waits, and the request that has its devices."""
    lease = detached(world, 2, **fields)
    run = world.run(lease, max_restarts=1)
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING))
    other = taken(world, 2)
    (end,) = world.got(ev.EndLease)
    assert end.keep, "its nodes keep its code"
    stops(world, run)
    for node in run.nodes:
        world.gone(node, lease)
    return lease, world.state.runs[run.id], other


def end_of(world: World, request: Request) -> None:
    lease = world.state.leases[world.state.requests[request.id].lease]
    world.release(lease, by="bob")


def test_it_waits_and_goes_on_under_the_next_lease_of_its_request() -> None:
    world = world_of(2)
    lease, run, other = suspended(world)
    assert world.state_of(other) is RequestState.GRANTED
    assert (run.state, run.awaits) == (RunState.RESTARTING, lease.request)
    assert "it goes on when request" in run.reason
    waiting = world.state.requests[lease.request]
    assert waiting.state is RequestState.QUEUED
    end_of(world, other)
    again = world.state.runs[run.id]
    assert (again.state, again.attempt, again.awaits) == (RunState.STARTING, 1, "")
    assert again.lease == world.state.requests[lease.request].lease != lease.id
    assert [(meet.run.id, meet.node) for meet in world.got(ev.MeetAgain)] == [(run.id, "n")]
    assert again.past == ()
    # It was no failure: the restart that the run has is still there.
    assert again.uncounted == 1
    stops(world, again, Origin.OWN, code=1)
    assert world.state.runs[run.id].attempt == 2
    stops(world, again, Origin.OWN, code=1)
    assert world.state.runs[run.id].state is RunState.FAILED


def test_neither_the_end_of_its_session_nor_of_the_broker_ends_it() -> None:
    world = world_of(2)
    _, run, other = suspended(world)
    world.do(ev.SessionClosed(session="d"))
    world.restart()
    assert {(k, i): r for k, i, r in world.state.records()} == world.journal
    world.do(
        ev.NodeJoined(node=make_node("n", gpus=2), held=(world.state.requests[other.id].lease,))
    )
    # What its agent says again of the ranks that ended changes nothing.
    stops(world, run)
    assert world.state.runs[run.id] == run
    end_of(world, other)
    assert world.state.runs[run.id].state is RunState.STARTING


def test_a_session_that_ends_while_its_ranks_do_changes_nothing() -> None:
    world = world_of(2)
    lease = detached(world)
    run = world.run(lease, max_restarts=1)
    other = taken(world, 2)
    world.do(ev.SessionClosed(session="d"))
    stops(world, run)
    world.gone("n", lease)
    end_of(world, other)
    assert world.state.runs[run.id].state is RunState.STARTING


def test_nodes_that_had_it_are_told_where_it_is() -> None:
    world = world_of(2)
    _, run, other = suspended(world)
    world.do(ev.NodeJoined(node=make_node("m", gpus=2)))
    again = world.state.runs[run.id]
    assert (again.nodes, again.past) == (("m",), ("n",))
    moved, met = world.got(ev.Moved)[0], world.got(ev.MeetAgain)[0]
    assert (moved.nodes, met.node) == (("n",), "m")
    assert world.actions.index(moved) < world.actions.index(met)
    assert world.state_of(other) is RequestState.GRANTED


def test_it_goes_on_with_as_many_ranks_as_it_is_granted() -> None:
    world = world_of(2)
    world.open("d")
    lease = detached(world, 2, least=1)
    run = world.run(lease, max_restarts=1)
    other = taken(world, 1)
    stops(world, run)
    world.gone("n", lease)
    again = world.state.runs[run.id]
    assert world.state_of(other) is RequestState.GRANTED
    assert (again.state, again.world_size) == (RunState.STARTING, 1)


@pytest.mark.parametrize("how", ["the run is stopped", "its request is cancelled"])
def test_it_can_be_ended_while_it_waits(how: str) -> None:
    world = world_of(2)
    lease, run, other = suspended(world)
    if how == "the run is stopped":
        world.do(ev.StopRequested(run=run.id, by="ana", reason="stopped by ana"))
    else:
        world.do(ev.Cancelled(request=lease.request, by="ana"))
    ended = world.state.runs[run.id]
    assert ended.state is RunState.STOPPED
    assert "by ana" in ended.reason
    assert world.state.requests[lease.request].state is RequestState.ENDED
    assert [over.run.id for over in world.got(ev.RunEnded)] == [run.id]
    end_of(world, other)
    assert not world.state.leases


def test_it_can_be_stopped_while_its_ranks_end() -> None:
    world = world_of(2)
    lease = detached(world)
    run = world.run(lease, max_restarts=1)
    taken(world, 2)
    world.do(ev.StopRequested(run=run.id, by="ana", reason="stopped by ana"))
    stops(world, run)
    world.gone("n", lease)
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.STOPPED, "stopped by ana")
    assert world.state.requests[lease.request].state is RequestState.ENDED


def test_one_that_had_come_to_its_end_has_succeeded() -> None:
    world = world_of(2)
    lease = detached(world)
    run = world.run(lease, max_restarts=1)
    taken(world, 2)
    stops(world, run, Origin.OWN, code=0)
    world.gone("n", lease)
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.SUCCEEDED, "")
    assert world.state.requests[lease.request].state is RequestState.ENDED


def test_one_that_is_not_to_be_restarted_ends() -> None:
    world = world_of(2)
    lease = detached(world)
    run = world.run(lease)
    taken(world, 2)
    (end,) = world.got(ev.EndLease)
    assert not end.keep
    stops(world, run)
    world.gone("n", lease)
    ended = world.state.runs[run.id]
    assert (ended.state, ended.detail["preempted"]) == (RunState.STOPPED, True)
    assert "run it again" in ended.reason
    assert world.state.requests[lease.request].state is RequestState.ENDED


def test_a_node_that_was_away_meanwhile_ends_its_ranks_and_keeps_the_code() -> None:
    world = world_of(2, 1)
    lease = detached(world, 3)
    run = world.run(lease, max_restarts=1)
    world.do(ev.NodeLost(node="m"))
    taken(world, 2)
    stops(world, run)
    world.gone("n", lease)
    assert world.state.leases[lease.id].state is LeaseState.ENDING
    world.pass_time(60)
    assert world.state.runs[run.id].awaits == lease.request
    world.do(ev.NodeJoined(node=make_node("m", gpus=1), held=(lease.id,)))
    assert [(end.nodes, end.keep) for end in world.got(ev.EndLease)] == [(("m",), True)]
