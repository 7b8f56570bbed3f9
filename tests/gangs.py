"""A gang of real ranks for tests: it notes all that they say."""

from __future__ import annotations

import asyncio
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aios_jupyter.node.output import anonymous_file
from aios_jupyter.node.ranks import LocalGang, bind_port
from aios_jupyter.node.zygotes import Zygotes
from aios_jupyter.runs import cells
from aios_jupyter.runs.spec import Entry, RankSpec, Rendezvous, RunSpec
from aios_jupyter.schema import DeviceKind, RankExit, RunKind


class Gang:
    """A gang of CPU ranks, and everything that it said."""

    def __init__(
        self,
        directory: Path,
        source: str,
        *,
        world: int = 2,
        entry: Entry = Entry.CELL,
        push: dict[str, Any] | None = None,
        zygotes: Zygotes | None = None,
        **spec: Any,
    ) -> None:
        self.directory = directory
        self.events: list[dict[str, Any]] = []
        self.listener, port = bind_port("127.0.0.1")
        fields = {"filename": "cell-7.py", "cwd": str(directory), "kind": RunKind.TRAIN, **spec}
        ranks = [
            RankSpec(
                rank=n, local_rank=n, local_world_size=world, node_rank=0, nnodes=1,
                device=f"cpu-{n}", kind=DeviceKind.CPU, index=n,
            )
            for n in range(world)
        ]  # fmt: skip
        packed = None if push is None else cells.pack(push, set(push))
        self.payload = -1 if packed is None else anonymous_file(bytes(packed))
        self.gang = LocalGang(
            RunSpec(
                id="r1", lease="l1", name="test", entry=entry,
                source=textwrap.dedent(source) if entry is Entry.CELL else source, world_size=world, **fields,
            ),
            ranks,
            Rendezvous(address="127.0.0.1", port=port),
            directory,
            self.payload,
            self.events.extend,
            self.listener.fileno(),
            zygotes=zygotes,
        )  # fmt: skip

    async def start(self) -> Gang:
        try:
            await self.gang.start()
        finally:
            self.listener.close()
            if self.payload >= 0:
                os.close(self.payload)
        return self

    async def run(self) -> tuple[RankExit, ...]:
        await self.start()
        return await self.gang.wait()

    async def until(self, found: Callable[[], Any], timeout: float = 60) -> Any:
        """Wait for something that the gang says."""
        deadline = time.monotonic() + timeout
        while not (what := found()):
            assert time.monotonic() < deadline, f"it did not come; there is {self.events}"
            await asyncio.sleep(0.005)
        return what

    def of(self, kind: str, rank: int | None = None) -> list[dict[str, Any]]:
        return [e for e in self.events if e["type"] == kind and rank in (None, e["rank"])]

    def text(self, rank: int = 0, stream: str = "stdout") -> str:
        return "".join(e["text"] for e in self.of("log", rank) if e["stream"] == stream)

    def pulled(self) -> dict[str, Any]:
        (event,) = self.of("pulled")
        path = Path(event["path"])
        data = path.read_bytes()
        assert (event["rank"], event["size"]) == (0, len(data))
        assert path.stat().st_mode & 0o077 == 0
        return cells.unpack(data)

    def files(self, prefix: str) -> set[str]:
        return {path.name for path in self.directory.glob(f"{prefix}*")}

    def log(self, rank: int = 0) -> str:
        return (self.directory / f"rank-{rank}.log").read_text()


async def warmed(zygotes: Zygotes, directory: Path, ranks: int = 2, **spec: Any) -> Any:
    """Have a zygote made as after a first run, with spares for the next."""
    await idle(zygotes)
    spec = {"framework": "torch", **spec}
    first = Gang(directory, "", zygotes=zygotes, world=ranks, **spec)
    first.listener.close()
    spec, environment = first.gang._spec, first.gang._env
    key = zygotes.key(spec, environment)
    over = asyncio.Event()
    over.set()
    zygotes.expect(key, environment, ranks, over)
    await idle(zygotes)
    found = zygotes.find(key)
    assert found is not None
    assert len(found.spares) >= ranks
    return found


async def idle(zygotes: Zygotes) -> None:
    """Wait until no zygote is being started, and none makes spares."""
    while tasks := list(zygotes._tasks.values()):
        await asyncio.wait(tasks)
