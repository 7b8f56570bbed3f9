"""Fixtures for tests that need a live cluster: import them in a conftest to use them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios_jupyter.cluster import embedded, joined
from aios_jupyter.config import settings
from aios_jupyter.errors import NoClusterError, NotFoundError
from aios_jupyter.session import Session, connect, join_node, leave_node


@contextlib.contextmanager
def private_directories(root: Path) -> Iterator[None]:
    """Jupyter and state directories of their own, so that there is no cluster yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(root / "runtime"))
        patch.setenv("JUPYTER_DATA_DIR", str(root / "data"))
        patch.delenv("AIOS_STATE_DIR", raising=False)
        settings.cache_clear()
        yield
        with contextlib.suppress(NoClusterError):
            embedded.down()
    settings.cache_clear()


@pytest.fixture
def no_cluster(tmp_path: Path) -> Iterator[Path]:
    """No cluster yet; what the test starts is stopped after it."""
    with private_directories(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cluster with four simulated GPUs for all tests of a module."""
    with private_directories(tmp_path_factory.mktemp("cluster")):
        embedded.ensure(simulate_gpus=4)
        yield


@pytest.fixture
def session(cluster: None) -> Iterator[Session]:
    """A session with the module's cluster; its leases end with the test."""
    with connect(label="test") as opened:
        yield opened


@contextlib.contextmanager
def two_nodes(root: Path) -> Iterator[Path]:
    """A cluster of two nodes, `far` being the second, with two simulated GPUs each; `far`'s bundle."""
    with private_directories(root), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_REJOIN_GRACE", "1")
        embedded.ensure(simulate_gpus=2)
        with connect() as session:
            session.node_add("far", root / "far")
        join_node(root / "far", simulate_gpus=2)
        yield root / "far"
        with contextlib.suppress(NotFoundError):
            leave_node("far")


@pytest.fixture(scope="module")
def _nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as bundle:
        yield bundle


@pytest.fixture
def second_node(_nodes: Path) -> Path:
    """The module's cluster of `two_nodes`, whatever the test before has done to it."""
    if not joined.local():
        join_node(_nodes, simulate_gpus=2)
    with connect() as session:
        until(lambda: up(session) == 2 and len(free(session)) == 4, "both are there, and free")
    return _nodes


@pytest.fixture
def own_second_node(tmp_path: Path) -> Iterator[Path]:
    """A cluster of `two_nodes` for this test alone."""
    with two_nodes(tmp_path / "cluster") as bundle:
        yield bundle


def agent_of(node: str) -> int:
    """The pid of the agent of a node that has joined on this machine."""
    return next(int(facts["pid"]) for facts in joined.local() if facts["node"] == node)


def session_of(directory: Path, label: str = "") -> Session:
    """A session of whoever the bundle in `directory` is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_BUNDLE", str(directory))
        settings.cache_clear()
        try:
            return connect(label=label)
        finally:
            settings.cache_clear()


def until(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """Wait for a condition and give back its value; the test fails with `what` when it is late."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


def pid_of(which: str) -> int:
    """The pid of the `broker` or the `node`."""
    facts = embedded.running(getattr(embedded.Paths.current(), which))
    assert facts is not None
    return int(facts["pid"])


def holder(session: Session, device: str) -> str:
    """The lease that holds a device, "" when it is free."""
    row = session.status()["devices"][device]["holder"]
    return row["lease"] if row else ""


def free(session: Session, kind: str = "simulated") -> list[str]:
    """Free devices of a kind."""
    devices = session.status()["devices"].values()
    return [row["id"] for row in devices if row["kind"] == kind and row["holder"] is None]


def up(session: Session) -> int:
    """How many nodes are connected; devices of those that are not are free too."""
    return sum(node["state"] == "up" for node in session.status()["nodes"].values())


def environment() -> dict[str, str]:
    """For child processes of a test: the variables that this process has now."""
    return dict(os.environ)
