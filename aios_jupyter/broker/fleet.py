"""Which devices there are, on which nodes, and which of them can be granted now.

A device can be granted when its node is up, no lease holds it, no process outside any lease is on
it, and no processes of an earlier lease are still being ended there. `Fleet` keeps an index of
these by pool, node and number of free devices, so that a grant costs the same in a small and a
large cluster.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..errors import ConflictError
from ..schema import ACCELERATORS, Device, Node, Process, Slot, Want
from .policy import Pool, pack


def pool_of(device: Device) -> Pool:
    """The pool that a device belongs to."""
    return Pool.ACCELERATOR if device.kind in ACCELERATORS else Pool.CPU


class _Free:
    """Free devices of one pool, by node; and nodes by how many they have."""

    def __init__(self) -> None:
        self.size = 0
        self.devices: dict[str, dict[str, Device]] = {}
        self._nodes: dict[int, dict[str, None]] = {}

    def add(self, node: str, device: Device) -> None:
        devices = self.devices.setdefault(node, {})
        self._move(node, len(devices), len(devices) + 1)
        devices[device.id] = device
        self.size += 1

    def remove(self, node: str, device: str) -> None:
        devices = self.devices[node]
        self._move(node, len(devices), len(devices) - 1)
        del devices[device]
        self.size -= 1
        if not devices:
            del self.devices[node]

    def _move(self, node: str, before: int, after: int) -> None:
        if before:
            del self._nodes[before][node]
            if not self._nodes[before]:
                del self._nodes[before]
        if after:
            self._nodes.setdefault(after, {})[node] = None

    def count(self, memory: int) -> int:
        """How many there are with enough memory."""
        if not memory:
            return self.size
        return sum(
            device.memory >= memory
            for devices in self.devices.values()
            for device in devices.values()
        )

    def pick(self, count: int, memory: int) -> list[tuple[str, Device]] | None:
        """A whole gang, or None."""
        if self.size < count:
            return None
        if not memory:
            return self._choose(pack(self._nodes, count), memory)
        by_free: dict[int, list[str]] = {}
        for node, devices in self.devices.items():
            if free := sum(device.memory >= memory for device in devices.values()):
                by_free.setdefault(free, []).append(node)
        if sum(free * len(nodes) for free, nodes in by_free.items()) < count:
            return None
        return self._choose(pack(by_free, count), memory)

    def _choose(self, places: list[tuple[str, int]], memory: int) -> list[tuple[str, Device]]:
        """Of each node's devices, the smallest that will do."""
        return [
            (node, device)
            for node, number in places
            for device in sorted(
                (d for d in self.devices[node].values() if d.memory >= memory),
                key=lambda device: (device.memory, device.index, device.id),
            )[:number]
        ]


class Fleet:
    """The nodes and devices of a cluster.

    Attributes
    ----------
    nodes
        Every known node by id, also those that are down.
    down
        Since when a node that is down has been so.
    holder
        The lease that holds a device.
    outside
        Processes outside any lease, by device; a device without has no entry.
    version
        Rises when a device becomes free or is taken.
    """

    def __init__(self) -> None:
        self.version = 0
        self.nodes: dict[str, Node] = {}
        self.down: dict[str, float] = {}
        self.holder: dict[str, str] = {}
        self.outside: dict[str, tuple[Process, ...]] = {}
        self._home: dict[str, tuple[str, Device]] = {}
        self._blocked: dict[str, set[str]] = {}
        self._free = {pool: _Free() for pool in Pool}
        self._memories: dict[Pool, list[int]] = {}

    # --- nodes

    def check(self, node: Node) -> None:
        """Refuse a node that offers devices of another node that is up.

        Raises
        ------
        ConflictError
            Two agents offer the same device.
        """
        for device in node.devices:
            home, _ = self._home.get(device.id, (node.id, device))
            if home != node.id and home not in self.down:
                raise ConflictError(
                    f"Device {device.id} is offered by node {home} already; stop one of the two "
                    "agents on that machine."
                )

    def join(self, node: Node) -> list[Node]:
        """A node is up, with these devices; returns the nodes whose records have changed."""
        changed = {node.id: node} if self.nodes.get(node.id) != node else {}
        for device in node.devices:
            home, _ = self._home.get(device.id, (node.id, device))
            if home != node.id:
                left = tuple(d for d in self.nodes[home].devices if d.id != device.id)
                changed[home] = self.nodes[home].__replace__(devices=left)
                self._settle(changed[home])
        self.down.pop(node.id, None)
        self._settle(node)
        return list(changed.values())

    def lose(self, node: str, now: float) -> None:
        """A node is down; what it said of processes no longer counts."""
        self.down[node] = now
        for device in self.nodes[node].devices:
            self.outside.pop(device.id, None)
            self._blocked.pop(device.id, None)
            self._refresh(device.id)

    def forget(self, node: str) -> None:
        """A node is not known any more."""
        self._settle(self.nodes[node].__replace__(devices=()))
        del self.nodes[node]
        self.down.pop(node, None)

    def known(self, node: Node, down_since: float) -> None:
        """A node that an earlier life of the broker knew: down until it joins."""
        self.down[node.id] = down_since
        self._settle(node)

    def up(self, node: str) -> bool:
        """Whether a node is connected."""
        return node in self.nodes and node not in self.down

    def _settle(self, node: Node) -> None:
        before = self.nodes.get(node.id)
        for device in before.devices if before else ():
            self._take(device.id)
            if self._home.get(device.id, ("",))[0] == node.id:
                del self._home[device.id]
        self.nodes[node.id] = node
        kept = {device.id for device in node.devices}
        for device in before.devices if before else ():
            if device.id not in kept:
                self.outside.pop(device.id, None)
                self._blocked.pop(device.id, None)
        for device in node.devices:
            self._home[device.id] = (node.id, device)
            self._refresh(device.id)
        self._memories = {}

    # --- what keeps a device from being granted

    def hold(self, device: str, lease: str) -> None:
        """A lease holds the device."""
        assert device not in self.holder, f"{device} is held by {self.holder[device]}"
        self.holder[device] = lease
        self._refresh(device)

    def unhold(self, device: str) -> None:
        """The device's lease has ended."""
        del self.holder[device]
        self._refresh(device)

    def block(self, devices: Iterable[str], lease: str) -> None:
        """Processes of a lease that has ended are still on these devices."""
        for device in devices:
            self._blocked.setdefault(device, set()).add(lease)
            self._refresh(device)

    def unblock(self, node: str, lease: str) -> None:
        """The processes of a lease that has ended are gone from a node."""
        for device in self.nodes[node].devices if node in self.nodes else ():
            leases = self._blocked.get(device.id, set())
            leases.discard(lease)
            if not leases:
                self._blocked.pop(device.id, None)
            self._refresh(device.id)

    def unblock_all(self, node: str) -> None:
        """Forget what was said of a node's processes before: it is about to be said again."""
        for device in self.nodes[node].devices:
            self._blocked.pop(device.id, None)
            self._refresh(device.id)

    def set_outside(self, node: str, outside: dict[str, tuple[Process, ...]]) -> None:
        """All processes outside any lease on a node."""
        for device in self.nodes[node].devices:
            if outside.get(device.id):
                self.outside[device.id] = outside[device.id]
            else:
                self.outside.pop(device.id, None)
            self._refresh(device.id)

    def _refresh(self, device: str) -> None:
        """Bring the index in line with what is known of a device."""
        self._take(device)
        if device not in self._home:
            return
        node, spec = self._home[device]
        busy = device in self.holder or device in self.outside or device in self._blocked
        if self.up(node) and not busy:
            self._free[pool_of(spec)].add(node, spec)
            self.version += 1

    def _take(self, device: str) -> None:
        if device not in self._home:
            return
        node, spec = self._home[device]
        free = self._free[pool_of(spec)]
        if device in free.devices.get(node, {}):
            free.remove(node, device)
            self.version += 1

    # --- questions

    def pick(self, pool: Pool, count: int, memory: int) -> tuple[Slot, ...] | None:
        """Devices for a whole gang, ordered by node, or None."""
        picked = self._free[pool].pick(count, memory)
        if picked is None:
            return None
        return tuple(
            Slot(
                node=node,
                device=device.id,
                kind=device.kind,
                index=device.index,
                address=self.nodes[node].address,
            )
            for node, device in picked
        )

    @contextmanager
    def without(self, devices: Iterable[str]) -> Iterator[None]:
        """As if these devices could not be granted, for as long as the context lasts."""
        version, taken = self.version, []
        for device in devices:
            if self.grantable(device):
                self._take(device)
                taken.append(device)
        try:
            yield
        finally:
            for device in taken:
                self._refresh(device)
            self.version = version

    def __contains__(self, device: str) -> bool:
        return device in self._home

    def grantable(self, device: str) -> bool:
        """Whether a device can be granted now."""
        node, spec = self._home.get(device, ("", None))
        return spec is not None and device in self._free[pool_of(spec)].devices.get(node, {})

    def slot(self, device: str) -> Slot:
        """A known device, as a lease has it."""
        node, spec = self._home[device]
        return Slot(
            node=node,
            device=device,
            kind=spec.kind,
            index=spec.index,
            address=self.nodes[node].address,
        )

    def suitable(self, pool: Pool, memory: int) -> Iterator[tuple[str, Device]]:
        """Each device of a pool with enough memory on a node that is up, with its node."""
        for node, device in self._home.values():
            if pool_of(device) is pool and device.memory >= memory and node not in self.down:
                yield node, device

    def free(self, pool: Pool, memory: int = 0) -> int:
        """How many devices with enough memory can be granted now."""
        return self._free[pool].count(memory)

    def suiting(self, slots: Iterable[Slot], memory: int) -> int:
        """How many of these devices have enough memory and are free once no lease holds them."""
        found = (self._home.get(slot.device) for slot in slots)
        return sum(
            device.memory >= memory and device.id not in self.outside
            for node, device in filter(None, found)
            if node not in self.down
        )

    def free_memories(self, pool: Pool) -> list[int]:
        """Memory of each device that can be granted now."""
        return [
            device.memory
            for devices in self._free[pool].devices.values()
            for device in devices.values()
        ]

    def memories_of(self, slots: Iterable[Slot], pool: Pool) -> tuple[int, ...]:
        """Memory of each of these devices that is free for that pool once no lease holds it."""
        found = (self._home.get(slot.device) for slot in slots)
        return tuple(
            device.memory
            for node, device in filter(None, found)
            if node not in self.down and device.id not in self.outside and pool_of(device) is pool
        )

    def pool_of_slot(self, slot: Slot) -> Pool:
        """The pool that a lease's device is of."""
        return Pool.ACCELERATOR if slot.kind in ACCELERATORS else Pool.CPU

    def capacity(self, pool: Pool, memory: int = 0) -> int:
        """How many devices with enough memory the known nodes have, free or not."""
        memories = self._memories_of(pool)
        return len(memories) - bisect_left(memories, memory)

    def largest_memory(self, pool: Pool) -> int:
        """Memory of the largest device of a pool."""
        return max(self._memories_of(pool), default=0)

    def pool_for(self, want: Want, count: int, memory: int) -> Pool | None:
        """The pool that a request that waits is to be granted from; None: it never can be.

        Devices mean accelerators where they can do; a request that was accepted for CPU slots is
        not lost when the first few accelerators join.
        """
        pools = {
            Want.GPU: (Pool.ACCELERATOR,),
            Want.DEVICE: (Pool.ACCELERATOR, Pool.CPU),
            Want.CPU: (Pool.CPU,),
        }[want]
        return next((pool for pool in pools if self.capacity(pool, memory) >= count), None)

    def shortage(self, pool: Pool, count: int, memory: int) -> str:
        """Why the next request of a pool's line does not fit now."""
        connected = [id for id in self._fitting(pool, memory) if self.up(self._home[id][0])]
        if len(connected) < count:
            return "NodeDown"
        outside = [self.outside[id] for id in connected if id in self.outside]
        if len(connected) - len(outside) < count:
            return f"DeviceHeldOutsideAnyLease({outside[0][0].pid})"
        return "Resources"

    def _memories_of(self, pool: Pool) -> list[int]:
        """Memory of each device of a pool, the smallest first."""
        if pool not in self._memories:
            devices = (device for _, device in self._home.values())
            self._memories[pool] = sorted(d.memory for d in devices if pool_of(d) is pool)
        return self._memories[pool]

    def _fitting(self, pool: Pool, memory: int) -> list[str]:
        return [
            id
            for id, (_, device) in self._home.items()
            if pool_of(device) is pool and device.memory >= memory
        ]
