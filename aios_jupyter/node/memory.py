"""The values of one run on this node: what is pushed to its ranks, and what they give back.

Large ones are in files without a name, in memory; so no end of anything leaves them behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from ..runs.messages import FilePart, StartRun
from ..runs.packed import Shared, new_memory, offer
from ..runs.rank import PULLED_FILE

log = logging.getLogger("aios.node")

PAYLOAD_FILE = "payload.pkl"
# How long a kernel has to take pulled values from memory; then they go to the disk, for whoever
# comes later.
LINGER = 5.0


class Values:
    """Descriptors of a run's values; -1 where there is none.

    Attributes
    ----------
    pushed
        What every rank gets.
    pulled
        Where rank 0 puts large values; only for a kernel that can see them there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.pushed = -1
        self.pulled = -1
        self._hurry = asyncio.Event()
        self._settling: asyncio.Task[None] | None = None

    def share(self) -> Shared:
        """Offer the kernel memory to push into."""
        if self.pushed < 0:
            self.pushed = new_memory()
        return offer(self.pushed, empty=True) if self.pushed >= 0 else Shared()

    def take(self, order: StartRun) -> None:
        """The kernel has sent all: through memory, or in pieces that are in a file now."""
        if not (order.payload and order.shared):
            self.drop_pushed()
        path = self._directory / PAYLOAD_FILE
        if order.payload and self.pushed < 0:
            self.pushed = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink(missing_ok=True)

    def part(self, offset: int, size: int) -> FilePart:
        """A part of what was pushed, for another node."""
        if self.pushed < 0:
            return FilePart(data=b"", total=0)
        total = os.fstat(self.pushed).st_size
        return FilePart(data=os.pread(self.pushed, size, offset), total=total)

    def expect_pulled(self, order: StartRun, *, always: bool = False) -> int:
        """A place for what the next attempt gives back; `always` also for kernels that cannot see it."""
        self._drop_pulled()
        rank0 = any(rank.rank == 0 for rank in order.ranks)
        if (order.shared or always) and order.spec.pull and rank0:
            self.pulled = new_memory()
        return self.pulled

    def offer_pulled(self) -> Shared:
        """Offer what was pulled, as long as it is in memory."""
        if self.pulled < 0 or os.fstat(self.pulled).st_size == 0:
            return Shared()
        return offer(self.pulled, empty=False)

    def pulled_part(self, offset: int, size: int) -> FilePart | None:
        """A part of what was pulled; None where it is not in memory."""
        if self.pulled < 0 or not (total := os.fstat(self.pulled).st_size):
            return None
        return FilePart(data=os.pread(self.pulled, size, offset), total=total)

    def drop_pushed(self) -> None:
        """Nobody will be started with it any more."""
        if self.pushed >= 0:
            os.close(self.pushed)
            self.pushed = -1

    def _drop_pulled(self) -> None:
        if self.pulled >= 0:
            os.close(self.pulled)
            self.pulled = -1

    def close(self) -> None:
        """The run is over: what was pulled goes to the disk in a while, all else ends now."""
        self.drop_pushed()
        (self._directory / PAYLOAD_FILE).unlink(missing_ok=True)
        if self.pulled >= 0 and self._settling is None:
            self._settling = asyncio.ensure_future(self._settle())

    async def settled(self) -> None:
        """Have it settled now."""
        self._hurry.set()
        if self._settling is not None:
            await self._settling

    async def _settle(self) -> None:
        try:
            if os.fstat(self.pulled).st_size:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        await self._hurry.wait()
                await asyncio.to_thread(_copy, self.pulled, self._directory / PULLED_FILE)
        except OSError as error:
            log.error("pulled values are lost, as they cannot be written: %s", error.strerror)
        finally:
            self._drop_pulled()


def sweep(directory: Path) -> None:
    """Remove what was being pushed when an earlier agent was killed; one subdirectory for each run."""
    for path in directory.glob(f"*/{PAYLOAD_FILE}"):
        path.unlink(missing_ok=True)


def _copy(source: int, path: Path) -> None:
    aside = path.with_suffix(".part")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        size, offset = os.fstat(source).st_size, 0
        while offset < size:
            offset += os.sendfile(fd, source, offset, size - offset)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
