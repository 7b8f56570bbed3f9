"""A fixture that fails when processes outlive the tests: import it in a conftest to use it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import psutil
import pytest

MARK = "AIOS_TEST_SESSION"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Whatever a test starts inherits the mark, through any number of detached parents."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    yield
    del os.environ[MARK]
    _, alive = psutil.wait_procs(marked(mark), timeout=10)
    told = [f"{process.pid} {' '.join(command(process))[:200]}" for process in alive]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not told, "processes that outlived the tests:\n" + "\n".join(told)


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started, directly or not, by this run of the tests."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def command(process: psutil.Process) -> list[str]:
    """Its command line."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return ["(gone)"]
