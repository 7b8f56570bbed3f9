"""The zygotes of this node: started after a first run, so that the next need not import again.

A run never waits for a zygote: where none is ready it starts the usual way, and one is made beside
it. Each keeps as many spares (forked processes that wait to be ranks) as the last run had ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..config import IS_LINUX
from ..runs.spec import Entry, RunSpec
from ..schema import RunKind
from . import reaper
from .spares import Key, Zygote, ZygoteError
from .zygote import ONE_THREAD, PRELOADED

log = logging.getLogger("aios.node")

LIMIT = 2
MOST_SPARES = 8
# A first run has the machine to itself for so long, or until it ends; then the zygote imports.
START_DELAY = 10.0
REFILL_DELAY = 3.0
# An environment whose framework cannot be imported may be mended.
UNFIT_TIME = 600.0
# Variables that are read when an interpreter starts or a library is imported.
_READ_EARLY = (
    "PYTHON", "LD_", "TORCH", "PYTORCH", "ATEN_", "MKL_", "KMP_", "OMP_", "GOMP_", "OPENBLAS_",
    "NUMPY_", "NPY_", "MALLOC_", "GLIBC_", "LC_", "CUDA_", "TRITON_",
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
    """

    def __init__(self, directory: Path, idle: float) -> None:
        self._directory = directory
        self._idle = idle
        self._zygotes: dict[Key, Zygote] = {}
        self._unfit: dict[Key, float] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._closed = False
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def sweep(self) -> int:
        """End what an earlier agent has left; returns how many processes that were."""
        return await reaper.sweep(self._directory)

    def key(self, spec: RunSpec, environment: Mapping[str, str]) -> Key | None:
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
        key = Key(spec.python or sys.executable, spec.framework, variables)
        return None if self._unfit.get(key, 0.0) > time.monotonic() else key

    def find(self, key: Key | None) -> Zygote | None:
        """The zygote for a run, when one is ready now."""
        found = None if key is None else self._zygotes.get(key)
        if found is None:
            return None
        if not found.fresh:
            log.info("zygote %d is ended, as packages have changed", found.process.pid)
            self.drop(found)
            return None
        self._use(found)
        return found

    def drop(self, found: Zygote) -> None:
        """End a zygote, and use it no more."""
        if self._zygotes.get(found.key) is found:
            del self._zygotes[found.key]
        found.end()

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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFILL_DELAY if key in self._zygotes else START_DELAY):
                await over.wait()
        try:
            found = self._zygotes.get(key) or await self._start(key, environment)
        except (ZygoteError, OSError) as error:
            self._unfit[key] = time.monotonic() + UNFIT_TIME
            log.warning("runs with %s start without a zygote: %s", key.python, error)
            return
        try:
            while len(found.spares) < min(ranks, MOST_SPARES):
                found.spares.append(await found.fork())
        except ZygoteError as error:
            if not found.ended:
                log.warning("zygote %d is given up: %s", found.process.pid, error)
                self.drop(found)

    async def _start(self, key: Key, environment: dict[str, str]) -> Zygote:
        while len(self._zygotes) >= LIMIT:
            self.drop(min(self._zygotes.values(), key=lambda other: other.used))
        begun = asyncio.get_running_loop().time()
        made = Zygote(key, environment, self._directory)
        try:
            await made.prepare()
        except BaseException:
            made.end()
            raise
        log.info(
            "zygote %d has imported %s in %.1f s and takes %.0f MB",
            *(made.process.pid, key.framework),
            *(asyncio.get_running_loop().time() - begun, made.ready.memory / 1e6),
        )
        self._zygotes[key] = made
        self._watch(made)
        self._use(made)
        return made

    def _watch(self, made: Zygote) -> None:
        loop = asyncio.get_running_loop()
        made.held = os.pidfd_open(made.process.pid)

        def ended() -> None:
            log.warning("zygote %d has ended; its ranks go on", made.process.pid)
            self.drop(made)

        loop.add_reader(made.held, ended)

    def _use(self, found: Zygote) -> None:
        loop = asyncio.get_running_loop()
        found.used = loop.time()
        if found.timer is not None:
            found.timer.cancel()
        found.timer = loop.call_later(self._idle, self._rest, found)

    def _rest(self, found: Zygote) -> None:
        log.info("zygote %d is ended, as it was not needed", found.process.pid)
        self.drop(found)
