"""Runs over several nodes: whose fault a failure was, and restarts with fewer and more devices."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import World, make_node

from aios_jupyter.broker import events as ev
from aios_jupyter.schema import Lease, Origin, RankExit, Run, RunState, Scope


def two_nodes(**settings: float) -> World:
    return World(make_node("n", gpus=2), make_node("m", gpus=2), rejoin_grace=10.0, **settings)


def elastic(
    world: World, restarts: int = 3, *, checkpoints: str = "s3://x", **fields: Any
) -> tuple[Lease, Run]:
    lease = world.lease(4, least=2, **fields)
    return lease, world.run(lease, max_restarts=restarts, checkpoints=checkpoints)


def exits(world: World, run: Run, rank: int, origin: Origin = Origin.OWN, code: int = 1) -> Run:
    attempt = world.state.runs[run.id].attempt
    reason = f"rank {rank} {'lost a peer' if origin is Origin.PEER else 'failed'}"
    exit = RankExit(
        rank=rank, code=code, time=world.now, reason=reason, attempt=attempt, origin=origin
    )
    world.do(ev.RankExited(run=run.id, exit=exit))
    return world.state.runs[run.id]


def ends(world: World, run: Run, *ranks: int) -> Run:
    """Ranks end as they were told to."""
    for rank in ranks:
        run = exits(world, run, rank, Origin.TOLD, -15)
    return run


def dies(world: World, run: Run) -> None:
    """Node m is lost, and the ranks of n end for it."""
    world.do(ev.NodeLost(node="m"))
    exits(world, run, 0, Origin.PEER)
    ends(world, run, 1)


def test_of_two_nodes_words_the_failure_counts_and_not_its_echo() -> None:
    world = two_nodes()
    run = world.run(world.lease(4))
    assert exits(world, run, 0, Origin.PEER).reason == "rank 0 lost a peer"
    after = exits(world, run, 3)
    assert (after.reason, after.detail["failed_rank"]) == ("rank 3 failed", 3)
    assert exits(world, run, 2).reason == "rank 3 failed", "the first is the cause"
    assert ends(world, run, 1).state is RunState.FAILED


@pytest.mark.parametrize("first", ["the node", "the echo"])
def test_an_echo_of_a_lost_node_names_the_node(first: str) -> None:
    world = two_nodes()
    run = world.run(world.lease(4))
    if first == "the node":
        world.do(ev.NodeLost(node="m"))
    exits(world, run, 0, Origin.PEER)
    if first == "the echo":
        world.do(ev.NodeLost(node="m"))
    # The ranks of a node that is out of reach are not waited for.
    ended = ends(world, run, 1)
    assert ended.state is RunState.FAILED
    assert ended.reason == "node m was lost; then rank 0 lost a peer"
    assert ended.detail["failed_node"] == "m"
    assert "failed_rank" not in ended.detail


def test_a_lost_connection_to_an_agent_is_no_failure() -> None:
    world = two_nodes()
    run = world.run(world.lease(4))
    world.do(ev.NodeLost(node="m"))
    world.do(ev.NodeJoined(node=make_node("m", gpus=2), held=(run.lease,)))
    assert world.state.runs[run.id].state is RunState.STARTING
    for rank in range(4):
        ended = world.exit(run, rank)
    assert ended.state is RunState.SUCCEEDED


def test_what_happened_on_its_own_is_not_blamed_on_a_node() -> None:
    world = two_nodes()
    run = world.run(world.lease(4))
    world.do(ev.NodeLost(node="m"))
    assert exits(world, run, 0).reason == "rank 0 failed"


def test_a_run_waits_for_its_node_and_then_goes_on_without() -> None:
    world = two_nodes()
    lease, run = elastic(world)
    assert (run.least, run.most) == (2, 4)
    world.do(ev.NodeLost(node="m"))
    exits(world, run, 0, Origin.PEER)
    waiting = ends(world, run, 1)
    assert waiting.state is RunState.RESTARTING
    assert not world.got(ev.MeetAgain)
    world.pass_time(9)
    assert world.state.runs[run.id].state is RunState.RESTARTING
    world.pass_time(1)
    again = world.state.runs[run.id]
    assert (again.state, again.attempt, again.world_size) == (RunState.STARTING, 1, 2)
    assert again.nodes == ("n",)
    assert [(a.run.id, a.node) for a in world.got(ev.MeetAgain)] == [(run.id, "n")]
    assert {slot.node for slot in world.state.leases[lease.id].slots} == {"n"}
    assert again.detail["failures"][-1]["node"] == "m"


def test_a_lease_that_two_runs_are_on_keeps_its_devices() -> None:
    world = two_nodes()
    lease, first = elastic(world)
    second = world.run(lease, max_restarts=1, checkpoints="s3://x")
    dies(world, first)
    world.pass_time(20)
    assert world.state.runs[first.id].state is RunState.RESTARTING
    assert len(world.state.leases[lease.id].slots) == 4, "the second's ranks are on them"
    for rank in (0, 1):
        exits(world, second, rank, code=0)
    world.do(ev.NodeJoined(node=make_node("m", gpus=2), held=(lease.id,)))
    assert world.state.runs[first.id].world_size == 4
    for rank in (2, 3):
        exits(world, second, rank, code=0)
    assert world.state.runs[second.id].state is RunState.SUCCEEDED


def test_who_is_alone_on_its_lease_again_goes_on_without_the_node() -> None:
    world = two_nodes()
    lease, first = elastic(world)
    narrow = world.run(lease, world_size=1)
    dies(world, first)
    world.pass_time(20)
    assert world.state.runs[first.id].state is RunState.RESTARTING
    exits(world, narrow, 0, code=0)
    world.pass_time(1)
    assert world.state.runs[first.id].world_size == 2
    assert {slot.node for slot in world.state.leases[lease.id].slots} == {"n"}


def test_devices_that_were_left_are_granted_once_no_process_is_there() -> None:
    world = two_nodes()
    lease, run = elastic(world)
    dies(world, run)
    world.pass_time(10)
    other = world.ask(2)
    world.restart()
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=(lease.id,)))
    world.do(ev.NodeJoined(node=make_node("m", gpus=2), held=(lease.id,)))
    assert [end.nodes for end in world.got(ev.EndLease)] == [("m",)]
    assert world.state_of(other) == "queued"
    world.gone("m", lease)
    assert world.devices(other) == ["m-g0", "m-g1"]
    assert world.state.leases[lease.id].state == "active"


def test_a_node_that_is_back_in_time_is_used_again() -> None:
    world = two_nodes()
    _, run = elastic(world)
    dies(world, run)
    world.pass_time(5)
    world.do(ev.NodeJoined(node=make_node("m", gpus=2)))
    # Its agent knows nothing of the ranks that it had: they are gone.
    ends(world, run, 2)
    again = ends(world, run, 3)
    assert (again.attempt, again.world_size, again.nodes) == (1, 4, ("n", "m"))


def test_a_run_grows_back_at_its_next_restart_where_nobody_waits() -> None:
    world = two_nodes()
    lease, run = elastic(world)
    dies(world, run)
    world.pass_time(10)
    world.do(ev.NodeJoined(node=make_node("m", gpus=2)))
    assert world.state.runs[run.id].world_size == 2, "free devices alone restart nothing"
    exits(world, run, 1)
    again = ends(world, run, 0)
    assert (again.attempt, again.world_size, again.nodes) == (2, 4, ("n", "m"))
    assert len(world.state.leases[lease.id].slots) == 4
    assert [handed.lease.id for handed in world.got(ev.Handed)] == [lease.id]


def test_who_waits_has_free_devices_first() -> None:
    world = World(make_node("n", gpus=2), make_node("m", gpus=2), make_node("k", gpus=1))
    _, run = elastic(world)
    waits = world.ask(3)
    dies(world, run)
    world.pass_time(10)
    exits(world, run, 1)
    again = ends(world, run, 0)
    assert (again.attempt, again.world_size) == (2, 2), "node k's is kept for who waits"
    assert world.state_of(waits) == "queued"


def test_it_grows_on_nodes_that_have_its_checkpoints_alone() -> None:
    world = World(make_node("n", gpus=3), make_node("m", gpus=2))
    held = world.lease(3)
    lease = world.lease(4, least=2)
    on = {slot.node for slot in lease.slots}
    assert len(lease.slots) == 2
    world.release(held)
    run = world.run(lease, max_restarts=2)
    exits(world, run, 0)
    again = ends(world, run, 1)
    assert (again.attempt, again.world_size) == (1, 2)
    assert set(again.nodes) == on


def test_a_quota_bounds_what_a_run_grows_by() -> None:
    world = two_nodes()
    _, run = elastic(world)
    quota = ev.Quota(user_devices=3)
    world.do(ev.QuotaSet(queue="default", quota=quota, by="root", admin=True))
    dies(world, run)
    world.pass_time(10)
    world.do(ev.NodeJoined(node=make_node("m", gpus=2)))
    exits(world, run, 1)
    assert ends(world, run, 0).world_size == 3


def test_too_few_devices_left_wait_for_the_node_and_end_with_it() -> None:
    world = two_nodes(node_grace=60.0)
    lease = world.lease(4, least=3)
    run = world.run(lease, max_restarts=3)
    dies(world, run)
    world.pass_time(30)
    assert world.state.runs[run.id].state is RunState.RESTARTING
    world.pass_time(30)
    world.gone("n", lease)
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.FAILED, "node m was lost")


def test_ranks_that_hang_as_a_node_is_gone_are_ended_and_start_again() -> None:
    world = two_nodes(node_grace=60.0)
    lease, run = elastic(world)
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING))
    world.do(ev.NodeLost(node="m"))
    world.pass_time(60)
    told = world.state.runs[run.id]
    assert (told.state, told.reason) == (RunState.RESTARTING, "node m was lost")
    assert [stop.run.id for stop in world.got(ev.StopRun)] == [run.id]
    again = ends(world, run, 0, 1)
    assert (again.attempt, again.world_size, again.nodes) == (1, 2, ("n",))
    assert world.state.leases[lease.id].state == "active"


def test_a_run_that_waits_survives_the_broker() -> None:
    world = two_nodes()
    lease, run = elastic(world)
    dies(world, run)
    world.restart()
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=(lease.id,)))
    world.pass_time(10)
    again = world.state.runs[run.id]
    assert (again.attempt, again.nodes) == (1, ("n",))
    assert {(k, i): r for k, i, r in world.state.records()} == world.journal


def test_a_run_that_waits_can_be_stopped() -> None:
    world = two_nodes()
    lease, run = elastic(world, scope=Scope.CELL)
    dies(world, run)
    world.do(ev.StopRequested(run=run.id, by="ana", reason="stopped by ana"))
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.STOPPED, "stopped by ana")
    assert world.state.leases[lease.id].state == "ending", "until m has confirmed"


def test_a_run_that_waits_ends_at_once_with_its_lease() -> None:
    world = two_nodes()
    lease, run = elastic(world)
    dies(world, run)
    world.do(ev.Released(lease=lease.id, by="ana"))
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.STOPPED, "released")
    assert world.state.leases[lease.id].state == "ending", "until m has confirmed"


def test_what_one_agent_has_forgotten_another_has_kept() -> None:
    world = two_nodes()
    _, run = elastic(world)
    lost = RankExit(rank=2, code=-9, time=world.now, reason="rank 2 was lost")
    world.do(ev.RankExited(run=run.id, exit=lost, final=True))
    assert world.state.runs[run.id].state is RunState.RESTARTING
    alone = world.run(world.state.leases[run.lease], world_size=1, nodes=("n",))
    lost = RankExit(rank=0, code=-9, time=world.now, reason="rank 0 was lost")
    world.do(ev.RankExited(run=alone.id, exit=lost, final=True))
    assert world.state.runs[alone.id].state is RunState.FAILED


def test_a_runs_owner_is_told_once_of_what_to_look_at() -> None:
    world = two_nodes()
    run = world.run(world.lease(1))

    def told(alerts: dict[str, str]) -> list[str]:
        done = world.do(ev.RunReported(run=run.id, detail={"alerts": alerts}))
        return [action.text for action in done if isinstance(action, ev.Notice)]

    assert told({"errors": "6% failed."}) == [f"{run.name or run.id}: 6% failed."]
    assert told({"errors": "7% failed."}) == [], "the figure alone has changed"
    assert len(told({"errors": "7% failed.", "x": "x is far."})) == 1
    assert told({}) == []
    assert len(told({"errors": "9% failed."})) == 1, "it was well in between"
    assert world.state.runs[run.id].detail["alerts"] == {"errors": "9% failed."}
