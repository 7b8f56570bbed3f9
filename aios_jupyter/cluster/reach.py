"""Whether other machines reach this one: its addresses on the way to them. Nothing is sent."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from ..errors import ClusterError


def toward(host: str, port: int = 9) -> str:
    """The address that this machine has for another.

    Raises
    ------
    OSError
        There is no way to it, or nobody knows its name.
    """
    (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def known(host: str) -> bool:
    """Whether there is a way to another machine."""
    try:
        toward(host)
    except OSError:
        return False
    return True


def own_address(hosts: Iterable[str], whose: str) -> str:
    """The address that this machine has for the first of others to which there is a way.

    Raises
    ------
    ClusterError
        There is a way to none; `whose` says what they are.
    """
    for host in dict.fromkeys(hosts):
        try:
            return toward(host)
        except OSError:
            continue
    raise ClusterError(
        f"None of {whose} can be found from here; give the address of this machine that they reach "
        "with --host ADDRESS."
    )


def check(broker: str, hosts: Iterable[str], whose: str) -> None:
    """Refuse a broker (`host:port`) that listens where others do not reach it.

    Raises
    ------
    ClusterError
        It is on loopback, and they are elsewhere.
    """
    host = broker.rpartition(":")[0].strip("[]")
    if not _loopback(host):
        return
    own = own_address(hosts, whose)
    if not _loopback(own):
        raise ClusterError(
            f"The cluster listens at {host}, where {whose} do not reach it; stop it with 'aios down' "
            f"and start it with 'aios up --host {own}'."
        )


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
