"""Replicas of an endpoint: start them, start them again, change their versions, add up their numbers.

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
from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import AiosError, ClusterError, ConflictError, from_kind
from ..schema import Struct
from . import alias_watch

log = logging.getLogger(__name__)

MAX_BODY = 64 << 20
"""Bytes of a request at most, unless told otherwise."""

READY_SECONDS = 300.0
MOST_FAILURES = 5
"""Starts in a row that may fail before an endpoint gives up."""

_HEALTHY = 5.0
"""A replica that lived for so many seconds was not a failed start."""


class Plan(Struct, frozen=True, kw_only=True):
    """What to serve and how. `package` is given where the files are known, `ref` elsewhere.

    Attributes
    ----------
    canary
        Another reference, and its share of the requests.
    follow
        Change versions when an alias moves.
    max_seconds, rate
        See `service.Limits`; the rate is of all replicas together.
    """

    ref: str
    package: Any
    name: str
    token: str
    replicas: int
    canary: tuple[str, float] | None
    max_body: int
    max_rows: int
    rate: float | None
    max_seconds: float | None
    threads: int | None
    allow_pickle: bool
    grace: float
    follow: bool


class _Replica:
    """One process: its standard input takes orders, its standard output says how it is."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.started = time.monotonic()
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.metrics: dict[str, float] = {}

    def order(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(line + b"\n")


class Supervisor:
    """Runs an endpoint's replicas on one listening socket.

    Parameters
    ----------
    announce
        Called with the model and its version when it answers, and at each change.
    report
        Called with the endpoint's numbers now and then.
    """

    def __init__(
        self,
        plan: Plan,
        listener: socket.socket,
        announce: Callable[[str, str], None],
        report: Callable[[dict[str, float]], None],
    ) -> None:
        self._plan = plan
        self._listener = listener
        self._announce = announce
        self._report = report
        self._live: list[_Replica] = []
        self._ended: dict[str, float] = {"requests": 0.0, "errors": 0.0}
        self._stopping = asyncio.Event()
        self._known = asyncio.Event()  # what is to be served
        self._serving: dict[str, Any] = {}
        self._confirmed: dict[str, Any] = {}
        self._unfit: set[tuple[str, int]] = set()  # part and version that could not be served
        self._failures = 0

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises
        ------
        AiosError
            The model cannot be opened, or its replicas die again and again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # They import what they need while the registry is asked.
        keepers = [asyncio.create_task(self._keep()) for _ in range(self._plan.replicas)]
        watcher = asyncio.create_task(self._watch())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            self._serving = self._confirmed = await self._resolved()
            self._name = self._plan.name or self._serving["main"]["name"]
            self._known.set()
            await asyncio.wait([*keepers, stopping], return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done() and (error := keeper.exception()) is not None:
                    raise error
        finally:
            self._stopping.set()
            watcher.cancel()
            stopping.cancel()
            self._listener.close()
            await self._end()
            await asyncio.gather(*keepers, watcher, stopping, return_exceptions=True)

    async def _end(self) -> None:
        """Let each finish what is in flight; what does not end in time is killed."""
        for one in self._live:
            _signal(one, signal.SIGTERM)
        waiting = [asyncio.create_task(one.process.wait()) for one in self._live]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self._plan.grace * 0.95)
            for one in self._live if late else ():
                _signal(one, signal.SIGKILL)

    # --- replicas

    async def _keep(self) -> None:
        """One replica, again and again."""
        while not self._stopping.is_set():
            one = await self._start()
            self._live.append(one)
            await self._known.wait()
            one.order(self._orders())
            listening = asyncio.create_task(self._listen(one))
            await one.process.wait()
            await listening
            self._live.remove(one)
            for key in self._ended:
                self._ended[key] += one.metrics.get(key, 0.0)
            if self._stopping.is_set():
                return
            await self._after_death(one)

    async def _start(self) -> _Replica:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "aios_jupyter.models.replica",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
        )
        return _Replica(process)

    def _orders(self) -> bytes:
        """What a replica is told at its beginning (`replica.Replica`)."""
        plan = self._plan
        orders = {
            "fd": self._listener.fileno(),
            "name": self._name,
            "token": plan.token,
            "serving": self._serving,
            "limits": {
                "max_body": plan.max_body,
                "max_rows": plan.max_rows,
                "rate": None if plan.rate is None else plan.rate / plan.replicas,
                "max_seconds": plan.max_seconds,
            },
            "threads": plan.threads,
            "allow_pickle": plan.allow_pickle,
            "grace": plan.grace,
        }
        return msgspec.json.encode(orders)

    async def _listen(self, one: _Replica) -> None:
        assert one.process.stdout is not None
        while line := await one.process.stdout.readline():
            said = msgspec.json.decode(line)
            if said["metrics"]:
                one.metrics = said["metrics"]
                self._report(self._sum())
            elif said["refused"]:
                self._refused(one, from_kind(said["kind"], said["refused"]))
            else:
                self._answers(one, said["serving"])
        if not one.ready.done():
            one.ready.cancel()

    def _answers(self, one: _Replica, serving: str) -> None:
        first = not one.ready.done()
        if first:
            one.ready.set_result(serving)
            if serving != self._text():
                one.order(msgspec.json.encode(self._serving))  # an alias moved while it started
        if serving == self._text():
            self._confirmed = self._serving
        done = [r for r in self._live if r.ready.done() and not r.ready.cancelled()]
        if not first or len(done) == self._plan.replicas:
            self._tell(serving)

    _told = ""

    def _tell(self, serving: str) -> None:
        if serving != self._told:
            self._told = serving
            main = self._confirmed["main"]
            self._announce(main["name"], str(main["version"]))

    def _text(self) -> str:
        main, canary = self._serving["main"], self._serving.get("canary")
        if canary is None:
            return str(main["version"])
        return f"{main['version']} ({self._serving['share']:.0%} {canary['version']})"

    def _refused(self, one: _Replica, error: AiosError) -> None:
        if not one.ready.done():
            one.ready.set_exception(error)
            return
        for part, package in self._serving.items():
            if part != "share" and package != self._confirmed.get(part):
                self._unfit.add((part, package["version"]))
        self._serving = self._confirmed
        log.warning("the endpoint goes on with what it served: %s", error)

    async def _after_death(self, one: _Replica) -> None:
        """Wait before the next start, the longer the more have failed; or give up."""
        ready = one.ready.done() and not one.ready.cancelled()
        error = one.ready.exception() if ready else None
        if error is not None and not self._told:
            raise error
        log.warning("a replica ended with status %s; it is started again", one.process.returncode)
        if ready and error is None and time.monotonic() - one.started > _HEALTHY:
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= MOST_FAILURES * self._plan.replicas:
            raise error or ClusterError(
                f"The replicas end as soon as they start (exit status {one.process.returncode}); "
                "the reason is above in this log."
            )
        with contextlib.suppress(TimeoutError):
            delay = 0.0 if self._failures == 1 else min(0.1 * 2**self._failures, 5.0)
            await asyncio.wait_for(self._stopping.wait(), delay)

    def _sum(self) -> dict[str, float]:
        every = [one.metrics for one in self._live if one.metrics]
        total = {
            key: self._ended[key] + sum(m[key] for m in every) for key in ("requests", "errors")
        }
        return {
            **total,
            "p95_ms": max((m["p95_ms"] for m in every), default=0.0),
            "requests_per_second": round(sum(m["requests_per_second"] for m in every), 2),
        }

    # --- versions

    async def _resolved(self) -> dict[str, Any]:
        """What to serve at first (`replica.Serving`)."""
        plan = self._plan
        if plan.package is not None:
            return {"main": msgspec.to_builtins(plan.package)}
        refs = [plan.ref] + ([plan.canary[0]] if plan.canary else [])
        packages = await _packages(refs)
        serving: dict[str, Any] = {"main": packages[0]}
        if plan.canary:
            serving |= {"canary": packages[1], "share": plan.canary[1]}
        return serving

    async def _watch(self) -> None:
        """Follow the aliases that this endpoint was asked to serve."""
        from .store import registry_uri

        plan = self._plan
        refs = {
            part: ref.partition("@")[::2]
            for part, ref in (("main", plan.ref), ("canary", plan.canary[0] if plan.canary else ""))
            if "@" in ref
        }
        if not plan.follow or not refs:
            return
        uri = registry_uri()
        every = alias_watch.interval(uri)
        if every is None:
            log.warning("this registry cannot be watched: aliases are not followed")
            return
        await self._known.wait()
        while True:
            await asyncio.sleep(every)
            moved = {}
            for part, (name, alias) in refs.items():
                version = await asyncio.to_thread(alias_watch.named, uri, name, alias)
                if version is None or (part, version) in self._unfit:
                    continue
                if version != int(self._serving[part]["version"]):
                    moved[part] = f"{name}/{version}"
            if moved:
                await self._move(moved)

    async def _move(self, moved: dict[str, str]) -> None:
        try:
            packages = await _packages(list(moved.values()))
        except AiosError as error:
            log.warning("an alias names what cannot be served: %s", error)
            self._unfit |= {(part, int(ref.rpartition("/")[2])) for part, ref in moved.items()}
            return
        self._serving = {**self._serving, **dict(zip(moved, packages, strict=True))}
        for one in list(self._live):
            if one.ready.done():
                one.order(msgspec.json.encode(self._serving))


def _signal(one: _Replica, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        one.process.send_signal(number)


async def _packages(refs: list[str]) -> list[dict[str, Any]]:
    """Ask the registry in another process: MLflow's imports and memory do not stay with us."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aios_jupyter.models.download",
        *refs,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # the endpoint ends meanwhile
            process.kill()
            await process.wait()
    try:
        if process.returncode == 0:
            return [msgspec.json.decode(line) for line in output.splitlines()]
        refused = msgspec.json.decode(output, type=dict[str, str])
    except msgspec.DecodeError:
        raise ConflictError(
            f"The registry could not be asked (exit status {process.returncode}); the reason is "
            "above in this log."
        ) from None
    raise from_kind(refused["kind"], refused["message"])
