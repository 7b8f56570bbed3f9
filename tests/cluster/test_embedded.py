"""The embedded cluster: there when it is needed, one for everybody, gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import environment, pid_of, until

from aios_jupyter.cluster import embedded
from aios_jupyter.errors import ClusterError, NoClusterError
from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect, down

CONNECT = """
import sys, aios_jupyter
with aios_jupyter.connect(simulate_gpus=2) as session:
    print(session.status()["cluster"]["broker_pid"])
"""


def test_first_use_starts_it_and_others_share_it(no_cluster: Path) -> None:
    with pytest.raises(NoClusterError, match="aios up"):
        connect(start=False)
    with connect(simulate_gpus=2) as first, connect(start=False) as second:
        assert first.status()["cluster"]["broker_pid"] == second.status()["cluster"]["broker_pid"]
        kinds = [row["kind"] for row in first.status()["devices"].values()]
        assert kinds.count("simulated") == 2
        assert first.status()["cluster"]["simulated"] is True
        with pytest.raises(ClusterError, match="aios down"):
            connect(simulate_gpus=3)


def test_a_session_that_finds_no_cluster_leaves_no_thread(no_cluster: Path) -> None:
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(NoClusterError):
            connect(start=False)
    until(lambda: threading.active_count() <= before, "its threads have ended")


def test_two_that_start_at_the_same_moment_end_with_one(no_cluster: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECT], stdout=subprocess.PIPE, env=environment(), text=True
        )
        for _ in range(3)
    ]
    pids = {process.communicate(timeout=90)[0].strip() for process in processes}
    assert pids == {str(pid_of("broker"))}


def test_a_cluster_that_cannot_start_leaves_nothing_behind(
    no_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    with connect(), monkeypatch.context() as patch:
        # The same state, and a runtime directory of its own.
        patch.setenv("JUPYTER_RUNTIME_DIR", str(other))
        with pytest.raises(ClusterError, match="in use by another broker"):
            connect()
        commands = [process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"])]
        assert not [command for command in commands if str(other) in " ".join(command)]


def test_files_are_private(no_cluster: Path) -> None:
    with connect():
        runtime = embedded.Paths.current().runtime
        for path in [runtime, *runtime.rglob("*")]:
            mode = path.stat().st_mode & 0o777
            if path.suffix != ".pem":
                assert mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, path
        assert runtime.stat().st_mode & 0o077 == 0
        assert (runtime / "connection.json").stat().st_mode & 0o777 == 0o600


def test_down_ends_every_process_it_started(no_cluster: Path) -> None:
    with connect(simulate_gpus=2) as session:
        session.alloc(gpus=1)
        handle = session.start(
            "import time\nprint('up', flush=True)\ntime.sleep(600)\n", cell=True, push=None
        )
        next(event for event in handle.events() if event["type"] == "log")
        family = [
            child
            for which in ("broker", "node")
            for child in (
                psutil.Process(pid_of(which)),
                *psutil.Process(pid_of(which)).children(recursive=True),
            )
        ]
        assert len(family) >= 3
        down()
        _, left = psutil.wait_procs(family, timeout=5)
        assert not left
        with pytest.raises(NoClusterError):
            down()


def test_stale_files_are_noticed_and_replaced(no_cluster: Path) -> None:
    with connect():
        first = pid_of("broker")
        pids = [first, pid_of("node")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), "the cluster is dead")
    with pytest.raises(NoClusterError, match="aios up"):
        connect(start=False)
    with connect() as session:
        assert session.status()["cluster"]["broker_pid"] != first


def test_a_cluster_killed_under_us_is_one_sentence(no_cluster: Path) -> None:
    with connect() as session:
        session.alloc(devices=1)
        pids = [pid_of("broker"), pid_of("node")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        session._start = False
        with pytest.raises(ClusterError) as caught:
            _ask_for(session, seconds=90)
        assert "aios up" in str(caught.value)


def _ask_for(session: Session, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        session.status()
        time.sleep(0.05)


def test_an_idle_cluster_stops_itself(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_IDLE_TIMEOUT", "1")
    with connect() as session:
        broker, node = pid_of("broker"), pid_of("node")
        lease = session.alloc(devices=1)
        time.sleep(3)
        assert alive(broker), "a cluster with a lease is not idle"
        session.release(lease.id)
    until(lambda: not alive(broker) and not alive(node), "broker and node have ended", timeout=30)
    assert not embedded.Paths.current().connection.exists()


def test_a_dead_agent_comes_back_with_the_next_use(no_cluster: Path) -> None:
    with connect(simulate_gpus=2):
        node = pid_of("node")
        os.kill(node, signal.SIGKILL)
        until(lambda: not alive(node), "the agent is dead")
    with connect(start=False) as session:
        assert pid_of("node") != node
        until(
            lambda: all(row["state"] == "up" for row in session.status()["nodes"].values()),
            "the node is up",
        )
        assert len(session.alloc(gpus=2, wait=60).slots) == 2


def test_the_connection_files_are_whole(no_cluster: Path) -> None:
    with connect():
        paths = embedded.Paths.current()
        for path in (paths.broker, paths.node, paths.connection):
            assert json.loads(path.read_text())


def test_down_ends_leases_for_good(no_cluster: Path) -> None:
    with connect() as session:
        session.alloc(devices=1)
        down()
        session._start = True
        assert session.status()["leases"] == {}
        assert len(session.alloc(devices=2, wait=60).slots) == 2


def test_nothing_listens_beyond_loopback(no_cluster: Path) -> None:
    with connect() as session:
        session.dask()
        family = [
            process
            for which in ("broker", "node")
            for process in (
                psutil.Process(pid_of(which)),
                *psutil.Process(pid_of(which)).children(recursive=True),
            )
        ]
        addresses = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert addresses == {"127.0.0.1"}


def test_a_node_whose_broker_goes_while_it_starts_is_ended_at_once(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may take a dying broker for a living one, and start a node for it."""
    embedded.ensure()
    broker, node = pid_of("broker"), pid_of("node")
    os.kill(node, signal.SIGKILL)
    until(lambda: not alive(node), "the node is gone")
    started = []
    start_node = embedded._start_node

    def start(*arguments: Any) -> Any:
        os.kill(broker, signal.SIGKILL)
        started.append(start_node(*arguments))
        return started[0]

    monkeypatch.setattr(embedded, "_start_node", start)
    with pytest.raises(NoClusterError, match="gone; start it again with: aios up"):
        embedded.ensure(start=False)
    assert started[0].poll() is not None, "nothing is left that waits for a broker"
