"""Loads the broker into a Dask scheduler: `dask scheduler --preload aios_jupyter.broker.plugin`.

The broker serves its own port from the scheduler's event loop. Where it listens and where its
certificates are comes from the environment, as a preload is started by deployers of many kinds:

    AIOS_BROKER_DIR    the cluster's state directory (journal, secret)
    AIOS_BROKER_TLS    directory with ca.pem, broker.pem, broker.key
    AIOS_BROKER_LISTEN host:port, port 0 for any
    AIOS_BROKER_FRESH  1 when the whole cluster was down: earlier leases have ended
    AIOS_BROKER_FILE   written when ready: JSON with pid, start, address and dask

The plugin's name is `aios`; it registers no Dask route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from distributed import Scheduler, SchedulerPlugin

from ..config import settings
from ..errors import AiosError
from ..process import process_start
from ..tls import Bundle
from ..units import split_address
from .service import Broker

log = logging.getLogger("aios.broker")


class BrokerPlugin(SchedulerPlugin):
    """Keeps the broker in the scheduler process and ends it with the scheduler."""

    name = "aios"
    idempotent = True

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def before_close(self, **kwargs: Any) -> None:
        """The scheduler is about to close: stop serving and close the journal."""
        wanted = _connection_file()
        await self.broker.stop(for_good=wanted is not None and not wanted.exists())


async def dask_setup(scheduler: Scheduler) -> None:
    """Called by Dask when the scheduler process has started."""
    logging.getLogger("aios").setLevel(logging.INFO)
    directory = Path(os.environ["AIOS_BROKER_DIR"])
    bundle = Bundle.of(Path(os.environ["AIOS_BROKER_TLS"]), "broker")
    host, port = split_address(os.environ.get("AIOS_BROKER_LISTEN", "127.0.0.1:0"))

    def stop() -> None:
        # Without its connection file nobody takes the end for a crash and mends it.
        if connection := _connection_file():
            connection.unlink(missing_ok=True)
        task = asyncio.ensure_future(scheduler.close(reason="aios: stopped"))
        scheduler.aios_closing = task

    fresh = os.environ.get("AIOS_BROKER_FRESH") == "1"
    try:
        broker = Broker(directory, bundle, settings(), on_end=stop)
        port = await broker.start(host, port, fresh=fresh)
    except Exception as error:  # noqa: BLE001  # it is told, and ends the process
        _exit(error)
    scheduler.add_plugin(BrokerPlugin(broker), name=BrokerPlugin.name)
    # A preload runs before the scheduler has bound its own port.
    task = asyncio.ensure_future(_announce(scheduler, broker, f"{host}:{port}"))
    scheduler.aios_announcing = task


def _connection_file() -> Path | None:
    """The file of which the existence says that the cluster is wanted, where there is such a one."""
    file = os.environ.get("AIOS_BROKER_FILE")
    return Path(file).with_name("connection.json") if file else None


def _exit(error: Exception) -> NoReturn:
    """End this process: Dask would go on without the broker, and nobody be told why."""
    if not isinstance(error, AiosError):
        traceback.print_exception(error)
    # The last line of the log: whoever waits for this process shows it.
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    os._exit(1)


async def _announce(scheduler: Scheduler, broker: Broker, address: str) -> None:
    while not scheduler.listeners:  # noqa: ASYNC110  # Dask has no event for it
        await asyncio.sleep(0.005)
    broker.hub.dask = scheduler.address
    facts = {
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "address": address,
        "dask": scheduler.address,
    }
    path = os.environ.get("AIOS_BROKER_FILE")
    if path:
        with tempfile.NamedTemporaryFile(
            "w", dir=Path(path).parent, prefix=".broker-", delete=False
        ) as file:
            json.dump(facts, file)
        os.replace(file.name, path)  # noqa: PTH105  # no blocking Path in a coroutine
    log.info("the AIOS broker listens at %s", address)
