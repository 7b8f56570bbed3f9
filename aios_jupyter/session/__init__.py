"""The verbs as a Python API: `aios_jupyter.connect() -> Session`.

A session is one kernel, script or shell. Its leases end with it. The magics, the command line and
the Jupyter server call this and nothing below it. Heavy libraries are imported by the verb that
needs them.

link      the connection
leases    who holds what
queues    who may have how much
runs      code on leased devices
batch     notebooks for many parameters
assets    datasets
tables    SQL over datasets, preparation, small shared values
models    models
endpoints models being served
trying    what an endpoint says to what somebody fills in
forecasts how many devices keep waits short
users     who has access, and who did what
nodes     which machines belong to it
"""

from __future__ import annotations

from typing import Any

from ..cluster import bundle, embedded
from ..errors import AccessError, ClusterError
from ..runs.handle import RunHandle, RunResult
from ..runs.tunnel import forwarded
from ..schema import Lease
from .batch import BatchResult, BatchVerbs
from .endpoints import Endpoint
from .forecasts import ForecastVerbs
from .link import observe
from .nodes import NodeVerbs, end_started, join_node, join_node_by, leave_node, listen
from .queues import QueueVerbs
from .tables import TableVerbs
from .trying import TryingVerbs
from .users import UserVerbs


class Session(TryingVerbs, TableVerbs, QueueVerbs, UserVerbs, NodeVerbs, ForecastVerbs, BatchVerbs):
    """One owner of leases, with every verb. Made by `connect`; a context manager."""


def connect(
    *,
    start: bool = True,
    simulate_gpus: int | None = None,
    label: str = "",
    shell: bool = False,
    passive: bool = False,
) -> Session:
    """Open a session with this user's cluster, which is started when there is none.

    With `AIOS_BUNDLE` it is the cluster that has made this bundle, and nothing is started.

    Parameters
    ----------
    start
        When False, raise NoClusterError rather than start a cluster.
    simulate_gpus
        For a new cluster: offer so many simulated GPUs.
    label
        What people see as the owner.
    shell
        Leases belong to the calling shell (the parent process) and outlive this process.
    passive
        This session only looks on.

    Raises
    ------
    ClusterError
        It does not start or answer, or the bundle is not whole, expired or refused.
    """
    return Session(
        start=start, simulate_gpus=simulate_gpus, label=label, shell=shell, passive=passive
    )


def up(
    on: str = "",
    *,
    host: str | None = None,
    simulate_gpus: int | None = None,
    accounts: str | None = None,
    from_snapshot: bool = False,
    **wish: Any,
) -> dict[str, Any] | None:
    """Start this user's cluster, or find the one that runs.

    Parameters
    ----------
    on
        Where more nodes come from: `slurm`, or `ssh:HOST,HOST`. `wish` is then what
        `Session.node_start` takes, and a new cluster listens where they reach it.
    host
        Listen at this address of the machine, for nodes and people elsewhere.
    simulate_gpus
        Offer so many simulated GPUs, on this machine or with `on` on each of those that join.
    accounts
        Where root calls: the rule by which people's code runs in their own accounts on this machine,
        `names` or a JSON file.
    from_snapshot
        Go on from the last snapshot of a journal that is refused as damaged.

    Returns
    -------
    dict
        With `on` what `Session.node_start` returns.

    Raises
    ------
    ClusterError
        It does not start, or another one runs.
    """
    _own("start")
    if not on:
        embedded.ensure(
            simulate_gpus=simulate_gpus, from_snapshot=from_snapshot, host=host, accounts=accounts
        )
        return None
    if from_snapshot:
        embedded.ensure(from_snapshot=True, host=host, accounts=accounts)
    listen(on, wish.get("partition", ""), host, accounts)
    with connect() as session:
        return session.node_start(on, simulate_gpus=simulate_gpus or 0, **wish)


def down() -> list[int]:
    """Stop this user's cluster with every process it started; returns pids that were ended."""
    if forwarded():
        raise AccessError(
            "This kernel runs on another node; stop the cluster from a notebook or shell of your own "
            "machine."
        )
    _own("stop")
    try:
        return embedded.down()
    finally:
        if left := end_started():
            raise ClusterError(" ".join(left))


def _own(what: str) -> None:
    if bundle.current():
        raise AccessError(
            "AIOS_BUNDLE is set, and the cluster that it names has another owner; unset it to "
            f"{what} your own."
        )


__all__ = [
    "BatchResult",
    "Endpoint",
    "Lease",
    "RunHandle",
    "RunResult",
    "Session",
    "connect",
    "down",
    "join_node",
    "join_node_by",
    "leave_node",
    "observe",
    "up",
]
