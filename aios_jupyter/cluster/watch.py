"""Looks after the cluster's Slurm jobs, in the broker's process: `--preload aios_jupyter.cluster.watch`.

Slurm is asked often while somebody has just asked for something, and rarely later, for all jobs in
one call. The broker is told which nodes are to come, and which are gone for good; people are told
how their jobs are. The jobs end with the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from ..broker import events as ev
from ..broker.plugin import BrokerPlugin
from ..broker.service import Broker
from ..errors import AiosError
from ..schema import Device, DeviceKind, Node
from . import embedded, jobs
from .jobs import Asked

log = logging.getLogger("aios.slurm")

SOON, LATER = 3.0, 30.0
# For so long after somebody asked, or a job's state has changed, Slurm is asked soon.
RESTLESS = 120.0
# What Slurm does not say of a machine is enough for everybody.
_ENOUGH = 2**50
_CORES = 64


class Watch(SchedulerPlugin):
    """Keeps the broker's picture of the jobs true."""

    name = "aios-jobs"
    idempotent = True

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._known: dict[str, Asked] = {}
        self._told: set[str] = set()
        self._seen: tuple[float, frozenset[str]] | None = None
        self._restless = self._due = 0.0
        self._task = asyncio.create_task(self._stay())

    async def before_close(self, **kwargs: Any) -> None:
        """The scheduler is about to close; where that is the cluster's end, the jobs end too.

        The agents of other machines have been told, and end by themselves.
        """
        self._task.cancel()
        if not embedded.Paths.current().connection.exists():
            for left in await asyncio.to_thread(jobs.stop_all):
                log.error("%s", left)

    async def _stay(self) -> None:
        while True:
            try:
                await self._look_if_due()
            except AiosError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("looking after Slurm jobs failed")
            await asyncio.sleep(1.0)

    async def _look_if_due(self) -> None:
        now = time.monotonic()
        seen = await asyncio.to_thread(jobs.changed), self._lost()
        if seen != self._seen:
            self._restless, self._due = now + RESTLESS, now
        if now < self._due:
            return
        self._seen, self._due = seen, now + (SOON if now < self._restless else LATER)
        self._take(await asyncio.to_thread(jobs.look))
        self._seen = await asyncio.to_thread(jobs.changed), self._lost()

    def _lost(self) -> frozenset[str]:
        """Nodes that do not answer though their job runs: it may have ended."""
        state = self._broker.hub.state
        return frozenset(
            node
            for asked in self._known.values()
            if asked.state == "running"
            for node in asked.nodes
            if not state.node_up(node)
        )

    def _take(self, found: list[Asked]) -> None:
        hub = self._broker.hub
        for asked in found:
            before = self._known.get(asked.id)
            if asked.over:
                if before is None or not before.over:
                    self._over(asked)
            else:
                # One that has come and gone is not told of again.
                for node in [node for node in asked.nodes if node not in self._told]:
                    hub.handle(ev.NodeExpected(node=_node(asked, node)))
                self._told.update(asked.nodes)
        self._known = {asked.id: asked for asked in found}
        expected = {
            node: {"state": asked.state, "note": asked.note, "job": asked.id}
            for asked in found
            if not asked.forgotten
            for node in asked.nodes
        }
        for node in [n for n in hub.state.nodes if hub.state.is_expected(n) and n not in expected]:
            hub.handle(ev.NodeGone(node=node, reason="nobody asks for it any more"))
        if expected != hub.expected:
            hub.expected = expected
            hub.changed = True
            self._restless = time.monotonic() + RESTLESS

    def _over(self, asked: Asked) -> None:
        hub = self._broker.hub
        why = asked.note.rstrip(".")
        for node in asked.nodes:
            hub.handle(ev.NodeGone(node=node, reason=why))
        self._broker.tell_revoked()
        if asked.forgotten:
            return
        hub.audit("nodes ended", hub.owner, nodes=list(asked.nodes), reason=asked.note)
        log.info("%s", asked.note)
        hub.notify(hub.owner, f"slurm-{asked.id}", asked.note)


def _node(asked: Asked, name: str) -> Node:
    """A node that is to come, by what was asked for."""
    kind = DeviceKind.SIMULATED if asked.simulated else DeviceKind.GPU
    cores = asked.cpus or _CORES
    devices = [(kind, index) for index in range(asked.gpus)]
    devices += [(DeviceKind.CPU, index) for index in range(cores)]
    return Node(
        id=name,
        host="",
        address="",
        pid=0,
        devices=tuple(
            Device(id=f"{name}/{of}{index}", kind=of, name="", index=index, memory=_ENOUGH)
            for of, index in devices
        ),
        cpus=cores,
        memory=_ENOUGH,
    )


async def dask_setup(scheduler: Scheduler) -> None:
    """Called by Dask when the scheduler process has started, after the broker's."""
    plugin = scheduler.plugins[BrokerPlugin.name]
    scheduler.add_plugin(Watch(plugin.broker), name=Watch.name)
