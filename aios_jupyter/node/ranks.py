"""The ranks of one run on this machine: started, listened to, and ended together.

A `LocalGang` starts one process per rank, each the leader of its own session. It reads their output
and events without ever keeping them waiting, writes both to the run's directory (`rank-N.log`,
`events.msgpack`), and when a rank fails it ends the others and says which failed first, and why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..config import IS_LINUX
from ..runs.events import ErrorRaised, EventLog, EventReader, Said
from ..runs.lifeline import STOPPED
from ..runs.rank import Orders
from ..runs.spec import Entry, RankSpec, Rendezvous, RunSpec
from ..schema import Origin, RankExit
from . import reaper, starting
from .accounts import Account
from .member import KEEP_MEMORY, Before, RankProcess, read_fault, threads_for
from .network import bind_port, interface_of
from .output import Outputs
from .spares import ZygoteError
from .verdict import Sign, first_cause, reason_of
from .zygotes import Warm, Zygotes

__all__ = ["EventReader", "LocalGang", "bind_port"]

log = logging.getLogger("aios.node")

# How long to wait for the other ranks' failures, which may be the cause of the one that was seen.
SETTLE = 0.1
# How long the others have once a rank has failed.
FAILED_GRACE = 1.0


class LocalGang:
    """The ranks of one run on this machine. Use it in one event loop, from the main thread.

    Parameters
    ----------
    spec
        The run.
    ranks
        The ranks that belong on this machine.
    rendezvous
        Where all ranks meet.
    directory
        The run's, with mode 0700; logs and events go there.
    payload
        A file with what `runs.cells.pack` made, for every rank; -1: nothing. It is the caller's.
    on_events
        Gets each batch of events, after it is on disk.
    listen_fd
        A listening socket at the rendezvous, which rank 0 inherits.
    env
        What the ranks inherit instead of this process's environment; `spec.env` is added.
    zygotes
        Where ranks can be forked from; without them each is started anew.
    before
        The attempt that this one follows.
    pulled
        A file in memory for what rank 0 gives back, -1: it goes to the disk. It is the caller's.
    host
        This node's address for ranks on others.
    account
        In whose account the ranks run; None: in this one.

    Attributes
    ----------
    told
        What is said of ranks that end as they were told to.
    """

    def __init__(
        self,
        spec: RunSpec,
        ranks: Sequence[RankSpec],
        rendezvous: Rendezvous,
        directory: Path,
        payload: int,
        on_events: Callable[[list[dict[str, Any]]], None],
        listen_fd: int | None = None,
        env: dict[str, str] | None = None,
        zygotes: Zygotes | None = None,
        before: Before | None = None,
        pulled: int = -1,
        host: str = "127.0.0.1",
        account: Account | None = None,
    ) -> None:
        self.told = "stopped"
        self._account = account
        self._host = host
        self._before = before
        self._spec = spec
        self._specs = tuple(sorted(ranks, key=lambda rank: rank.rank))
        self._rendezvous = rendezvous
        self._directory = directory
        self._payload = payload
        self._pulled = pulled
        self._on_events = on_events
        self._listen_fd = listen_fd
        inherited = os.environ if env is None else env
        own = account.environment(inherited, spec.env) if account else {**inherited, **spec.env}
        self._env = {**KEEP_MEMORY, **own}
        self._zygotes = zygotes
        self._starting = asyncio.Lock()
        self._ranks: list[RankProcess] = []
        self._cause: RankProcess | None = None
        self._ending = False
        self._judgment: asyncio.TimerHandle | None = None
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> dict[int, int]:
        """Rank → pid of the ranks that run."""
        return {rank.number: rank.process.pid for rank in self._ranks if rank.code is None}

    @property
    def at_work(self) -> list[RankProcess]:
        """The ranks that run."""
        return [rank for rank in self._ranks if rank.code is None]

    def note_usage(self, rank: int, utilization: float | None, memory: int | None) -> None:
        """How busy a rank's device is (percent), and how much memory it uses (bytes)."""
        said = {"utilization": utilization, "memory": memory}
        self._outputs.event(rank, {"type": "usage", "time": time.time(), **said})

    @property
    def last_event(self) -> int:
        """The number of the last event, 0 before the first."""
        return self._outputs.last

    # --- starting

    async def start(self) -> None:
        """Start the ranks.

        Raises
        ------
        OSError
            One could not be started (no such directory or interpreter, no room); none is left.
        """
        self._loop = asyncio.get_running_loop()
        # The kernel ties a rank to the thread that starts it.
        assert threading.current_thread() is threading.main_thread()
        last = self._before.last if self._before else 0
        self._outputs = Outputs(EventLog(self._directory), self._on_events, last)
        if self._before and self._specs[0].rank == 0:
            self._announce_restart(self._before)
        async with self._starting:
            await self._launch_all()
        for rank in self._ranks:
            self._watch(rank)
        if any(rank.failed for rank in self._ranks):
            self._suspect()

    def _announce_restart(self, before: Before) -> None:
        self._outputs.event(
            0,
            {
                "type": "restart",
                "time": time.time(),
                "attempt": self._rendezvous.attempt,
                "restarts": before.restarts,
                "reason": before.reason,
                "world_size": self._spec.world_size,
            },
        )
        text = before.sentence(self._spec.world_size, self._spec.max_restarts)
        self._outputs.text(0, "stderr", f"--- {text} ---\n")

    async def _launch_all(self) -> None:
        zygotes = self._zygotes
        key = zygotes.key(self._spec, self._env, self._account) if zygotes else None
        try:
            self._file = self._write_cell()
            for spec in self._specs:
                zygote = zygotes.find(key) if zygotes else None
                await self._launch(spec, zygote)
            reaper.record(self._directory, [rank.started for rank in self._ranks])
        except BaseException:
            self._ending = True
            for rank in self._ranks:
                rank.kill_group()
                rank.process.wait()
                rank.buried = True
            self._close()
            self._ranks.clear()
            raise
        if zygotes:
            zygotes.expect(key, self._env, len(self._specs), self._done)

    def _write_cell(self) -> str:
        if self._spec.entry is not Entry.CELL:
            return ""
        name = Path(self._spec.filename).name or "cell.py"
        path = self._place / (name if name.endswith(".py") else f"{name}.py")
        if self._account is None:
            path.write_text(self._spec.source, encoding="utf-8")
        return str(path)

    @property
    def _place(self) -> Path:
        """The directory that ranks write in. In another account they make it themselves."""
        account = self._account
        return Path(account.place(self._spec.id)) if account else self._directory

    async def _launch(self, spec: RankSpec, zygote: Warm | None) -> None:
        run = self._spec
        listen = self._listen_fd if self._listen_fd is not None and spec.rank == 0 else -1
        orders = Orders(
            spec=run,
            rank=spec,
            rendezvous=self._rendezvous,
            directory=str(self._place),
            file=self._file,
            cwd="" if self._account is None else run.cwd or str(self._place),
            parent=os.getpid(),
            event_fd=-1,
            lifeline_fd=-1,
            payload_fd=self._payload,
            pulled_fd=self._pulled if spec.rank == 0 else -1,
            listen_fd=listen,
            # Another node's agent holds the listening socket when rank 0 is not here.
            agent_store=self._listen_fd is not None or self._specs[0].rank != 0,
            threads=threads_for(spec),
            interface=interface_of(self._host),
        )
        cwd = "/" if self._account else run.cwd or str(self._directory)
        what = (orders, self._env, cwd, run.python, self._account)
        started = None
        if zygote is not None and self._zygotes is not None:
            try:
                started = await starting.from_zygote(zygote, what)
            except ZygoteError as error:
                log.warning("zygote %d is given up: %s", zygote.process.pid, error)
                self._zygotes.drop(zygote)
        started = started or starting.start(*what)
        rank = RankProcess(spec, started.process, started.mark, run, self._account)
        rank.lifeline, rank.fault = started.lifeline, started.fault
        self._ranks.append(rank)
        rank.output = self._outputs.add(
            spec.rank,
            started.streams,
            self._directory / f"rank-{spec.rank}.log",
            lambda said: self._said(rank, said),
        )

    def _watch(self, rank: RankProcess) -> None:
        """Have `_died` called when the process has ended.

        On Linux it is not waited for yet: until then a dead process keeps its pid, so that nobody
        else is hit when its group is killed.
        """
        pid = rank.process.pid
        if IS_LINUX:
            held = os.pidfd_open(pid)

            def ended() -> None:
                self._loop.remove_reader(held)
                os.close(held)
                result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert result is not None
                exited = result.si_code == os.CLD_EXITED
                self._died(rank, result.si_status if exited else -result.si_status)

            self._loop.add_reader(held, ended)
            return

        def wait() -> None:
            code = rank.process.wait()
            self._loop.call_soon_threadsafe(self._died, rank, code)

        threading.Thread(target=wait, name=f"aios-wait-{pid}", daemon=True).start()

    # --- ending

    async def stop(self, grace: float) -> None:
        """End all ranks: SIGTERM, and SIGKILL after `grace` seconds; returns when all are gone."""
        async with self._starting:
            # What is being started is stopped when it can be.
            if not self._ranks:
                return
        if any(rank.failed for rank in self._ranks):
            self._judge()
        self._ending = True
        for rank in self._ranks:
            rank.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._done.wait()
        except TimeoutError:
            self._kill()
            await self._done.wait()

    async def wait(self) -> tuple[RankExit, ...]:
        """How the ranks ended, once every process of them is gone: the cause of a failure first."""
        await self._done.wait()
        order = sorted(self._ranks, key=lambda rank: (rank is not self._cause, rank.number))
        return tuple(rank.exit for rank in order if rank.exit is not None)

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.killed = rank.killed or rank.code is None
            rank.kill_group()

    def _said(self, rank: RankProcess, said: Said) -> None:
        if not isinstance(said, ErrorRaised):
            self._outputs.event(rank.number, msgspec.to_builtins(said))
            return
        assert rank.output is not None
        rank.output.note(said.traceback or f"{said.etype}: {said.message}\n")
        # Ranks that are being ended fail in all sorts of ways, which say nothing.
        if not self._ending:
            rank.error = said
            self._suspect()

    def _died(self, rank: RankProcess, code: int) -> None:
        rank.kill_group()
        rank.code = code
        rank.died = time.time()
        assert rank.output is not None
        if code < 0:
            rank.fault_text = read_fault(rank.fault, self._file, rank.fault_read)
            rank.output.note(rank.fault_text)
        rank.output.finish()
        if rank.failed and not self._ending:
            self._suspect()
        elif rank.exit is None:
            self._conclude(rank)
        task = asyncio.ensure_future(self._bury(rank))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bury(self, rank: RankProcess) -> None:
        """End what the rank has left, then wait for it."""
        if IS_LINUX:
            try:
                await reaper.end(rank.started)
            except OSError:
                log.exception("looking for what rank %s left behind failed", rank.number)
        rank.process.wait()
        rank.buried = True
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        if all(rank.buried and rank.exit is not None for rank in self._ranks):
            self._close()
            self._done.set()

    def _close(self) -> None:
        for rank in self._ranks:
            os.close(rank.lifeline)
            os.close(rank.fault)
        self._outputs.close()
        reaper.forget(self._directory)

    # --- who failed first

    def _suspect(self) -> None:
        """A rank has failed; a moment later it is known whether another's failure made it."""
        if self._starting.locked():
            return
        if all(rank.failed for rank in self._ranks):
            self._judge()
        elif self._judgment is None:
            self._judgment = self._loop.call_later(SETTLE, self._judge)

    def _judge(self) -> None:
        if self._ending:
            return
        self._ending = True
        signs = [rank.sign() for rank in self._ranks if rank.failed]
        first = first_cause(signs)
        self._cause = next(rank for rank in self._ranks if rank.number == first.rank)
        own = [sign for sign in signs if sign is not first and sign.own(first)]
        for sign in (first, *own):
            if sign.error is not None:
                self._outputs.event(sign.rank, msgspec.to_builtins(sign.error))
            self._conclude(next(r for r in self._ranks if r.number == sign.rank), sign)
        for rank in self._ranks:
            if not rank.failed:
                rank.signal(signal.SIGTERM)
            elif rank.code is not None and rank.exit is None:
                self._conclude(rank)
        self._loop.call_later(FAILED_GRACE, self._kill)
        self._finish_if_over()

    def _conclude(self, rank: RankProcess, sign: Sign | None = None) -> None:
        """Say how a rank ended: of itself (`sign`), well, or because it was told to."""
        traceback, origin = "", Origin.TOLD
        if sign is not None:
            code, reason, at = sign.code, reason_of(sign), sign.time
            origin = Origin.PEER if sign.lost_peer else Origin.OWN
            traceback = sign.error.traceback if sign.error else rank.fault_text
        else:
            assert rank.code is not None
            code, reason, at = rank.code, "", rank.died
            if code == 0 and not self._ending:
                origin = Origin.OWN
            if code == STOPPED:
                code = -signal.SIGTERM
            if code != 0:
                reason = self.told
                if self._cause is not None:
                    reason = f"stopped because rank {self._cause.number} failed"
                elif rank.killed:
                    reason = "killed, as it did not stop in the time given"
        rank.exit = RankExit(
            rank=rank.number,
            code=code,
            time=at,
            reason=reason,
            traceback=traceback,
            attempt=self._rendezvous.attempt,
            origin=origin,
        )
        self._outputs.event(
            rank.number,
            {
                "type": "exit",
                "time": at,
                "code": code,
                "reason": reason,
                "traceback": traceback,
                "origin": origin.value,
            },
        )
