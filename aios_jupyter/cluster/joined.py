"""This machine as a node of a cluster that was started elsewhere: `aios node join BUNDLE`.

A detached agent with directories of its own, so that several may run on one machine. It ends with
`aios node leave`, with the cluster, or when its certificate is revoked. `serve` is the same in the
foreground, for whoever looks after processes already: a batch system, systemd, a container.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from ..config import QUIET_DASK, private, settings
from ..errors import ClusterError, ConflictError, NotFoundError, UsageError
from . import nodes, reach
from .processes import detach, end, lock, read, running, wait, write


def join(
    bundle: Path, *, host: str = "", simulate_gpus: int = 0, accounts: str = ""
) -> dict[str, Any]:
    """Start an agent here for the cluster that made the bundle, and wait until it is let in.

    Parameters
    ----------
    host
        This machine's address, at which other nodes and people reach the agent; by default the one
        from which the broker is reached.
    accounts
        Where root calls: the rule by which people's code runs in their own accounts here, as
        `embedded.ensure` has it.

    Returns
    -------
    dict
        `node`, its `address` and `pid`.

    Raises
    ------
    ConflictError
        That node runs here already.
    ClusterError
        The bundle is not whole, the broker cannot be reached, or it does not let the node in.
    """
    name = nodes.load(bundle)["name"]
    runtime, state = _places(name)
    with lock(runtime / "lock"):
        command = _prepare(bundle, host, simulate_gpus, accounts)
        log = state / "node.log"
        facts = wait(runtime / "node.json", detach(command, {}, log), log, f"node {name}")
    return {"node": name, "address": facts["address"], "pid": facts["pid"]}


def join_by(
    text: str, *, host: str = "", simulate_gpus: int = 0, accounts: str = ""
) -> dict[str, Any]:
    """The same as `join` with a bundle that came as one text, as `nodes.pack` makes it."""
    with tempfile.TemporaryDirectory(dir=_root(), prefix=".bundle-") as directory:
        bundle = Path(directory) / "bundle"
        nodes.unpack(text, bundle)
        return join(bundle, host=host, simulate_gpus=simulate_gpus, accounts=accounts)


def serve(
    bundle: Path, *, host: str = "", simulate_gpus: int = 0, until: float | None = None
) -> NoReturn:
    """Become the agent, in this very process; raises as `join` does.

    Parameters
    ----------
    until
        Until when this machine is leased, seconds since the epoch; None for no end.
    """
    runtime, _ = _places(nodes.load(bundle)["name"])
    with lock(runtime / "lock"):
        command = _prepare(bundle, host, simulate_gpus, accounts="")
    if until is not None:
        command += ["--until", f"{until:.0f}"]
    environment = {**QUIET_DASK, **os.environ, "PYTHONUNBUFFERED": "1"}
    os.chdir("/")
    os.execve(command[0], command, environment)  # noqa: S606  # of this very interpreter


def _prepare(bundle: Path, host: str, simulate_gpus: int, accounts: str) -> list[str]:
    """Take a bundle's files; returns the command that starts its agent. Under the node's lock."""
    told = nodes.load(bundle)
    name = told["name"]
    runtime, state = _places(name)
    host = host or _own_address(told["address"])
    if running(runtime / "node.json"):
        raise ConflictError(
            f"Node {name} runs on this machine already; 'aios node leave {name}' ends it."
        )
    nodes.take(bundle, runtime / "tls")
    write(runtime / "broker.json", {"address": told["address"]})
    (runtime / "node.json").unlink(missing_ok=True)
    return [
        *(sys.executable, "-m", "aios_jupyter.node.agent", "--name", name),
        *("--runtime", str(runtime), "--state", str(state)),
        *("--host", host, "--simulate-gpus", str(simulate_gpus)),
        *("--accounts", accounts),
    ]


def forget(name: str) -> None:
    """Remove the keys of a node that has ended, wherever it was; its runs' logs stay."""
    shutil.rmtree(_root() / name, ignore_errors=True)


def leave(name: str = "", timeout: float = 30.0) -> dict[str, Any]:
    """End a node's agent on this machine, with its ranks; default: the only one.

    Raises
    ------
    NotFoundError
        There is none.
    """
    found = {row["node"]: row for row in local()}
    if not name and len(found) > 1:
        raise UsageError(f"Several nodes run here ({', '.join(sorted(found))}); name one.")
    row = next(iter(found.values()), None) if not name else found.get(name)
    if row is None:
        which = f"No node {name!r} has" if name else "This machine has not"
        raise NotFoundError(f"{which} joined a cluster; see 'aios node join'.")
    runtime, _ = _places(row["node"])
    children = list((read(runtime / "children.json") or {}).get("processes", []))
    if not end([row], signal.SIGTERM, timeout) or not end(children, signal.SIGKILL, timeout):
        end([row, *children], signal.SIGKILL, timeout)
    forget(row["node"])
    return row


def local() -> list[dict[str, Any]]:
    """The nodes that run on this machine by `join`: node, address, pid, start."""
    files = sorted(_root().glob("*/node.json"))
    return [facts for path in files if (facts := running(path))]


def _root() -> Path:
    return private(settings().runtime_dir / "nodes")


def _places(name: str) -> tuple[Path, Path]:
    return private(_root() / name), private(settings().state_dir / "nodes" / name)


def _own_address(broker: str) -> str:
    """The address of this machine on the way to the broker; nothing is sent."""
    host, _, port = broker.rpartition(":")
    try:
        return reach.toward(host.strip("[]"), int(port))
    except OSError as error:
        raise ClusterError(
            f"There is no way from here to the broker at {broker} ({error.strerror}); start "
            "the cluster with 'aios up --host ADDRESS' at an address that this machine reaches."
        ) from None
