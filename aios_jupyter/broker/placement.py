"""On which nodes a gang goes. Pure: nodes by how many devices each could give."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..schema import Placement
from .demand import Demand

NodesByFree = Mapping[int, Collection[str]]


def fits(nodes_by_free: NodesByFree, total: int, demand: Demand) -> int:
    """How many devices a gang would get; 0: it has to wait.

    Parameters
    ----------
    nodes_by_free
        Nodes by their number of devices that would do.
    total
        Number of these devices.
    demand
        What is asked for.
    """
    if demand.placement is Placement.NODE:
        total = max(nodes_by_free, default=0)
    return min(demand.most, total) if total >= demand.least else 0


def place(nodes_by_free: NodesByFree, total: int, demand: Demand) -> list[tuple[str, int]] | None:
    """The nodes for a gang and how many devices to take on each; None: it has to wait."""
    count = fits(nodes_by_free, total, demand)
    if not count:
        return None
    match demand.placement:
        case Placement.PACK:
            return pack(nodes_by_free, count)
        case Placement.SPREAD:
            return spread(nodes_by_free, count)
        case Placement.NODE:
            return [(_smallest_hole(nodes_by_free, count), count)]


def pack(nodes_by_free: NodesByFree, count: int) -> list[tuple[str, int]]:
    """Choose the fewest nodes for a gang, and leave the largest holes whole.

    Parameters
    ----------
    nodes_by_free
        Nodes by their number of free devices; together they have at least `count`.
    count
        Size of the gang.

    Returns
    -------
    list of (str, int)
        Nodes and how many devices to take on each: the fullest node that can take all of what is
        left, after as many whole nodes as need be.
    """
    chosen: list[tuple[str, int]] = []
    left = count
    for free in sorted(nodes_by_free, reverse=True):
        for node in nodes_by_free[free]:
            if free >= left:
                break
            chosen.append((node, free))
            left -= free
        else:
            continue
        break
    taken = {node for node, _ in chosen}
    return [*chosen, (_smallest_hole(nodes_by_free, left, taken), left)]


def spread(nodes_by_free: NodesByFree, count: int) -> list[tuple[str, int]]:
    """Choose as many nodes as there are for a gang, those with most to give first, in turns."""
    chosen: dict[str, int] = {}
    left, turn = count, 0
    while left:
        turn += 1
        for free in sorted((free for free in nodes_by_free if free >= turn), reverse=True):
            for node in nodes_by_free[free]:
                if not left:
                    return list(chosen.items())
                chosen[node] = turn
                left -= 1
    return list(chosen.items())


def _smallest_hole(
    nodes_by_free: NodesByFree, count: int, taken: Collection[str] = frozenset()
) -> str:
    for free in sorted(nodes_by_free):
        if free >= count:
            for node in nodes_by_free[free]:
                if node not in taken:
                    return node
    raise AssertionError(f"{count} devices are not free")
