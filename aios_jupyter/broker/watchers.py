"""Who looks on: the snapshot on request, and what has changed, at most five times a second."""

from __future__ import annotations

import os
import time
from typing import Any

from .. import __version__
from .hub import Hub
from .people import People
from .protocol import Connection, Handler
from .views import Snapshot, difference, snapshot

WITHHELD: dict[str, dict[str, Any]] = {
    "runs": {"metrics": {}, "reason": "", "detail": {}},
    "batches": {"directory": ""},
}


class Watchers:
    """Connections that have subscribed."""

    def __init__(self, hub: Hub, people: People) -> None:
        self._hub = hub
        self._people = people
        self._watching: set[Connection] = set()
        self._seen: Snapshot | None = None
        self._started = time.time()

    def handlers(self) -> dict[str, Handler]:
        """The calls, for `Connection`."""
        return {
            "status": (Any, self._people.guard("status", self._status)),
            "subscribe": (None, self._people.guard("subscribe", self._subscribe)),
        }

    def left(self, connection: Connection) -> None:
        """A connection has gone."""
        self._watching.discard(connection)
        if not self._watching:
            self._seen = None

    def show(self) -> None:
        """Tell the watchers what has changed since they were last told."""
        if self._seen is None or not self._hub.changed:
            return
        self._hub.changed = False
        before, self._seen = self._seen, self._now()
        delta = difference(before, self._seen)
        # A view with every section is a whole snapshot to its watcher, so that one is sent then.
        whole = len(delta) == len(self._seen)
        for connection in self._watching if delta else ():
            view = _as_seen_by(connection, self._seen)
            if not whole:
                view = {section: view[section] for section in delta if section == "cluster"} | {
                    section: _own(connection, section, rows)
                    for section, rows in delta.items()
                    if section != "cluster"
                }
            connection.tell("view", view)

    def _status(self, connection: Connection, _: Any) -> Snapshot:
        return _as_seen_by(connection, self._now())

    def _subscribe(self, connection: Connection, _: None) -> None:
        self.show()
        if self._seen is None:
            self._seen = self._now()
        self._watching.add(connection)
        connection.tell("view", _as_seen_by(connection, self._seen))

    def _now(self) -> Snapshot:
        cluster = {
            "name": self._hub.settings.cluster,
            "version": __version__,
            "started": self._started,
            "broker_pid": os.getpid(),
        }
        etas = self._hub.outlook.etas(time.time())
        hub = self._hub
        return snapshot(hub.state, hub.usage, cluster, etas, hub.warm, hub.batches, hub.expected)


def _as_seen_by(connection: Connection, view: Snapshot) -> Snapshot:
    who = {"user": connection.name, "role": connection.role}
    own = {section: _own(connection, section, view[section]) for section in WITHHELD}
    return {**view, **own, "cluster": {**view["cluster"], **who}}


def _own(connection: Connection, section: str, rows: dict[str, Any]) -> dict[str, Any]:
    """What a run measures and says, and where results are, is their owner's business, and the admins'."""
    if section not in WITHHELD or connection.role == "admin":
        return rows
    withheld = WITHHELD[section]
    return {
        id: row if row is None or row["user"] == connection.name else {**row, **withheld}
        for id, row in rows.items()
    }
