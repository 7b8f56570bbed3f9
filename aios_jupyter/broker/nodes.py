"""What the nodes' agents tell: what they have, how busy it is, and how their ranks fare."""

from __future__ import annotations

import time
from typing import Any

from ..errors import AccessError
from ..schema import LIVE, LeaseState, RankExit, RunState
from ..tls import Revoked
from . import events as ev
from . import messages as msg
from .hub import AgentLink, Hub, over
from .protocol import Connection, Handler

# The certificate of the agent beside the broker, which has the machine's name.
OWN = "node"


class Nodes:
    """Agents and their reports; each hears of certificates that were revoked."""

    def __init__(self, hub: Hub, revoked: Revoked) -> None:
        self._hub = hub
        self._revoked = revoked

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

    def tell_revoked(self) -> None:
        """The list of revoked certificates has changed."""
        self._hub.tell_nodes(self._hub.agents, "revoked", msg.Serials(serials=self._serials()))

    def _serials(self) -> tuple[str, ...]:
        return tuple(f"{serial:X}" for serial in sorted(self._revoked.serials()))

    def left(self, link: AgentLink, connection: Connection) -> None:
        """An agent's connection has gone; its ranks may well go on."""
        if self._hub.agents.get(link.node) is connection:
            del self._hub.agents[link.node]
            self._hub.warm.pop(link.node, None)
            self._hub.handle(ev.NodeLost(node=link.node))

    def _hello(self, connection: Connection, hello: msg.NodeHello) -> msg.NodeWelcome:
        node = hello.node
        if connection.name not in (OWN, node.id):
            raise AccessError(
                f"The certificate of node {connection.name} is not one for node {node.id}."
            )
        # Refused while another node offers the same device: then nothing has changed.
        joined = ev.NodeJoined(node=node, held=hello.held, outside=hello.outside)
        missed = self._missed(node.id, set(hello.runs))
        actions = self._hub.decide(joined)
        before = self._hub.agents.get(node.id)
        if before and before is not connection:
            before.context = None
            before.close()
        connection.context = AgentLink(node.id)
        self._hub.agents[node.id] = connection
        self._hub.enact(actions)
        for run, exit in missed:
            self._hub.handle(ev.RankExited(run=run, exit=exit, final=True))
        self._end_over(connection, hello.runs)
        if self._hub.ending:
            connection.tell("shutdown")
        return msg.NodeWelcome(
            grants=tuple(
                self._hub.grant_for_agent(lease)
                for lease in self._hub.state.leases.values()
                if lease.state is LeaseState.ACTIVE
                and any(slot.node == node.id for slot in lease.slots)
            ),
            dask=self._hub.dask,
            revoked=self._serials(),
        )

    def _missed(self, node: str, held: set[str]) -> list[tuple[str, RankExit]]:
        """Ranks that an agent no longer knows: they ended with its earlier life."""
        found = []
        for run in self._hub.state.runs.values():
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
                    found.append((run.id, exit))
        return found

    def _end_over(self, connection: Connection, runs: tuple[str, ...]) -> None:
        """Runs that have ended while their node was out of reach, and may still have ranks there."""
        for id in runs:
            run = self._hub.state.runs.get(id)
            if run and run.state not in LIVE:
                connection.tell("run.stop", msg.RunStop(run=id, reason=run.reason))

    def _report(self, connection: Connection, report: msg.NodeReport) -> None:
        for usage in report.usage:
            self._hub.usage[usage.device] = usage
        self._hub.activity.sampled(self._hub.state, report.usage, time.time())
        node = connection.context.node
        if node not in self._hub.state.nodes:
            return  # it is gone, as whoever lent its machine knows
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
        if known and connection.context.node in known.nodes:
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
        run = self._hub.state.runs.get(report.run)
        if run and connection.context.node in run.nodes:
            exited = ev.RankExited(run=report.run, exit=report.exit, final=report.final)
            self._hub.handle(exited)
            run = self._hub.state.runs.get(report.run)
        # It may wait for a word that was lost with an earlier connection.
        if run is None:
            lost = msg.RunOver(id=report.run, state=RunState.FAILED, reason="the broker forgot it")
            connection.tell("run.over", lost)
        elif run.state not in LIVE:
            connection.tell("run.over", over(run))

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
