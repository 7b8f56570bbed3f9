"""The cluster that is simply there: one broker and one node of this user, on loopback.

Two detached processes: a Dask scheduler with the broker loaded, and a node agent. Each writes a
small file (mode 0600) into the cluster's runtime directory when it is ready: `broker.json` and
`node.json`, with pid, start time and address. Whoever needs the cluster calls `ensure`, which
starts what is missing under a file lock: nothing runs, both; the broker died, the broker again at
the same address, so that agent, ranks and sessions find it; the agent died, the agent.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config import settings
from ..errors import ClusterError, ConflictError, NoClusterError
from ..process import alive
from ..tls import Bundle, create
from .processes import GONE, detach, end, end_now, lock, read, running, wait, write

__all__ = ["Paths", "down", "ensure", "lock", "running"]

# Dask's name for the event loop of its scheduler, which is the broker's too.
EVENT_LOOP = "DASK_DISTRIBUTED__ADMIN__EVENT_LOOP"


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


def ensure(
    *,
    start: bool = True,
    simulate_gpus: int | None = None,
    from_snapshot: bool = False,
    host: str | None = None,
    bare: bool | None = None,
    accounts: str | None = None,
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
    host
        For a new cluster: the address of this machine at which it listens, so that nodes and people
        elsewhere reach it (default: `Settings.host`, which is loopback).
    bare
        For a new cluster: this machine offers no devices, as others are to join for that.
    accounts
        For a new cluster that root starts: the rule by which people's code runs in their own accounts,
        `names` or a JSON file (`node.accounts.Accounts`). "": all of it runs in the starter's.

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
    asked = {"simulate_gpus": simulate_gpus, "host": host, "accounts": accounts}
    plain = all(value is None for value in (*asked.values(), bare))
    if broker and node and paths.connection.exists() and plain:
        return broker
    if not start:
        _require(paths)
    with lock(paths.runtime / "lock"):
        if not start:
            _require(paths)
        if from_snapshot and not running(paths.broker):
            from ..broker import snapshots

            snapshots.go_on_from(paths.state / "journal.sqlite")
        return _repair(paths, asked, bare=bare)


def _require(paths: Paths) -> None:
    """One of the two processes at least must be there to be mended."""
    if not paths.connection.exists():
        raise NoClusterError("No cluster is running; start one with: aios up")
    if not running(paths.broker) and not running(paths.node):
        raise NoClusterError(GONE)


def _repair(paths: Paths, asked: dict[str, Any], *, bare: bool | None) -> dict[str, Any]:
    create(paths.tls)
    broker, node = running(paths.broker), running(paths.node)
    defaults = {
        "simulate_gpus": settings().simulate_gpus,
        "host": settings().host,
        "accounts": "",
    }
    known = {**defaults, **(read(paths.connection) or {})}
    given = {name: value for name, value in asked.items() if value is not None}
    if (broker or node) and paths.connection.exists():
        if given.get("simulate_gpus", known["simulate_gpus"]) != known["simulate_gpus"]:
            raise ClusterError(
                f"A cluster with {known['simulate_gpus']} simulated GPUs is running already; "
                "stop it with 'aios down' first."
            )
        if given.get("host", known["host"]) != known["host"]:
            raise ClusterError(
                f"A cluster that listens at {known['host']} is running already; stop it with "
                "'aios down' first."
            )
        if given.get("accounts", known["accounts"]) != known["accounts"]:
            raise ClusterError(
                "A cluster that was started with other --accounts is running already; stop it with "
                "'aios down' first."
            )
    else:
        known = {**defaults, **given, "bare": bool(bare)}
        write(paths.connection, known)
    if not broker:
        earlier = read(paths.broker) if node else None
        paths.broker.unlink(missing_ok=True)
        broker_process = _start_broker(paths, earlier, known["host"])
    if not node:
        paths.node.unlink(missing_ok=True)
        node_process = _start_node(paths, known)
    if not broker:
        try:
            broker = wait(paths.broker, broker_process, paths.state / "broker.log")
        except ClusterError:
            if not node:
                end_now(node_process)
            raise
        write(paths.address, {"address": broker["address"]})
    if not node:
        # A broker that is being killed is alive for a moment after its connections have ended.
        wait(paths.node, node_process, paths.state / "node.log", needs=paths.broker)
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
        facts = [f for f in (read(paths.node), read(paths.broker)) if f]
        live = [f for f in facts if alive(f["pid"], f["start"])]
        paths.connection.unlink(missing_ok=True)
        children = list((read(paths.children) or {}).get("processes", []))
        for f in live:
            end([f], signal.SIGTERM, timeout / 2)
        rest = [f for f in live + children if alive(f["pid"], f["start"])]
        if not end(rest, signal.SIGKILL, timeout / 2):
            pids = ", ".join(str(f["pid"]) for f in rest)
            raise ClusterError(f"These processes of the cluster do not end: {pids}.")
        _forget(paths)
        if not live:
            raise NoClusterError("No cluster is running.")
        return [f["pid"] for f in live]


def _forget(paths: Paths) -> None:
    for path in (paths.broker, paths.node, paths.children):
        path.unlink(missing_ok=True)


def _start_broker(
    paths: Paths, earlier: dict[str, Any] | None, host: str = "127.0.0.1"
) -> subprocess.Popen[bytes]:
    """A broker; where agent and ranks live on (`earlier`), at its predecessor's address."""
    environment = {
        "AIOS_BROKER_FRESH": "0" if earlier else "1",
        "AIOS_BROKER_DIR": str(paths.state),
        "AIOS_BROKER_TLS": str(paths.tls),
        "AIOS_BROKER_LISTEN": earlier["address"] if earlier else _free_address(paths, host),
        "AIOS_BROKER_FILE": str(paths.broker),
    }
    if find_spec("uvloop") and EVENT_LOOP not in os.environ:
        environment[EVENT_LOOP] = "uvloop"
    tls = Bundle.dask(paths.tls)
    command = [
        *(sys.executable, "-m", "dask", "scheduler"),
        *("--preload", "aios_jupyter.broker.plugin"),
        *("--preload", "aios_jupyter.cluster.watch"),
        *("--host", host, "--port", "0", "--protocol", "tls", "--no-dashboard", "--no-show"),
        # Its HTTP server is there also without a dashboard, and would listen to everybody.
        *("--dashboard-address", "127.0.0.1:0"),
        *("--tls-ca-file", str(tls.authority)),
        *("--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)),
    ]
    return detach(command, environment, paths.state / "broker.log")


def _free_address(paths: Paths, host: str) -> str:
    """Where the last broker was, if nobody else is there now; or any port."""
    last = str((read(paths.address) or {}).get("address", ""))
    before, _, port = last.rpartition(":")
    if before != host or not port.isdigit():
        return f"{host}:0"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return f"{host}:0"
    return last


def _start_node(paths: Paths, known: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "aios_jupyter.node.agent"),
        *("--runtime", str(paths.runtime), "--state", str(paths.state)),
        *("--simulate-gpus", str(known["simulate_gpus"]), "--host", known["host"]),
        *("--accounts", known["accounts"]),
        *(["--bare"] if known.get("bare") else []),
    ]
    return detach(command, {}, paths.state / "node.log")
