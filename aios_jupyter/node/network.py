"""Ports and interfaces of this machine."""

from __future__ import annotations

import functools
import socket

from ..config import IS_LINUX


@functools.cache
def interface_of(host: str) -> str:
    """The name of the interface with that address; "" where none has it."""
    if host.startswith("127."):  # all of which are there, while one is listed
        return "lo" if IS_LINUX else "lo0"
    import psutil

    found = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(each.address.partition("%")[0] == host for each in addresses)
    )
    return next(found, "")


def bind_port(host: str) -> tuple[socket.socket, int]:
    """Listen on a free port of `host`; rank 0 inherits the socket, so nobody else can take it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((host, 0))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener, int(listener.getsockname()[1])
