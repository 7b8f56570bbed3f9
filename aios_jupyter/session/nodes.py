"""The machines of a cluster: `node_add`, `node_start`, `node_stop`, …; `join_node`, `leave_node`."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..broker.messages import UserChange
from ..cluster import bundle, jobs, joined, nodes, slurm
from ..errors import NotFoundError, UsageError
from ..units import parse_duration, parse_size
from .link import Link

# The broker looks for jobs that were asked for once a second.
KNOWN_TIMEOUT = 10.0


class NodeVerbs(Link):
    """A session that says which machines belong to the cluster."""

    def node_add(
        self,
        name: str,
        to: str | Path | None = None,
        *,
        data: bool = False,
        days: float = 3650.0,
    ) -> dict[str, Any]:
        """Let a machine join as the node `name`: writes a bundle for `join_node` there.

        Parameters
        ----------
        to
            Directory of the bundle (default: `aios-node-NAME` here). Its key is a secret.
        data
            The node does data tasks, too. It has to see the same files as this machine.
        days
            How long it is valid.

        Raises
        ------
        ConflictError
            There is such a node, or a bundle.
        AccessError
            The cluster is somebody else's.
        """
        directory = Path(to or f"aios-node-{name}").expanduser().absolute()
        row = nodes.add(name, directory, taken=self._taken(), data=data, days=days)
        self._call("user.changed", UserChange(what="added", name=name, role="node"))
        return {**row, "state": "active", "bundle": str(directory)}

    def _taken(self) -> frozenset[str]:
        up = [node["id"] for node in self.status()["nodes"].values() if node["state"] == "up"]
        return frozenset(up)

    def node_start(
        self,
        on: str,
        *,
        nodes: int = 1,
        gpus: int = 0,
        cpus: int = 0,
        memory: str | float = 0,
        time: str | float | None = None,
        partition: str = "",
        account: str = "",
        options: Sequence[str] = (),
        simulate_gpus: int = 0,
    ) -> dict[str, Any]:
        """Have machines from elsewhere join as nodes, for as long as they are lent.

        Parameters
        ----------
        on
            `slurm`: one job, each of whose machines is a node until it ends.
        nodes
            How many machines.
        gpus
            Of all of them together, the same number on each.
        cpus, memory
            Cores of each machine, and its memory (`64GB`); by default what the partition gives.
        time
            How long (`8h`); by default the partition's limit.
        partition, account, options
            As for `sbatch`; `options` are more of its own, like `["--qos=high"]`.
        simulate_gpus
            Each offers so many simulated GPUs, where it has no real ones.

        Returns
        -------
        dict
            `id` of the job, its `nodes`, `state` and, in a sentence, `note`.

        Raises
        ------
        AllocationError
            Slurm refuses the job.
        ClusterError
            There is no Slurm here, or its machines do not reach the cluster.
        """
        check_place(on)
        wish = slurm.Wish(
            nodes=nodes,
            gpus=gpus,
            cpus=cpus,
            memory=int(parse_size(memory)) if memory else 0,
            time=None if time is None else parse_duration(time),
            partition=partition,
            account=account,
            options=tuple(options),
        )
        asked = jobs.start(wish, taken=self._taken(), simulate_gpus=simulate_gpus)
        for node in asked.nodes:
            self._call("user.changed", UserChange(what="asked for", name=node, role="node"))
        self._wait_until_known(asked.nodes)
        return _row(asked)

    def _wait_until_known(self, names: Sequence[str]) -> None:
        """Wait until the broker waits for these nodes, so that who asks now waits for them too."""
        deadline = clock.monotonic() + KNOWN_TIMEOUT
        while not set(names) <= self.status()["nodes"].keys() and clock.monotonic() < deadline:
            clock.sleep(0.05)

    def node_stop(self, name: str) -> dict[str, Any]:
        """End what `node_start` has started: a Slurm job, by its number or one of its nodes.

        Raises
        ------
        NotFoundError
            There is none of that name.
        """
        asked = jobs.find(name)
        if asked is None:
            raise NotFoundError(f"Nothing called {name!r} was started here; see 'aios node ls'.")
        stopped = jobs.stop(asked)
        for node in asked.nodes:
            self._call("user.changed", UserChange(what="stopped", name=node, role="node"))
        return _row(stopped)

    def node_list(self) -> list[dict[str, Any]]:
        """The cluster's nodes: `id`, `host`, `address`, `state`, `cpus`, `devices`, `free`.

        State is `up`, `lost`, or of those that `node_start` has asked for `waiting` or `ended`; `note`
        then says why.
        """
        status = self.status()
        rows = []
        for node in status["nodes"].values():
            own = [d for d in status["devices"].values() if d["node"] == node["id"]]
            free = [d for d in own if not d["holder"] and not d["outside"]]
            up = node["state"] == "up"
            rows.append({**node, "devices": len(own), "free": len(free) if up else 0})
        return rows

    def node_revoke(self, name: str) -> dict[str, Any]:
        """Take a node's access away: its agent ends now, and its ranks with it.

        Raises
        ------
        NotFoundError
            No node of that name has a bundle.
        """
        row = nodes.revoke(name)
        self._call("user.changed", UserChange(what="revoked", name=name, role="node"))
        return row


def _row(asked: jobs.Asked) -> dict[str, Any]:
    return {**asdict(asked), "nodes": list(asked.nodes)}


def check_place(on: str) -> None:
    """Refuse what is no place from which nodes come.

    Raises
    ------
    UsageError
        It is none.
    """
    if on != "slurm":
        raise UsageError(f"Nodes cannot be started on {on!r}; give 'slurm'.")


def join_node(directory: str | Path, *, host: str = "", simulate_gpus: int = 0) -> dict[str, Any]:
    """Make this machine a node of the cluster that has made the bundle in `directory`.

    Parameters
    ----------
    host
        Its address for other nodes and people; by default that from which the broker is reached.
    simulate_gpus
        Offer so many simulated GPUs.

    Returns
    -------
    dict
        `node`, `address`, `pid`.

    Raises
    ------
    ConflictError
        It has joined already.
    ClusterError
        The bundle is not whole, or the broker cannot be reached or does not let the node in.
    """
    if bundle.current() == Path(directory).expanduser():
        raise UsageError("AIOS_BUNDLE names a person's bundle; a node has one of its own.")
    return joined.join(
        Path(directory).expanduser().absolute(), host=host, simulate_gpus=simulate_gpus
    )


def leave_node(name: str = "") -> dict[str, Any]:
    """End a node that has joined on this machine (default: the only one), with its ranks.

    Raises
    ------
    NotFoundError
        There is none.
    """
    return joined.leave(name)
