"""Values between a kernel and an agent: through memory that both see, else in pieces."""

from __future__ import annotations

import asyncio
import mmap

from ..broker.messages import ById
from ..broker.protocol import CHUNK, Connection
from ..errors import ClusterError
from .messages import Blob
from .packed import SHARE_FROM, Packed, Shared, mapped, opened

TIMEOUT = 10.0


async def push(agent: Connection, run: str, payload: Packed | None, *, pulls: bool) -> bool:
    """Bring the payload to an agent; returns whether both sides see the same memory.

    That is found out where there is something large to carry, or something to come back (`pulls`).

    Raises
    ------
    ClusterError
        There is no room in memory.
    """
    shared = False
    if pulls or (payload and payload.size >= SHARE_FROM):
        shared = await _share(agent, run, payload)
    if payload is not None and not shared:
        for piece in payload.pieces(CHUNK):
            await agent.call("run.payload", Blob(run=run, data=piece))
    return shared


async def _share(agent: Connection, run: str, payload: Packed | None) -> bool:
    offered = await agent.call("run.share", ById(id=run), Shared, timeout=TIMEOUT)
    with opened(offered) as fd:
        if fd >= 0 and payload is not None:
            try:
                await asyncio.to_thread(payload.write, fd)
            except OSError as error:
                raise ClusterError(
                    f"There is no room in memory for the {payload.size / 1e9:.2g} GB that are "
                    f"pushed ({error.strerror}); push less, or load it inside the cell."
                ) from None
        return fd >= 0


async def pulled(agent: Connection, run: str) -> mmap.mmap | None:
    """What a run gives back, as memory of this process's own; None where it cannot be seen."""
    offered = await agent.call("run.pulled", ById(id=run), Shared, timeout=TIMEOUT)
    with opened(offered) as fd:
        return mapped(fd) if fd >= 0 else None
