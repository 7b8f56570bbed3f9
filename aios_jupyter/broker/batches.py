"""Batches: how far each has come, as whoever runs it tells.

They are for people to see, and decide nothing: so they are kept in memory alone, and told again by
whoever runs them when the broker has been restarted.
"""

from __future__ import annotations

import time
from typing import Any

from ..errors import AccessError, ConflictError, NotFoundError, UsageError
from . import messages as msg
from .hub import Hub, SessionLink
from .people import People, check_id, check_names
from .protocol import Connection, Handler

# Batches that are over are shown until so many have ended after them.
ENDED_BATCHES = 100
# That one connection may tell of at a time.
MOST_RUNNING = 100
# The states of those that are not over.
GOING = ("running", "stopping")
LONGEST_PATH = 4096


class Batches:
    """Batches by id, the oldest first; each is of the connection that has last told of it."""

    def __init__(self, hub: Hub, people: People) -> None:
        self._hub = hub
        self._people = people
        self._tellers: dict[str, Connection] = {}

    def handlers(self) -> dict[str, Handler]:
        """The calls, for `Connection`."""
        return {
            "batch.tell": (msg.BatchTold, self._people.guard("batch.tell", self._told)),
            "batch.stop": (msg.ById, self._people.guard("batch.stop", self._stop)),
        }

    def left(self, connection: Connection) -> None:
        """A connection has gone: what it ran is over, or told of again by its next one."""
        for id in [id for id, teller in self._tellers.items() if teller is connection]:
            del self._tellers[id]
            self._change(id, {"state": "interrupted"})

    def _told(self, connection: Connection, told: msg.BatchTold) -> None:
        link: SessionLink = connection.context
        check_id(told.id)
        check_names(told.label)
        if len(told.directory) > LONGEST_PATH:
            raise UsageError(f"A path has at most {LONGEST_PATH} characters; give a shorter one.")
        known = self._hub.batches.get(told.id)
        if known and known["user"] != connection.name:
            raise AccessError(f"Batch {told.id} belongs to {known['user']}, not to you.")
        told_by_it = sum(teller is connection for teller in self._tellers.values())
        if known is None and told_by_it >= MOST_RUNNING:
            raise ConflictError(
                f"{MOST_RUNNING} batches run from here already; wait for one of them."
            )
        owner = link.owner
        counts = (told.total, told.succeeded, told.failed, told.running)
        total, succeeded, failed, running = (max(0, count) for count in counts)
        stopping = known is not None and known["state"] == "stopping"
        state = "stopping" if stopping else "running"
        if told.over:
            cut = "stopped" if stopping else "interrupted"
            state = "ended" if succeeded + failed >= total else cut
        self._change(
            told.id,
            {
                "id": told.id,
                "user": connection.name,
                "label": told.label,
                "directory": told.directory,
                "host": owner.host,
                "pid": owner.pid,
                "state": state,
                "total": total,
                "done": succeeded + failed,
                "failed": failed,
                "running": running,
                "started": known["started"] if known else time.time(),
            },
        )
        if told.over:
            self._tellers.pop(told.id, None)
        else:
            self._tellers[told.id] = connection

    def _stop(self, connection: Connection, body: msg.ById) -> None:
        """Have whoever runs it end it: its jobs are their processes."""
        known = self._hub.batches.get(body.id)
        if known is None:
            raise NotFoundError(f"There is no batch {body.id!r}; 'aios runs' lists them.")
        if connection.name != known["user"] and connection.role != "admin":
            raise AccessError(f"Batch {body.id} belongs to {known['user']}; ask them or an admin.")
        if body.id not in self._tellers:
            raise ConflictError(f"Batch {body.id} does not run any more: it is {known['state']}.")
        self._hub.audit("batch stopped", connection.name, batch=body.id, user=known["user"])
        self._tellers[body.id].tell(
            "batch.stop", msg.ById(id=body.id, reason=f"stopped by {connection.name}")
        )
        self._change(body.id, {"state": "stopping"})

    def _change(self, id: str, changes: dict[str, Any]) -> None:
        before = self._hub.batches.get(id, {"ended": None})
        row = {**before, **changes, "ended": None}
        if row["state"] not in GOING:
            row |= {"running": 0, "ended": before["ended"] or time.time()}
        if row == before:
            return
        self._hub.batches[id] = row
        self._hub.changed = True
        ended = [id for id, row in self._hub.batches.items() if row["ended"] is not None]
        for old in ended[:-ENDED_BATCHES]:
            del self._hub.batches[old]
