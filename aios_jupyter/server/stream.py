"""One connection to the broker for all browser tabs, mirrored and passed on as events.

`Mirror` is the state: the last view of the cluster and a number that rises with each change, so
that a front end sees at once when it has missed one. `Stream` keeps the connection: it notices a
cluster that a notebook has just started, and one that goes away.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from logging import Logger
from pathlib import Path
from typing import Any, Protocol

from ..errors import ClusterError, NoClusterError, NotFoundError
from .history import History

# Events that a front end can ask for again: minutes of a busy cluster, but no more rows than this.
PAST = 500
PAST_ROWS = 20_000
SECTIONS = ("nodes", "devices", "queue", "leases", "reservations", "runs", "batches")
EVENT = "https://events.aios-jupyter.org/cluster/v1"
EVENT_SCHEMA: dict[str, Any] = {
    "$id": EVENT,
    "version": "1",
    "title": "AIOS cluster",
    "description": "The cluster has changed: a whole snapshot, a delta to the one before, or gone.",
    "type": "object",
    "properties": {
        "stream": {"type": "string", "description": "One life of the server's mirror."},
        "seq": {"type": "integer", "description": "Rises by one with each event of a stream."},
        "time": {"type": "number", "description": "The server's clock, seconds since the epoch."},
        "snapshot": {"type": "object", "description": "Every row of every section."},
        "delta": {"type": "object", "description": "Changed rows by id; null takes one away."},
        "offline": {"type": "string", "description": "There is no cluster: what to do."},
        "kind": {"type": "string", "description": "With offline: the kind of the error."},
    },
    "required": ["stream", "seq", "time"],
}

View = dict[str, Any]
Event = dict[str, Any]


class Upstream(Protocol):
    """What the stream needs of a session with the broker (`broker.client.AsyncClient`)."""

    closed: asyncio.Event

    async def call(self, op: str, body: Any = None) -> Any:
        """One call; raises an AiosError that the broker answered."""

    async def subscribe(self, watcher: Callable[[View], None]) -> None:
        """Have `watcher` called with the whole view, then with each delta."""

    async def close(self) -> None:
        """End the session."""


Open = Callable[[], Awaitable[Upstream]]


class Mirror:
    """The last view of the cluster, numbered.

    Every change gives back the event that tells it to the front ends.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(6)
        self.seq = 0
        self._error: ClusterError | None = NoClusterError("Looking for a cluster.")
        self._view: View = {}
        self._past: deque[tuple[int, Event]] = deque()
        self._rows = 0

    @property
    def online(self) -> bool:
        """There is a cluster in view."""
        return self._error is None

    def current(self) -> Event:
        """The whole state, in the form of the event that would lead to it."""
        if self._error:
            return self._event({"offline": str(self._error), "kind": self._error.kind})
        return self._event({"snapshot": self._view})

    def since(self, stream: str, seq: int) -> list[Event] | None:
        """The events after that one, in order; None when they are not known any more."""
        if stream != self.id or not 0 <= self.seq - seq <= len(self._past):
            return None
        missed = list(self._past)[len(self._past) - (self.seq - seq) :]
        return [event for _, event in missed]

    def take(self, view: View) -> Event:
        """Take in what the broker sent: with all sections it is a snapshot, else a delta."""
        event = self._taken(view)
        self._keep(event)
        return event

    def _taken(self, view: View) -> Event:
        self.seq += 1
        whole = all(section in view for section in ("cluster", *SECTIONS))
        if whole or self._error:
            self._error = None
            self._view = {"cluster": {}, **{section: {} for section in SECTIONS}}
            self._merge(view)
            return self._event({"snapshot": self._view})
        self._merge(view)
        return self._event({"delta": view})

    def lose(self, error: ClusterError) -> Event | None:
        """There is no cluster any more; None when that was known, in the same words."""
        if str(self._error) == str(error):
            return None
        self.seq += 1
        self._error, self._view = error, {}
        event = self.current()
        self._keep(event)
        return event

    def _keep(self, event: Event) -> None:
        told = event.get("snapshot") or event.get("delta") or {}
        rows = sum(len(told.get(section, ())) for section in SECTIONS)
        self._past.append((rows, event))
        self._rows += rows
        while len(self._past) > PAST or (self._rows > PAST_ROWS and len(self._past) > 1):
            self._rows -= self._past.popleft()[0]

    def _merge(self, view: View) -> None:
        # New dicts, never changed ones: an event that was given away stays as it was.
        merged = dict(self._view)
        if "cluster" in view:
            merged["cluster"] = view["cluster"]
        for section in SECTIONS:
            rows = view.get(section)
            if rows:
                merged[section] = {
                    key: row for key, row in {**merged[section], **rows}.items() if row is not None
                }
        self._view = merged

    def _event(self, what: View) -> Event:
        return {"stream": self.id, "seq": self.seq, "time": time.time(), **what}


class Stream:
    """Keeps one session with the broker for as long as there is a cluster.

    Parameters
    ----------
    open_upstream
        Opens a session with a running cluster; raises ClusterError when there is none.
    emit
        Passes an event on to the front ends.
    watched
        Gives the directory whose files say where clusters are: a change there means that one may
        have started.
    log
        The server's log.
    look, retry
        Seconds between two looks at the directory, and between two attempts without a change.
    """

    def __init__(
        self,
        open_upstream: Open,
        emit: Callable[[Event], None],
        watched: Callable[[], Path],
        log: Logger,
        *,
        look: float = 0.4,
        retry: float = 5.0,
    ) -> None:
        self._open = open_upstream
        self._emit = emit
        self._watched = watched
        self._log = log
        self._look, self._retry = look, retry
        self._upstream: Upstream | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self.mirror = Mirror()
        self.history = History()

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        while True:
            before = self._fingerprint()
            try:
                error = await self._follow(await self._open())
            except ClusterError as known:
                error = known
            except Exception as surprise:  # noqa: BLE001  # logged; it must not end the stream
                self._log.exception("aios: the connection to the cluster failed")
                error = ClusterError(f"The connection failed ({surprise}); see the server's log.")
            self._tell(self.mirror.lose(error))
            await self._news(before)

    async def call(self, op: str, body: Any = None) -> Any:
        """Pass a call on to the broker.

        Raises
        ------
        ClusterError
            There is no cluster.
        AiosError
            What the broker answered.
        """
        if self._upstream is None or self._upstream.closed.is_set():
            raise NoClusterError("No cluster is running; start one with: aios up")
        return await self._upstream.call(op, body)

    async def started(self, timeout: float) -> None:
        """A cluster has just been started: look now, and wait until it is in view.

        Raises
        ------
        ClusterError
            It did not come into view.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self.mirror.online:
                    self._changed.clear()
                    self._wake.set()
                    await self._changed.wait()
        except TimeoutError:
            raise ClusterError(
                "The cluster was started but does not answer yet; look at 'aios doctor'."
            ) from None

    def row(self, section: str, id: str, what: str) -> dict[str, Any]:
        """A row of the current view; `what` it is in words.

        Raises
        ------
        NotFoundError
            There is no such row.
        """
        row: dict[str, Any] | None = (
            self.mirror.current().get("snapshot", {}).get(section, {}).get(id)
        )
        if row is None:
            raise NotFoundError(f"There is no {what} {id!r}; 'aios runs' lists them.")
        return row

    async def _follow(self, upstream: Upstream) -> ClusterError:
        """Take in what the broker sends until the session is over; returns why it is."""
        self._upstream = upstream
        try:
            await upstream.subscribe(lambda view: self._tell(self.mirror.take(view)))
            await upstream.closed.wait()
        finally:
            self._upstream = None
            await upstream.close()
        return NoClusterError("The cluster has gone; start one with: aios up")

    async def _news(self, before: object) -> None:
        """Wait until it is worth trying again."""
        deadline = time.monotonic() + self._retry
        while True:
            try:
                async with asyncio.timeout(self._look):
                    await self._wake.wait()
            except TimeoutError:
                if time.monotonic() < deadline and self._fingerprint() == before:
                    continue
            break
        self._wake.clear()

    def _fingerprint(self) -> object:
        try:
            with os.scandir(self._watched()) as entries:
                return sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries)
        except OSError:
            # A file that went away between the listing and the look; the next look sees it right.
            return None

    def _tell(self, event: Event | None) -> None:
        if event is not None:
            self.history.take(event)
            self._changed.set()
            self._emit(event)
