"""What has come from a run's nodes and waits for whoever reads it in this process.

Somebody who starts a run and waits for its result may never read what it prints, and that has no
bound. Until somebody reads, only the last of it is kept: the nodes have all of it on their disks.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Any

# So many characters of output, of all ranks together.
KEPT = 16 * 1024 * 1024

Event = dict[str, Any]


class Inbox:
    """Events of a run in the order in which they came; None says that there are no more.

    Parameters
    ----------
    run
        The run's id, to be named where output was left out.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._events: deque[Event | None] = deque()
        self._read = False
        self._size = self._left_out = 0

    def put(self, event: Event | None) -> None:
        """Add an event."""
        with self._changed:
            self._events.append(event)
            if not self._read:
                self._size += _printed(event)
                # Not with each event, as it looks at them all.
                if self._size > KEPT + KEPT // 4:
                    self._leave_out()
            self._changed.notify()

    def get(self, timeout: float) -> Event | None:
        """The next event; raises `queue.Empty` after `timeout` seconds."""
        with self._changed:
            self._read = True
            if self._left_out:
                self._events.appendleft(self._gap())
                self._left_out = 0
            if not self._changed.wait_for(lambda: self._events, timeout):
                raise queue.Empty
            return self._events.popleft()

    def _leave_out(self) -> None:
        kept: deque[Event | None] = deque()
        for event in self._events:
            size = _printed(event)
            if size and self._size > KEPT:
                self._size -= size
                self._left_out += size
            else:
                kept.append(event)
        self._events = kept

    def _gap(self) -> Event:
        text = f"aios: {self._left_out:,} characters are not shown here; 'aios logs {self._run}' has them\n"
        first = next((event for event in self._events if event), {})
        return {
            "type": "log",
            "seq": 0,
            "time": first.get("time", 0.0),
            "rank": first.get("rank", 0),
            "stream": "stderr",
            "text": text,
        }


def _printed(event: Event | None) -> int:
    return len(event["text"]) if event and event["type"] == "log" else 0
