"""Ranks to be, where forking is not safe: processes that have imported a framework, one for each rank.

They stand where a zygote would (`node/zygotes.py`), and each takes as much memory as it does.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .spares import Waiting, Zygote, ZygoteError
from .zygote import Birth


class Single:
    """A process of its own that waits to be a rank."""

    def __init__(self, process: Zygote) -> None:
        self._process = process
        self.pid = process.process.pid

    def bear(self, birth: Birth, fds: dict[str, int]) -> subprocess.Popen[bytes]:
        """Make it a rank, which gets copies of the descriptors.

        Raises
        ------
        ZygoteError
            It has ended.
        """
        return self._process.become(birth, fds)

    def kill(self) -> None:
        """Kill it; `end` has to follow."""
        self._process.process.kill()

    def end(self) -> None:
        """Kill it and wait for its end."""
        self._process.end()


class Standby:
    """What a `Zygote` is for its users, with a new process for each spare.

    Attributes
    ----------
    spares
        Those that wait to be ranks; `first` is the first.
    """

    def __init__(self, first: Zygote, environment: Mapping[str, str], directory: Path) -> None:
        self.key = first.key
        self.ready = first.ready
        self.process = first.process
        self.spares: list[Waiting] = [Single(first)]
        self.used = 0.0
        self.ended = False
        self.timer: asyncio.TimerHandle | None = None
        self._environment = dict(environment)
        self._directory = directory

    @property
    def fresh(self) -> bool:
        """Whether its packages are still those that it has imported."""
        return self.ready.fresh

    async def spare(self) -> Waiting:
        """One that waits.

        Raises
        ------
        ZygoteError
            There is none; a new one takes as long as a rank that is started the usual way.
        """
        if not self.spares:
            raise ZygoteError("none is left")
        return self.spares.pop(0)

    async def fork(self) -> Single:
        """Start one more, and wait until it has imported.

        Raises
        ------
        ZygoteError
            It cannot.
        """
        made = Zygote(self.key, self._environment, self._directory)
        try:
            await made.prepare()
            if self.ended:
                raise ZygoteError("it was ended")
        except BaseException:
            made.end()
            raise
        return Single(made)

    def pids(self) -> list[int]:
        """Those that wait."""
        return [spare.pid for spare in self.spares]

    def end(self) -> None:
        """Kill those that wait."""
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()
        for spare in self.spares:
            spare.end()
        self.spares.clear()
