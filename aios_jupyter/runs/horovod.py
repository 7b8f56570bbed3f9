"""What a rank does for Horovod: a place where its ranks meet, and its environment.

`horovodrun` keeps a store for that in a process of its own, which is reached from everywhere. Here it
is a thread of rank 0, so that it ends with the run, whoever is killed; it listens before anybody
hears of it, and only where the ranks reach each other. Horovod itself is imported by the user's code.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import peers

if TYPE_CHECKING:
    from .rank import Orders

MISSING = (
    "Horovod is not installed for {python}; 'make horovod' in a clone of this repository builds it for "
    "today's torch and puts it into .venv-horovod, and its wheel into build/horovod for other "
    "environments with the same torch."
)
LONGEST_VALUE = 1024 * 1024
_SILENCE = 5.0

_store: Store | None = None


def check(python: str = sys.executable) -> None:
    """Whether this interpreter has Horovod.

    Raises
    ------
    UsageError
        It has not; says what brings it.
    """
    if importlib.util.find_spec("horovod") is None:
        raise UsageError(MISSING.format(python=python))


def prepare(orders: Orders) -> None:
    """Have all ranks know where they meet; `hvd.init()` in the user's code then finds them.

    Raises
    ------
    UsageError
        Horovod is not here.
    ClusterError
        Not all ranks have come.
    """
    global _store  # noqa: PLW0603  # one process is one rank
    check()
    rank, address = orders.rank.rank, orders.rendezvous.address
    # A rank that is alone on its device, as on a MIG slice, is a machine of its own.
    node = os.environ["GROUP_RANK"]
    port = 0
    if rank == 0:
        _store = Store(address)
        port = _store.port
    own = address

    def tell(host: str) -> str:
        nonlocal own
        own = host
        return f"{node} {port}"

    told = [text.split() for text in peers.exchange(orders, tell)]
    os.environ.update(environment([name for name, _ in told], rank))
    os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = address
    os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"] = told[0][1]
    if interface := interface_of(own):
        # Else Gloo looks up this machine's name, which need not resolve.
        os.environ.setdefault("HOROVOD_GLOO_IFACE", interface)


def environment(nodes: Sequence[str], rank: int) -> dict[str, str]:
    """Which rank this is, for Horovod; `nodes` names the node of each rank.

    The cross ranks are those with the same local rank, one on each node that has as many.
    """
    own = nodes[rank]
    local = nodes[:rank].count(own)
    across = [node for node in dict.fromkeys(nodes) if nodes.count(node) > local]
    numbers = {
        "RANK": rank,
        "SIZE": len(nodes),
        "LOCAL_RANK": local,
        "LOCAL_SIZE": nodes.count(own),
        "CROSS_RANK": across.index(own),
        "CROSS_SIZE": len(across),
        "HOSTNAME": f"node-{own}",
        "CONTROLLER": "gloo",
        "CPU_OPERATIONS": "gloo",
    }
    return {f"HOROVOD_{name}": str(value) for name, value in numbers.items()}


def interface_of(address: str) -> str:
    """The network interface that has an address; "" when there is none."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return str(name)
    return ""


# --- the store


class Store(socketserver.ThreadingTCPServer):
    """What Horovod's ranks leave for each other, over HTTP: PUT, GET and DELETE of /scope/key."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.values: dict[str, bytes] = {}
        super().__init__((address, 0), _Request)
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, name="aios-horovod", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A stranger's mistake; Horovod tries again."""


class _Request(BaseHTTPRequestHandler):
    server: Store
    timeout = _SILENCE

    def do_GET(self) -> None:
        value = self.server.values.get(self.path)
        self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if size > LONGEST_VALUE:
            self._answer(413)
            return
        self.server.values[self.path] = self.rfile.read(size)
        self._answer(200)

    def do_DELETE(self) -> None:
        """All ranks have met in this scope, and one needs it no more: the next time it is new."""
        scope, _, rank = self.path.rpartition("/")
        for key in (f"{scope}/{rank}", f"{scope}/rank_{rank}"):
            self.server.values.pop(key, None)
        self._answer(200)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
        """Not into the rank's output."""


# --- what `train` needs of it


def joined() -> Any:
    """Horovod's module for the framework in use, once `hvd.init()` was called; else None."""
    for name in ("horovod.torch", "horovod.tensorflow"):
        module = sys.modules.get(name)
        if module is not None and module.is_initialized():
            return module
    return None


@contextlib.contextmanager
def plain(optimizer: Any) -> Iterator[None]:
    """While this lasts, a `DistributedOptimizer` is the optimizer that it was made of.

    Torch's checkpoints have a new one make a step, in which Horovod's would wait for the other ranks.
    """
    wrapped = type(optimizer)
    if not hasattr(optimizer, "skip_synchronize"):
        yield
        return
    optimizer.__class__ = wrapped.__bases__[0]
    try:
        yield
    finally:
        optimizer.__class__ = wrapped
