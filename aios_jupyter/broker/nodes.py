"""What the nodes' agents tell: what they have, how busy it is, and how their ranks fare."""

from __future__ import annotations

import time
from typing import Any

from ..errors import AccessError
from ..schema import LIVE, LeaseState, RankExit
from . import events as ev
from . import messages as msg
from .hub import AgentLink, Hub
from .protocol import Connection, Handler


class Nodes:
    """Agents and their reports."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def handlers(self) -> dict[str, Handler]:
        """The calls and events, for `Connection`."""
        calls: dict[str, Handler] = {
            "node.hello": (msg.NodeHello, self._hello),
            "node.report": (msg.NodeReport, self._report),
            "node.run": (msg.RunReport, self._run),
            "node.exit": (msg.RankReport, self._exit),
            "node.met": (msg.RunMet, self._met),
            "node.gone": (msg.ById, self._gone),
            "node.refused": (msg.Refused, self._refused),
        }
        return {op: (body, self._guard(op, function)) for op, (body, function) in calls.items()}

    def _guard(self, op: str, function: Any) -> Any:
        def guarded(connection: Connection, body: Any) -> Any:
            known = op == "node.hello" or isinstance(connection.context, AgentLink)
            if connection.role != "node" or not known:
                why = f"Only a node that has said hello may send {op!r}."
                self._hub.refuse(op, connection.name, why=why)
                raise AccessError(why)
            return function(connection, body)

        return guarded

    def left(self, link: AgentLink, connection: Connection) -> None:
        """An agent's connection has gone; its ranks may well go on."""
        if self._hub.agents.get(link.node) is connection:
            del self._hub.agents[link.node]
            self._hub.warm.pop(link.node, None)
            self._hub.handle(ev.NodeLost(node=link.node))

    def _hello(self, connection: Connection, hello: msg.NodeHello) -> msg.NodeWelcome:
        node = hello.node
        # Refused while another node offers the same device: then nothing has changed.
        joined = ev.NodeJoined(node=node, held=hello.held, outside=hello.outside)
        actions = self._hub.decide(joined)
        before = self._hub.agents.get(node.id)
        if before and before is not connection:
            before.context = None
            before.close()
        connection.context = AgentLink(node.id)
        self._hub.agents[node.id] = connection
        self._hub.enact(actions)
        self._miss_runs(node.id, set(hello.runs))
        return msg.NodeWelcome(
            grants=tuple(
                self._hub.grant_for_agent(lease)
                for lease in self._hub.state.leases.values()
                if lease.state is LeaseState.ACTIVE
                and any(slot.node == node.id for slot in lease.slots)
            ),
            dask=self._hub.dask,
        )

    def _miss_runs(self, node: str, held: set[str]) -> None:
        """Ranks that an agent no longer knows ended with its earlier life."""
        for run in list(self._hub.state.runs.values()):
            lease = self._hub.state.leases.get(run.lease)
            if run.state not in LIVE or node not in run.nodes or run.id in held or lease is None:
                continue
            exited = {exit.rank for exit in run.exits}
            for rank, slot in enumerate(lease.slots[: run.world_size]):
                if slot.node == node and rank not in exited:
                    reason = f"rank {rank} was lost when the agent of node {node} ended"
                    exit = RankExit(
                        rank=rank, code=-9, time=time.time(), reason=reason, attempt=run.attempt
                    )
                    self._hub.handle(ev.RankExited(run=run.id, exit=exit, final=True))

    def _report(self, connection: Connection, report: msg.NodeReport) -> None:
        for usage in report.usage:
            self._hub.usage[usage.device] = usage
        self._hub.activity.sampled(self._hub.state, report.usage, time.time())
        node = connection.context.node
        self._hub.warm[node] = report.warm
        if report.outside != {
            device.id: self._hub.state.outside[device.id]
            for device in self._hub.state.nodes[node].devices
            if self._hub.state.outside.get(device.id)
        }:
            self._hub.handle(ev.OutsideReported(node=node, outside=report.outside))
        self._hub.changed = True

    def _run(self, connection: Connection, report: msg.RunReport) -> None:
        known = self._hub.state.runs.get(report.run)
        if known:
            self._hub.activity.note(known.lease, time.time())
            self._hub.handle(
                ev.RunReported(
                    run=report.run,
                    state=report.state,
                    progress=report.progress,
                    metrics=report.metrics,
                    detail=report.detail,
                )
            )

    def _exit(self, connection: Connection, report: msg.RankReport) -> None:
        if report.run in self._hub.state.runs:
            self._hub.handle(ev.RankExited(run=report.run, exit=report.exit))
        run = self._hub.state.runs.get(report.run)
        if run is None or (run.max_restarts and run.state not in LIVE):
            # It waits for a word that was lost with an earlier connection.
            connection.tell("run.over", msg.ById(id=report.run))

    def _met(self, connection: Connection, met: msg.RunMet) -> None:
        run = self._hub.state.runs.get(met.run)
        if run and run.nodes[0] == connection.context.node:
            self._hub.handle(
                ev.Met(run=met.run, attempt=met.attempt, address=met.address, port=met.port)
            )

    def _refused(self, connection: Connection, report: msg.Refused) -> None:
        self._hub.refuse(report.op, report.who, report.about, report.why)

    def _gone(self, connection: Connection, body: msg.ById) -> None:
        self._hub.handle(ev.RanksGone(node=connection.context.node, lease=body.id))
