"""DuckDB instances that queries take turns with: to open one takes as long as a small query."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import duckdb

# What an instance keeps of memory, some 100 MB on two cores, goes back after so long without a query.
KEPT_SECONDS = 60.0
_DATABASE = '"aios query"'
_Answer = TypeVar("_Answer")


class Engine:
    """One instance, for one query at a time, each with an empty database of its own.

    Attributes
    ----------
    connection
        Where the query is asked.
    changed
        To be set by who leaves more behind than the database, which goes: settings, file systems.
    """

    def __init__(self, spill: Path) -> None:
        self.connection: Any = None
        self.changed = False
        self._spill = spill
        self._process = os.getpid()
        self._timer: threading.Timer | None = None
        self._worker = ThreadPoolExecutor(1, "aios-sql")
        self._instance = duckdb.connect(
            config={
                "errors_as_json": "true",
                # Python's own would take any variable of the functions here for a table.
                "python_enable_replacements": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "temp_directory": str(spill),
            }
        )

    def serves(self, spill: Path) -> bool:
        """Whether it can be asked by this process, and writes what does not fit in memory there."""
        return self._process == os.getpid() and self._spill == spill

    def open(self) -> None:
        """Begin a query."""
        if self._timer is not None:
            self._timer.cancel()
        self._instance.execute(f"ATTACH ':memory:' AS {_DATABASE}")
        self.connection = self._instance.cursor()
        self.connection.execute(f"USE {_DATABASE}")

    def interruptible(self, work: Callable[[], _Answer]) -> _Answer:
        """Do something with the connection that an interrupt of the cell, or Ctrl-C, ends at once.

        DuckDB itself would look for one only between its tasks, of which a large join has few. The
        thread is the instance's: one that ends after each query may be at that when a process is forked.
        """
        future = self._worker.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            self.connection.interrupt()
            wait([future])
            raise

    def clear(self) -> None:
        """End a query: its database goes."""
        self.connection.close()
        self._instance.execute(f"DETACH {_DATABASE}")

    def rest(self, then: Callable[[Engine], None]) -> None:
        """Have something done with it unless it is opened in time."""
        self._timer = threading.Timer(KEPT_SECONDS, then, [self])
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Give back its memory and threads."""
        if self._process == os.getpid():
            self._worker.shutdown()
            self._instance.close()
        else:
            # In a forked process its end would wait for threads that only the parent has.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._instance))


_idle: list[Engine] = []
_lock = threading.Lock()
# Who forks holds it, so that no other thread does in the child.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


@contextlib.contextmanager
def engine(spill: Path) -> Iterator[Engine]:
    """An instance that nobody else uses meanwhile; it is kept for the next query if this one succeeds.

    Parameters
    ----------
    spill
        The directory for what does not fit in memory.
    """
    found = _take(spill) or Engine(spill)
    try:
        found.open()
        yield found
        if not found.changed:
            found.clear()
    except BaseException:
        found.close()
        raise
    if found.changed or not _keep(found):
        found.close()


def _keep(found: Engine) -> bool:
    with _lock:
        if _idle:
            return False
        _idle.append(found)
        found.rest(_expire)
        return True


def _take(spill: Path) -> Engine | None:
    with _lock:
        found = _idle.pop() if _idle else None
    if found is None or found.serves(spill):
        return found
    found.close()
    return None


def _expire(found: Engine) -> None:
    with _lock:
        if found not in _idle:
            return
        _idle.remove(found)
    found.close()


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().close()
