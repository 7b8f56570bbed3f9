"""Keeps a Dask worker (under its nanny) running beside the agent, for data tasks.

When the scheduler dies, Dask's workers exit and do not come back by themselves; this starts a new
one at the address that the broker gives after its restart.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from ..config import IS_LINUX, QUIET_DASK
from ..process import end_with_parent, process_start
from ..tls import Bundle
from . import reaper

log = logging.getLogger("aios.node")

STOP_TIMEOUT = 8.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class DaskWorker:
    """One supervised `dask worker`.

    Parameters
    ----------
    name
        The node's id; the worker carries it too.
    host
        The only address at which the worker listens.
    bundle
        The certificates for Dask's ports.
    directory
        For spilled data and the worker's log.
    record
        JSON file that tells `aios down` which processes are ours.
    """

    def __init__(
        self, name: str, host: str, threads: int, bundle: Bundle, directory: Path, record: Path
    ) -> None:
        self._name = name
        self._host = host
        self._threads = threads
        self._bundle = bundle
        self._directory = directory
        self._record = record
        self._address = ""
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, address: str) -> None:
        """Work for the scheduler at `address`; called again whenever it may have changed."""
        if not address or address == self._address:
            return
        self._address = address
        if self._process and self._process.returncode is None:
            self._process.terminate()
        if self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the worker and confirm it."""
        if self._task:
            self._task.cancel()
        process = self._process
        if process and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._record.unlink(missing_ok=True)

    async def _end_earlier(self) -> None:
        """An agent that was killed leaves its worker behind, which would hold the name."""
        try:
            earlier = json.loads(self._record.read_text())["processes"]
        except (FileNotFoundError, ValueError):
            return
        for process in earlier:
            await reaper.kill_group(process["pid"], process["start"], STOP_TIMEOUT)

    async def _keep(self) -> None:
        await self._end_earlier()
        delay = 0.5
        while True:
            started = asyncio.get_running_loop().time()
            await self._run()
            # A worker that lived for a while ended with its scheduler; one that did not is at fault.
            lived = asyncio.get_running_loop().time() - started
            delay = 0.5 if lived > 10 else min(delay * 2, 30)
            await asyncio.sleep(delay)

    async def _run(self) -> None:
        command = [
            *(sys.executable, "-m", "dask", "worker", self._address),
            *("--name", self._name, "--nworkers", "1", "--nthreads", str(self._threads)),
            *("--nanny", "--no-dashboard", "--death-timeout", "30"),
            *("--host", self._host, "--dashboard-address", f"{self._host}:0"),
            *("--local-directory", str(self._directory)),
            *("--tls-ca-file", str(self._bundle.authority)),
            *("--tls-cert", str(self._bundle.certificate), "--tls-key", str(self._bundle.key)),
        ]
        self._directory.mkdir(parents=True, exist_ok=True)
        environment = {**QUIET_DASK, **os.environ, **ONE_THREAD}
        with (self._directory / "worker.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                preexec_fn=end_with_parent if IS_LINUX else None,
            )
        self._process = process
        facts = {"pid": process.pid, "start": process_start(process.pid)}
        self._record.write_text(json.dumps({"processes": [facts]}))
        code = await process.wait()
        log.info("the Dask worker ended with code %s", code)
