"""The broker as a server: connections in, `state.handle` in the middle, journal and actions out.

It decides nothing: who may have which device is in `state.py`. `hub.py` turns the core's actions
into effects; `people.py`, `nodes.py` and `watchers.py` have the calls; this listens and keeps the
clocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import Settings
from ..errors import AccessError, ClusterError
from ..schema import LIVE
from ..tls import Bundle, Revoked
from . import events as ev
from . import messages as msg
from .admins import Admins
from .batches import Batches
from .hub import AgentLink, Hub, SessionLink
from .nodes import Nodes
from .people import People
from .protocol import Connection, Handler, serve
from .vouching import Vouching
from .watchers import Watchers

log = logging.getLogger("aios.broker")

VIEW_INTERVAL = 0.2
SWEEP_INTERVAL = 1.0
SNAPSHOT_INTERVAL = 300.0
# What was said before must be written before the process ends.
SHUTDOWN_DELAY = 0.05


class Broker:
    """The broker of one cluster.

    Parameters
    ----------
    directory
        Where the journal and the secret that tokens are made from are kept.
    bundle
        The broker's certificates.
    on_end
        Called when nobody has used the cluster for `Settings.idle_timeout`, and on `shutdown`.
    """

    def __init__(
        self, directory: Path, bundle: Bundle, settings: Settings, on_end: Callable[[], None]
    ) -> None:
        self.hub = Hub(directory, settings)
        self.port = 0
        self._bundle = bundle
        self._revoked = Revoked(bundle.authority.parent)
        self._on_end = on_end
        self._connections: set[Connection] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int, *, fresh: bool = False) -> int:
        """Restore from the journal (`fresh`: without leases) and listen; returns the port."""
        self.hub.restore(fresh=fresh)
        self._people = People(self.hub)
        self._nodes = Nodes(self.hub, self._revoked)
        self._watchers = Watchers(self.hub, self._people)
        self._batches = Batches(self.hub, self._people)
        self._admins = Admins(self.hub, self._people)
        self._handlers: dict[str, Handler] = {
            **self._people.handlers(),
            **self._nodes.handlers(),
            **self._watchers.handlers(),
            **self._batches.handlers(),
            **self._admins.handlers(),
            **Vouching(self.hub, self._people, self._bundle, self._revoked).handlers(),
            "shutdown": (None, self._people.guard("shutdown", self._shutdown)),
            "user.changed": (
                msg.UserChange,
                self._people.guard("user.changed", self._user_changed),
            ),
            "beat": (Any, lambda connection, body: None),
        }
        context = self._bundle.server_context()
        self._server, self.port = await serve(host, port, context, self._connection)
        self._tasks = [
            asyncio.create_task(self._every(SWEEP_INTERVAL, self._sweep)),
            asyncio.create_task(self._every(VIEW_INTERVAL, self._watchers.show)),
            asyncio.create_task(self._keep_snapshots()),
        ]
        return self.port

    async def stop(self, *, for_good: bool = False) -> None:
        """Close everything; the journal keeps what was promised.

        `for_good`: agents on other machines are told to end too.
        """
        if for_good:
            self.hub.end_nodes()
            await asyncio.sleep(SHUTDOWN_DELAY)
        for task in self._tasks:
            task.cancel()
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        try:
            self.hub.journal.commit()
        finally:
            self.hub.journal.close()

    def _connection(self) -> Connection:
        connection = Connection(
            self._handlers,
            on_close=self._closed,
            before_write=self.hub.journal.commit,
            on_kept=self._people.kept_back,
            admit=self._admit,
            server=True,
        )
        self._connections.add(connection)
        return connection

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._watchers.left(connection)
        self._batches.left(connection)
        match connection.context:
            case AgentLink() as link:
                self._nodes.left(link, connection)
            case SessionLink() as link:
                self._people.left(link, connection)

    # --- who may be here

    def _admit(self, connection: Connection) -> None:
        try:
            self._revoked.check(connection.name, connection.serial)
        except AccessError as error:
            self.hub.refuse("hello", connection.name, why=str(error))
            raise

    def _user_changed(self, connection: Connection, change: msg.UserChange) -> None:
        if connection.role != "admin":
            raise AccessError("Only an admin may say who has access.")
        kind = "node" if change.role == "node" else "user"
        whom = {kind: change.name, "role": change.role}
        self.hub.audit(f"{kind} {change.what}", connection.name, **whom)
        if change.what == "revoked":
            if change.role != "node":
                self._people.revoked(change.name)
            self.tell_revoked()
        elif change.what == "left" and change.role == "node":
            if agent := self.hub.agents.get(change.name):
                # Should it be there all the same, it joins again.
                agent.abort("it has left")
            self.hub.handle(ev.NodeGone(node=change.name, reason="it was stopped"))

    def tell_revoked(self) -> None:
        """Certificates were revoked by whoever has the authority's key."""
        self._nodes.tell_revoked()
        self._let_go()

    def _let_go(self) -> None:
        """End the connections, leases and requests of those whose access was revoked."""
        revoked = self._revoked.serials()
        if revoked:
            # One that has yet to say hello is refused by `_admit`, with a sentence.
            for connection in [c for c in self._connections if c.greeted and c.serial in revoked]:
                if isinstance(connection.context, SessionLink):
                    self._people.revoked(connection.context.owner.user)
                connection.abort("its certificate was revoked")

    def _shutdown(self, connection: Connection, _: None) -> None:
        if connection.role != "admin":
            raise AccessError("Only an admin may stop the cluster.")
        self._end()

    def _end(self) -> None:
        self.hub.end_nodes()
        asyncio.get_running_loop().call_later(SHUTDOWN_DELAY, self._on_end)

    # --- clocks

    async def _every(self, seconds: float, function: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                function()
            except Exception:
                log.exception("%s failed", function.__name__)

    async def _keep_snapshots(self) -> None:
        """One of what was found at the start, which is known to be good, and of what follows."""
        kept = -1
        while True:
            if self.hub.journal.commits != kept:
                kept = self.hub.journal.commits
                try:
                    await asyncio.to_thread(self.hub.journal.snapshot)
                except ClusterError as error:
                    log.error("no snapshot of the journal was made: %s", error)
            await asyncio.sleep(SNAPSHOT_INTERVAL)

    def _sweep(self) -> None:
        self._people.look_for_lost()
        self.hub.count_refusals()
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            silence = now - connection.heard
            if silence > self.hub.settings.suspect_after:
                connection.abort(f"silent for {silence:.0f} s")
        self.hub.handle(ev.Tick())
        for found in list(self.hub.activity.findings(self.hub.state, time.time())):
            self.hub.handle(found)
        self._write()
        self._end_when_idle()
        self._let_go()

    def _write(self) -> None:
        """Commit; once that works again, what was kept back meanwhile is told."""
        before = self.hub.journal.failure
        try:
            self.hub.journal.commit()
        except ClusterError as error:
            if before is None:
                log.error("%s", error)
            return
        for connection in self._connections:
            connection.flush()

    def _end_when_idle(self) -> None:
        state = self.hub.state
        live = any(run.state in LIVE for run in state.runs.values())
        waited_for = any(told["state"] == "waiting" for told in self.hub.expected.values())
        if live or waited_for or state.leases or state.bookings or state.queue():
            self.hub.used = time.monotonic()
        elif time.monotonic() - self.hub.used > self.hub.settings.idle_timeout:
            log.info("idle for %.0f s: stopping", self.hub.settings.idle_timeout)
            self._end()
