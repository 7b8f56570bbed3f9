"""What could be granted now: free devices and parts of devices, and what comes with them.

`Stock` counts, for each thing that is asked for (`Each`), how much of it every node could give, and
keeps its nodes by that number. A change of a device is noted only; the counts of its node are made
anew when somebody asks, so that a grant costs the same in a small and a large cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from ..schema import Device, Node, Slot
from .demand import Demand, Each, cores_of, pool_of
from .placement import fits, place
from .policy import POOLS, Pool

# Kinds of demands whose counts are kept; those not asked for the longest are forgotten.
INDEXES = 64

_Key = tuple[Pool, Each, bool]


class _Host:
    """One node: its devices that can be granted, and what leases have of them."""

    __slots__ = ("cpus", "free", "held", "memory", "node", "part", "usable")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.usable: dict[str, Device] = {}
        # Bytes that are held of a device, infinity where it is held whole.
        self.held: dict[str, float] = {}
        self.free: dict[Pool, dict[str, Device]] = {pool: {} for pool in POOLS}
        self.part: dict[Pool, dict[str, Device]] = {pool: {} for pool in POOLS}
        self.cpus = cores_of(node)
        self.memory = node.memory

    def copy(self) -> _Host:
        new = _Host.__new__(_Host)
        new.node, new.cpus, new.memory = self.node, self.cpus, self.memory
        new.usable = self.usable  # never changed in a copy
        new.held = self.held.copy()
        new.free = {pool: devices.copy() for pool, devices in self.free.items()}
        new.part = {pool: devices.copy() for pool, devices in self.part.items()}
        return new

    def hold(self, device: str, held: float) -> None:
        """So much of a device is held now."""
        if held:
            self.held[device] = held
        else:
            self.held.pop(device, None)
        self.sort(device)

    def sort(self, id: str) -> None:
        """Put a device where it belongs."""
        for devices in (*self.free.values(), *self.part.values()):
            devices.pop(id, None)
        device = self.usable.get(id)
        if device is None:
            return
        held = self.held.get(id, 0)
        if not held:
            self.free[pool_of(device)][id] = device
        elif held < device.memory:
            self.part[pool_of(device)][id] = device

    def count(self, pool: Pool, each: Each, parts: bool) -> int:
        """How many devices it could give; `parts`: of those that are shared already."""
        found = 0
        if not each.on(self.node.id):
            return 0
        if each.share:
            found = sum(self._has_room(device, each) for device in self.part[pool].values())
        if not parts and (not each.share or pool is Pool.ACCELERATOR):
            free = self.free[pool]
            if each.memory or each.model:
                found += sum(each.suits(d.name, d.memory) for d in free.values())
            else:
                found += len(free)
        if found and (cores := each.cores(pool)):
            found = min(found, max(0, self.cpus) // cores)
        if found and each.host_memory:
            found = min(found, max(0, self.memory) // each.host_memory)
        return found

    def choose(self, pool: Pool, each: Each, parts: bool, number: int) -> Iterable[Device]:
        """The fullest that will do of those that are shared already, then the smallest."""
        chosen = []
        if each.share:
            chosen = sorted(
                (d for d in self.part[pool].values() if self._has_room(d, each)),
                key=lambda device: (self._left(device), device.index, device.id),
            )
        if not parts:
            chosen += sorted(
                (d for d in self.free[pool].values() if each.suits(d.name, d.memory)),
                key=lambda device: (device.memory, device.index, device.id),
            )
        return islice(chosen, number)

    def _left(self, device: Device) -> float:
        return device.memory - self.held.get(device.id, 0)

    def _has_room(self, device: Device, each: Each) -> bool:
        return self._left(device) >= each.memory and each.suits(device.name, device.memory)


class _Index:
    """How many devices each node could give, nodes by that, and whose number is out of date."""

    __slots__ = ("counts", "nodes", "stale", "total")

    def __init__(self, stale: Iterable[str]) -> None:
        self.counts: dict[str, int] = {}
        self.nodes: dict[int, dict[str, None]] = {}
        self.total = 0
        self.stale = dict.fromkeys(stale)

    def copy(self) -> _Index:
        new = _Index(self.stale)
        new.counts, new.total = self.counts.copy(), self.total
        new.nodes = {count: nodes.copy() for count, nodes in self.nodes.items()}
        return new

    def set(self, node: str, count: int) -> None:
        before = self.counts.pop(node, 0)
        if count:
            self.counts[node] = count
        if before == count:
            return
        self.total += count - before
        if before:
            del self.nodes[before][node]
            if not self.nodes[before]:
                del self.nodes[before]
        if count:
            self.nodes.setdefault(count, {})[node] = None


class Stock:
    """The nodes and what they could give."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._home: dict[str, str] = {}
        self._indexes: dict[_Key, _Index] = {}
        # Of a branch: what it came from, and the nodes in which it differs.
        self._parent: Stock | None = None
        self._own: dict[str, None] = {}

    # --- what there is

    def put_node(self, node: Node, cpus: int, host_memory: int) -> None:
        """A node, without devices yet; leases have so many of its cores, and of its memory."""
        self._forget_devices(node.id)
        self._hosts[node.id] = _Host(node)
        self.load(node.id, cpus, host_memory)

    def drop_node(self, node: str) -> None:
        """A node is not known any more."""
        self._forget_devices(node)
        del self._hosts[node]
        self._touch(node)

    def _forget_devices(self, node: str) -> None:
        for device in self._hosts[node].node.devices if node in self._hosts else ():
            if self._home.get(device.id) == node:
                del self._home[device.id]

    def put(self, node: str, device: Device, usable: bool, held: float) -> bool:
        """A device can be granted as far as it is not held; returns whether that is new.

        Parameters
        ----------
        node, device
            Where it is, and which.
        usable
            Whether anything of it could be granted.
        held
            Bytes of it that leases have, infinity where one has it whole.
        """
        host = self._hosts[node]
        self._home[device.id] = node
        if (device.id in host.usable, host.held.get(device.id, 0)) == (usable, held):
            return False
        if usable:
            host.usable[device.id] = device
        else:
            host.usable.pop(device.id, None)
        host.hold(device.id, held)
        self._touch(node)
        return True

    def load(self, node: str, cpus: int, host_memory: int) -> None:
        """Leases have so many of a node's cores, and so much of its memory."""
        host = self._hosts[node]
        host.cpus = cores_of(host.node) - cpus
        host.memory = host.node.memory - host_memory
        self._touch(node)

    # --- questions

    def free(self, pool: Pool, each: Each) -> int:
        """How many devices could be granted."""
        return self._index(pool, each).total

    def shared(self, pool: Pool) -> bool:
        """Whether there are devices of which only a part is free."""
        return self._index(pool, Each(1, share=True), parts=True).total > 0

    def fits(self, pool: Pool, demand: Demand) -> bool:
        """Whether a gang could be granted."""
        index = self._index(pool, demand.each)
        return fits(index.nodes, index.total, demand) > 0

    def pick(self, pool: Pool, demand: Demand) -> tuple[Slot, ...] | None:
        """What a whole gang would be granted, ordered by node, or None.

        For shares, devices that are shared already are taken where these are enough.
        """
        each = demand.each
        if each.share:
            all_of_it = demand._replace(least=demand.most)
            if slots := self._pick(pool, all_of_it, parts=True):
                return slots
        return self._pick(pool, demand, parts=False)

    def _pick(self, pool: Pool, demand: Demand, parts: bool) -> tuple[Slot, ...] | None:
        each = demand.each
        index = self._index(pool, each, parts)
        places = place(index.nodes, index.total, demand)
        if places is None:
            return None
        return tuple(
            Slot(
                node=node,
                device=device.id,
                kind=device.kind,
                index=device.index,
                address=self._hosts[node].node.address,
                share=each.memory if each.share else 0,
                cpus=each.cores(pool),
                host_memory=each.host_memory,
            )
            for node, number in places
            for device in self._hosts[node].choose(pool, each, parts, number)
        )

    def has(self, slot: Slot) -> bool:
        """Whether just this could be granted."""
        host = self._hosts.get(self._home.get(slot.device, ""))
        return (
            host is not None
            and any(slot.device in devices for devices in host.free.values())
            and host.cpus >= slot.cpus
            and host.memory >= slot.host_memory
        )

    def suiting(self, slots: Iterable[Slot], each: Each) -> int:
        """How many of these slots have something that is wanted and could be granted."""
        return sum(self._suits(slot, each) for slot in slots)

    def _suits(self, slot: Slot, each: Each) -> bool:
        if not each.on(slot.node):
            return False
        host = self._hosts.get(self._home.get(slot.device, ""))
        device = host.usable.get(slot.device) if host else None
        if device and each.suits(device.name, device.memory):
            return True
        host = self._hosts.get(slot.node)
        if host is None or not (
            (each.cpus and slot.cpus) or (each.host_memory and slot.host_memory)
        ):
            return False
        return any(each.suits(device.name, device.memory) for device in host.usable.values())

    # --- what if

    def branch(self) -> Stock:
        """A copy to try things on; good for as long as nothing changes here."""
        new = Stock()
        new._hosts = self._hosts.copy()
        new._home = self._home
        new._parent = self
        return new

    def take(self, slots: Iterable[Slot]) -> None:
        """In a branch: these are granted."""
        self._change(slots, 1)

    def give(self, slots: Iterable[Slot]) -> None:
        """In a branch: these are given back."""
        self._change(slots, -1)

    def _change(self, slots: Iterable[Slot], sign: int) -> None:
        for slot in slots:
            if home := self._home.get(slot.device):
                host = self._copy_of(home)
                held = math.inf if sign > 0 else 0.0
                if slot.share:
                    held = host.held.get(slot.device, 0) + sign * slot.share
                host.hold(slot.device, held)
            if slot.node in self._hosts and (slot.cpus or slot.host_memory):
                host = self._copy_of(slot.node)
                host.cpus -= sign * slot.cpus
                host.memory -= sign * slot.host_memory

    def _copy_of(self, node: str) -> _Host:
        assert self._parent is not None
        if node not in self._own:
            self._own[node] = None
            self._hosts[node] = self._hosts[node].copy()
        self._touch(node)
        return self._hosts[node]

    # --- counts

    def _touch(self, node: str) -> None:
        for index in self._indexes.values():
            index.stale[node] = None

    def _index(self, pool: Pool, each: Each, parts: bool = False) -> _Index:
        key = (pool, each, parts)
        index = self._indexes.pop(key, None)
        if index is None:
            index = self._new_index(key)
            while len(self._indexes) >= INDEXES:
                del self._indexes[next(iter(self._indexes))]
        self._indexes[key] = index
        if index.stale:
            for node in index.stale:
                host = self._hosts.get(node)
                index.set(node, host.count(pool, each, parts) if host else 0)
            index.stale.clear()
        return index

    def _new_index(self, key: _Key) -> _Index:
        if self._parent is None:
            return _Index(self._hosts)
        index = self._parent._index(*key).copy()
        index.stale |= self._own
        return index
