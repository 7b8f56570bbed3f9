"""What every rank has to know of each before the user's code runs, as the addresses in TF_CONFIG.

Each rank tells rank 0, which tells everybody all of it, over the socket that the agent has bound for
the run's rendezvous. Every attempt of a run has a socket of its own, so that ranks of different
attempts never meet.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import IS_LINUX
from ..errors import ClusterError

if TYPE_CHECKING:
    from .rank import Orders

MEET_TIMEOUT = 120.0
RETRY_INTERVAL = 0.05
# A stranger that connects and says nothing keeps the ranks waiting for so long.
HELLO_TIMEOUT = 2.0
LONGEST_LINE = 64 * 1024


def meet(orders: Orders) -> tuple[str, ...]:
    """Take a port and learn those of all ranks: `host:port` of each, in order.

    Raises
    ------
    ClusterError
        Not all ranks have come within `MEET_TIMEOUT` seconds.
    """
    port = reserve_port(orders.rendezvous.address)
    return exchange(orders, lambda host: f"{_bracketed(host)}:{port}")


def exchange(orders: Orders, tell: Callable[[str], str]) -> tuple[str, ...]:
    """What each rank tells, in order; `tell` gets the address at which the others reach this one.

    Raises
    ------
    ClusterError
        Not all ranks have come within `MEET_TIMEOUT` seconds.
    """
    rank, world, there = orders.rank.rank, orders.spec.world_size, orders.rendezvous
    deadline = time.monotonic() + MEET_TIMEOUT
    if world == 1:
        return (tell(there.address),)
    if rank == 0:
        with socket.socket(fileno=os.dup(orders.listen_fd)) as listener:
            return _gather(listener, orders, tell(there.address), deadline)
    with _reach(there.address, there.port, deadline) as connection:
        told = tell(connection.getsockname()[0])
        hello = {"run": orders.spec.id, "rank": rank, "peer": told}
        connection.sendall(json.dumps(hello).encode() + b"\n")
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        everybodys = _line(connection)
    if not isinstance(everybodys, list) or len(everybodys) != world:
        raise _missing(world)
    return tuple(everybodys)


def tf_config(peers: tuple[str, ...], rank: int) -> str:
    """The value of TF_CONFIG for a rank."""
    task = {"type": "worker", "index": rank}
    return json.dumps({"cluster": {"worker": list(peers)}, "task": task})


def reserve_port(host: str) -> int:
    """A free port that nobody else gets, and that a server of this process can listen on.

    On Linux the port stays bound, without listening, while this process lives: then the kernel gives
    it to nobody, and a server that sets SO_REUSEADDR (gRPC's does) still binds it. Elsewhere a
    connection to itself leaves it in TIME_WAIT, which keeps it for a while.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    port = int(held.getsockname()[1])
    if IS_LINUX:
        # Nobody closes it.
        held.detach()
        return port
    with held, socket.socket(family, socket.SOCK_STREAM) as connection:
        held.listen(1)
        connection.connect((host, port))
        held.accept()[0].close()
    return port


def _gather(listener: socket.socket, orders: Orders, own: str, deadline: float) -> tuple[str, ...]:
    world = orders.spec.world_size
    peers: dict[int, str] = {0: own}
    waiting: list[socket.socket] = []
    try:
        while len(peers) < world:
            listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise _missing(world) from None
            connection.settimeout(HELLO_TIMEOUT)
            hello = _line(connection)
            if not _fits(hello, orders, peers):
                connection.close()
                continue
            peers[hello["rank"]] = hello["peer"]
            waiting.append(connection)
        result = tuple(peers[rank] for rank in range(world))
        for connection in waiting:
            connection.sendall(json.dumps(result).encode() + b"\n")
        return result
    finally:
        # The descriptor's flags are shared with the one that torch's store may take over.
        listener.setblocking(True)
        for connection in waiting:
            connection.close()


def _fits(hello: Any, orders: Orders, peers: dict[int, str]) -> bool:
    """Whether this comes from a rank of the run, and not from a port scan."""
    return (
        isinstance(hello, dict)
        and hello.get("run") == orders.spec.id
        and isinstance(hello.get("rank"), int)
        and 0 < hello["rank"] < orders.spec.world_size
        and hello["rank"] not in peers
        and isinstance(hello.get("peer"), str)
    )


def _reach(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=HELLO_TIMEOUT)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Rank 0 cannot be reached at {host}:{port} ({error}); the ranks' nodes have to "
                    "reach each other over TCP."
                ) from error
        time.sleep(RETRY_INTERVAL)


def _line(connection: socket.socket) -> Any:
    """What the other end says in one line of JSON; None when it says something else."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < LONGEST_LINE:
            part = connection.recv(4096)
            if not part:
                return None
            data += part
        return json.loads(data)
    except (OSError, ValueError):
        return None


def _missing(world: int) -> ClusterError:
    return ClusterError(
        f"Not all of the {world} ranks have come within {MEET_TIMEOUT:g} s; see their logs."
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
