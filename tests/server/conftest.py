"""A Jupyter server with the extension, on a made-up cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_cluster import FakeUpstream
from fake_run import FakeSession

from aios_jupyter.errors import NoClusterError
from aios_jupyter.server.app import AiosApp


class Cluster:
    """What the server's `open_upstream` finds: the current upstream, or none."""

    def __init__(self) -> None:
        self.upstream: FakeUpstream | None = FakeUpstream()

    async def open(self) -> FakeUpstream:
        """As `session.observe` does."""
        if self.upstream is None:
            raise NoClusterError("No cluster is running; start one with: aios up")
        return self.upstream


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def jp_server_config(cluster: Cluster) -> dict[str, Any]:
    async def opened() -> FakeUpstream:
        return await cluster.open()

    return {
        "ServerApp": {"jpserver_extensions": {"aios_jupyter": True}},
        "AiosApp": {"open_upstream": opened, "open_session": FakeSession},
    }


@pytest.fixture
def server(jp_serverapp: Any, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[AiosApp]:
    """The extension, started, with the cluster in view."""
    manager = jp_serverapp.extension_manager
    jp_asyncio_loop.run_until_complete(manager.start_all_extensions())
    (app,) = manager.extension_apps["aios_jupyter"]
    jp_asyncio_loop.run_until_complete(eventually(lambda: app.stream.mirror.online))
    yield app
    jp_asyncio_loop.run_until_complete(app.stop_extension())


async def eventually(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Wait for a condition and give back its value."""
    async with asyncio.timeout(timeout):
        while not (value := condition()):  # noqa: ASYNC110  # any condition, not only an event
            await asyncio.sleep(0.01)
    return value
