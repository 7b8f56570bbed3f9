"""Runs that take devices which stay free: when, when not, and what becomes of their attempt."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import World, make_node

from aios_jupyter.broker import events as ev
from aios_jupyter.errors import ConflictError
from aios_jupyter.schema import Lease, Origin, RankExit, Run, RunState

SETTINGS = {"grow_after": 60.0, "grow_interval": 600.0, "rejoin_grace": 10.0}


def short(restarts: int = 1, *, kept: bool = True, **fields: Any) -> tuple[World, Lease, Run]:
    """A run with two of up to four devices, whose other two are on a node that is not there yet."""
    world = World(make_node("n", gpus=2), **{**SETTINGS, **fields})
    lease = world.lease(2)
    world.release(lease)
    world.do(ev.NodeJoined(node=make_node("m", gpus=2)))
    other = world.lease(2)
    lease = world.lease(4, least=2)
    run = world.run(lease, max_restarts=restarts, checkpoints="s3://x")
    detail = {"checkpoint": 5} if kept else {}
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING, detail=detail))
    world.release(other)
    return world, lease, world.state.runs[run.id]


def seconds(world: World, number: int) -> bool:
    """Time passes a second at a time; whether the run was told to end its attempt meanwhile."""
    told = False
    for _ in range(number):
        world.pass_time(1)
        told = told or bool(world.got(ev.StopRun))
    return told


def ends(world: World, run: Run, code: int = -15, origin: Origin = Origin.TOLD) -> Run:
    run = world.state.runs[run.id]
    for rank in range(run.world_size):
        exit = RankExit(rank=rank, code=code, time=world.now, attempt=run.attempt, origin=origin)
        world.do(ev.RankExited(run=run.id, exit=exit))
    return world.state.runs[run.id]


def test_it_takes_what_stays_free_once_it_has_run_for_long_enough() -> None:
    world, lease, run = short()
    assert not seconds(world, 659)
    world.pass_time(1)
    (stop,) = world.got(ev.StopRun)
    assert stop.grace == 30.0, "time for a checkpoint, as when it is preempted"
    told = world.state.runs[run.id]
    assert (told.state, told.reason) == (RunState.RESTARTING, "2 more devices are free")
    assert len(world.state.leases[lease.id].slots) == 4, "nobody else gets them meanwhile"
    again = ends(world, run)
    assert (again.state, again.attempt, again.world_size) == (RunState.STARTING, 1, 4)
    assert again.uncounted == 1
    # The restart that it has is still there for a failure.
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING))
    assert ends(world, run, 1, Origin.OWN).attempt == 2


def test_nobody_comes_to_a_lease_that_is_about_to_have_other_devices() -> None:
    world, lease, run = short()
    seconds(world, 660)
    with pytest.raises(ConflictError, match="other devices"):
        world.run(lease)
    ends(world, run)
    world.run(world.state.leases[lease.id])


def test_a_lease_that_two_runs_are_on_does_not_grow() -> None:
    world, lease, _ = short()
    world.run(lease)
    assert not seconds(world, 700)


def test_devices_that_are_taken_in_between_have_not_stayed_free() -> None:
    world, _, _ = short()
    seconds(world, 650)
    other = world.lease(1)
    seconds(world, 1)
    world.release(other)
    # Of the two that are free one has been all the time, and they are counted together.
    assert seconds(world, 60)


def test_it_does_not_grow_again_before_the_interval_has_passed() -> None:
    world, lease, run = short()
    seconds(world, 640)
    third = world.lease(1)
    assert seconds(world, 60), "for the one that was left"
    ends(world, run)
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING))
    world.release(third)
    assert world.state.runs[run.id].world_size == 3
    assert not seconds(world, 600)
    assert seconds(world, 61)
    assert len(world.state.leases[lease.id].slots) == 4


@pytest.mark.parametrize(
    "why", ["no checkpoints", "no restarts", "somebody waits", "turned off", "it ends soon"]
)
def test_it_does_not_where(why: str) -> None:
    world, lease, _ = short(
        restarts=0 if why == "no restarts" else 1,
        kept=why != "no checkpoints",
        **({"grow_after": 0.0} if why == "turned off" else {}),
    )
    if why == "somebody waits":
        world.ask(3)
    if why == "it ends soon":
        world.do(ev.Extended(lease=lease.id, time=1000.0, by="ana"))
    assert not seconds(world, 900)
    assert len(world.state.leases.get(lease.id, lease).slots) == 2


def test_one_that_ended_at_that_moment_has_succeeded() -> None:
    world, _, run = short()
    assert seconds(world, 660)
    ended = ends(world, run, 0, Origin.OWN)
    assert (ended.state, ended.reason, ended.attempt) == (RunState.SUCCEEDED, "", 0)


def test_ranks_keep_their_numbers_until_their_attempt_is_over() -> None:
    world = World(make_node("n", gpus=3), make_node("m", gpus=1), **SETTINGS)
    taken = [world.lease(1) for _ in range(3)]
    world.release(taken.pop(0))
    lease = world.lease(4, least=2)
    assert [slot.node for slot in lease.slots] == ["n", "m"]
    run = world.run(lease, max_restarts=1, checkpoints="s3://x")
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING, detail={"checkpoint": 5}))
    for other in taken:
        world.release(other)
    assert seconds(world, 661)
    slots = world.state.leases[lease.id].slots
    assert [slot.node for slot in slots] == ["n", "m", "n", "n"]
    ends(world, run)
    assert [slot.node for slot in world.state.leases[lease.id].slots] == ["n", "n", "n", "m"]


def test_a_node_that_dies_before_it_was_part_of_it_is_left_out() -> None:
    world, lease, run = short()
    assert seconds(world, 660)
    new = {slot.node for slot in world.state.leases[lease.id].slots[2:]} - set(run.nodes)
    for node in new:
        world.do(ev.NodeLost(node=node))
    waiting = ends(world, run)
    assert waiting.state is RunState.RESTARTING
    world.pass_time(10)
    again = world.state.runs[run.id]
    assert (again.state, again.world_size) == (RunState.STARTING, 2)
    assert {slot.node for slot in world.state.leases[lease.id].slots} == set(run.nodes)


def test_the_broker_may_be_started_anew_meanwhile() -> None:
    world, lease, run = short()
    assert seconds(world, 660)
    world.restart()
    assert {(k, i): r for k, i, r in world.state.records()} == world.journal
    for node in ("n", "m"):
        held = (lease.id,) if node in run.nodes else ()
        world.do(ev.NodeJoined(node=make_node(node, gpus=2), held=held))
        stops = [stop.grace for stop in world.got(ev.StopRun)]
        assert stops == ([30.0] if held else [])
    again = ends(world, run)
    assert (again.attempt, again.world_size) == (1, 4)
