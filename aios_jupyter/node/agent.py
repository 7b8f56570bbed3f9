"""The agent of one machine: `python -m aios_jupyter.node.agent`.

It offers the machine's devices to the broker, samples them once a second, starts and ends ranks,
and keeps the Dask worker running. It outlives the broker and the worker: when the broker dies, the
agent and its ranks go on, and when the broker is back the agent says what it still holds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..broker import messages as msg
from ..broker.messages import VERSION
from ..broker.protocol import Connection, connect
from ..config import settings
from ..devices import cpu, probe
from ..devices.given import given
from ..errors import (
    AccessError,
    AiosError,
    ClusterError,
    ConflictError,
    ProtocolError,
    UsageError,
)
from ..process import process_start
from ..runs.messages import StartRun
from ..schema import Node, Process, Usage
from ..tls import Bundle, Revoked
from . import guests, kernels, memory, reaper
from .accounts import Accounts, own_name
from .copies import fetch
from .door import GRANT_TIMEOUT, Door
from .restarts import HostedRuns
from .telemetry import Sampler, outside
from .tracking import Tracker
from .worker import DaskWorker
from .zygotes import Zygotes

log = logging.getLogger("aios.node")

SAMPLE_INTERVAL = 1.0
# Between SIGTERM and SIGKILL for ranks when Slurm ends their job, seconds; by default it kills what is
# left after thirty.
JOB_GRACE = 20.0


class Agent:
    """One machine of the cluster.

    Parameters
    ----------
    runtime
        Has the TLS material and the broker's file; the agent's own file goes there.
    state
        Runs and their logs are kept there.
    host
        The address at which it listens, and where ranks on other nodes find those here.
    name
        The node's, by its certificate; "" on the machine that the cluster was started on, whose
        name it then has.
    accounts
        The rule by which people's code runs in accounts of their own (`Accounts`).
    until
        When it is leased no more, as the machine is only lent.
    bare
        Offer no devices: this machine is not for computing.
    """

    def __init__(
        self,
        runtime: Path,
        state: Path,
        host: str,
        simulate_gpus: int,
        name: str = "",
        accounts: str = "",
        *,
        until: float | None = None,
        bare: bool = False,
    ) -> None:
        self.runtime = runtime
        self.host = host
        self.machine = socket.gethostname()
        self.name = name or self.machine
        self.until = until
        self.refused: AiosError | None = None
        self._joined = bool(name)
        self._cores = cpu.usable_cores() if given() else max(1, os.cpu_count() or 1)
        self.devices = () if bare else probe.devices(self.name, simulate_gpus)
        self.stopping = asyncio.Event()
        self._grace: float | None = None
        self._bundle = Bundle.of(runtime / "tls", "node")
        self._broker: Connection | None = None
        self._unsent: list[tuple[str, Any]] = []
        self._grants: dict[str, msg.Grant] = {}
        self._state = state
        self._zygotes = Zygotes(
            state / "zygotes", settings().zygote_idle, settings().zygote_memory * 1e9
        )
        # On another machine the name of whoever started the cluster says nothing.
        whose = Accounts(accounts, "" if name else own_name())
        self.runs = HostedRuns(state / "runs", self.name, host, self._report, self._zygotes, whose)
        self._tracker = Tracker(state / "tracking")
        self.runs.fetch = self._fetch
        self.runs.begun = self._tracker.begin
        self._revoked = Revoked(runtime / "tls")
        self._door = Door(
            self.runs,
            self._grants,
            self.name,
            self._revoked,
            lambda refused: self._report("node.refused", refused, True),
            keys=runtime / "tls",
        )
        self._worker = DaskWorker(
            self.name,
            host,
            1 if bare else self._cores,
            Bundle.dask(runtime / "tls"),
            state / "dask",
            runtime / "children.json",
        )
        self._sampler = Sampler(self.devices, self.runs.pids_of)
        self._sampling = asyncio.Lock()
        self._outside: dict[str, tuple[Process, ...]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve until told to stop."""
        await reaper.sweep(self._state / "runs")
        memory.sweep(self._state / "runs")
        guests.sweep(self._state / "runs")
        await self._zygotes.sweep()
        address = await self._door.open(self.host, self._bundle.server_context())
        self._node = Node(
            id=self.name,
            host=self.machine,
            address=address,
            pid=os.getpid(),
            devices=self.devices,
            cpus=self._cores,
            memory=cpu.usable_memory() if given() else _machine_memory(),
            version=__version__,
            until=self.until,
        )
        await self._look()
        self._tracker.start()
        for framework in filter(None, settings().zygote_ahead.split(",")):
            self._zygotes.ahead(framework.strip(), len(self.devices))
        self._tasks = [
            asyncio.create_task(self._stay_connected()),
            asyncio.create_task(self._sample()),
        ]
        await self.stopping.wait()
        log.info("stopping")
        for task in self._tasks:
            task.cancel()
        await self._door.close()
        await asyncio.gather(
            self.runs.stop_all(f"node {self.name} was stopped", self._grace),
            self._zygotes.close(),
            self._worker.stop(),
        )
        self._sampler.close()
        self._tracker.close()
        (self.runtime / "node.json").unlink(missing_ok=True)
        if self._joined:
            # Copies of a bundle's, which are needed no more.
            shutil.rmtree(self.runtime / "tls", ignore_errors=True)

    def taken_away(self) -> None:
        """Whoever runs this process wants it to end; in a job ranks then have time for a checkpoint."""
        if given():
            self._grace = min(settings().end_grace, JOB_GRACE)
        self.stopping.set()

    # --- the broker

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._connect()
            except (AccessError, ConflictError, ProtocolError) as error:
                if self._joined:
                    # Nothing that this machine does would change that.
                    self.refused = error
                    self.stopping.set()
                    return
                log.info("not let in: %s", error)
                await asyncio.sleep(0.2)
                continue
            except AiosError as error:
                log.info("no broker yet: %s", error)
                await asyncio.sleep(0.2)
                continue
            connection = self._broker
            assert connection is not None
            while not connection.closed.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(settings().heartbeat):
                        await connection.closed.wait()
                if not connection.closed.is_set():
                    connection.tell("beat")
            log.warning("the broker is gone; ranks go on")
            self._broker = None

    async def _connect(self) -> None:
        facts = self._broker_facts()
        handlers: dict[str, Any] = {
            "lease.granted": (msg.Grant, lambda _, grant: self._granted(grant)),
            "lease.end": (msg.LeaseEnd, lambda _, end: self._end_lease(end)),
            "run.created": (
                msg.RunCreated,
                lambda _, made: self.runs.announced(made.run, made.ranks),
            ),
            "run.stop": (msg.RunStop, self._stop_run),
            "run.again": (msg.RunAgain, lambda _, again: self.runs.again(again)),
            "run.moved": (msg.RunMoved, lambda _, moved: self.runs.moved(moved)),
            "run.over": (msg.RunOver, lambda _, over: self._run_over(over)),
            "revoked": (msg.Serials, lambda _, body: self._revoked.keep(body.serials)),
            "shutdown": (Any, lambda _, body: self.stopping.set()),
        }
        connection = await connect(facts["address"], self._bundle.client_context(), handlers)
        hello = msg.NodeHello(
            version=VERSION,
            node=self._node,
            held=self.runs.held(),
            runs=self.runs.live(),
            outside=self._outside,
        )
        before = set(self._grants)
        welcome = await connection.call("node.hello", hello, msg.NodeWelcome, timeout=10)
        self._broker = connection
        self._revoked.keep(welcome.revoked)
        active = {grant.lease.id for grant in welcome.grants}
        # What was granted since it was written may have come before this goes on.
        for lease in before - active:
            self._grants.pop(lease, None)
        for grant in welcome.grants:
            self._granted(grant)
        for topic, body in self._unsent:
            connection.tell(topic, body)
        self._unsent.clear()
        self.runs.repeat()
        if Bundle.dask(self.runtime / "tls").key.exists():
            self._worker.follow(welcome.dask or facts.get("dask", ""))
        self._write_file()

    def _broker_facts(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.runtime / "broker.json").read_text()))
        except (FileNotFoundError, ValueError):
            raise ClusterError("The broker has not written its address yet.") from None

    def _write_file(self) -> None:
        facts = {
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "address": self._node.address,
            "node": self.name,
        }
        aside = self.runtime / f".node-{os.getpid()}"
        aside.write_text(json.dumps(facts))
        aside.chmod(0o600)
        aside.replace(self.runtime / "node.json")

    def _report(self, topic: str, body: Any, durable: bool) -> None:
        """Tell the broker; what it must not miss waits for its return."""
        if self._broker and not self._broker.closed.is_set():
            self._broker.tell(topic, body)
        elif durable:
            self._unsent.append((topic, body))

    def _granted(self, grant: msg.Grant) -> None:
        self._grants[grant.lease.id] = grant

    async def _stop_run(self, _: Connection, stop: msg.RunStop) -> None:
        if stop.restart:
            await self.runs.end_attempt(stop.run, stop.attempt, stop.grace)
        else:
            await self.runs.stop(stop.run, stop.reason, stop.attempt)

    def _run_over(self, over: msg.RunOver) -> None:
        self.runs.over(over.id)
        self._tracker.over(over)

    async def _fetch(self, address: str, again: msg.RunAgain, payload: Path) -> StartRun:
        # The broker's word on the run may come before that on the lease, in its welcome.
        deadline = asyncio.get_running_loop().time() + GRANT_TIMEOUT
        while (grant := self._grants.get(again.run.lease)) is None:
            if asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.01)
                continue
            raise AccessError(f"Node {self.name} has no part of lease {again.run.lease}.")
        context = self._bundle.client_context()
        return await fetch(address, context, again.run.id, grant.token, payload)

    async def _end_lease(self, end: msg.LeaseEnd) -> None:
        grant = self._grants.pop(end.lease, None)
        grace = settings().stop_grace if end.grace is None else end.grace
        reason = end.reason or "the lease ended"
        await self.runs.end_lease(end.lease, reason, grace, keep=end.keep)
        if grant is not None:
            await kernels.vacate(grant, self.name, self.machine, self._usage, grace)
        if end.confirm:
            self._report("node.gone", msg.ById(id=end.lease), durable=True)

    # --- telemetry

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL)
            try:
                usage = await self._look()
                report = msg.NodeReport(
                    usage=usage, outside=self._outside, warm=self._zygotes.use()
                )
                self._report("node.report", report, durable=False)
                self.runs.sampled(usage)
                await self._enforce()
                self._door.let_go()
            except Exception:
                log.exception("sampling failed")

    async def _look(self) -> tuple[Usage, ...]:
        """Sample the devices, and note who uses them outside any lease."""
        usage = await self._usage()
        ours = self._ours()
        self._outside = {
            sample.device: found for sample in usage if (found := outside(sample, ours))
        }
        return tuple(usage)

    async def _usage(self) -> list[Usage]:
        async with self._sampling:
            return await asyncio.to_thread(self._sampler.sample)

    def _ours(self) -> set[int]:
        """Processes that hold a lease here: ranks, and owners that use the device themselves."""
        owners = {
            grant.owner.pid
            for grant in self._grants.values()
            if grant.owner and grant.owner.host == self.machine
        }
        return self.runs.pids() | owners

    async def _enforce(self) -> None:
        """With no broker to say so, a lease that is past its end is ended here."""
        if self._broker is not None:
            return
        for grant in list(self._grants.values()):
            expires = grant.lease.expires
            if expires is not None and expires + settings().stop_grace < _now():
                end = msg.LeaseEnd(
                    lease=grant.lease.id, reason="its time is over", grace=settings().end_grace
                )
                await self._end_lease(end)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _now() -> float:
    import time

    return time.time()


async def _serve(arguments: argparse.Namespace) -> None:
    agent = Agent(
        arguments.runtime,
        arguments.state,
        arguments.host,
        arguments.simulate_gpus,
        arguments.name,
        arguments.accounts,
        until=arguments.until,
        bare=arguments.bare,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.taken_away)
    await agent.run()
    if agent.refused:
        # The last line of the log: whoever waits for this process shows it.
        sys.exit(str(agent.refused))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The AIOS agent of this machine.")
    parser.add_argument("--runtime", type=Path, required=True, help="TLS and broker.json")
    parser.add_argument("--state", type=Path, required=True, help="runs and logs")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--simulate-gpus", type=int, default=0)
    parser.add_argument("--name", default="", help="the node's, when it is not the first one")
    parser.add_argument("--until", type=float, help="when it is leased no more (epoch seconds)")
    parser.add_argument("--bare", action="store_true", help="offer no devices")
    parser.add_argument("--accounts", default="", help="whose account people's code runs in")
    # It is for this process's log. Ranks would write each word by itself.
    os.environ.pop("PYTHONUNBUFFERED", None)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except UsageError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
