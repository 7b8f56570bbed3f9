"""The broker's core, one behavior at a time: events in, actions out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from worlds import GB, World, make_node

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.placement import pack
from aios_jupyter.errors import (
    AccessError,
    AiosError,
    AllocationError,
    ConflictError,
    NotFoundError,
    UsageError,
)
from aios_jupyter.schema import (
    Keep,
    LeaseState,
    Node,
    Process,
    Progress,
    Request,
    RequestState,
    RunState,
    Scope,
    Want,
)


def sentence(act: Callable[[], Any], error: type[AiosError]) -> str:
    with pytest.raises(error) as caught:
        act()
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


# --- requests: queue, gangs, refusals


def test_a_request_that_fits_is_granted_at_once() -> None:
    world = World(make_node("n", gpus=2))
    request = world.ask(2, time=60.0, label="digits.ipynb")
    (granted,) = world.got(ev.Granted)
    lease = granted.lease
    assert granted.request == request
    assert [slot.device for slot in lease.slots] == ["n-g0", "n-g1"]
    assert {slot.address for slot in lease.slots} == {"n:1"}
    assert (lease.id, lease.fence, lease.label) == ("L1", 1, "digits.ipynb")
    assert (lease.granted, lease.expires) == (1000.0, 1060.0)
    assert world.state.holder == {"n-g0": "L1", "n-g1": "L1"}


def test_a_grant_is_written_before_it_is_told() -> None:
    world = World(make_node("n", gpus=1))
    world.ask()
    kinds = [action.kind for action in world.actions if isinstance(action, ev.Put)]
    assert {"counter", "lease", "request"} <= set(kinds)
    assert isinstance(world.actions[-1], ev.Granted)


def test_a_gang_waits_until_all_of_it_fits() -> None:
    world = World(make_node("n", gpus=2))
    first = world.lease(1)
    request = world.ask(2)
    assert request.state is RequestState.QUEUED
    assert world.state.reason(request.id) == "Resources"
    assert world.state.holder == {"n-g0": "L1"}
    world.release(first)
    assert world.devices(request) == ["n-g0", "n-g1"]


def test_a_later_request_does_not_overtake_one_for_the_same_kind_of_device() -> None:
    world = World(make_node("n", gpus=2))
    world.lease(1)
    large, small = world.ask(2), world.ask(1)
    assert world.state_of(small) is RequestState.QUEUED
    assert world.state.reason(small.id) == f"Reservation(for {large.id})"
    assert [request.id for request in world.state.queue()] == [large.id, small.id]


def test_a_waiting_gpu_request_does_not_block_cpu_slots() -> None:
    world = World(make_node("n", gpus=1, slots=1))
    world.lease(1)
    waiting = world.ask(1)
    assert world.ask(1, Want.CPU).state is RequestState.GRANTED
    assert world.state_of(waiting) is RequestState.QUEUED


def test_devices_are_accelerators_where_there_are_any_and_cpu_slots_elsewhere() -> None:
    world = World(make_node("n", slots=2))
    assert world.devices(world.ask(1, Want.DEVICE)) == ["n-c0"]
    world.do(ev.NodeJoined(node=make_node("m", gpus=1, slots=1)))
    assert world.devices(world.ask(1, Want.DEVICE)) == ["m-g0"]


def test_a_request_that_waits_for_devices_takes_accelerators_that_join() -> None:
    world = World(make_node("n", slots=1))
    world.lease(1, Want.CPU)
    waiting = world.ask(1, Want.DEVICE)
    world.do(ev.NodeJoined(node=make_node("m", gpus=1)))
    assert world.devices(waiting) == ["m-g0"]


def test_a_request_accepted_for_cpu_slots_survives_too_few_accelerators() -> None:
    world = World(make_node("n", slots=2))
    lease = world.lease(1, Want.CPU)
    waiting = world.ask(2, Want.DEVICE)
    world.do(ev.NodeJoined(node=make_node("m", gpus=1)))
    assert world.state_of(waiting) is RequestState.QUEUED
    world.release(lease)
    assert world.devices(waiting) == ["n-c0", "n-c1"]


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_that_makes_no_sense_is_refused(count: int) -> None:
    world = World(make_node("n", gpus=1))
    assert str(count) in sentence(lambda: world.ask(count), UsageError)
    assert not world.state.requests


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_makes_no_sense_is_refused(length: float) -> None:
    world = World(make_node("n", gpus=1))
    sentence(lambda: world.ask(time=length), UsageError)
    lease = world.lease()
    extend = ev.Extended(lease=lease.id, time=length, by="ana")
    sentence(lambda: world.do(extend), UsageError)
    assert world.state.leases[lease.id] == lease


def test_a_gpu_where_there_is_none_names_the_ways_out() -> None:
    world = World(make_node("n", slots=4))
    text = sentence(lambda: world.ask(2), AllocationError)
    assert "--devices N" in text
    assert "aios up --simulate-gpus N" in text
    assert list(world.state.records()) == [
        (kind, id, record) for (kind, id), record in world.journal.items()
    ]


def test_more_than_could_ever_fit_is_refused_and_the_largest_is_named() -> None:
    world = World(make_node("n", gpus=2), make_node("m", gpus=1, slots=8))
    world.lease(2)
    assert "at most 3" in sentence(lambda: world.ask(4), AllocationError)
    assert "9 CPU slots" in sentence(lambda: world.ask(9, Want.CPU), AllocationError)
    assert "4 devices" in sentence(lambda: world.ask(4, Want.DEVICE), AllocationError)
    assert world.ask(3).state is RequestState.QUEUED


def test_more_memory_than_any_device_has_is_refused() -> None:
    world = World(make_node("n", gpus=2, memory=8 * GB), make_node("m", gpus=1, memory=24 * GB))
    assert "the largest has 24 GB" in sentence(lambda: world.ask(memory=80 * GB), AllocationError)
    text = sentence(lambda: world.ask(2, memory=16 * GB), AllocationError)
    assert "with 16 GB" in text
    assert "at most 1" in text
    sentence(lambda: world.ask(memory=-1), UsageError)


def test_a_cluster_without_nodes_says_so() -> None:
    world = World()
    assert "no node" in sentence(lambda: world.ask(1, Want.DEVICE), AllocationError)


def test_a_device_has_the_memory_that_was_asked_for_and_no_more_than_need_be() -> None:
    world = World(make_node("n", gpus=1, memory=24 * GB), make_node("m", gpus=1, memory=8 * GB))
    assert world.devices(world.ask(memory=16 * GB)) == ["n-g0"]
    waiting = world.ask(memory=16 * GB)
    assert world.state.reason(waiting.id) == "Resources"


def test_a_retry_is_the_same_request() -> None:
    world = World(make_node("n", gpus=1))
    request = world.ask()
    assert world.do(ev.Submitted(request=request)) == []
    world.ask(id="mine")
    world.do(ev.Cancelled(request="mine", by="ana"))
    again = Request(id="mine", session="s", user="ana", want=Want.GPU, count=1)
    assert world.do(ev.Submitted(request=again)) == []
    assert world.state.requests["mine"].reason == "cancelled by ana"


def test_another_sessions_request_id_is_refused() -> None:
    world = World(make_node("n", gpus=1))
    request = world.ask()
    world.open("t")
    sentence(lambda: world.ask(session="t", id=request.id), AccessError)
    assert world.state.requests[request.id].session == "s"


def test_a_request_needs_an_open_session_of_its_user() -> None:
    world = World(make_node("n", gpus=1))
    wish = Request(id="r", session="nobody", user="ana", want=Want.GPU, count=1)
    sentence(lambda: world.do(ev.Submitted(request=wish)), ConflictError)
    wish = Request(id="r", session="s", user="eve", want=Want.GPU, count=1)
    sentence(lambda: world.do(ev.Submitted(request=wish)), AccessError)


def test_what_a_peer_says_of_its_requests_state_is_not_believed() -> None:
    world = World(make_node("n", gpus=1))
    world.lease()
    request = world.ask(state=RequestState.GRANTED, lease="L1", reason="x", submitted=5.0)
    assert (request.state, request.lease, request.reason) == (RequestState.QUEUED, "", "")
    assert request.submitted == world.now


def test_a_cancelled_request_ends_and_the_next_one_comes_up() -> None:
    world = World(make_node("n", gpus=2))
    world.lease(1)
    large, small = world.ask(2), world.ask(1)
    world.do(ev.Cancelled(request=large.id, by="ana"))
    (ended,) = world.got(ev.RequestEnded)
    assert (ended.request.id, ended.request.reason) == (large.id, "cancelled by ana")
    assert world.state_of(small) is RequestState.GRANTED
    assert world.do(ev.Cancelled(request=large.id, by="ana")) == []


def test_cancelling_a_request_that_was_granted_meanwhile_ends_its_lease() -> None:
    world = World(make_node("n", gpus=1))
    request = world.ask()
    world.do(ev.Cancelled(request=request.id, by="ana"))
    assert world.got(ev.LeaseEnded)
    assert not world.state.leases


def test_what_does_not_exist_is_said_to() -> None:
    world = World(make_node("n", gpus=1))
    for event in (
        ev.Cancelled(request="r9", by="ana"),
        ev.Released(lease="L9", by="ana"),
        ev.Extended(lease="L9", time=1.0, by="ana"),
        ev.StopRequested(run="x9", by="ana"),
    ):
        assert "9" in sentence(lambda event=event: world.do(event), NotFoundError)


def test_strangers_touch_nothing_and_admins_anything() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    run = world.run(lease)
    waiting = world.ask()
    before = list(world.state.records())
    for make in (
        lambda **who: ev.Cancelled(request=waiting.id, **who),
        lambda **who: ev.Extended(lease=lease.id, time=5.0, **who),
        lambda **who: ev.StopRequested(run=run.id, **who),
        lambda **who: ev.Released(lease=lease.id, **who),
    ):
        text = sentence(lambda make=make: world.do(make(by="eve")), AccessError)
        assert "belongs to ana" in text
        assert list(world.state.records()) == before
        world.do(make(by="root", admin=True))
        assert list(world.state.records()) != before
        before = list(world.state.records())


# --- placement


def test_a_gang_goes_on_the_fullest_node_that_can_take_it() -> None:
    world = World(make_node("a", gpus=4), make_node("b", gpus=2), make_node("c", gpus=3))
    assert world.devices(world.ask(2)) == ["b-g0", "b-g1"]
    assert world.devices(world.ask(2)) == ["c-g0", "c-g1"]
    assert world.devices(world.ask(1)) == ["c-g2"]


def test_a_gang_is_spread_over_as_few_nodes_as_possible() -> None:
    world = World(make_node("a", gpus=2), make_node("b", gpus=4), make_node("c", gpus=3))
    assert {device[0] for device in world.devices(world.ask(6))} == {"b", "a"}


def test_packing_takes_the_fewest_nodes_and_exactly_the_count() -> None:
    chance = random.Random(7)
    for _ in range(300):
        free = {f"n{i}": chance.randint(1, 5) for i in range(chance.randint(1, 6))}
        by_free: dict[int, list[str]] = {}
        for name, number in free.items():
            by_free.setdefault(number, []).append(name)
        count = chance.randint(1, sum(free.values()))
        chosen = pack(by_free, count)
        assert sum(number for _, number in chosen) == count
        assert len({name for name, _ in chosen}) == len(chosen)
        assert all(0 < number <= free[name] for name, number in chosen)
        sizes = sorted(free.values(), reverse=True)
        fewest = next(n for n in range(1, 7) if sum(sizes[:n]) >= count)
        assert len(chosen) == fewest


# --- leases: release, extend, expiry, ending


def test_an_unused_lease_is_free_as_soon_as_it_is_released() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    waiting = world.ask()
    world.release(lease)
    assert not world.got(ev.EndLease)
    (ended,) = world.got(ev.LeaseEnded)
    assert ended.lease.reason == "released"
    assert world.state.requests[lease.request].reason == "released"
    assert world.state_of(waiting) is RequestState.GRANTED


def test_a_used_leases_devices_are_granted_again_when_every_node_has_confirmed() -> None:
    world = World(make_node("n", gpus=1), make_node("m", gpus=1))
    lease = world.lease(2)
    world.run(lease)
    waiting = world.ask()
    world.release(lease)
    (end,) = world.got(ev.EndLease)
    assert (end.lease, end.nodes, end.reason) == (lease.id, ("m", "n"), "released")
    assert world.state.leases[lease.id].state is LeaseState.ENDING
    world.gone("n", lease)
    world.gone("n", lease)
    assert world.state_of(waiting) is RequestState.QUEUED
    world.gone("m", lease)
    assert world.got(ev.LeaseEnded)
    assert world.state_of(waiting) is RequestState.GRANTED


def test_a_release_said_twice_is_one_release() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.run(lease)
    world.release(lease)
    world.release(lease)
    assert world.actions == []


def test_ranks_gone_from_an_active_lease_end_nothing() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.run(lease)
    world.gone("n", lease)
    assert world.state.leases[lease.id].state is LeaseState.ACTIVE


def test_a_lease_ends_when_its_time_is_over() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease(time=30.0)
    assert world.state.next_deadline() == 1027.0, "it is warned"
    world.pass_time(29.9)
    assert world.state.next_deadline() == 1030.0
    assert lease.id in world.state.leases
    world.pass_time(0.1)
    (ended,) = world.got(ev.LeaseEnded)
    assert ended.lease.reason == "its time is over"
    assert world.state.next_deadline() is None


@pytest.mark.parametrize(("length", "ends"), [(100.0, 1110.0), (5.0, 1015.0), (None, None)])
def test_an_extended_lease_ends_so_long_from_now(length: float | None, ends: float | None) -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease(time=30.0)
    world.pass_time(10)
    world.do(ev.Extended(lease=lease.id, time=length, by="ana"))
    assert world.state.leases[lease.id].expires == ends
    warned = {1110.0: 1099.0, 1015.0: 1013.5, None: None}[ends]
    assert world.state.next_deadline() == warned
    world.pass_time(20)
    assert (lease.id in world.state.leases) == (ends is None or ends > 1030)


def test_an_ending_lease_cannot_be_extended_or_used() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.run(lease)
    world.release(lease)
    extend = ev.Extended(lease=lease.id, time=5.0, by="ana")
    assert "is ending (released)" in sentence(lambda: world.do(extend), ConflictError)
    sentence(lambda: world.run(lease), ConflictError)


def test_a_clock_that_jumps_back_makes_no_lease_and_no_grace_longer() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(time=100.0)
    world.lease(time=100.0)
    world.pass_time(40)
    world.pass_time(-3600)
    assert world.state.leases[lease.id].expires == world.now + 100
    world.do(ev.SessionLost(session="s", dead=False))
    world.pass_time(-3600)
    world.pass_time(60)
    assert "did not come back" in world.got(ev.LeaseEnded)[0].lease.reason
    assert not world.state.leases


def test_a_clock_that_jumps_back_before_the_first_tick_is_noticed() -> None:
    world = World(make_node("n", gpus=1))
    world.do(ev.SessionLost(session="s", dead=False))
    world.pass_time(-500)
    world.pass_time(60)
    assert not world.state.sessions


def test_fences_rise_for_ever() -> None:
    world = World(make_node("n", gpus=1))
    fences = []
    for _ in range(3):
        lease = world.lease()
        fences.append(lease.fence)
        world.release(lease)
        world.restart()
        world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    assert fences == [1, 2, 3]


# --- owners


def test_a_dead_owners_lease_ends_at_once_and_is_granted_again_after_its_processes() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.run(lease)
    world.open("t")
    waiting = world.ask(session="t")
    world.do(ev.SessionLost(session="s", dead=True))
    assert world.got(ev.EndLease)
    assert world.state_of(waiting) is RequestState.QUEUED
    world.gone("n", lease)
    assert world.state_of(waiting) is RequestState.GRANTED
    assert "s" not in world.state.sessions


def test_a_lost_owner_keeps_its_lease_for_the_grace() -> None:
    world = World(make_node("n", gpus=1), owner_grace=30.0)
    lease = world.lease()
    world.do(ev.SessionLost(session="s", dead=False))
    world.pass_time(29)
    assert lease.id in world.state.leases
    world.pass_time(1)
    assert "within 30 s" in world.got(ev.LeaseEnded)[0].lease.reason


def test_a_loss_said_twice_does_not_begin_the_grace_anew() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.do(ev.SessionLost(session="s", dead=False))
    world.pass_time(40)
    world.do(ev.SessionLost(session="s", dead=False))
    world.pass_time(20)
    assert lease.id not in world.state.leases


def test_an_owner_that_comes_back_keeps_its_lease_and_its_place() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    waiting = world.ask()
    world.do(ev.SessionLost(session="s", dead=False))
    world.pass_time(59)
    world.open("s", "ana")
    world.pass_time(1000)
    assert lease.id in world.state.leases
    assert world.state_of(waiting) is RequestState.QUEUED


def test_a_session_of_another_user_cannot_be_opened_again() -> None:
    world = World(make_node("n", gpus=1))
    sentence(lambda: world.open("s", "eve"), AccessError)
    assert world.state.sessions["s"].user == "ana"


def test_a_shells_lease_outlives_its_connection_and_not_its_process() -> None:
    world = World(make_node("n", gpus=1))
    world.open("shell", pid=77, keep=Keep.PROCESS)
    lease = world.lease(session="shell")
    world.do(ev.SessionLost(session="shell", dead=False))
    world.pass_time(10_000)
    assert lease.id in world.state.leases
    world.do(ev.SessionLost(session="shell", dead=True))
    assert lease.id not in world.state.leases


def test_goodbye_ends_leases_and_requests_at_once() -> None:
    world = World(make_node("n", gpus=1))
    world.lease()
    waiting = world.ask()
    world.do(ev.SessionClosed(session="s"))
    assert [ended.request.id for ended in world.got(ev.RequestEnded)] == [waiting.id]
    assert world.got(ev.LeaseEnded)
    assert world.state.requests[waiting.id].reason == "its session has ended"
    assert world.do(ev.SessionClosed(session="s")) == []


def test_a_lease_that_belongs_to_its_run_ends_with_it() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease(scope=Scope.DETACHED)
    first, second = world.run(lease), world.run(lease)
    world.do(ev.SessionClosed(session="s"))
    world.pass_time(10_000)
    world.exit(first, 0)
    assert world.state.leases[lease.id].state is LeaseState.ACTIVE
    world.exit(second, 0)
    assert world.got(ev.EndLease)[0].reason == f"its run {second.id} has ended"
    world.gone("n", lease)
    assert not world.state.leases
    assert world.state.runs[second.id].state is RunState.SUCCEEDED


@pytest.mark.parametrize("gone_at", [10, 100])
def test_a_lease_for_a_run_that_never_came_ends_once_its_session_is_gone(gone_at: int) -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease(scope=Scope.DETACHED)
    world.pass_time(gone_at)
    assert lease.id in world.state.leases
    world.do(ev.SessionClosed(session="s"))
    assert (lease.id in world.state.leases) == (gone_at < 60)
    world.pass_time(50)
    assert lease.id not in world.state.leases
    assert "no run came" in world.state.requests[lease.request].reason


# --- nodes


def test_a_lost_nodes_devices_are_not_granted() -> None:
    world = World(make_node("n", gpus=1))
    world.do(ev.NodeLost(node="n"))
    request = world.ask()
    assert world.state.reason(request.id) == "NodeDown"
    assert not world.state.node_up("n")
    world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    assert world.devices(request) == ["n-g0"]


def test_leases_and_runs_of_a_lost_node_end_after_the_grace_and_name_it() -> None:
    world = World(make_node("n", gpus=1), make_node("m", gpus=1), node_grace=20.0)
    lease = world.lease(2)
    run = world.run(lease)
    waiting = world.ask()
    world.do(ev.NodeLost(node="m"))
    world.pass_time(19)
    assert world.state.leases[lease.id].state is LeaseState.ACTIVE
    world.pass_time(1)
    (end,) = world.got(ev.EndLease)
    assert end.nodes == ("n",)
    assert world.state_of(waiting) is RequestState.QUEUED
    world.gone("n", lease)
    assert world.got(ev.LeaseEnded)[0].lease.reason == "node m was lost"
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.FAILED, "node m was lost")
    assert world.devices(waiting) == ["n-g0"]


def test_a_node_that_comes_back_in_time_keeps_its_leases() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    run = world.run(lease)
    world.do(ev.NodeLost(node="n"))
    world.pass_time(59)
    world.do(ev.NodeJoined(node=make_node("n", gpus=1, port=2), held=(lease.id,)))
    world.pass_time(1000)
    assert not world.got(ev.EndLease)
    assert world.state.leases[lease.id].slots[0].address == "n:2"
    assert world.state.runs[run.id].state is RunState.STARTING


def test_devices_of_a_node_that_comes_back_too_late_wait_for_its_processes() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(1)
    world.run(lease)
    world.do(ev.NodeLost(node="n"))
    world.pass_time(60)
    assert world.got(ev.LeaseEnded)
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=(lease.id,)))
    assert [(end.lease, end.nodes) for end in world.got(ev.EndLease)] == [(lease.id, ("n",))]
    assert world.devices(world.ask()) == ["n-g1"], "the other device is not held up"
    waiting = world.ask()
    assert world.state.reason(waiting.id) == "Resources"
    world.gone("n", lease)
    assert world.devices(waiting) == ["n-g0"]
    assert not [kind for kind, _ in world.journal if kind == "unconfirmed"]


def test_which_devices_are_unconfirmed_survives_a_restart() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(1)
    world.run(lease)
    world.do(ev.NodeLost(node="n"))
    world.pass_time(60)
    world.restart()
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=(lease.id,)))
    world.open("t")
    assert world.devices(world.ask(session="t")) == ["n-g1"]
    world.do(ev.NodeLost(node="n"))
    world.do(ev.NodeJoined(node=make_node("n", gpus=2)))
    assert world.devices(world.ask(session="t")) == ["n-g0"], "it came back without them"


def test_processes_of_an_unknown_lease_keep_the_whole_node_from_being_granted() -> None:
    world = World(make_node("m", slots=1))
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=("L77",)))
    assert [end.lease for end in world.got(ev.EndLease)] == ["L77"]
    waiting = world.ask()
    assert world.state_of(waiting) is RequestState.QUEUED
    world.do(ev.RanksGone(node="n", lease="L77"))
    assert world.state_of(waiting) is RequestState.GRANTED


def test_a_node_given_up_during_the_end_of_a_lease_is_waited_for_again_when_it_returns() -> None:
    world = World(make_node("n", gpus=1), make_node("m", gpus=1))
    lease = world.lease(2)
    world.run(lease)
    world.release(lease)
    world.do(ev.NodeLost(node="m"))
    world.pass_time(60)
    assert lease.id in world.state.leases
    world.do(ev.NodeJoined(node=make_node("m", gpus=1), held=(lease.id,)))
    assert [end.nodes for end in world.got(ev.EndLease)] == [("m",)]
    world.gone("n", lease)
    waiting = world.ask()
    assert world.state_of(waiting) is RequestState.QUEUED
    world.gone("m", lease)
    assert world.state_of(waiting) is RequestState.GRANTED


def test_a_node_that_returns_without_an_ending_leases_processes_confirms_its_end() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.run(lease)
    world.do(ev.NodeLost(node="n"))
    world.release(lease)
    assert not world.got(ev.EndLease)
    world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    assert world.got(ev.LeaseEnded)


def test_an_ending_lease_waits_for_a_lost_node_as_long_as_the_grace() -> None:
    world = World(make_node("n", gpus=1), make_node("m", gpus=1))
    lease = world.lease(2)
    world.run(lease)
    world.release(lease)
    world.gone("n", lease)
    world.do(ev.NodeLost(node="m"))
    world.pass_time(59)
    assert lease.id in world.state.leases
    world.pass_time(1)
    assert world.got(ev.LeaseEnded)


def test_a_node_that_was_given_up_once_is_waited_for_like_any_other_when_it_is_back() -> None:
    world = World(make_node("n", gpus=1))
    world.do(ev.NodeLost(node="n"))
    world.pass_time(60)
    world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    lease = world.lease()
    world.run(lease)
    world.release(lease)
    assert [end.nodes for end in world.got(ev.EndLease)] == [("n",)]
    assert lease.id in world.state.leases


def test_a_lease_ends_when_its_device_is_no_longer_offered() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2)
    world.do(ev.NodeLost(node="n"))
    world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    assert "device n-g1" in world.got(ev.LeaseEnded)[0].lease.reason
    assert world.devices(world.ask()) == ["n-g0"]
    assert lease.id not in world.state.leases


def test_a_request_that_can_never_be_granted_any_more_ends_with_a_reason() -> None:
    world = World(make_node("n", gpus=2), make_node("m", gpus=1), node_memory=600.0)
    world.lease(1)
    large, small = world.ask(3), world.ask(1)
    world.do(ev.NodeLost(node="m"))
    world.pass_time(599)
    assert world.state.reason(large.id) == "NodeDown"
    world.pass_time(1)
    assert "m" not in world.state.nodes
    assert world.got(ev.RequestEnded)[0].request.id == large.id
    assert "no longer has enough" in world.state.requests[large.id].reason
    assert world.state_of(small) is RequestState.GRANTED


def test_two_agents_cannot_offer_one_device() -> None:
    world = World(make_node("n", gpus=1))
    twin = Node(id="t", host="n", address="t:1", pid=2, devices=make_node("n", gpus=1).devices)
    assert "n-g0" in sentence(lambda: world.do(ev.NodeJoined(node=twin)), ConflictError)
    world.do(ev.NodeLost(node="n"))
    world.do(ev.NodeJoined(node=twin))
    assert world.state.leases[world.ask().lease].slots[0].node == "t"
    assert world.state.nodes["n"].devices == ()
    sentence(lambda: world.ask(2), AllocationError)


# --- outside use


def test_a_device_in_use_outside_any_lease_is_not_granted() -> None:
    world = World(make_node("n", gpus=2))
    use = {"n-g0": (Process(pid=4242),), "elsewhere": (Process(pid=1),)}
    world.do(ev.OutsideReported(node="n", outside=use))
    assert world.state.outside == {"n-g0": (Process(pid=4242),)}
    assert world.devices(world.ask()) == ["n-g1"]
    world.release(world.state.leases["L1"])
    both = world.ask(2)
    assert world.state.reason(both.id) == "DeviceHeldOutsideAnyLease(4242)"
    world.do(ev.OutsideReported(node="n", outside={}))
    assert world.state_of(both) is RequestState.GRANTED


def test_what_a_lost_node_said_of_outside_use_is_forgotten() -> None:
    world = World(make_node("n", gpus=1))
    world.do(ev.OutsideReported(node="n", outside={"n-g0": (Process(pid=7),)}))
    world.do(ev.NodeLost(node="n"))
    assert world.state.outside == {}
    world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    assert world.ask().state is RequestState.GRANTED


def test_outside_use_reported_after_the_grant_counts_from_the_next_one_on() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    world.do(ev.OutsideReported(node="n", outside={"n-g0": (Process(pid=7),)}))
    assert lease.id in world.state.leases
    waiting = world.ask()
    world.release(lease)
    assert world.state.reason(waiting.id) == "DeviceHeldOutsideAnyLease(7)"


# --- runs


def test_a_run_starts_afresh_and_marks_its_lease_used() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2)
    run = world.run(lease, state=RunState.FAILED, reason="x", detail={"model": "m/1"})
    assert (run.state, run.reason, run.started) == (RunState.STARTING, "", world.now)
    assert run.detail == {"model": "m/1"}
    assert world.state.leases[lease.id].used
    assert world.do(ev.RunCreated(run=run)) == []


def test_a_run_needs_an_active_lease_of_its_user_and_one_rank_for_each_device_at_most() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2)
    sentence(lambda: world.run(lease, user="eve"), AccessError)
    sentence(lambda: world.run(lease.__replace__(id="L9")), NotFoundError)
    sentence(lambda: world.run(lease, nodes=("m",)), UsageError)
    sentence(lambda: world.run(lease, world_size=0), UsageError)
    assert "1 to 2 ranks" in sentence(lambda: world.run(lease, world_size=3), UsageError)
    assert not world.state.leases[lease.id].used
    run = world.run(lease)
    sentence(lambda: world.run(lease.__replace__(id="L8"), id=run.id), AccessError)


def test_a_run_succeeds_when_all_its_ranks_have() -> None:
    world = World(make_node("n", gpus=2))
    run = world.run(world.lease(2))
    world.do(ev.RunReported(run=run.id, state=RunState.RUNNING))
    assert world.exit(run, 1).state is RunState.RUNNING
    assert world.exit(run, 1).state is RunState.RUNNING, "said twice"
    assert world.exit(run, 5).state is RunState.RUNNING, "no such rank"
    world.pass_time(5)
    ended = world.exit(run, 0)
    assert (ended.state, ended.ended) == (RunState.SUCCEEDED, world.now)
    assert [action.run for action in world.got(ev.RunEnded)] == [ended]
    assert len(world.state.leases) == 1, "the lease is the session's"


def test_the_first_rank_that_fails_ends_the_gang_and_gives_the_reason() -> None:
    world = World(make_node("n", gpus=2), make_node("m", gpus=1))
    run = world.run(world.lease(3))
    assert world.exit(run, 1, -9, "rank 1 was killed by SIGKILL").state is RunState.STOPPING
    (stop,) = world.got(ev.StopRun)
    assert set(stop.nodes) == {"n", "m"}
    assert stop.reason == "rank 1 was killed by SIGKILL"
    world.exit(run, 0, -15, "rank 0 was killed by SIGTERM")
    assert not world.got(ev.StopRun)
    ended = world.exit(run, 2, 1)
    assert (ended.state, ended.reason) == (RunState.FAILED, "rank 1 was killed by SIGKILL")
    assert ended.detail["failed_rank"] == 1
    assert [exit.rank for exit in ended.exits] == [1, 0, 2]


@pytest.mark.parametrize(("code", "words"), [(3, "exited with code 3"), (-11, "signal 11")])
def test_a_failure_without_a_sentence_gets_one(code: int, words: str) -> None:
    world = World(make_node("n", gpus=1))
    ended = world.exit(world.run(world.lease()), 0, code)
    assert ended.state is RunState.FAILED
    assert words in ended.reason


def test_a_stopped_run_ends_stopped_whatever_its_ranks_exit_with() -> None:
    world = World(make_node("n", gpus=2))
    run = world.run(world.lease(2))
    stop = ev.StopRequested(run=run.id, by="ana", reason="stopped by ana")
    world.do(stop)
    assert [(a.run.id, a.nodes, a.reason) for a in world.got(ev.StopRun)] == [
        (run.id, ("n",), "stopped by ana")
    ]
    world.do(stop)
    assert len(world.got(ev.StopRun)) == 1, "asked again, agents are told again"
    world.exit(run, 0, -15)
    ended = world.exit(run, 1, 0)
    assert (ended.state, ended.reason) == (RunState.STOPPED, "stopped by ana")
    assert world.do(stop) == []


def test_runs_end_with_their_lease_and_its_reason() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2)
    run = world.run(lease)
    world.release(lease)
    assert world.state.runs[run.id].state is RunState.STOPPING
    world.exit(run, 0, -15)
    assert not world.got(ev.RunEnded)
    world.gone("n", lease)
    ended = world.got(ev.RunEnded)[0].run
    assert (ended.state, ended.reason) == (RunState.STOPPED, "released")


def test_a_run_that_failed_before_its_lease_ended_has_failed() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2)
    run = world.run(lease)
    world.exit(run, 0, 1, "rank 0 exited with code 1")
    world.release(lease)
    world.gone("n", lease)
    ended = world.state.runs[run.id]
    assert (ended.state, ended.reason) == (RunState.FAILED, "rank 0 exited with code 1")


def test_reports_are_merged_while_the_run_lives() -> None:
    world = World(make_node("n", gpus=1))
    run = world.run(world.lease())
    report = ev.RunReported(
        run=run.id,
        state=RunState.RUNNING,
        progress=Progress(done=1, total=2),
        metrics={"loss": 1.0},
        detail={"url": "http://localhost", "failed_rank": 0},
    )
    world.do(report)
    assert world.do(report) == [], "nothing new, nothing written"
    world.do(ev.RunReported(run=run.id, state=RunState.STARTING, metrics={"accuracy": 0.5}))
    now = world.state.runs[run.id]
    assert now.state is RunState.RUNNING
    assert now.progress == Progress(done=1, total=2)
    assert now.metrics == {"loss": 1.0, "accuracy": 0.5}
    assert now.detail == {"url": "http://localhost"}
    assert world.exit(run, 0).state is RunState.SUCCEEDED
    assert world.do(ev.RunReported(run=run.id, metrics={"loss": 9.0})) == []
    assert world.do(ev.RunReported(run="unknown", metrics={"loss": 9.0})) == []


def test_ended_runs_and_requests_are_kept_for_a_while() -> None:
    world = World(make_node("n", gpus=1))
    for _ in range(205):
        lease = world.lease(scope=Scope.DETACHED)
        run = world.run(lease)
        world.exit(run, 0)
        world.gone("n", lease)
    assert len(world.state.runs) == 200
    assert run.id in world.state.runs
    for _ in range(1000):
        world.release(world.lease())
    assert len(world.state.requests) == 1000
    assert {(k, i): r for k, i, r in world.state.records()} == world.journal


# --- restarts


def test_a_restarted_broker_knows_queue_leases_runs_and_sessions() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2, time=500.0)
    run = world.run(lease)
    first, second = world.ask(2), world.ask(1)
    world.restart()
    state = world.state
    assert [request.id for request in state.queue()] == [first.id, second.id]
    assert set(state.leases) == {lease.id}
    assert set(state.runs) == {run.id}
    assert set(state.sessions) == {"s"}
    assert state.holder == {"n-g0": lease.id, "n-g1": lease.id}
    assert not state.node_up("n")
    assert state.reason(first.id) == "NodeDown"
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=(lease.id,)))
    world.open("s", "ana")
    world.pass_time(400)
    assert set(world.state.leases) == {lease.id}
    world.pass_time(100)
    world.gone("n", lease)
    assert world.devices(first) == ["n-g0", "n-g1"]


def test_after_a_restart_who_does_not_come_back_is_gone() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    waiting = world.ask()
    world.restart()
    world.do(ev.NodeJoined(node=make_node("n", gpus=1)))
    world.pass_time(60)
    assert lease.id not in world.state.leases
    assert world.state_of(waiting) is RequestState.ENDED
    assert not world.state.sessions


def test_after_a_restart_a_node_that_does_not_come_back_is_lost() -> None:
    world = World(make_node("n", gpus=1), owner_grace=1000.0)
    lease = world.lease()
    run = world.run(lease)
    world.restart()
    world.pass_time(60)
    assert lease.id not in world.state.leases
    assert world.state.runs[run.id].reason == "node n was lost"


def test_an_ending_lease_goes_on_ending_after_a_restart() -> None:
    world = World(make_node("n", gpus=1))
    lease = world.lease()
    run = world.run(lease)
    world.release(lease)
    world.restart()
    world.do(ev.NodeJoined(node=make_node("n", gpus=1), held=(lease.id,)))
    assert [end.nodes for end in world.got(ev.EndLease)] == [("n",)]
    assert [stop.run.id for stop in world.got(ev.StopRun)] == [run.id]
    world.gone("n", lease)
    assert world.state.runs[run.id].state is RunState.STOPPED
    assert not world.state.leases


def test_a_failed_run_is_still_failed_after_a_restart() -> None:
    world = World(make_node("n", gpus=2))
    lease = world.lease(2)
    run = world.run(lease)
    world.exit(run, 0, 1, "rank 0 exited with code 1")
    world.restart()
    world.do(ev.NodeJoined(node=make_node("n", gpus=2), held=(lease.id,)))
    assert [stop.run.id for stop in world.got(ev.StopRun)] == [run.id]
    assert world.exit(run, 1, -15).state is RunState.FAILED


def test_a_lease_whose_time_passed_while_the_broker_was_down_ends() -> None:
    world = World(make_node("n", gpus=1))
    world.lease(time=50.0)
    world.now += 100
    world.restart()
    assert world.got(ev.LeaseEnded)[0].lease.reason == "its time is over"


# --- cost


def test_a_hand_over_costs_the_same_behind_a_long_queue() -> None:
    def hand_over(queued: int) -> float:
        world = World(*(make_node(f"n{i}", gpus=8) for i in range(20)))
        leases = [world.lease(8) for _ in range(20)]
        for n in range(queued):
            request = Request(id=f"q{n}", session="s", user="ana", want=Want.GPU, count=8)
            world.state.handle(ev.Submitted(request=request), world.now)
        best = float("inf")
        for lease in leases:
            release = ev.Released(lease=lease.id, by="ana")
            start = time.perf_counter()
            actions = world.state.handle(release, world.now)
            best = min(best, time.perf_counter() - start)
            assert any(isinstance(action, ev.Granted) for action in actions)
        return best

    assert hand_over(20_000) < 10 * hand_over(20)
