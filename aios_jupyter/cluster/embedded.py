"""The cluster that is simply there: one broker and one node of this user, on loopback.

Two detached processes: a Dask scheduler with the broker loaded, and a node agent. Each writes a
small file (mode 0600) into the cluster's runtime directory when it is ready: `broker.json` and
`node.json`, with pid, start time and address. Whoever needs the cluster calls `ensure`, which
starts what is missing under a file lock: nothing runs, both; the broker died, the broker again at
the same address, so that agent, ranks and sessions find it; the agent died, the agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import QUIET_DASK, settings
from ..errors import ClusterError, ConflictError, NoClusterError
from ..process import alive
from ..tls import Bundle, create

START_TIMEOUT = 60.0


class _Detached(subprocess.Popen[bytes]):
    """A process that is meant to outlive this one: no warning that it still runs."""

    def __del__(self) -> None:
        self.poll()


@dataclass(frozen=True)
class Paths:
    """Files of the embedded cluster."""

    runtime: Path
    state: Path

    @classmethod
    def current(cls) -> Paths:
        """Of the cluster that the settings name."""
        runtime = settings().runtime_dir / settings().cluster
        runtime.mkdir(mode=0o700, exist_ok=True)
        return cls(runtime, settings().cluster_dir)

    @property
    def tls(self) -> Path:
        """Certificates."""
        return self.runtime / "tls"

    @property
    def connection(self) -> Path:
        """What was asked for at the start: its existence says that the cluster is wanted."""
        return self.runtime / "connection.json"

    @property
    def broker(self) -> Path:
        """Written by the broker when it is ready."""
        return self.runtime / "broker.json"

    @property
    def node(self) -> Path:
        """Written by the agent when the broker has taken it in."""
        return self.runtime / "node.json"

    @property
    def children(self) -> Path:
        """Written by the agent: the processes of its Dask worker."""
        return self.runtime / "children.json"

    @property
    def address(self) -> Path:
        """Where the broker was at last: people's bundles name it, so that the next one is there."""
        return self.runtime / "address.json"

    @property
    def user(self) -> Bundle:
        """This user's certificates."""
        return Bundle.of(self.tls, "user")


def running(path: Path) -> dict[str, Any] | None:
    """What a broker or node wrote about itself, or None when that process is gone."""
    facts = _read(path)
    return facts if facts and alive(facts["pid"], facts["start"]) else None


def ensure(
    *, start: bool = True, simulate_gpus: int | None = None, from_snapshot: bool = False
) -> dict[str, Any]:
    """Make sure that broker and node run; returns what the broker wrote (`address`, `dask`).

    Parameters
    ----------
    start
        When False, a cluster that was never started (or was stopped) is not started.
    simulate_gpus
        For a new cluster: how many simulated GPUs the node offers.
    from_snapshot
        For a broker that refuses its damaged journal: start from the last snapshot of that. The
        damaged one is kept beside it.

    Raises
    ------
    NoClusterError
        There is none and `start` is False.
    ConflictError
        `from_snapshot`, and the broker runs.
    NotFoundError
        `from_snapshot`, and there is none.
    ClusterError
        It does not start; names the log to read.
    """
    paths = Paths.current()
    broker, node = running(paths.broker), running(paths.node)
    if broker and from_snapshot:
        raise ConflictError(
            "The cluster is running, with a journal that is whole; stop it with 'aios down' before "
            "you go back to a snapshot."
        )
    if broker and node and paths.connection.exists() and simulate_gpus is None:
        return broker
    if not start:
        _require(paths)
    with lock(paths.runtime / "lock"):
        if not start:
            _require(paths)
        if from_snapshot and not running(paths.broker):
            from ..broker import snapshots

            snapshots.go_on_from(paths.state / "journal.sqlite")
        return _repair(paths, simulate_gpus)


def _require(paths: Paths) -> None:
    """One of the two processes at least must be there to be mended."""
    if not paths.connection.exists():
        raise NoClusterError("No cluster is running; start one with: aios up")
    if not running(paths.broker) and not running(paths.node):
        raise NoClusterError("The cluster's processes are gone; start it again with: aios up")


def _repair(paths: Paths, simulate_gpus: int | None) -> dict[str, Any]:
    create(paths.tls)
    broker, node = running(paths.broker), running(paths.node)
    known = _read(paths.connection)
    if known and (broker or node) and simulate_gpus not in (None, known["simulate_gpus"]):
        raise ClusterError(
            f"A cluster with {known['simulate_gpus']} simulated GPUs is running already; "
            "stop it with 'aios down' first."
        )
    if known is None or not (broker or node):
        known = {"simulate_gpus": settings().simulate_gpus}
        if simulate_gpus is not None:
            known = {"simulate_gpus": simulate_gpus}
        _write(paths.connection, known)
    if not broker:
        earlier = _read(paths.broker) if node else None
        paths.broker.unlink(missing_ok=True)
        broker_process = _start_broker(paths, earlier)
    if not node:
        paths.node.unlink(missing_ok=True)
        node_process = _start_node(paths, known["simulate_gpus"])
    if not broker:
        broker = _wait(paths.broker, broker_process, paths.state / "broker.log")
        _write(paths.address, {"address": broker["address"]})
    if not node:
        _wait(paths.node, node_process, paths.state / "node.log")
    return broker


def down(timeout: float = 20.0) -> list[int]:
    """Stop the cluster and everything it started; returns the pids that were ended.

    The broker tells its agents, which end their ranks and workers first. What is still there after
    `timeout` seconds is killed, by pid and start time.

    Raises
    ------
    NoClusterError
        No cluster runs.
    """
    paths = Paths.current()
    with lock(paths.runtime / "lock"):
        facts = [f for f in (_read(paths.node), _read(paths.broker)) if f]
        live = [f for f in facts if alive(f["pid"], f["start"])]
        paths.connection.unlink(missing_ok=True)
        children = list((_read(paths.children) or {}).get("processes", []))
        for f in live:
            with contextlib.suppress(ProcessLookupError):
                os.kill(f["pid"], signal.SIGTERM)
            _gone([f], timeout / 2)
        rest = [f for f in live + children if alive(f["pid"], f["start"])]
        for f in rest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(f["pid"], signal.SIGKILL)
        if not _gone(rest, timeout / 2):
            pids = ", ".join(str(f["pid"]) for f in rest)
            raise ClusterError(f"These processes of the cluster do not end: {pids}.")
        _forget(paths)
        if not live:
            raise NoClusterError("No cluster is running.")
        return [f["pid"] for f in live]


def _forget(paths: Paths) -> None:
    for path in (paths.broker, paths.node, paths.children):
        path.unlink(missing_ok=True)


def _gone(processes: list[dict[str, Any]], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while any(alive(f["pid"], f["start"]) for f in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _start_broker(paths: Paths, earlier: dict[str, Any] | None) -> subprocess.Popen[bytes]:
    """A broker; where agent and ranks live on (`earlier`), at its predecessor's address."""
    environment = {
        "AIOS_BROKER_FRESH": "0" if earlier else "1",
        "AIOS_BROKER_DIR": str(paths.state),
        "AIOS_BROKER_TLS": str(paths.tls),
        "AIOS_BROKER_LISTEN": earlier["address"] if earlier else _free_address(paths),
        "AIOS_BROKER_FILE": str(paths.broker),
    }
    tls = Bundle.dask(paths.tls)
    command = [
        *(sys.executable, "-m", "dask", "scheduler"),
        *("--preload", "aios_jupyter.broker.plugin"),
        *("--host", "127.0.0.1", "--port", "0", "--protocol", "tls", "--no-dashboard", "--no-show"),
        # Its HTTP server is there also without a dashboard, and would listen to everybody.
        *("--dashboard-address", "127.0.0.1:0"),
        *("--tls-ca-file", str(tls.authority)),
        *("--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)),
    ]
    return _detach(command, environment, paths.state / "broker.log")


def _free_address(paths: Paths) -> str:
    """Where the last broker was, if nobody else is there now; or any port."""
    last = str((_read(paths.address) or {}).get("address", ""))
    host, _, port = last.rpartition(":")
    if not port.isdigit():
        return "127.0.0.1:0"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return "127.0.0.1:0"
    return last


def _start_node(paths: Paths, simulate_gpus: int) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "aios_jupyter.node.agent"),
        *("--runtime", str(paths.runtime), "--state", str(paths.state)),
        *("--simulate-gpus", str(simulate_gpus)),
    ]
    return _detach(command, {}, paths.state / "node.log")


def _detach(command: list[str], extra: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, in its own session, with its output in a file."""
    environment = {**QUIET_DASK, **os.environ, **extra, "PYTHONUNBUFFERED": "1"}
    # What belongs to the kernel that happens to be first must not mark the whole cluster.
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "MPLBACKEND"):
        environment.pop(name, None)
    with log.open("ab") as output:
        return _Detached(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )


def _wait(path: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        facts = running(path)
        if facts:
            return facts
        if process.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ClusterError(f"The cluster did not start: {last} (whole log: {log})")
        time.sleep(0.02)
    process.kill()
    raise ClusterError(f"The cluster did not start within {START_TIMEOUT:.0f} s; see {log}")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Only one process at a time starts, mends or stops the cluster."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except ValueError:
        return None


def _write(path: Path, facts: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(facts, file)
    aside.replace(path)
