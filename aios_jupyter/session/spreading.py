"""Where an endpoint's replicas run: on one node, or on several, each under a lease of its own.

A node that is lost then takes its own lease along, and not the endpoint.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cluster import embedded
from ..errors import AiosError, AllocationError
from ..runs.handle import RunHandle
from ..schema import ACCELERATORS, DeviceKind, Lease, Placement, RunKind, Scope
from .asking import parse_placement
from .models import ModelVerbs

if TYPE_CHECKING:
    from ..models.scaling import Scale

_REAL = (DeviceKind.GPU, DeviceKind.MIG)
_RESTARTS = 3


class Room(NamedTuple):
    """A node's devices of the kind that `--devices` takes: those that are free, and all."""

    node: str
    free: int
    all: int


def rooms(status: Mapping[str, Any]) -> list[Room]:
    """The nodes that are there, with their devices: accelerators where the cluster has any."""
    rows = list(status["devices"].values())
    wanted = {kind.value for kind in ACCELERATORS}
    if not any(row["kind"] in wanted for row in rows):
        wanted = {DeviceKind.CPU.value}
    found = []
    for node in status["nodes"].values():
        if node["state"] != "up":
            continue
        own = [row for row in rows if row["node"] == node["id"] and row["kind"] in wanted]
        free = [row for row in own if not row["holder"] and not row["outside"]]
        found.append(Room(node["id"], len(free), len(own)))
    return found


def shares(
    least: int, most: int, where: Sequence[Room], placement: Placement | None, home: str = ""
) -> list[tuple[str, int]]:
    """How many devices to lease on which nodes.

    Parameters
    ----------
    least, most
        How many replicas there are at first, and at most.
    where
        The nodes.
    placement
        None: on one node where one is large enough, else packed.
    home
        The node that comes first where there are several.

    Returns
    -------
    list
        Nodes and numbers. A node "" is any: all go on one then, as many as it has.

    Raises
    ------
    AllocationError
        All nodes together have too few.
    """
    able = sorted(
        (room for room in where if room.all),
        key=lambda room: (room.node != home, -room.free, -room.all),
    )
    together = [("", most)]
    largest = max((room.all for room in able), default=0)
    if placement is Placement.NODE or (placement is None and largest >= least):
        return together
    whole = sum(room.all for room in able)
    if 0 < whole < least:
        raise AllocationError(
            f"{least} replicas need a device each, and the cluster has {whole}; ask for at most that."
        )
    free = sum(room.free for room in able) >= least
    sizes = [(room.node, room.free if free else room.all) for room in able]
    found = _packed(sizes, most) if placement is not Placement.SPREAD else _spread(sizes, most)
    return found or together


def _packed(sizes: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    found = []
    for node, size in sizes:
        if count := min(size, most):
            found.append((node, count))
            most -= count
    return found


def _spread(sizes: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    given = dict.fromkeys((node for node, _ in sizes), 0)
    while most and any(given[node] < size for node, size in sizes):
        for node, size in sizes:
            if most and given[node] < size:
                given[node] += 1
                most -= 1
    return [(node, count) for node, count in given.items() if count]


class SpreadVerbs(ModelVerbs):
    """A session that has replicas on several nodes."""

    def _endpoint_leases(
        self, name: str, scale: Scale, devices: int | None, placement: str
    ) -> list[Lease]:
        """One for each node, the endpoint's own first.

        Raises
        ------
        AllocationError
            They are not to be had.
        """
        asked = parse_placement(placement) if placement else None
        held = devices is None and not asked and self._lease_held(scale.first)
        most = scale.most if devices is None else max(devices, scale.most)
        wanted = [("", most)] if held else self._shares(scale, most, asked)
        scope = Scope.CELL if devices is None else Scope.DETACHED
        if len(wanted) == 1:
            node, _ = wanted[0]
            wish = str(scale.most) if scale.least == scale.most else f"{scale.first}:{scale.most}"
            if devices is None:
                want = {"devices": wish if scale.most > 1 else None}
                return [
                    self._lease_for_run(
                        None, want, None, own=bool(node), placement="node", node=node
                    )
                ]
            wish = wish if devices < scale.most else str(devices)
            return [self._own_lease(name, wish, scope, node)]
        leases: list[Lease] = []
        try:
            for node, count in wanted:
                leases.append(self._own_lease(name, str(count), scope, node))
        except BaseException:
            self._give_back(leases)
            raise
        return leases

    def _shares(self, scale: Scale, most: int, asked: Placement | None) -> list[tuple[str, int]]:
        # The first node reads the registry, which may be on this machine alone.
        own = embedded.running(embedded.Paths.current().node)
        home = "" if own is None else str(own["node"])
        return shares(scale.first, most, rooms(self.status()), asked, home)

    def _own_lease(self, name: str, devices: str, scope: Scope, node: str) -> Lease:
        return self.alloc(
            devices=devices, scope=scope, label=f"endpoint {name}", placement="node", node=node
        )

    def _give_back(self, leases: Sequence[Lease]) -> None:
        """Release what is not held for anything else; it may have ended."""
        for lease in leases:
            if lease.scope not in (Scope.SESSION, Scope.RESERVED):
                with contextlib.suppress(AiosError):
                    self.release(lease.id)

    def _start_host(self, name: str, address: str, files: Path, lease: Lease) -> RunHandle:
        """Have a node run replicas of an endpoint, which listens for it at `address`."""
        from ..models import host

        material = {
            file: (files / file).read_text() for file in ("ca.pem", "endpoint.pem", "endpoint.key")
        }
        return self.start(
            host.run,
            address,
            material,
            len(lease.slots),
            real_devices(lease),
            kind=RunKind.REPLICAS,
            lease=lease.id,
            devices=1,
            framework="none",
            name=f"{name} on {lease.slots[0].node}",
            max_restarts=_RESTARTS,
        )


def real_devices(lease: Lease) -> tuple[str, ...]:
    """The GPUs of a lease's first node."""
    first = lease.slots[0].node
    return tuple(s.device for s in lease.slots if s.kind in _REAL and s.node == first)


def here(lease: Lease) -> int:
    """How many devices of a lease its first node has."""
    return sum(slot.node == lease.slots[0].node for slot in lease.slots)


def host_of(lease: Lease) -> str:
    """The address of a lease's first node."""
    return lease.slots[0].address.rpartition(":")[0].strip("[]") or "127.0.0.1"


def loopback(host: str) -> bool:
    """Whether no other machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
