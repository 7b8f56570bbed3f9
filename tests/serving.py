"""A real Jupyter server in the test's process, on a live cluster: what it is asked, and answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

Fetch = Callable[..., Awaitable[Any]]
DIRECTORIES = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")


@contextlib.contextmanager
def served(
    request: pytest.FixtureRequest,
    directories: dict[str, str],
    loop: asyncio.AbstractEventLoop,
) -> Iterator[Any]:
    """The fixture `jp_serverapp` with the extension, where a cluster is; `jp_environ` comes first."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in directories.items():
            patch.setenv(name, value)
        app = request.getfixturevalue("jp_serverapp")
        loop.run_until_complete(app.extension_manager.start_all_extensions())
        yield app
        loop.run_until_complete(app.extension_manager.stop_all_extensions())
        loop.run_until_complete(app.kernel_manager.shutdown_all(now=True))


async def eventually(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    try:
        async with asyncio.timeout(timeout):
            while not (value := condition()):  # noqa: ASYNC110  # any condition
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within {timeout:g} s: {what}")
    return value


def ask(fetch: Fetch, kernel: str, notebook: str = "a.ipynb") -> Awaitable[Any]:
    """Open a notebook with a kernel, as JupyterLab does."""
    body = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": kernel}}
    return fetch("api", "sessions", method="POST", body=json.dumps(body))


def message(error: BaseException) -> str:
    assert isinstance(error, HTTPClientError)
    assert error.response is not None
    return str(json.loads(error.response.body)["message"])
