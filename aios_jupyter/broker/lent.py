"""Machines that are only lent to the cluster, as Slurm lends them: to come, and gone for good.

A node that is to come is like one that is down, and has no address yet: what only it has is waited
for. Once whoever lent it knows that it is gone, nothing waits for it any longer, and nothing is feared
to be left there.
"""

from __future__ import annotations

from typing import Any

from ..schema import Node
from . import events as ev
from .calendar import LENT
from .suspending import Suspending


class Lent(Suspending):
    """Leasing with machines that come and go."""

    def __init__(self, *parameters: Any, **more: Any) -> None:
        super().__init__(*parameters, **more)
        self._gone: dict[str, str] = {}

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
