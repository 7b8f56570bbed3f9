"""The server extension `aios`: routes, the event stream, and their start and end."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_server.extension.application import ExtensionApp
from traitlets import Callable, Float

from ..session.kernels import give_up_waiting
from . import acting, datasets, routes, telling, trying, watching
from .books import Books
from .limits import Limits
from .stream import EVENT, EVENT_SCHEMA, Event, Stream, Upstream

if TYPE_CHECKING:
    from ..session import Session


TIDY_EVERY = 20.0


async def open_broker() -> Upstream:
    """Open a session that only looks on, with the cluster that runs.

    Raises
    ------
    ClusterError
        No cluster runs, or it does not answer.
    """
    from ..session import observe

    return await observe(label="server")


def open_session() -> Session:
    """Open a session that reads what runs have said.

    Raises
    ------
    ClusterError
        No cluster runs, or it does not answer.
    """
    from ..session import connect

    return connect(start=False, passive=True, label="server")


def connection_dir() -> Path:
    """Where the files appear that say that a cluster runs."""
    from ..cluster import bundle
    from ..config import settings

    directory = bundle.current()
    if directory:
        return directory
    return settings().runtime_dir / settings().cluster


class AiosApp(ExtensionApp):
    """Mirrors the cluster to JupyterLab."""

    name = "aios"
    load_other_extensions = True

    open_upstream = Callable(
        open_broker,
        help="""Coroutine function that opens the session with the broker. Takes no arguments,
        raises `aios_jupyter.errors.ClusterError` when there is no cluster.""",
    ).tag(config=True)

    open_session = Callable(
        open_session,
        help="""Function that opens the session through which the logs and metrics of runs are read.
        Takes no arguments, raises `aios_jupyter.errors.ClusterError` when there is no cluster.""",
    ).tag(config=True)

    reads_per_second = Float(
        20.0, help="How often one user may ask, on average; bursts of five seconds' worth. 0: any."
    ).tag(config=True)

    writes_per_second = Float(
        5.0, help="How often one user may change something, on average. 0: any."
    ).tag(config=True)

    def initialize_settings(self) -> None:
        """Make the stream; it starts with the server's event loop."""
        self.event_logger.register_event_schema(EVENT_SCHEMA)
        self.settings[routes.LIMITS] = Limits(self.reads_per_second, self.writes_per_second)
        self.books = Books(self.open_session)
        self.pictures = datasets.Pictures()
        self.stream = Stream(self.open_upstream, self._emit, connection_dir, self.log)

    def initialize_handlers(self) -> None:
        """Add the routes."""
        self.handlers.extend(routes.handlers(self.stream))
        self.handlers.extend(watching.handlers(self.stream, self.stream.history, self.books))
        self.handlers.extend(acting.handlers(self.stream))
        self.handlers.extend(telling.handlers(self.stream))
        self.handlers.extend(datasets.handlers(self.stream, self.pictures))
        self.handlers.extend(trying.handlers(self.stream))

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        self._tasks = [
            asyncio.create_task(self.stream.run()),
            asyncio.create_task(self._tidy()),
        ]

    async def stop_extension(self) -> None:
        """Close the sessions with the broker; kernels that wait for devices are given up.

        The server ends its kernels after this, and would wait for them.
        """
        give_up_waiting("The Jupyter server is stopping; start the kernel again in the next one.")
        for task in getattr(self, "_tasks", []):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(self.books.close)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_EVERY)
            await asyncio.to_thread(self.books.tidy)

    @property
    def event_logger(self) -> Any:
        """The server's event bus."""
        assert self.serverapp is not None
        return self.serverapp.event_logger

    def _emit(self, event: Event) -> None:
        data = {key: Told(it) if isinstance(it, dict) else it for key, it in event.items()}
        self.event_logger.emit(schema_id=EVENT, data=data)


class Told(dict[str, Any]):
    """Rows that nobody changes: the event bus, which copies what it is given, leaves them whole.

    A thousand rows a second cost more to copy than all else that the server does with them.
    """

    def __deepcopy__(self, memo: object) -> Told:
        return self
