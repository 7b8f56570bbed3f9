"""Which devices there are, on which nodes, and which of them can be granted now.

A device can be granted when its node is up, no lease holds it, no process outside any lease is on
it, and no processes of an earlier lease are still being ended there; as far as leases hold no more
than parts of it, parts of it can be granted. `Fleet` knows these things, `Stock` counts what they
leave, and `Hardware` what there would be without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import ConflictError
from ..schema import Device, Node, Process, Slot, Want
from .demand import ANY, Demand, Each, cores_of, pool_of, pool_of_kind
from .hardware import Hardware
from .policy import Pool
from .stock import Stock


class Fleet:
    """The nodes and devices of a cluster.

    Attributes
    ----------
    nodes
        Every known node by id, also those that are down.
    down
        Since when a node that is down has been so.
    holder
        The lease that holds a device; of several that share it, the first.
    outside
        Processes outside any lease, by device; a device without has no entry.
    hardware
        What the known nodes have, free or not.
    version
        Rises when something becomes free or is taken.
    """

    def __init__(self) -> None:
        self.version = 0
        self.nodes: dict[str, Node] = {}
        self.down: dict[str, float] = {}
        self.holder: dict[str, str] = {}
        self.outside: dict[str, tuple[Process, ...]] = {}
        self._home: dict[str, tuple[str, Device]] = {}
        self._blocked: dict[str, set[str]] = {}
        self._slots: dict[str, dict[str, Slot]] = {}
        # Cores and bytes of memory of each node that leases have, and leases' devices by number
        # that have more than whole devices.
        self._loads: dict[str, tuple[int, int]] = {}
        self._special = 0
        self.hardware = Hardware()
        self._stock = Stock()

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
        self.hardware.change(self.nodes.pop(node), None)
        self._stock.drop_node(node)
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
            if self._home.get(device.id, ("",))[0] == node.id:
                del self._home[device.id]
        self.nodes[node.id] = node
        self.hardware.change(before, node)
        self._stock.put_node(node, *self._loads.get(node.id, (0, 0)))
        self.version += 1
        kept = {device.id for device in node.devices}
        for device in before.devices if before else ():
            if device.id not in kept:
                self.outside.pop(device.id, None)
                self._blocked.pop(device.id, None)
        for device in node.devices:
            self._home[device.id] = (node.id, device)
            self._refresh(device.id)

    # --- what keeps a device from being granted

    def hold(self, slot: Slot, lease: str) -> None:
        """A lease holds a device, or a part of it."""
        held = self._slots.setdefault(slot.device, {})
        assert not held or (slot.share and all(other.share for other in held.values())), (
            f"{slot.device} is held by {', '.join(held)}"
        )
        held[lease] = slot
        self.holder.setdefault(slot.device, lease)
        self._load(slot, +1)
        self._refresh(slot.device)

    def unhold(self, slot: Slot, lease: str) -> None:
        """A lease that held a device has ended."""
        held = self._slots[slot.device]
        del held[lease]
        if held:
            self.holder[slot.device] = next(iter(held))
        else:
            del self.holder[slot.device], self._slots[slot.device]
        self._load(slot, -1)
        self._refresh(slot.device)

    def _load(self, slot: Slot, sign: int) -> None:
        if not (slot.share or slot.cpus or slot.host_memory):
            return
        plain = Each(share=slot.share > 0, cpus=slot.cpus, host_memory=slot.host_memory)
        if not plain.counts(pool_of_kind(slot.kind)):
            self._special += sign
        if not (slot.cpus or slot.host_memory):
            return
        cpus, memory = self._loads.pop(slot.node, (0, 0))
        load = cpus + sign * slot.cpus, memory + sign * slot.host_memory
        if any(load):
            self._loads[slot.node] = load
        if slot.node in self.nodes:
            self._stock.load(slot.node, *load)
            self.version += 1

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
        """Bring the counts in line with what is known of a device."""
        if device not in self._home:
            return
        node, spec = self._home[device]
        usable = self.up(node) and device not in self.outside and device not in self._blocked
        slots = self._slots.get(device, {}).values()
        held = sum(slot.share or math.inf for slot in slots)
        self.version += self._stock.put(node, spec, usable, held)

    # --- questions

    def pick(self, pool: Pool, demand: Demand) -> tuple[Slot, ...] | None:
        """Devices for a whole gang, ordered by node, or None."""
        return self._stock.pick(pool, demand)

    def fits(self, pool: Pool, demand: Demand) -> bool:
        """Whether there are devices for a whole gang."""
        return self._stock.fits(pool, demand)

    def __contains__(self, device: str) -> bool:
        return device in self._home

    def slot(self, device: str) -> Slot:
        """A known device as a lease has it whole."""
        node, spec = self._home[device]
        return Slot(
            node=node,
            device=device,
            kind=spec.kind,
            index=spec.index,
            address=self.nodes[node].address,
            cpus=ANY.cores(pool_of(spec)),
        )

    def free(self, pool: Pool, each: Each = ANY) -> int:
        """How many devices that will do can be granted now."""
        return self._stock.free(pool, each)

    def shared(self, pool: Pool) -> bool:
        """Whether there are devices of which a part only can be granted now."""
        return self._special > 0 and self._stock.shared(pool)

    def suiting(self, slots: Iterable[Slot], each: Each) -> int:
        """How many of these would do, or take what would, and can be granted once they are free."""
        return self._stock.suiting(slots, each)

    def special(self) -> bool:
        """Whether leases have other things than whole devices."""
        return self._special > 0

    def branch(self) -> Stock:
        """What can be granted now, to try things on."""
        return self._stock.branch()

    def shares(self, device: str) -> dict[str, int]:
        """The leases that hold a device and how much of its memory each has, 0 for all of it."""
        return {lease: slot.share for lease, slot in self._slots.get(device, {}).items()}

    def pool_of_slot(self, slot: Slot) -> Pool:
        """The pool that a lease's device is of."""
        return pool_of_kind(slot.kind)

    def capacity(self, pool: Pool) -> int:
        """How many devices the known nodes have, free or not."""
        return self.hardware.devices(pool)

    def pool_for(self, want: Want, demand: Demand) -> Pool | None:
        """The pool that a request that waits is to be granted from; None: it never can be.

        Devices mean accelerators where they can do; a request that was accepted for CPU slots is
        not lost when the first few accelerators join.
        """
        pools = {
            Want.GPU: (Pool.ACCELERATOR,),
            Want.DEVICE: (Pool.ACCELERATOR, Pool.CPU),
            Want.CPU: (Pool.CPU,),
        }[want]
        return next((p for p in pools if self.hardware.most(p, demand) >= demand.least), None)

    def shortage(self, pool: Pool, demand: Demand) -> str:
        """Why the next request of a pool's line does not fit now."""
        connected = [node for node in self.nodes.values() if node.id not in self.down]
        if Hardware(connected).most(pool, demand) < demand.least:
            return "NodeDown"
        clear = [
            node.__replace__(
                devices=tuple(d for d in node.devices if d.id not in self.outside),
                cpus=cores_of(node),
            )
            for node in connected
        ]
        if Hardware(clear).most(pool, demand) < demand.least:
            pids = (
                self.outside[device.id][0].pid
                for node in connected
                for device in node.devices
                if device.id in self.outside
                and demand.each.on(node.id)
                and pool_of(device) is pool
                and demand.each.suits(device.name, device.memory)
            )
            return f"DeviceHeldOutsideAnyLease({next(pids)})"
        return "Resources"
