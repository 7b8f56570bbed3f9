"""Hands runs to the tracking server: a folder of what is to be told, and the process that tells it.

Neither ranks nor kernels wait for it, and it is told of runs whose kernel has died too. The process
(`models/tracking.py`) imports MLflow, which takes seconds: it is started for runs that have ended or
that last, with the lowest priority, and ends when it has nothing to do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..broker.messages import RunOver
from ..runs.events import EVENTS_FILE
from ..runs.messages import StartRun
from ..schema import RunState
from .accounts import Account, popen
from .hosted import Hosted
from .output import anonymous_file

log = logging.getLogger("aios.node")

# Runs that last for so long are told while they go on.
LIVE_AFTER = 30.0
END = ".end"


class Tracker:
    """What this node's agent has to tell. A run is told by the node of its rank 0.

    Parameters
    ----------
    spool
        The folder; entries of an earlier life of the agent are told when it starts.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._begun: set[str] = set()
        self._others: dict[str, tuple[Account, dict[str, Any]]] = {}
        self._telling: list[subprocess.Popen[bytes]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def start(self) -> None:
        """Tell what is left of an earlier life of the agent: those runs ended with it."""
        if not self._spool.is_dir():
            return
        left = list(self._spool.glob("*.json"))
        for path in left:
            if not path.with_suffix(END).exists():
                self._end(path.stem, RunState.FAILED, "the agent of its node ended", None)
        if left:
            self._wake()

    def begin(self, hosted: Hosted, order: StartRun) -> None:
        """A run's ranks have been started here."""
        run, spec = hosted.run, order.spec
        known = run.id in self._begun or run.id in self._others
        if spec.tracking is None or known or 0 not in hosted.ranks:
            return
        facts = {
            "run": run.id,
            "name": spec.name,
            "directory": str(hosted.directory),
            "started": run.started,
            "uri": spec.tracking.uri,
            "state": spec.tracking.state,
            "env": {key: value for key, value in spec.env.items() if key.startswith("MLFLOW_")},
            "params": {
                "world_size": str(spec.world_size),
                "framework": spec.framework,
                **spec.tracking.params,
            },
            "tags": {
                "run": run.id,
                "lease": run.lease,
                "user": run.user,
                "kind": run.kind.value,
                "devices": ",".join(rank.device for rank in order.ranks),
                "nodes": ",".join(run.nodes),
                **spec.tracking.tags,
            },
        }
        if hosted.account is not None:
            # The folder that the person names is for the person alone to write in.
            self._others[run.id] = hosted.account, facts
            return
        self._begun.add(run.id)
        self._write(f"{run.id}.json", facts)
        loop = asyncio.get_running_loop()
        self._timers[run.id] = loop.call_later(LIVE_AFTER, self._wake)

    def over(self, over: RunOver) -> None:
        """The broker says how a run has ended."""
        if over.id in self._others:
            self._tell_as(over.id, over.state, over.reason, over.ended)
        if over.id not in self._begun:
            return
        self._begun.discard(over.id)
        self._timers.pop(over.id).cancel()
        self._end(over.id, over.state, over.reason, over.ended)
        self._wake()

    def close(self) -> None:
        """The agent ends; what is not told yet is when the next one starts."""
        for timer in self._timers.values():
            timer.cancel()
        for run in list(self._others):
            self._tell_as(run, RunState.STOPPED, "its node was stopped", None)
        for run in self._begun:
            self._end(run, RunState.STOPPED, "its node was stopped", None)
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _end(self, run: str, state: RunState, reason: str, ended: float | None) -> None:
        self._write(f"{run}{END}", {"state": state.value, "reason": reason, "ended": ended})

    def _tell_as(self, run: str, state: RunState, reason: str, ended: float | None) -> None:
        """Have a run told in the account that it ran in, by a process that ends when it is done."""
        account, facts = self._others.pop(run)
        told = {"run": facts, "end": {"state": state.value, "reason": reason, "ended": ended}}
        try:
            events = (Path(facts["directory"]) / EVENTS_FILE).read_bytes()
            given = anonymous_file(json.dumps(told).encode() + b"\n" + events)
            try:
                self._spool.mkdir(mode=0o700, exist_ok=True)
                with (self._spool / "tracking.log").open("ab") as output:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "aios_jupyter.models.tracking", "-"],
                        stdin=given,
                        stdout=output,
                        stderr=output,
                        cwd="/",
                        env=account.environment(os.environ),
                        start_new_session=True,
                        **popen(account),
                    )
            finally:
                os.close(given)
        except OSError as error:
            log.error("a run is not told to the tracking server: %s", error)
            return
        self._telling = [one for one in self._telling if one.poll() is None]
        self._telling.append(process)

    def _wake(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        command = [sys.executable, "-m", "aios_jupyter.models.tracking", str(self._spool)]
        try:
            with (self._spool / "tracking.log").open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
        except OSError as error:
            log.error("runs are not told to the tracking server: %s", error)

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        """For nobody else to read: an entry may have the password of a server."""
        try:
            self._spool.mkdir(mode=0o700, exist_ok=True)
            aside = self._spool / f".{name}"
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(facts, file)
            aside.replace(self._spool / name)
        except OSError as error:
            # A full disk is no reason to end a run.
            log.error("a run is not told to the tracking server: %s", error)
