"""What every test gets: its own Jupyter directories, no cluster of the user's, no leftovers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
from leftovers import MARK, nothing_left_running

from aios_jupyter.config import settings

__all__ = ["nothing_left_running"]

# The same examples in each run, so that a change is judged by itself; to look for others:
# pytest --hypothesis-profile=default --hypothesis-seed=N
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# Fixtures that start a Jupyter server in the test's process (`jp_serverapp`, `jp_fetch`).
pytest_plugins = ["pytest_jupyter.jupyter_server"]


@pytest.fixture(scope="session", autouse=True)
def _own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the user's notebooks' settings, clusters and models.

    A test that needs directories of its own sets the same variables with `monkeypatch`.
    """
    root = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("AIOS_") and name != MARK]:
            patch.delenv(variable)
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(variable, str(root / variable.lower()))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        # MLflow takes seconds to load; the tests that are about it turn it on.
        patch.setenv("AIOS_TRACKING", "off")
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so would all that tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _settings_read_anew() -> Iterator[None]:
    """A test that sets an `AIOS_…` variable sees it, and the next test does not."""
    settings.cache_clear()
    yield
    settings.cache_clear()
