"""The machines of a cluster: `node_add`, `node_start`, `node_stop`, …; `join_node`, `leave_node`."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..broker.messages import UserChange
from ..cluster import bundle, embedded, jobs, joined, nodes, remote, slurm, users
from ..cluster.processes import read
from ..errors import ClusterError, NotFoundError, UsageError
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
        python: str = "",
        simulate_gpus: int = 0,
    ) -> dict[str, Any]:
        """Have machines from elsewhere join as nodes.

        Parameters
        ----------
        on
            `slurm`: one job, each of whose machines is a node until it ends. `ssh:gpu1,ana@gpu2`:
            machines that ssh reaches by its own configuration, each with all that it has.
        nodes
            How many machines of Slurm.
        gpus
            Of all of them together, the same number on each.
        cpus, memory
            Cores of each machine, and its memory (`64GB`); by default what the partition gives.
        time
            How long (`8h`); by default the partition's limit.
        partition, account, options
            As for `sbatch`; `options` are more of its own, like `["--qos=high"]`.
        python
            By ssh: the Python there that has AIOS, where it is not the first that is found.
        simulate_gpus
            Each offers so many simulated GPUs, where it has no real ones.

        Returns
        -------
        dict
            `nodes`, `state` and, in a sentence, `note`; `id` of a job.

        Raises
        ------
        AllocationError
            Slurm refuses the job.
        AccessError
            The cluster is somebody else's.
        ClusterError
            There is no Slurm or ssh here, its machines do not reach the cluster, or do not join.
        """
        users.tls_directory()
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
        if (read(embedded.Paths.current().connection) or {}).get("accounts"):
            raise ClusterError(
                "This cluster runs people's code in their own accounts, and nodes that are started so "
                "would not; have them join with 'aios node join BUNDLE --accounts RULE'."
            )
        if check_place(on) == "slurm":
            if python:
                raise UsageError("Slurm's machines use the Python of this one; leave out --python.")
            asked = jobs.start(wish, taken=self._taken(), simulate_gpus=simulate_gpus)
            row = _row(asked)
            self._note("asked for", row["nodes"])
        else:
            if wish != slurm.Wish():
                raise UsageError(
                    "A machine that ssh reaches offers all that it has, until it is stopped; leave "
                    "out what is asked of Slurm."
                )
            row = self._start_by_ssh(on, python, simulate_gpus)
        self._wait_until_known(row["nodes"])
        return row

    def _note(self, what: str, names: Sequence[str]) -> None:
        """Have an audit record kept of what becomes of nodes."""
        for node in names:
            self._call("user.changed", UserChange(what=what, name=node, role="node"))

    def _start_by_ssh(self, on: str, python: str, simulate_gpus: int) -> dict[str, Any]:
        hosts = remote.hosts_of(on)
        self._note("asked for", [remote.name_of(host) for host in hosts])
        names = remote.start(hosts, up=self._taken(), python=python, simulate_gpus=simulate_gpus)
        note = f"{', '.join(names)} joined."
        return {"id": "", "nodes": names, "state": "running", "note": note}

    def node_stop(self, name: str) -> dict[str, Any]:
        """End what `node_start` has started: a Slurm job, by its number or one of its nodes.

        Raises
        ------
        NotFoundError
            There is none of that name.
        """
        users.tls_directory()
        if asked := jobs.find(name):
            row = _row(jobs.stop(asked))
        elif name in {row["node"] for row in remote.rows()}:
            remote.stop(name)
            row = {"id": "", "nodes": [name], "state": "over", "note": f"{name} has left."}
        else:
            raise NotFoundError(f"Nothing called {name!r} was started here; see 'aios node ls'.")
        # A job's nodes have Slurm's grace; who has left is gone.
        self._note("stopped" if row["id"] else "left", row["nodes"])
        return row

    def _wait_until_known(self, names: Sequence[str]) -> None:
        """Wait until the broker waits for these nodes, so that who asks now waits for them too."""
        deadline = clock.monotonic() + KNOWN_TIMEOUT
        while not set(names) <= self.status()["nodes"].keys() and clock.monotonic() < deadline:
            clock.sleep(0.05)

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


def check_place(on: str) -> str:
    """Where nodes come from: `slurm` or `ssh`.

    Raises
    ------
    UsageError
        It is no such place.
    """
    if on == "slurm":
        return on
    if on.startswith(remote.PLACE):
        remote.hosts_of(on)
        return "ssh"
    raise UsageError(f"Nodes cannot be started on {on!r}; give 'slurm' or 'ssh:HOST,HOST'.")


def listen(
    on: str, partition: str = "", host: str | None = None, accounts: str | None = None
) -> None:
    """Have a cluster that such machines reach: find the one that runs, or start one.

    The machine on which Slurm's jobs are handed in then offers no devices: it is shared by many.
    """
    if embedded.running(embedded.Paths.current().broker) and host is accounts is None:
        return
    if check_place(on) == "slurm":
        host = host or jobs.own_address(partition)
        embedded.ensure(host=host, accounts=accounts, bare=True)
    else:
        embedded.ensure(host=host or remote.own_address(remote.hosts_of(on)), accounts=accounts)


def join_node_by(
    text: str, *, host: str = "", simulate_gpus: int = 0, accounts: str = ""
) -> dict[str, Any]:
    """The same as `join_node` with a bundle that came over ssh as one text."""
    return joined.join_by(text, host=host, simulate_gpus=simulate_gpus, accounts=accounts)


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


def end_started() -> list[str]:
    """End all that `node_start` has started, as the cluster itself ends.

    Returns
    -------
    list
        A sentence for each job and machine on which something may go on.
    """
    return [*jobs.stop_all(), *remote.stop_all()]
