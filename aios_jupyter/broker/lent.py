"""Machines that are only lent to the cluster, as Slurm lends them: to come, and gone for good.

A node that is to come is like one that is down, and has no address yet: what only it has is waited
for. Once whoever lent it knows that it is gone, nothing waits for it any longer, and nothing is feared
to be left there.
"""

from __future__ import annotations

from typing import Any

from ..schema import Node, Request, Slot
from . import events as ev
from .calendar import LENT
from .demand import demand_of
from .hardware import Hardware
from .policy import Pool
from .suspending import Suspending


class Lent(Suspending):
    """Leasing with machines that come and go."""

    def __init__(self, *parameters: Any, **more: Any) -> None:
        super().__init__(*parameters, **more)
        self._gone: dict[str, str] = {}
        # What the nodes that are there have, where others are to come, by the fleet's version.
        self._there: tuple[int, Hardware | None] = -1, None

    def is_expected(self, node: str) -> bool:
        """Whether a node has yet to come."""
        known = self.nodes.get(node)
        return known is not None and not known.address

    def reason(self, request: str) -> str:
        """Why a request waits, in a word; for one that has ended, why it has."""
        reason = super().reason(request)
        kept = f"Reservation(for {LENT}"
        if reason.startswith(kept):
            return f"NodeEnds({reason.removeprefix(kept)}"
        if reason == "NodeDown":
            to_come = [node for node in self.nodes if self.is_expected(node)]
            return f"NodeExpected({to_come[0]})" if to_come else reason
        return reason

    def _delays_nobody(
        self, pool: Pool, head: Request, request: str, slots: tuple[Slot, ...]
    ) -> bool:
        # A machine may be hours away: nothing is kept idle for who cannot start without it.
        return self._needs_more(pool, head) or super()._delays_nobody(pool, head, request, slots)

    def _needs_more(self, pool: Pool, head: Request) -> bool:
        """Whether the nodes that are there would not do for a request, with those to come it would."""
        if self._there[0] != self.fleet.version:
            there = [node for node in self.nodes.values() if node.address]
            lacking = len(there) < len(self.nodes)
            self._there = self.fleet.version, Hardware(there) if lacking else None
        hardware, demand = self._there[1], demand_of(head)
        return hardware is not None and hardware.most(pool, demand) < demand.least

    def _node_expected(self, event: ev.NodeExpected) -> None:
        node = event.node
        if node.id not in self.nodes:
            self.fleet.known(node, self._now)
            self._put("node", node.id, node)
            self._review_queue()

    def _lend(self, node: Node) -> None:
        """A node is there, for as long as it says."""
        self._calendar.lend(node.id, [device.id for device in node.devices], node.until)
        self._ends_version += 1

    def _forget(self, node: str) -> None:
        self._calendar.lend(node, (), None)
        super()._forget(node)

    def _load_times(self) -> None:
        super()._load_times()
        for node in self.nodes.values():
            self._lend(node)

    def _node_gone(self, event: ev.NodeGone) -> None:
        node = event.node
        if node not in self.nodes:
            return
        if self.fleet.up(node):
            self.fleet.lose(node, self._now)
            self._note_lost_node(node)
        self._gone[node] = event.reason
        self._forget(node)
        del self._gone[node]

    def _why_lost(self, node: str) -> str:
        if node in self._gone:
            return f"node {node} is gone: {self._gone[node]}"
        return super()._why_lost(node)

    def _node_deadline(self, node: str) -> float | None:
        return None if self.is_expected(node) else super()._node_deadline(node)

    def _forget_deadline(self, node: str) -> float | None:
        return None if self.is_expected(node) else super()._forget_deadline(node)
