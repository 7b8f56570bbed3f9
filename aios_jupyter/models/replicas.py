"""The processes behind an endpoint: started, started again, told what to do, and added up.

Light: neither the web server nor the model is imported here, so that what watches costs little and
has little to die of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from typing import Any

import msgspec

from ..errors import AiosError, ClusterError, from_kind
from .following import text
from .hosts import Hosts
from .plan import Plan, Told
from .processes import LocalReplica, ReplicaProcess, inner_listener
from .relaying import RelayProcess

log = logging.getLogger(__name__)

MOST_FAILURES = 5
"""Starts in a row that may fail before an endpoint gives up."""

_HEALTHY = 5.0
"""A replica that lived for so many seconds was not a failed start."""


class Replicas:
    """Processes that answer for one listening socket, each kept until it is to leave.

    They answer on it themselves. Where other machines may have some (`hosts`), each has a socket of
    its own, and `relay` passes connections on to them.

    Parameters
    ----------
    told
        Who hears how it goes.

    Attributes
    ----------
    serving, confirmed
        What they are told to serve (`replica.Serving`), and what is known to work.
    unfit
        Part and version of what could not be served.
    staying
        How many there are, those that come up and those that are started again included.
    failed
        Has what ends the endpoint.
    """

    def __init__(self, plan: Plan, listener: socket.socket, told: Told) -> None:
        self.plan = plan
        self.listener = listener
        self.told = told
        self.live: list[ReplicaProcess] = []
        self.staying = 0
        self.stopping = asyncio.Event()
        self.known = asyncio.Event()  # what is to be served
        self.serving: dict[str, Any] = {}
        self.confirmed: dict[str, Any] = {}
        self.unfit: set[tuple[str, int]] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.hosts: Hosts | None = None
        self.relay: RelayProcess | None = None
        self.room = asyncio.Event()  # there is more of it, perhaps
        self._given: list[tuple[str, str]] = []  # machines and devices of those that live
        self._keepers: set[asyncio.Task[None]] = set()
        self._ended: dict[str, float] = {"requests": 0.0, "errors": 0.0}
        self._failures = 0
        self._announced = ""

    def grow(self) -> None:
        """One more."""
        self.staying += 1
        keeper = asyncio.create_task(self._keep())
        self._keepers.add(keeper)
        keeper.add_done_callback(self._kept)

    def shrink(self, count: int) -> None:
        """Let so many leave, the newest first: they finish what their clients ask of them."""
        staying = [one for one in reversed(self.live) if one.answers]
        for one in staying[: max(0, count)]:
            one.leaving = True
            self.staying -= 1
            self._relay_to()
            one.order({"leave": True})
        self.tell_rate()

    def tell_rate(self) -> None:
        """Each lets its part of the requests through; their number has changed."""
        for one in self.live if self.plan.rate is not None else ():
            if one.answers:
                one.order({"rate": self._rate()})
        self.told.report(self.totals())

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        self._keepers.discard(keeper)
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        if not self.failed.done():
            self.failed.set_exception(error)

    async def _keep(self) -> None:
        """One replica, again and again, until it is to leave."""
        while not self.stopping.is_set():
            place = await self._place()
            if place is None:
                return
            self._given.append(place)
            try:
                left = await self._one_life(*place)
            finally:
                self._given.remove(place)
                self.room.set()
            if left:
                return

    async def _one_life(self, host: str, device: str) -> bool:
        """One replica from its start to its end; True where there is to be no other."""
        with contextlib.ExitStack() as sockets:
            one = await self._start(host, device, sockets)
            self.live.append(one)
            await self.known.wait()
            if self.stopping.is_set():
                one.signal(signal.SIGTERM)
                await one.wait()
                return True
            one.order(self._orders() | {"fd": one.fd})
            listening = asyncio.create_task(self._listen(one))
            status = await one.wait()
            await listening
        self.live.remove(one)
        self._relay_to(one)
        for key in self._ended:
            self._ended[key] += one.metrics.get(key, 0.0)
        if self.stopping.is_set() or one.leaving:
            return True
        await self._after_death(one, status)
        return False

    async def _start(self, host: str, device: str, sockets: contextlib.ExitStack) -> ReplicaProcess:
        if self.hosts is None:
            return await LocalReplica.start(device, self.listener)
        if host:
            return self.hosts.start(host, device)
        own, address = inner_listener("127.0.0.1")
        return await LocalReplica.start(device, sockets.enter_context(own), address)

    async def _place(self) -> tuple[str, str] | None:
        """The machine ("": this one) and device that a replica comes to; None: the endpoint ends.

        Where there are several machines it waits for room on one.
        """
        while not self.stopping.is_set():
            self.room.clear()
            host = self._roomiest()
            if host is not None:
                devices = self.hosts.joined[host].devices if self.hosts and host else None
                return host, self._device(host, self.plan.devices if devices is None else devices)
            await self.room.wait()
        return None

    def _roomiest(self) -> str | None:
        """The machine that has room for the most replicas; None where all are full."""
        if self.hosts is None:
            return ""
        given = [host for host, _ in self._given]
        room = {"": self.plan.here - given.count("")}
        for name, host in self.hosts.joined.items():
            room[name] = host.slots - given.count(name)
        most = max(room, key=lambda name: room[name])
        return most if room[most] > 0 else None

    def _device(self, host: str, devices: tuple[str, ...]) -> str:
        """The device there that the fewest replicas have; "" where none are to be shared out."""
        return min(devices, key=lambda device: self._given.count((host, device)), default="")

    def _relay_to(self, *gone: ReplicaProcess) -> None:
        """Have the relay know who answers."""
        if self.relay is not None:
            answering = [one.address for one in self.live if one.answers]
            self.relay.tell(answering, [one.address for one in gone])

    def _orders(self) -> dict[str, Any]:
        """What a replica is told at its beginning (`replica.Replica`)."""
        plan = self.plan
        return {
            "name": plan.name or self.serving["main"]["name"],
            "token": plan.token,
            "serving": self.serving,
            "limits": {
                "max_body": plan.max_body,
                "max_rows": plan.max_rows,
                "rate": self._rate(),
                "max_seconds": plan.max_seconds,
            },
            "threads": plan.threads,
            "allow_pickle": plan.allow_pickle,
            "grace": plan.grace,
            "certificate": plan.certificate,
            "key": plan.key,
            "alone": self.hosts is not None,
        }

    def _rate(self) -> float | None:
        """A replica's part of the requests that are let through."""
        return None if self.plan.rate is None else self.plan.rate / max(1, self.staying)

    async def _listen(self, one: ReplicaProcess) -> None:
        async for line in one.lines():
            said = msgspec.json.decode(line)
            if said["metrics"]:
                one.metrics, one.said = said["metrics"], time.monotonic()
                self.told.report(self.totals())
            elif said["refused"]:
                self._refused(one, from_kind(said["kind"], said["refused"]))
            else:
                self._answers(one, said["serving"])
        if not one.ready.done():
            one.ready.cancel()

    def _answers(self, one: ReplicaProcess, serving: str) -> None:
        first = not one.ready.done()
        if first:
            one.ready.set_result(serving)
            if serving != text(self.serving):
                one.order({"serving": self.serving})  # an alias moved while it started
            self._relay_to()
        if serving == text(self.serving):
            self.confirmed = self.serving
        done = [other for other in self.live if other.answers]
        if first and self._announced:
            self._share_out(one, done)
        if not first or len(done) == self.plan.scale.first:
            self._tell(serving)
        if first:
            self.told.report(self.totals())

    def _share_out(self, new: ReplicaProcess, done: list[ReplicaProcess]) -> None:
        """Connections that clients keep go on to a new replica, a fair part of each other's."""
        for other in done:
            if other is not new:
                other.order({"shed": 1 / len(done)})

    def _tell(self, serving: str) -> None:
        if serving != self._announced:
            self._announced = serving
            main = self.confirmed["main"]
            self.told.announce(main["name"], str(main["version"]))

    def _refused(self, one: ReplicaProcess, error: AiosError) -> None:
        if not one.ready.done():
            one.ready.set_exception(error)
        if self.serving == self.confirmed:
            return
        for part, package in self.serving.items():
            if part != "share" and package != self.confirmed.get(part):
                self.unfit.add((part, package["version"]))
        self.serving = self.confirmed
        log.warning("the endpoint goes on with what it served: %s", error)

    async def _after_death(self, one: ReplicaProcess, status: int) -> None:
        """Wait before the next start, the longer the more have failed; or give up."""
        if one.lost:
            log.warning("a replica's machine is out of reach; another one is started")
            return
        ready = one.ready.done() and not one.ready.cancelled()
        error = one.ready.exception() if ready else None
        if error is not None and not self._announced:
            raise error
        log.warning("a replica ended with status %s; it is started again", status)
        if ready and error is None and time.monotonic() - one.started > _HEALTHY:
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= MOST_FAILURES * self.plan.scale.most:
            raise error or ClusterError(
                f"The replicas end as soon as they start (exit status {status}); "
                "the reason is above in this log."
            )
        with contextlib.suppress(TimeoutError):
            delay = 0.0 if self._failures == 1 else min(0.1 * 2**self._failures, 5.0)
            await asyncio.wait_for(self.stopping.wait(), delay)

    def totals(self) -> dict[str, float]:
        """The numbers of all together."""
        every = [one.metrics for one in self.live if one.metrics]
        total = {
            key: self._ended[key] + sum(m[key] for m in every) for key in ("requests", "errors")
        }
        return {
            **total,
            "p95_ms": max((m["p95_ms"] for m in every), default=0.0),
            "requests_per_second": round(sum(m["requests_per_second"] for m in every), 2),
            "replicas": float(sum(one.answers for one in self.live)),
        }

    async def end(self) -> None:
        """Let each finish what is in flight; what does not end in time is killed."""
        for one in self.live:
            one.signal(signal.SIGTERM)
        waiting = [asyncio.create_task(one.wait()) for one in self.live]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self.plan.grace * 0.95)
            for one in self.live if late else ():
                one.signal(signal.SIGKILL)
