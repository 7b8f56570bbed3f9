"""What a long queue does to a live broker: its restart, and the hand-over of a device.

Parts of `broker_scale`, through the real processes, with journal and TLS.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HANDOVERS = 300
WARM_UP = 50
IN_FLIGHT = 500


@contextmanager
def private_cluster() -> Iterator[Any]:
    """Directories of its own, and the paths of the cluster in them."""
    from aios_jupyter.cluster import embedded
    from aios_jupyter.config import settings

    names = {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data"}
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {name: f"{directory}/{place}" for name, place in names.items()}
        settings.cache_clear()
        try:
            yield embedded.Paths.current()
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            settings.cache_clear()


def restart_seconds(queued: int = 10_000, leases: int = 1_000) -> float:
    """From the start of a broker's process, with so much in its journal, to its first answer."""
    from broker_scale import Load

    from aios_jupyter.broker import events as ev
    from aios_jupyter.broker.client import AsyncClient
    from aios_jupyter.broker.journal import Journal
    from aios_jupyter.cluster import embedded, processes
    from aios_jupyter.tls import create

    with private_cluster() as paths:
        create(paths.tls)
        load = Load("fifo", queued, leases, now=time.time() - queued / 100)
        journal = Journal(paths.state / "journal.sqlite")
        puts = (
            ev.Put(kind=kind, id=id, record=record) for kind, id, record in load.state.records()
        )
        journal.apply(puts, load.now)
        journal.commit()
        journal.close()

        async def first_answer(address: str) -> dict[str, Any]:
            async def locate() -> Any:
                return address, paths.user

            async with AsyncClient(locate, label="bench", passive=True) as client:
                return dict(await client.call("status"))

        started = time.perf_counter()
        process = embedded._start_broker(paths, {"address": "127.0.0.1:0"})
        try:
            facts = processes.wait(paths.broker, process, paths.state / "broker.log")
            view = asyncio.run(first_answer(facts["address"]))
            took = time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()
        assert len(view["queue"]) == queued
        assert len(view["leases"]) == leases
        return took


def handover(queued: int = 100_000) -> tuple[float, float]:
    """Median seconds from a release to the next one's grant: with nobody behind, and with so many.

    Two sessions hand the only device to and fro.
    """
    from aios_jupyter.cluster import embedded

    with private_cluster() as paths:
        facts = embedded.ensure(simulate_gpus=1)
        try:
            return asyncio.run(_handover(facts["address"], paths.user, queued))
        finally:
            embedded.down()


async def _handover(address: str, user: Any, queued: int) -> tuple[float, float]:
    from aios_jupyter.broker.client import AsyncClient, Pending
    from aios_jupyter.broker.messages import ById
    from aios_jupyter.schema import Request, Want

    async def locate() -> Any:
        return address, user

    clients = [await AsyncClient(locate, label="bench").open() for _ in range(2)]
    number = 0

    async def submit() -> Pending:
        nonlocal number
        number += 1
        request = Request(id=f"h-{number}", session="", user="", want=Want.GPU, count=1)
        return await clients[number % 2].submit(request)

    async def hand_over(holder: Pending, waiting: Pending) -> float:
        lease = holder.granted.result().lease.id
        owner = clients[int(holder.request.id[2:]) % 2]
        started = time.perf_counter()
        released = asyncio.ensure_future(owner.call("release", ById(id=lease)))
        await waiting.granted
        took = time.perf_counter() - started
        await released
        return took

    line = [await submit()]
    await line[0].granted
    short: list[float] = []
    for _ in range(HANDOVERS + WARM_UP):
        line.append(await submit())
        short.append(await hand_over(*line))
        line.pop(0)
    # Those that will be granted come one by one, so that it is known who is next.
    line += [await submit() for _ in range(HANDOVERS + WARM_UP)]
    behind = len(line) - 1
    while behind < queued:
        await asyncio.gather(*(submit() for _ in range(IN_FLIGHT)))
        behind += IN_FLIGHT
    long: list[float] = []
    for _ in range(HANDOVERS + WARM_UP):
        long.append(await hand_over(*line[:2]))
        line.pop(0)
    for client in clients:
        await client.close(goodbye=False)
    return statistics.median(short[WARM_UP:]), statistics.median(long[WARM_UP:])
