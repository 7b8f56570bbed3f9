"""The zygotes of this node: started after a first run, so that the next need not import again.

A run never waits for a zygote: where none is ready it starts the usual way, and one is made beside
it. Each keeps as many spares (processes that wait to be ranks) as the last run had ranks: forked ones,
or where that is not safe ones of their own (`standby.py`). Their memory has a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..config import IS_LINUX
from ..process import own_memory
from ..runs.spec import Entry, RunSpec
from ..schema import RunKind, WarmUse
from . import reaper
from .accounts import Account
from .member import KEEP_MEMORY
from .spares import Key, Zygote, ZygoteError
from .standby import Standby
from .zygote import ONE_THREAD, PRELOADED

Warm = Zygote | Standby

log = logging.getLogger("aios.node")

LIMIT = 2
MOST_SPARES = 8
# A first run has the machine to itself for so long, or until it ends; then the zygote imports.
START_DELAY = 10.0
REFILL_DELAY = 3.0
# New processes that import would slow a run down: they wait for its end, but not for ever.
STANDBY_DELAY = 60.0
# What a forked spare has of its own, about.
SPARE_BYTES = 20_000_000
# An environment whose framework cannot be imported may be mended.
UNFIT_TIME = 600.0
# Variables that are read when an interpreter starts or a library is imported.
_READ_EARLY = (
    "PYTHON", "LD_", "TORCH", "PYTORCH", "ATEN_", "MKL_", "KMP_", "OMP_", "GOMP_", "OPENBLAS_",
    "NUMPY_", "NPY_", "MALLOC_", "GLIBC_", "LC_", "CUDA_", "TRITON_", "TF_", "KERAS_", "XLA_",
)  # fmt: skip
_READ_EARLY_NAMES = frozenset({"LANG", "LANGUAGE", "HOME", "VIRTUAL_ENV", "CONDA_PREFIX"})
# These are set in each rank.
_READ_LATE = frozenset({*ONE_THREAD, "CUDA_VISIBLE_DEVICES"})


class Zygotes:
    """All zygotes of this node; to be used in one event loop, from the main thread.

    Parameters
    ----------
    directory
        For the record of what runs.
    idle
        Seconds without a run after which a zygote ends; with 0 there are none.
    memory
        Bytes that all of them may take.
    """

    def __init__(self, directory: Path, idle: float, memory: float = math.inf) -> None:
        self._directory = directory
        self._idle = idle
        self._memory = memory
        self._measured = 0
        self._kept: set[Key] = set()
        self._zygotes: dict[Key, Warm] = {}
        self._unfit: dict[Key, float] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._closed = False
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def sweep(self) -> int:
        """End what an earlier agent has left; returns how many processes that were."""
        return await reaper.sweep(self._directory)

    def key(
        self, spec: RunSpec, environment: Mapping[str, str], account: Account | None = None
    ) -> Key | None:
        """What a run's zygote has to agree in; None when it is not to have one."""
        if not (IS_LINUX and self._idle > 0) or self._closed:
            return None
        if spec.framework not in PRELOADED or spec.kind is RunKind.ENDPOINT:
            return None
        folders = environment.get("PYTHONPATH") or "/"
        # A relative path means another folder for each run.
        if spec.entry is Entry.MODULE or not all(map(os.path.isabs, folders.split(os.pathsep))):
            return None
        variables = frozenset(
            (name, value)
            for name, value in environment.items()
            if (name.startswith(_READ_EARLY) and name not in _READ_LATE)
            or name in _READ_EARLY_NAMES
        )
        key = Key(spec.python or sys.executable, spec.framework, variables, account)
        return None if self._unfit.get(key, 0.0) > time.monotonic() else key

    def find(self, key: Key | None) -> Warm | None:
        """The zygote for a rank, when one is ready now."""
        found = None if key is None else self._zygotes.get(key)
        if found is None or (found.ready.alone and not found.spares):
            return None
        if not found.fresh:
            log.info("zygote %d is ended, as packages have changed", found.process.pid)
            self.drop(found)
            return None
        self._use(found)
        return found

    def drop(self, found: Warm) -> None:
        """End a zygote, and use it no more."""
        if self._zygotes.get(found.key) is found:
            del self._zygotes[found.key]
        found.end()
        if not self._zygotes:
            self._measured = 0

    def ahead(self, framework: str, ranks: int) -> None:
        """Have one ready before the first run, for this process's environment; it is kept."""
        environment = {**KEEP_MEMORY, **os.environ}
        spec = RunSpec(
            id="", lease="", kind=RunKind.TRAIN, name="", entry=Entry.CELL, framework=framework
        )
        key = self.key(spec, environment)
        if key is None:
            log.warning("%s is not kept ready: that is not known here", framework)
        else:
            self._kept.add(key)
            over = asyncio.Event()
            over.set()
            self.expect(key, environment, ranks, over)

    def use(self) -> WarmUse:
        """What they cost now; the memory is as it was when one was last made."""
        return WarmUse(
            frameworks=tuple(sorted({key.framework for key in self._zygotes})),
            processes=sum(len(found.pids()) for found in self._zygotes.values()),
            memory=self._measured,
        )

    def expect(
        self, key: Key | None, environment: Mapping[str, str], ranks: int, over: asyncio.Event
    ) -> None:
        """A run with this key has started: soon, or when it is `over`, make the next one warm."""
        if key is not None and key not in self._tasks and not self._closed:
            task = asyncio.create_task(self._make(key, dict(environment), ranks, over))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def close(self) -> None:
        """End all."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for found in list(self._zygotes.values()):
            self.drop(found)

    async def _make(
        self, key: Key, environment: dict[str, str], ranks: int, over: asyncio.Event
    ) -> None:
        known = self._zygotes.get(key)
        delay = START_DELAY
        if known is not None:
            delay = STANDBY_DELAY if known.ready.alone else REFILL_DELAY
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await over.wait()
        try:
            found = self._zygotes.get(key) or await self._start(key, environment)
        except (ZygoteError, OSError) as error:
            self._unfit[key] = time.monotonic() + UNFIT_TIME
            log.warning("runs with %s start without a zygote: %s", key.python, error)
            return
        try:
            await self._fill(found, min(ranks, MOST_SPARES))
        except ZygoteError as error:
            if not found.ended:
                log.warning("zygote %d is given up: %s", found.process.pid, error)
                self.drop(found)

    async def _fill(self, found: Warm, spares: int) -> None:
        """Make spares, as far as the memory goes."""
        await self._measure()
        while len(found.spares) < spares:
            more = found.ready.memory if found.ready.alone else SPARE_BYTES
            if self._measured + more > self._memory:
                text = "there are %d spares and not %d, as all would take more than %.0f MB"
                log.info(text, len(found.spares), spares, self._memory / 1e6)
                return
            found.spares.append(await found.fork())
            await self._measure()

    async def _measure(self) -> None:
        pids = [pid for found in self._zygotes.values() for pid in found.pids()]
        # The kernel walks all their pages.
        self._measured = sum(await asyncio.to_thread(lambda: list(map(own_memory, pids))))

    async def _start(self, key: Key, environment: dict[str, str]) -> Warm:
        while len(self._zygotes) >= LIMIT:
            self._drop_least_used()
        begun = asyncio.get_running_loop().time()
        first = Zygote(key, environment, self._directory)
        try:
            await first.prepare()
            await self._measure()
            while self._zygotes and self._measured + first.ready.memory > self._memory:
                self._drop_least_used()
                await self._measure()
            if first.ready.memory > self._memory:
                took = f"importing {key.framework} takes {first.ready.memory / 1e6:.0f} MB"
                raise ZygoteError(f"{took}, which is more than AIOS_ZYGOTE_MEMORY")
        except BaseException:
            first.end()
            raise
        made: Warm = first
        if first.ready.alone:
            log.info("%s: ranks are not forked, each spare imports by itself", first.ready.alone)
            made = Standby(first, environment, self._directory)
        log.info(
            "zygote %d has imported %s in %.1f s and takes %.0f MB",
            *(made.process.pid, key.framework),
            *(asyncio.get_running_loop().time() - begun, made.ready.memory / 1e6),
        )
        self._zygotes[key] = made
        if not isinstance(made, Standby):
            self._watch(made)
        self._use(made)
        return made

    def _drop_least_used(self) -> None:
        self.drop(min(self._zygotes.values(), key=lambda other: other.used))

    def _watch(self, made: Zygote) -> None:
        loop = asyncio.get_running_loop()
        made.held = os.pidfd_open(made.process.pid)

        def ended() -> None:
            log.warning("zygote %d has ended; its ranks go on", made.process.pid)
            self.drop(made)

        loop.add_reader(made.held, ended)

    def _use(self, found: Warm) -> None:
        loop = asyncio.get_running_loop()
        found.used = loop.time()
        if found.timer is not None:
            found.timer.cancel()
        if found.key in self._kept:
            return
        found.timer = loop.call_later(self._idle, self._rest, found)

    def _rest(self, found: Warm) -> None:
        log.info("zygote %d is ended, as it was not needed", found.process.pid)
        self.drop(found)
