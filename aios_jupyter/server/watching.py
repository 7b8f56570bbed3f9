"""REST under `aios/` for who looks closer: what was, and what a run has said and does.

GET aios/history                                 the last minutes of devices and runs
GET aios/runs/ID/logs?rank=&after=&search=&tail=  lines of a run's log, from a number on or the last
GET aios/runs/ID/metrics                         every metric's course
GET aios/runs/ID/stacks?rank=                    what its ranks do now, or where they failed
GET aios/runs/ID/profile?rank=                   the trace of a run that was profiled, as a file
GET aios/batches/ID/results                      where JupyterLab finds what a batch has made
GET aios/kernels                                 the processes of this server's kernels
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ..errors import AccessError, NotFoundError
from .books import LINES, Books
from .history import History
from .routes import AiosHandler
from .stream import Stream

MOST_RANKS = 1_000_000
FARTHEST = 2**53
LONGEST_SEARCH = 1000


class HistoryHandler(AiosHandler):
    """What was before the page was loaded."""

    def initialize(self, stream: Stream, history: History) -> None:  # type: ignore[override]
        """Take the history that the extension keeps."""
        super().initialize(stream)
        self.history = history

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the past of all devices and runs."""
        self.answer(self.history.view())


class BookHandler(AiosHandler):
    """Base of the routes that are answered from a run's book."""

    _track_activity = False  # a page asks by itself, without a person

    def initialize(self, stream: Stream, books: Books) -> None:  # type: ignore[override]
        """Take the books that the extension keeps."""
        super().initialize(stream)
        self.books = books


class LogHandler(BookHandler):
    """The log of a run."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer with lines from a number on, or with the last ones."""
        rank = self.whole_number("rank", None, most=MOST_RANKS)
        after = self.whole_number("after", 0, most=FARTHEST) or 0
        tail = self.whole_number("tail", None, most=LINES)
        search = self.get_query_argument("search", "")[:LONGEST_SEARCH]
        self.stream.row("runs", run, "run")
        page = await asyncio.to_thread(
            self.books.read,
            run,
            lambda book: (
                book.page(rank, after, search) if tail is None else book.last(rank, search, tail)
            ),
        )
        self.answer({"run": run, **page})


class MetricsHandler(BookHandler):
    """The metrics of a run."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer with every metric's course."""
        self.stream.row("runs", run, "run")
        metrics = await asyncio.to_thread(self.books.read, run, lambda book: book.metrics())
        self.answer({"run": run, "metrics": metrics})


class StacksHandler(AiosHandler):
    """What ranks do now."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer with the stacks of one rank or all."""
        rank = self.whole_number("rank", None, most=MOST_RANKS)
        self.stream.row("runs", run, "run")
        self.answer({"run": run, "ranks": await asyncio.to_thread(_stacks, run, rank)})


class ProfileHandler(AiosHandler):
    """The trace of a run."""

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """Answer with a rank's trace as a file to keep."""
        rank = self.whole_number("rank", 0, most=MOST_RANKS) or 0
        self.stream.row("runs", run, "run")
        trace = await asyncio.to_thread(_profile, run, rank)
        self.set_header("Content-Type", "application/json")
        name = f"{run}-rank-{rank}.trace.json"
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        await self.finish(trace)


class ResultsHandler(AiosHandler):
    """What a batch of notebooks has made."""

    @web.authenticated
    @authorized
    async def get(self, batch: str) -> None:
        """Answer with its folder and its table, as paths of the contents that Jupyter serves."""
        row = self.stream.row("batches", batch, "batch")
        if not row["directory"]:
            raise AccessError(f"Batch {batch} belongs to {row['user']}, and so do its results.")
        found = await asyncio.to_thread(_results, row, self.settings["server_root_dir"])
        self.answer({"batch": batch, **found})


class KernelsHandler(AiosHandler):
    """Which process each kernel is, as leases name theirs, and what it was started with."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with machine, pid and lease of each kernel of this server."""
        manager = self.settings["kernel_manager"]
        host = socket.gethostname()
        found = {}
        for kernel in manager.list_kernel_ids():
            provisioner = getattr(manager.get_kernel(kernel), "provisioner", None)
            pid = getattr(provisioner, "pid", None)
            if pid:
                # One of ours may be elsewhere, and knows its devices.
                node = getattr(provisioner, "node", "")
                lease = getattr(provisioner, "lease_id", "")
                found[kernel] = {"host": node or host, "pid": pid, "lease": lease}
        self.answer({"kernels": found})


def handlers(
    stream: Stream, history: History, books: Books
) -> list[tuple[str, type[AiosHandler], dict[str, Any]]]:
    """The routes, for `ExtensionApp.handlers`."""
    run = r"/aios/runs/([^/]+)"
    return [
        (r"/aios/history", HistoryHandler, {"stream": stream, "history": history}),
        (rf"{run}/logs", LogHandler, {"stream": stream, "books": books}),
        (rf"{run}/metrics", MetricsHandler, {"stream": stream, "books": books}),
        (rf"{run}/stacks", StacksHandler, {"stream": stream}),
        (rf"{run}/profile", ProfileHandler, {"stream": stream}),
        (r"/aios/batches/([^/]+)/results", ResultsHandler, {"stream": stream}),
        (r"/aios/kernels", KernelsHandler, {"stream": stream}),
    ]


def _results(row: dict[str, Any], served: str) -> dict[str, str]:
    root = Path(served).expanduser().resolve()
    directory = Path(row["directory"]).resolve()
    if not directory.is_dir():
        raise NotFoundError(
            f"The results are in {row['directory']} on {row['host']}, which this Jupyter server does "
            "not see."
        )
    if not directory.is_relative_to(root):
        raise NotFoundError(
            f"The results are in {row['directory']}, outside of the folders that JupyterLab shows."
        )
    folder = directory.relative_to(root).as_posix()
    table = directory / "results.csv"
    shown = table.is_file() and table.stat().st_size > 0
    return {
        "folder": "" if folder == "." else folder,
        "table": table.relative_to(root).as_posix() if shown else "",
    }


def _stacks(run: str, rank: int | None) -> Any:
    import msgspec

    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        return msgspec.to_builtins(session.stacks(run, rank))


def _profile(run: str, rank: int) -> bytes:
    from ..session import connect

    with tempfile.TemporaryDirectory(prefix="aios-profile-") as scratch:
        with connect(start=False, passive=True, label="server") as session:
            return Path(session.profile(run, Path(scratch) / "trace.json", rank)).read_bytes()
