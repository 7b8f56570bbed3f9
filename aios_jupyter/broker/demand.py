"""What of a request matters for placing it: requests that are equal in it are placed alike."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..schema import ACCELERATORS, Device, DeviceKind, Node, Placement, Request
from .policy import Pool


class Each(NamedTuple):
    """What is wanted of each device.

    Attributes
    ----------
    memory
        Its least memory, or with `share` how much of it; bytes.
    model
        What its name contains, in lower case.
    share
        Whether that memory is all that is wanted of it, so that others may have the rest.
    cpus, host_memory
        How many of its node's cores, and bytes of its node's memory, come with it.
    node
        The node that it is to be of; "" for any.
    """

    memory: int = 0
    model: str = ""
    share: bool = False
    cpus: int = 0
    host_memory: int = 0
    node: str = ""

    def on(self, node: str) -> bool:
        """Whether devices of a node are what is wanted."""
        return self.node in ("", node)

    def suits(self, name: str, memory: int) -> bool:
        """Whether a device would do, were nobody else to have any of it."""
        return memory >= self.memory and (not self.model or self.model in name.lower())

    def cores(self, pool: Pool) -> int:
        """How many of its node's cores each device takes; a CPU slot is one itself."""
        return max(1, self.cpus) if pool is Pool.CPU else self.cpus

    def counts(self, pool: Pool) -> bool:
        """Whether nothing but whole devices is wanted, so that to count these is enough."""
        special = self.share or self.host_memory or self.node
        return not (special or self.cpus > (pool is Pool.CPU))


ANY = Each()


class Demand(NamedTuple):
    """`most` devices, or as many as there are and `least` at least."""

    most: int
    least: int
    each: Each = ANY
    placement: Placement = Placement.PACK


def demand_of(request: Request) -> Demand:
    """What a request asks for."""
    each = Each(
        request.memory,
        request.model.lower(),
        request.share,
        request.cpus,
        request.host_memory,
        request.node,
    )
    return _kept(Demand(request.count, request.least or request.count, each, request.placement))


@lru_cache(maxsize=4096)
def _kept(demand: Demand) -> Demand:
    """One of equal demands, so that the many requests that wait have it in common."""
    return demand


def pool_of_kind(kind: DeviceKind) -> Pool:
    """The pool that devices of a kind belong to."""
    return Pool.ACCELERATOR if kind in ACCELERATORS else Pool.CPU


def pool_of(device: Device) -> Pool:
    """The pool that a device belongs to."""
    return pool_of_kind(device.kind)


def cores_of(node: Node) -> int:
    """Cores that a node's leases may have together: never fewer than its CPU slots."""
    slots = sum(device.kind is DeviceKind.CPU for device in node.devices)
    return max(node.cpus, slots)
