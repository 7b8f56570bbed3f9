"""What the nodes have, whether it is free or not: what can be granted at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..schema import Node, Placement
from .demand import Demand, Each, cores_of, pool_of
from .policy import Pool

# Answers that are kept until the hardware changes.
ANSWERS = 1024


class _Machine(NamedTuple):
    """What nodes of one build have: devices by pool, name and memory, cores, bytes of memory."""

    devices: tuple[tuple[tuple[Pool, str, int], int], ...]
    cores: int
    memory: int

    def most(self, pool: Pool, each: Each) -> int:
        """How many devices such a node could give."""
        if each.share and pool is Pool.CPU:
            return 0
        found = sum(
            number
            for (of, name, memory), number in self.devices
            if of is pool and each.suits(name, memory)
        )
        if cores := each.cores(pool):
            found = min(found, self.cores // cores)
        if each.host_memory:
            found = min(found, self.memory // each.host_memory)
        return found


class Hardware:
    """Nodes by how they are built, of which there are few ways.

    Parameters
    ----------
    nodes
        Those there are to begin with.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._machines: Counter[_Machine] = Counter()
        self._by_name: dict[str, _Machine] = {}
        self._devices: Counter[Pool] = Counter()
        self._answers: dict[tuple[Pool, Each], tuple[int, int]] = {}
        for node in nodes:
            self.change(None, node)

    def change(self, before: Node | None, after: Node | None) -> None:
        """A node is another than it was."""
        if before is not None:
            self._count(self._by_name.pop(before.id), -1)
        if after is not None:
            machine = self._by_name[after.id] = _machine(after)
            self._count(machine, +1)
        self._answers.clear()

    def _count(self, machine: _Machine, sign: int) -> None:
        self._machines[machine] += sign
        if not self._machines[machine]:
            del self._machines[machine]
        for (pool, _, _), number in machine.devices:
            self._devices[pool] += sign * number

    def devices(self, pool: Pool) -> int:
        """How many devices of a pool there are."""
        return self._devices[pool]

    def most(self, pool: Pool, demand: Demand) -> int:
        """The size of the largest gang of that kind, whatever was asked for."""
        total, on_a_node = self._most(pool, demand.each)
        return on_a_node if demand.placement is Placement.NODE else total

    def suiting(self, pool: Pool, each: Each) -> int:
        """How many devices would do."""
        return self._most(pool, each)[0]

    def names(self, pool: Pool, each: Each) -> list[str]:
        """Names of a pool's devices where they are wanted."""
        return sorted({name for of, name, _ in self._kinds(each) if of is pool})

    def largest_memory(self, pool: Pool, each: Each) -> int:
        """Memory of the largest device of a model, bytes."""
        kinds = (
            memory
            for of, name, memory in self._kinds(each)
            if of is pool and each.model in name.lower()
        )
        return max(kinds, default=0)

    def largest_node(self, pool: Pool, each: Each) -> tuple[int, int]:
        """The most cores, and bytes of memory, of any node that has a device that would do."""
        found = [
            machine
            for machine, _ in self._of(each)
            if machine.most(pool, each._replace(cpus=0, host_memory=0))
        ]
        return max((m.cores for m in found), default=0), max((m.memory for m in found), default=0)

    def has(self, node: str) -> bool:
        """Whether there is a node of that name."""
        return node in self._by_name

    def _of(self, each: Each) -> Iterable[tuple[_Machine, int]]:
        """Nodes that are wanted, by how they are built."""
        if not each.node:
            return self._machines.items()
        named = self._by_name.get(each.node)
        return [] if named is None else [(named, 1)]

    def _kinds(self, each: Each) -> Iterable[tuple[Pool, str, int]]:
        return (kind for machine, _ in self._of(each) for kind, _ in machine.devices)

    def _most(self, pool: Pool, each: Each) -> tuple[int, int]:
        key = (pool, each)
        if key not in self._answers:
            if len(self._answers) >= ANSWERS:
                self._answers.clear()
            found = [(machine.most(pool, each), n) for machine, n in self._of(each)]
            self._answers[key] = (
                sum(most * number for most, number in found),
                max((most for most, _ in found), default=0),
            )
        return self._answers[key]


def _machine(node: Node) -> _Machine:
    kinds = Counter((pool_of(d), d.name, d.memory) for d in node.devices)
    return _Machine(tuple(sorted(kinds.items())), cores_of(node), node.memory)
