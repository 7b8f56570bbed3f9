"""The processes behind an endpoint: started, started again, told what to do, and added up.

Light: neither the web server nor the model is imported here, so that what watches costs little and
has little to die of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from ..errors import AiosError, ClusterError, from_kind
from .following import text
from .plan import Plan, Told

log = logging.getLogger(__name__)

MOST_FAILURES = 5
"""Starts in a row that may fail before an endpoint gives up."""

_HEALTHY = 5.0
"""A replica that lived for so many seconds was not a failed start."""

_REPORT_SECONDS = 5.0
"""What a replica said longer ago is not its load any more."""


class ReplicaProcess:
    """One process: its standard input takes orders, its standard output says how it is."""

    def __init__(self, process: asyncio.subprocess.Process, device: str) -> None:
        self.process = process
        self.device = device
        self.started = time.monotonic()
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.metrics: dict[str, float] = {}
        self.said = 0.0
        self.leaving = False

    @property
    def answers(self) -> bool:
        """Whether it has come up and is to stay."""
        up = self.ready.done() and not self.ready.cancelled() and not self.ready.exception()
        return up and not self.leaving

    def in_hand(self, now: float) -> float:
        """Requests in hand, on average over its last report."""
        return self.metrics.get("in_hand", 0.0) if now - self.said < _REPORT_SECONDS else 0.0

    def order(self, order: Any) -> None:
        """Tell it something (`replica.Order`)."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")


class Replicas:
    """Processes that answer on one listening socket, each kept until it is to leave.

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
        self._given: list[str] = []  # devices of those that live or are started
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
            one = await self._start()
            self.live.append(one)
            await self.known.wait()
            if self.stopping.is_set():
                _signal(one, signal.SIGTERM)
                await one.process.wait()
                return
            one.order(self._orders())
            listening = asyncio.create_task(self._listen(one))
            await one.process.wait()
            await listening
            self.live.remove(one)
            self._given.remove(one.device)
            for key in self._ended:
                self._ended[key] += one.metrics.get(key, 0.0)
            if self.stopping.is_set() or one.leaving:
                return
            await self._after_death(one)

    async def _start(self) -> ReplicaProcess:
        device = self._device()
        self._given.append(device)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "aios_jupyter.models.replica",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self.listener.fileno()],
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device else {})},
        )
        return ReplicaProcess(process, device)

    def _device(self) -> str:
        """The lease's device that the fewest replicas have; "" where none are to be shared out."""
        return min(self.plan.devices, key=self._given.count, default="")

    def _orders(self) -> dict[str, Any]:
        """What a replica is told at its beginning (`replica.Replica`)."""
        plan = self.plan
        return {
            "fd": self.listener.fileno(),
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
        }

    def _rate(self) -> float | None:
        """A replica's part of the requests that are let through."""
        return None if self.plan.rate is None else self.plan.rate / max(1, self.staying)

    async def _listen(self, one: ReplicaProcess) -> None:
        assert one.process.stdout is not None
        while line := await one.process.stdout.readline():
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
        if serving == text(self.serving):
            self.confirmed = self.serving
        done = [other for other in self.live if other.answers]
        if first and self._announced:
            self._share_out(one, done)
        if not first or len(done) == self.plan.scale.first:
            self._tell(serving)

    def _share_out(self, new: ReplicaProcess, done: list[ReplicaProcess]) -> None:
        """Connections that clients keep go on to a new replica, a fair part of each other's."""
        for other in done:
            if other is not new:
                other.order({"shed": 1 / len(done)})
        self.told.report(self.totals())

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

    async def _after_death(self, one: ReplicaProcess) -> None:
        """Wait before the next start, the longer the more have failed; or give up."""
        ready = one.ready.done() and not one.ready.cancelled()
        error = one.ready.exception() if ready else None
        if error is not None and not self._announced:
            raise error
        log.warning("a replica ended with status %s; it is started again", one.process.returncode)
        if ready and error is None and time.monotonic() - one.started > _HEALTHY:
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= MOST_FAILURES * self.plan.scale.most:
            raise error or ClusterError(
                f"The replicas end as soon as they start (exit status {one.process.returncode}); "
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
            _signal(one, signal.SIGTERM)
        waiting = [asyncio.create_task(one.process.wait()) for one in self.live]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self.plan.grace * 0.95)
            for one in self.live if late else ():
                _signal(one, signal.SIGKILL)


def _signal(one: ReplicaProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        one.process.send_signal(number)
