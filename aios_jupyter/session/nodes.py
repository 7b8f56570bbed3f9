"""`node_add`, `node_list`, `node_revoke`: the machines of a cluster; `join_node`, `leave_node`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..broker.messages import UserChange
from ..cluster import bundle, joined, nodes
from ..errors import UsageError
from .link import Link


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
        nodes_up = [n["id"] for n in self.status()["nodes"].values() if n["state"] == "up"]
        row = nodes.add(name, directory, taken=frozenset(nodes_up), data=data, days=days)
        self._call("user.changed", UserChange(what="added", name=name, role="node"))
        return {**row, "state": "active", "bundle": str(directory)}

    def node_list(self) -> list[dict[str, Any]]:
        """The cluster's nodes: `id`, `host`, `address`, `state`, `cpus`, `devices`, `free`."""
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


def join_node(
    directory: str | Path, *, host: str = "", simulate_gpus: int = 0, accounts: str = ""
) -> dict[str, Any]:
    """Make this machine a node of the cluster that has made the bundle in `directory`.

    Parameters
    ----------
    host
        Its address for other nodes and people; by default that from which the broker is reached.
    simulate_gpus
        Offer so many simulated GPUs.
    accounts
        Where root calls: `names` or a JSON file, so that people's code runs in their own accounts.

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
        Path(directory).expanduser().absolute(),
        host=host,
        simulate_gpus=simulate_gpus,
        accounts=accounts,
    )


def leave_node(name: str = "") -> dict[str, Any]:
    """End a node that has joined on this machine (default: the only one), with its ranks.

    Raises
    ------
    NotFoundError
        There is none.
    """
    return joined.leave(name)
