"""A real sshd on loopback, by which machines join: all of them are this one, with other directories."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import private_directories, until
from systems.conftest import ASKED_FOR, started

from aios_jupyter.cluster import embedded, nodes, remote
from aios_jupyter.commands import Host, invoke
from aios_jupyter.errors import ClusterError, NotFoundError, RunError, UsageError
from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect, down, up

pytestmark = [
    pytest.mark.systems,
    pytest.mark.skipif(
        not (ASKED_FOR and shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")),
        reason="There is no sshd here: make test-systems",
    ),
    pytest.mark.timeout(200),
]
WAITS = "import time\nprint('up', flush=True)\ntime.sleep(600)"


@pytest.fixture(scope="module")
def machines() -> Iterator[Path]:
    """Where the directories of `gpu1` and `gpu2` are."""
    with started("ssh.sh") as (directory, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory / 'bin'}:{os.environ['PATH']}")
        yield directory


@pytest.fixture
def home(machines: Path, tmp_path: Path) -> Iterator[Path]:
    with private_directories(tmp_path):
        yield tmp_path
        if embedded.running(embedded.Paths.current().broker):
            down()


def states(session: Session) -> dict[str, str]:
    return {row["id"]: row["state"] for row in session.node_list() if row["id"].startswith("gpu")}


def agents(machines: Path, name: str) -> list[int]:
    """The agents that run as a machine, by what they wrote."""
    files = (machines / name / "runtime" / "aios" / "nodes").glob("*/node.json")
    return [facts["pid"] for path in files if (facts := embedded.running(path))]


def keys(machines: Path) -> list[Path]:
    return [path for name in ("gpu1", "gpu2") for path in (machines / name).rglob("*.key")]


def test_machines_join_by_ssh_and_end_with_the_cluster(home: Path, machines: Path) -> None:
    row = up("ssh:gpu1,gpu2", simulate_gpus=2)
    assert row is not None
    assert row["nodes"] == ["gpu1", "gpu2"]
    with connect() as session:
        assert states(session) == {"gpu1": "up", "gpu2": "up"}
        assert session.train("print('trained')", cell=True, gpus=4).world_size == 4
        # Those that are there are left alone.
        pids = [*agents(machines, "gpu1"), *agents(machines, "gpu2")]
        session.node_start("ssh:gpu1,gpu2")
        assert [*agents(machines, "gpu1"), *agents(machines, "gpu2")] == pids
        whats = [r["detail"].get("node") for r in session.audit() if r["what"] == "node asked for"]
        assert set(whats) == {"gpu1", "gpu2"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys(machines))
    assert len(keys(machines)) == 2
    # No copy of a node's bundle is left here.
    assert [path for path in home.rglob("node.key") if path.parent.name != "tls"] == []
    down()
    until(lambda: not any(map(alive, pids)), "the agents have ended")
    until(lambda: keys(machines) == [], "their keys are gone")
    assert {row["state"] for row in nodes.rows()} == {"revoked"}
    assert remote.rows() == []


def test_a_machine_is_stopped_by_itself(home: Path, machines: Path) -> None:
    up("ssh:gpu1,gpu2", simulate_gpus=1)
    with connect() as session:
        handle = session.start(WAITS, cell=True, gpus=1, node="gpu1")
        next(event for event in handle.events() if event["type"] == "log")
        (pid,) = agents(machines, "gpu1")
        assert session.node_stop("gpu1")["note"] == "gpu1 has left."
        assert not alive(pid)
        with pytest.raises(RunError, match=r"node gpu1 (was stopped|is gone)"):
            handle.wait()
        assert states(session) == {"gpu2": "up"}
        with pytest.raises(NotFoundError, match="Nothing called 'gpu1'"):
            session.node_stop("gpu1")
        # It may come back, as a new one.
        session.node_start("ssh:gpu1", simulate_gpus=1)
        assert states(session) == {"gpu1": "up", "gpu2": "up"}


def test_a_machine_whose_agent_was_killed_joins_again(home: Path, machines: Path) -> None:
    up("ssh:gpu1")
    with connect() as session:
        (pid,) = agents(machines, "gpu1")
        os.kill(pid, signal.SIGKILL)
        until(lambda: states(session) == {"gpu1": "lost"}, "it is missed")
        session.node_start("ssh:gpu1")
        assert states(session) == {"gpu1": "up"}
        assert [row["state"] for row in nodes.rows()] == ["revoked", "active"]


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"on": "ssh:stranger"}, "ssh does not get to stranger: Host key verification failed"),
        ({"on": "ssh:gpu1.invalid"}, "ssh does not get to gpu1.invalid: Could not resolve"),
        (
            {"on": "ssh:gpu2", "python": "/nowhere/python"},
            "gpu2 has no AIOS in /nowhere/python; install it there with 'pip install aios-jupyter==",
        ),
    ],
)
def test_a_machine_that_does_not_join_says_why(home: Path, wish: dict[str, Any], why: str) -> None:
    embedded.ensure()
    with connect() as session:
        with pytest.raises(ClusterError, match=why):
            session.node_start(**wish)
        assert states(session) == {}
        assert {row["state"] for row in nodes.rows()} == {"revoked"}


def test_of_several_machines_those_that_join_stay(home: Path) -> None:
    with pytest.raises(ClusterError, match=r"get to stranger: Host key .* gpu1 joined\."):
        up("ssh:gpu1,stranger")
    with connect() as session:
        assert states(session) == {"gpu1": "up"}


def test_what_is_asked_of_slurm_is_not_asked_of_ssh(home: Path) -> None:
    embedded.ensure()
    with connect() as session, pytest.raises(UsageError, match="leave out what is asked of Slurm"):
        session.node_start("ssh:gpu1", gpus=2)
    with pytest.raises(UsageError, match="no machine that ssh reaches"):
        invoke(["up", "--on", "ssh:-oProxyCommand=true"], Host())
