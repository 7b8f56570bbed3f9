"""What runs have said: their lines and metrics, kept for as long as a page looks at them.

A page asks again and again for what is new. Reading a log from its begin each time would cost more
with every line, so a thread follows each run that is looked at, and pages are answered from
memory. `Book` is pure; `Books` has the threads and the one session of all of them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..course import Course, finite

if TYPE_CHECKING:
    from ..session import Session

LINES = 20_000
PAGE = 2_000
POINTS = 2_000
LONGEST = 4_000
# Seconds without a look after which a run is no longer followed.
FORGET = 60.0
# A first answer waits until what there is has been read, and no longer than this.
QUIET, PATIENCE = 0.15, 3.0

Row = dict[str, Any]


class Book:
    """The lines and metrics of one run, in bounded memory.

    Lines of all ranks have one numbering, in the order in which they were ended. A rank's last
    line counts when it has ended, or the run has.
    """

    def __init__(self) -> None:
        self.complete = False
        self._lines: deque[tuple[int, str]] = deque(maxlen=LINES)
        self._partial: dict[int, str] = {}
        self._count = 0
        self._courses: dict[str, Course] = {}

    def add(self, event: Row) -> None:
        """Take one event of the run; kinds that a newer version may send are passed over."""
        rank = int(event.get("rank") or 0)
        match event.get("type"):
            case "log":
                *whole, rest = (self._partial.pop(rank, "") + str(event["text"])).split("\n")
                for line in whole:
                    self._line(rank, line)
                if rest:
                    # A line without an end must not grow for ever; `\r` begins it anew (tqdm).
                    self._partial[rank] = rest.rstrip("\r").rsplit("\r", 1)[-1][-LONGEST:]
            case "metrics" if rank == 0:
                for name, value in event["values"].items():
                    course = self._courses.setdefault(name, Course(POINTS))
                    course.add(float(value), event.get("step"), round(event["time"], 3))
            case "restart":
                for course in self._courses.values():
                    course.restart()

    def end(self) -> None:
        """There will be no more."""
        for rank, line in sorted(self._partial.items()):
            self._line(rank, line)
        self._partial.clear()
        self.complete = True

    def page(self, rank: int | None, after: int, search: str, limit: int = PAGE) -> Row:
        """Lines from number `after` on, `limit` at most: of one rank, with `search` in them."""
        first = self._count - len(self._lines)
        wanted = search.lower()
        found: list[tuple[int, int, str]] = []
        following = self._count
        for number, (owner, text) in enumerate(self._lines, first):
            if number < after or (rank is not None and owner != rank):
                continue
            if wanted and wanted not in text.lower():
                continue
            if len(found) == limit:
                following = number
                break
            found.append((number, owner, text))
        return {
            "rank": rank,
            "lines": [text for _, _, text in found],
            "ranks": [owner for _, owner, _ in found],
            "numbers": [number for number, _, _ in found],
            "next": following,
            "dropped": first,
            "complete": self.complete and following == self._count,
        }

    def last(self, rank: int | None, search: str, count: int) -> Row:
        """The last `count` lines, in the form of a page."""
        kept = self.page(rank, 0, search, limit=LINES)
        for column in ("lines", "ranks", "numbers"):
            kept[column] = kept[column][-count:] if count else []
        return kept

    def metrics(self) -> Row:
        """Every metric's course by its name."""
        return {
            name: {
                "time": course.times,
                "step": course.steps,
                "value": list(map(finite, course.points)),
            }
            for name, course in self._courses.items()
        }

    def _line(self, rank: int, line: str) -> None:
        self._lines.append((rank, line.rstrip("\r").rsplit("\r", 1)[-1][:LONGEST]))
        self._count += 1


class _Reader:
    """A thread that reads a run's events into its book."""

    def __init__(self, run: str, handle: Any) -> None:
        self.book = Book()
        self.lock = threading.Lock()
        self.asked = time.monotonic()
        self._handle = handle
        self._stop = threading.Event()
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"aios-log-{run}", daemon=True)
        self._thread.start()

    def settled(self) -> None:
        """Wait until what there is has been read."""
        self._quiet.wait(PATIENCE)

    @property
    def forgotten(self) -> bool:
        """Nobody has asked for long."""
        return time.monotonic() - self.asked > FORGET

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        for event in self._events():
            with self.lock:
                self.book.add(event)
        if not self._stop.is_set():
            with self.lock:
                self.book.end()
        self._quiet.set()

    def _events(self) -> Iterator[Row]:
        while not self._stop.is_set():
            try:
                event = self._handle.next_event(QUIET)
            except queue.Empty:
                self._quiet.set()
                continue
            if event is None:
                return
            yield event


class Books:
    """The runs that pages look at. Its methods block: call them in a thread.

    Parameters
    ----------
    connect
        Opens the session that follows the runs.
    """

    def __init__(self, connect: Callable[[], Session]) -> None:
        self._connect = connect
        self._session: Session | None = None
        self._readers: dict[str, _Reader] = {}
        self._lock = threading.Lock()

    def read(self, run: str, look: Callable[[Book], Row]) -> Row:
        """What `look` finds in the run's book.

        Raises
        ------
        AiosError
            There is no such run, it is somebody else's, or its nodes do not answer.
        """
        reader = self._reader(run)
        reader.settled()
        with reader.lock:
            return look(reader.book)

    def tidy(self) -> None:
        """Forget runs that nobody looks at; close the session with the last of them."""
        with self._lock:
            old = [run for run, reader in self._readers.items() if reader.forgotten]
            self._drop(old)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            self._drop(list(self._readers))

    def _reader(self, run: str) -> _Reader:
        with self._lock:
            reader = self._readers.get(run)
            if reader is None:
                session = self._session = self._session or self._connect()
                reader = self._readers[run] = _Reader(run, session.attach(run))
            reader.asked = time.monotonic()
            return reader

    def _drop(self, runs: list[str]) -> None:
        for run in runs:
            self._readers.pop(run).stop()
        if not self._readers and self._session is not None:
            session, self._session = self._session, None
            session.close()
