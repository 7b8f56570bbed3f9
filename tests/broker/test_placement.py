"""What requests may ask for beside a number of devices: models, shares, ranges, layout, hosts."""

from __future__ import annotations

from typing import Any

import pytest
from simulated import HOUR, Cluster

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.demand import Demand
from aios_jupyter.broker.outlook import Outlook
from aios_jupyter.broker.placement import place
from aios_jupyter.broker.views import snapshot
from aios_jupyter.errors import AiosError
from aios_jupyter.schema import (
    Device,
    DeviceKind,
    Lease,
    Node,
    Placement,
    Process,
    RequestState,
    Want,
)

GB = 10**9
Offer = tuple[str, int]
A100, T4 = ("NVIDIA A100-SXM4-80GB", 80 * GB), ("Tesla T4", 16 * GB)
SLICE = ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10 * GB)


class Machines(Cluster):
    """A core with these machines: their accelerators, cores and gigabytes."""

    def __init__(
        self, *machines: tuple[list[Offer], int, int], policy: str = "fifo", slots: int = 0
    ) -> None:
        super().__init__(policy, gpus=0, slots=0)
        for number, (offers, cpus, memory) in enumerate(machines):
            node = f"n{number}"
            devices = [
                Device(
                    id=f"{node}-{index}",
                    kind=DeviceKind.MIG if "MIG" in name else DeviceKind.GPU,
                    name=name,
                    index=index,
                    memory=size,
                )
                for index, (name, size) in enumerate(offers)
            ]
            devices += [
                Device(id=f"{node}-c{i}", kind=DeviceKind.CPU, name="CPU slot", index=i, memory=GB)
                for i in range(slots)
            ]
            self.do(
                ev.NodeJoined(
                    node=Node(
                        id=node,
                        host=node,
                        address=f"{node}:1",
                        pid=1,
                        devices=tuple(devices),
                        cpus=cpus,
                        memory=memory * GB,
                    )
                )
            )

    def lease(self, request: str) -> Lease:
        return self.state.leases[self.state.requests[request].lease]

    def on(self, request: str) -> list[str]:
        """Devices that a request was granted; none while it waits."""
        if self.state.requests[request].state is not RequestState.GRANTED:
            return []
        return [slot.device for slot in self.lease(request).slots]

    def explain(self, request: str) -> dict[str, Any]:
        return Outlook(self.state).explain(request, self.now)


# --- models and memory


def test_a_model_is_part_of_a_name_in_any_case() -> None:
    world = Machines(([T4, A100], 0, 0), ([SLICE], 0, 0))
    assert world.on(world.ask(1, model="a100")) == ["n0-1"]
    assert world.on(world.ask(1, model="mig 1G", memory=10 * GB)) == ["n1-0"]
    waiting = world.ask(1, model="A100")
    assert world.state.reason(waiting) == "Resources"
    assert world.on(world.ask(1, model="T4")) == ["n0-0"], "which the first cannot use"


def test_who_names_a_node_has_it_or_waits_for_it() -> None:
    world = Machines(([T4, T4], 0, 0), ([T4], 0, 0))
    assert world.on(world.ask(1, node="n1")) == ["n1-0"]
    waiting = world.ask(1, node="n1")
    assert world.state.reason(waiting) == "Resources"
    assert world.explain(waiting)["node"] == "n1"
    assert world.on(world.ask(1)) == ["n0-0"], "which the first cannot use"
    assert world.on(world.ask(1, node="n0")) == ["n0-1"]


def test_a_node_without_any_is_named() -> None:
    world = Machines(([T4], 0, 0), ([], 4, 8))
    with pytest.raises(AiosError, match="Node n1 has no GPU; name another one, or leave --node"):
        world.ask(1, node="n1")


def test_of_those_that_will_do_the_smallest_is_taken() -> None:
    world = Machines(([A100, T4, A100], 0, 0))
    assert world.on(world.ask(1, memory=8 * GB)) == ["n0-1"]
    assert world.on(world.ask(2, memory=8 * GB)) == ["n0-0", "n0-2"]


# --- shares


def test_shares_fill_a_device_before_they_open_another() -> None:
    world = Machines(([T4], 0, 0), ([A100, T4], 0, 0))
    share = {"share": True, "memory": 6 * GB}
    first = world.ask(1, **share)
    assert world.on(world.ask(1, **share)) == world.on(first) == ["n0-0"]
    others = [world.ask(1, **share), world.ask(1, **share)]
    assert [world.on(id) for id in others] == [["n1-1"], ["n1-1"]]
    large = world.ask(1, share=True, memory=20 * GB)
    assert world.on(large) == ["n1-0"]
    small = world.ask(1, share=True, memory=4 * GB)
    assert world.on(small) in (["n0-0"], ["n1-1"]), "the fullest that has room"
    assert world.lease(small).slots[0].share == 4 * GB


def test_a_share_and_a_lease_of_the_whole_are_never_on_one_device() -> None:
    world = Machines(([T4], 0, 0))
    shared = world.ask(1, share=True, memory=GB, time=HOUR)
    whole = world.ask(1, time=HOUR)
    assert world.state.reason(whole) == "Resources"
    world.release(shared)
    assert world.on(whole) == ["n0-0"]
    again = world.ask(1, share=True, memory=GB)
    assert not world.on(again)
    assert world.explain(again)["eta"] == HOUR


def test_a_gang_of_shares_has_a_device_each() -> None:
    world = Machines(([T4, T4], 0, 0))
    gang = world.ask(2, share=True, memory=4 * GB)
    assert sorted(world.on(gang)) == ["n0-0", "n0-1"]
    waiting = world.ask(2, share=True, memory=13 * GB)
    assert not world.on(waiting)
    world.release(gang)
    assert len(set(world.on(waiting))) == 2


def test_shares_go_past_the_first_only_where_it_is_delayed_by_nothing() -> None:
    world = Machines(([T4], 0, 0))
    world.ask(1, share=True, memory=4 * GB, time=HOUR)
    whole = world.ask(1)
    endless = world.ask(1, share=True, memory=4 * GB)
    assert world.state.reason(endless) == f"Reservation(for {whole})"
    # No whole device is free, and still there is something for it.
    assert world.on(world.ask(1, share=True, memory=4 * GB, time=HOUR / 2)) == ["n0-0"]
    too_long = world.ask(1, share=True, memory=4 * GB, time=2 * HOUR)
    assert not world.on(too_long)
    assert world.explain(whole)["eta"] == HOUR
    world.wait(HOUR)
    assert world.on(whole) == ["n0-0"]


def test_shared_leases_come_back_from_the_journal() -> None:
    world = Machines(([T4], 8, 64))
    first = world.ask(1, share=True, memory=6 * GB, cpus=3, host_memory=8 * GB)
    second = world.ask(1, share=True, memory=6 * GB, cpus=3)
    waiting = world.ask(1, share=True, memory=6 * GB, user="bob")
    node = world.state.nodes["n0"]
    world.restart()
    assert world.state.fleet.shares("n0-0") == {"L1": 6 * GB, "L2": 6 * GB}
    world.do(ev.NodeJoined(node=node))
    assert not world.on(waiting)
    cores = world.ask(1, share=True, memory=GB, cpus=3)
    assert not world.on(cores), "only 2 of 8 cores are left"
    for request in (first, second):
        world.release(request)
    assert world.on(waiting) == world.on(cores) == ["n0-0"]
    assert world.state.fleet.shares("n0-0") == {"L3": 6 * GB, "L4": GB}


def test_a_journal_from_before_there_were_shares_is_read() -> None:
    import msgspec

    world = Machines(([T4], 0, 0))
    lease = msgspec.to_builtins(world.lease(world.ask(1)))
    for slot in lease["slots"]:
        for name in ("share", "cpus", "host_memory"):
            slot.pop(name, None)
    assert msgspec.convert(lease, Lease).slots[0].share == 0


def test_everybody_who_shares_a_device_is_shown() -> None:
    world = Machines(([T4, T4], 0, 0))
    world.ask(1, user="ana", share=True, memory=6 * GB, label="a")
    world.ask(1, user="bob", share=True, memory=8 * GB, label="b")
    world.ask(1, user="eve", label="whole")
    devices = snapshot(world.state, {}, {}, {})["devices"]
    shares = [(one["user"], one["memory"]) for one in devices["n0-0"]["shares"]]
    assert shares == [("ana", 6 * GB), ("bob", 8 * GB)]
    assert devices["n0-0"]["holder"]["user"] == "ana"
    assert devices["n0-1"]["shares"] == []
    assert devices["n0-1"]["holder"]["user"] == "eve"
    world.do(ev.Released(lease="L1", by="ana"))
    assert snapshot(world.state, {}, {}, {})["devices"]["n0-0"]["holder"]["user"] == "bob"


# --- ranges


def test_a_range_gets_as_many_as_are_free() -> None:
    world = Cluster("fifo", gpus=8)
    world.ask(5, time=HOUR)
    elastic, later = world.ask(4, least=2), world.ask(4, least=2)
    assert len(world.state.leases["L2"].slots) == 3
    assert elastic in world.started
    assert world.state.reason(later) == "Resources"
    assert Outlook(world.state).explain(later, 0.0)["why"].startswith("It is next; 0 of the 2")
    world.wait(HOUR)
    assert len(world.state.leases["L3"].slots) == 4


def test_a_range_takes_fewer_where_more_would_delay_the_first() -> None:
    world = Cluster("fifo", gpus=8)
    world.ask(4, time=HOUR)
    first = world.ask(6)
    elastic = world.ask(4, least=1)
    assert len(world.state.leases["L2"].slots) == 2, "of the 4 free, 2 are kept for the first"
    assert elastic in world.started
    world.wait(HOUR)
    assert world.started[first] == HOUR


# --- layout


@pytest.mark.parametrize(
    ("placement", "count", "least", "wanted"),
    [
        (Placement.PACK, 4, 4, {"a": 4}),
        (Placement.PACK, 6, 6, {"a": 4, "b": 2}),
        (Placement.PACK, 9, 3, {"a": 4, "b": 2, "c": 2}),
        (Placement.SPREAD, 2, 2, {"a": 1, "b": 1}),
        (Placement.SPREAD, 5, 5, {"a": 2, "b": 2, "c": 1}),
        (Placement.SPREAD, 8, 8, {"a": 4, "b": 2, "c": 2}),
        (Placement.NODE, 2, 2, {"b": 2}),
        (Placement.NODE, 3, 3, {"a": 3}),
        (Placement.NODE, 9, 4, {"a": 4}),
        (Placement.NODE, 5, 5, None),
        (Placement.SPREAD, 9, 9, None),
    ],
)
def test_layouts(
    placement: Placement, count: int, least: int, wanted: dict[str, int] | None
) -> None:
    free = {4: ["a"], 2: ["b", "c"]}
    found = place(free, 8, Demand(count, least, placement=placement))
    assert (None if found is None else dict(found)) == wanted


def test_a_gang_that_is_to_be_on_one_node_waits_for_one() -> None:
    world = Machines(([T4, T4], 0, 0), ([T4, T4], 0, 0))
    held = world.ask(1, placement=Placement.SPREAD, time=HOUR)
    assert world.on(held) == ["n0-0"]
    other = world.ask(1, placement=Placement.SPREAD)
    assert world.on(other)[0].startswith("n1"), "where most is free"
    waiting = world.ask(2, placement=Placement.NODE)
    assert world.state.reason(waiting) == "Resources"
    assert "no node has the 2" in world.explain(waiting)["why"]
    assert world.explain(waiting)["eta"] == HOUR
    kept = world.ask(1)
    assert world.state.reason(kept) == f"Reservation(for {waiting})"
    assert len(world.on(world.ask(1, time=HOUR / 2))) == 1, "over by then"
    world.wait(HOUR)
    assert {device[:2] for device in world.on(waiting)} == {"n0"}


# --- cores and memory of hosts


def test_a_nodes_cores_and_memory_are_given_once() -> None:
    world = Machines(([T4] * 4, 8, 32))
    first = world.ask(2, cpus=3, host_memory=8 * GB, time=HOUR)
    assert len(world.on(first)) == 2
    cores, memory = world.ask(1, cpus=3), world.ask(1, host_memory=17 * GB)
    assert world.state.reason(cores) == "Resources"
    assert not world.on(memory)
    assert len(world.on(world.ask(1, cpus=2, time=HOUR))) == 1
    assert world.explain(cores)["eta"] == HOUR
    world.wait(HOUR)
    assert len(world.on(cores)) == len(world.on(memory)) == 1


def test_what_takes_cores_that_the_first_waits_for_does_not_go_past_it() -> None:
    world = Machines(([A100, A100, T4], 8, 0))
    world.ask(1, model="a100", cpus=6)
    first = world.ask(1, model="a100", cpus=4)
    assert not world.on(first)
    assert not world.on(world.ask(1, model="t4", cpus=2)), "nobody knows until when"
    assert world.on(world.ask(1, model="t4")) == ["n0-2"], "it takes no core"


def test_a_cpu_slot_is_a_core() -> None:
    world = Machines(([T4, T4], 4, 0), slots=4)
    assert len(world.on(world.ask(1, cpus=3))) == 1
    slot = world.ask(1, want=Want.CPU)
    assert len(world.on(slot)) == 1
    waiting = world.ask(1, want=Want.CPU)
    assert world.state.reason(waiting) == "Resources", "three slots are free, and no core"
    assert len(world.on(world.ask(1))) == 1, "who asks for no core needs none"
    world.do(ev.Released(lease="L1", by="ana"))
    assert len(world.on(waiting)) == 1


# --- what can never be


@pytest.mark.parametrize(
    ("count", "wish", "sentence"),
    [
        (0, {}, "0 is not a number of devices"),
        (-1, {}, "-1 is not a number of devices"),
        (2, {"least": 3}, "3:2 is not a range of devices"),
        (2, {"least": -1}, "-1:2 is not a range"),
        (10**12, {}, "ask for at most 3, which is all"),
        (9, {"least": 4}, "4 GPUs can never be granted here: ask for at most 3"),
        (1, {"model": "H200"}, "No GPU of this cluster is a 'h200': there is 'NVIDIA A100"),
        (1, {"memory": -1}, "-1 bytes is not an amount of memory"),
        (1, {"memory": 2**62}, "the largest has 80 GB"),
        (1, {"model": "t4", "memory": 20 * GB}, "No GPU 't4' of this cluster has 20 GB of memory"),
        (2, {"memory": 20 * GB}, "ask for at most 1"),
        (1, {"share": True}, "Say how much of a device's memory with --gpu-memory"),
        (1, {"share": True, "memory": 90 * GB}, "the largest has 80 GB"),
        (1, {"share": True, "memory": GB, "want": Want.CPU}, "leave --share out for CPU slots"),
        (3, {"placement": Placement.NODE}, "3 GPUs on one node can never be granted here"),
        (3, {"placement": Placement.NODE}, "at most 2, which is the largest node has"),
        (
            1,
            {"cpus": 17},
            "No node can give 17 CPUs with each GPU: the largest with such a GPU has",
        ),
        (1, {"model": "t4", "cpus": 9}, "has 8, ask for that or less"),
        (2, {"cpus": 16}, "2 GPUs with 16 CPUs each can never be granted here: ask for at most 1"),
        (1, {"node": "n9"}, "There is no node 'n9'; 'aios node list' has their names"),
        (2, {"node": "n1"}, "2 GPUs on node n1 can never be granted here: ask for at most 1"),
        (1, {"node": "n1", "model": "a100"}, "No GPU of node n1 is a 'a100': there is 'Tesla T4'"),
        (1, {"cpus": -1}, "cannot be less than nothing"),
        (1, {"host_memory": 2**62}, "of its memory with each GPU: the largest with such a GPU"),
        (9, {"want": Want.CPU, "cpus": 2}, "CPU slots with 2 CPUs each can never be granted"),
    ],
)
def test_what_can_never_be_granted_is_refused_at_once_in_a_sentence(
    count: int, wish: dict[str, Any], sentence: str
) -> None:
    world = Machines(([T4, A100], 16, 64), ([T4], 8, 32), slots=2)
    if wish.get("model") == "t4" and "cpus" in wish:
        world = Machines(([T4], 8, 32), ([A100], 16, 64))
    before = list(world.state.records())
    with pytest.raises(AiosError) as refused:
        world.ask(count, **wish)
    assert sentence in str(refused.value)
    assert str(refused.value).count(". ") == 0
    assert [r for r in world.state.records() if r[0] != "session"] == before


def test_a_request_ends_when_the_only_node_for_it_is_forgotten() -> None:
    world = Machines(([T4, T4], 0, 0), ([T4], 0, 0))
    world.ask(3, time=HOUR)
    waiting = world.ask(2, placement=Placement.NODE)
    world.do(ev.NodeLost(node="n0"))
    assert world.state.reason(waiting) == "NodeDown"
    world.wait(2 * HOUR)
    assert "no longer has enough devices" in world.state.reason(waiting)


def test_a_process_outside_is_named_when_it_alone_is_in_the_way() -> None:
    world = Machines(([T4], 8, 0), ([A100], 8, 0))
    world.do(ev.OutsideReported(node="n1", outside={"n1-0": (Process(pid=42),)}))
    waiting = world.ask(1, model="a100", cpus=2)
    assert world.state.reason(waiting) == "DeviceHeldOutsideAnyLease(42)"
    share = world.ask(1, share=True, memory=40 * GB)
    assert not world.on(share), "no part of such a device either"
