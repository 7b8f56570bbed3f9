"""Which machines may join the embedded cluster as nodes: bundles, their list, and revocation.

    ca.pem, node.pem, node.key   the cluster's authority, and who this node is
    dask/                        what opens Dask's ports, for a node that does data tasks too
    connection.json              the broker's address, the node's name

A node's certificate is for its name alone: it can pass for no other one. `nodes.json` in the TLS
directory says who has had a bundle.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from ..errors import AccessError, ClusterError, ConflictError, NotFoundError, UsageError
from ..tls import Bundle, Revoked, facts, issue
from . import embedded
from .processes import lock, read, read_list, write
from .users import LONGEST_DAYS, NAME, RESERVED, tls_directory

FILES = ("ca.pem", "node.pem", "node.key", "connection.json")
LIST = "nodes.json"
ANEW = "make a new one with 'aios node add'"


def add(
    name: str, to: Path, *, taken: frozenset[str], data: bool = False, days: float = 3650.0
) -> dict[str, Any]:
    """Sign a certificate for a node and write its bundle.

    Parameters
    ----------
    taken
        Names of the nodes that the cluster has.
    data
        It may do data tasks, too: it has to see the same files as this machine.

    Raises
    ------
    UsageError
        The name or number of days makes no sense.
    ConflictError
        There is a node of that name, or a bundle in `to`.
    """
    if not NAME.fullmatch(name) or name.lower() in RESERVED:
        raise UsageError(
            f"{name[:80]!r} cannot be a node's name; use letters, digits, '.', '_' and '-'."
        )
    if not 0 < days <= LONGEST_DAYS:
        raise UsageError(f"{days:g} is not a number of days up to {LONGEST_DAYS:.0f}.")
    tls = tls_directory()
    with lock(tls / "lock"):
        live = {row["name"] for row in _rows(tls) if row["state"] == "active"}
        if name in live | taken:
            raise ConflictError(
                f"There is a node {name} already; give another name, or take its access away with "
                f"'aios node revoke {name}'."
            )
        if any((to / file).exists() for file in FILES):
            raise ConflictError(f"There is a bundle in {to} already; give another directory.")
        address = embedded.ensure(start=False)["address"]
        to.mkdir(parents=True, exist_ok=True, mode=0o700)
        serial = issue(tls, "node", name, "node", to=to, days=days)
        (to / "ca.pem").write_bytes((tls / "ca.pem").read_bytes())
        if data:
            _copy_dask(tls, to)
        added = time.time()
        row = {
            "name": name,
            "serial": f"{serial:X}",
            "added": added,
            "expires": added + days * 86400,
            "data": data,
        }
        write(to / "connection.json", {"address": address, **row})
        write(tls / LIST, [*read_list(tls / LIST), row])
    return row


def rows() -> list[dict[str, Any]]:
    """Every node that has or had a bundle: name, added, expires, data, state, serial.

    State is `active`, `expired` or `revoked`.
    """
    return _rows(tls_directory())


def revoke(*names: str) -> dict[str, Any]:
    """Take nodes' access away; the broker notices by itself. Returns the last one's row.

    Raises
    ------
    NotFoundError
        No node of that name has a bundle.
    """
    tls = tls_directory()
    with lock(tls / "lock"):
        found = [row for row in _rows(tls) if row["name"] in names and row["state"] != "revoked"]
        if not found:
            raise NotFoundError(f"No node {names[0]!r} has a bundle; 'aios node ls' lists them.")
        serials = [row["serial"] for row in found]
        write(tls / Revoked.FILE, [*read_list(tls / Revoked.FILE), *serials])
    return {**found[-1], "state": "revoked"}


def load(directory: Path) -> dict[str, Any]:
    """Check a bundle that was handed over; gives back its `name` and the broker's `address`.

    Raises
    ------
    ClusterError
        A file is missing or does not read, the certificate is over, or the key is not private.
    AccessError
        It is a person's.
    """
    if (directory / "user.pem").exists():
        raise AccessError(f"{directory} is a person's bundle, not a node's; {ANEW}.")
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise ClusterError(f"The node's bundle {directory} has no {missing[0]}; {ANEW}.")
    key = directory / "node.key"
    if key.stat().st_mode & 0o077:
        raise ClusterError(f"Others can read the key {key}; make it private with: chmod 600 {key}")
    try:
        name, role, _, ends = facts(directory / "node.pem")
        address = str((read(directory / "connection.json") or {})["address"])
    except (OSError, ValueError, KeyError) as error:
        raise ClusterError(
            f"The node's bundle {directory} cannot be read ({error}); {ANEW}."
        ) from None
    if role != "node":
        raise AccessError(f"The certificate in {directory} is not a node's; {ANEW}.")
    if ends < time.time():
        day = time.strftime("%Y-%m-%d", time.localtime(ends))
        raise ClusterError(f"The certificate in {directory} ended on {day}; {ANEW}.")
    return {"name": name, "address": address}


def pack(directory: Path) -> str:
    """A bundle as one text, for the way to another machine."""
    return json.dumps({file: (directory / file).read_text() for file in FILES})


def unpack(text: str, to: Path) -> None:
    """A bundle from what `pack` has made, private.

    Raises
    ------
    ClusterError
        It is none.
    """
    try:
        files = {file: str(json.loads(text)[file]) for file in FILES}
    except (ValueError, KeyError, TypeError):
        raise ClusterError(f"What came as standard input is no bundle of a node; {ANEW}.") from None
    to.mkdir(parents=True, mode=0o700)
    for file, content in files.items():
        (to / file).touch(mode=0o600)
        (to / file).write_text(content)


def take(directory: Path, to: Path) -> None:
    """Copy a bundle's certificates, private."""
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in ("ca.pem", "node.pem", "node.key"):
        _copy(directory / file, to / file)
    shutil.rmtree(to / "dask", ignore_errors=True)
    if (directory / "dask").is_dir():
        _copy_dask(directory, to)


def _copy_dask(source: Path, to: Path) -> None:
    (to / "dask").mkdir(mode=0o700)
    own, copied = Bundle.dask(source), Bundle.dask(to)
    for file, copy in (
        (own.authority, copied.authority),
        (own.certificate, copied.certificate),
        (own.key, copied.key),
    ):
        _copy(file, copy)


def _copy(source: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    to.touch(mode=0o600)
    to.write_bytes(source.read_bytes())


def _rows(tls: Path) -> list[dict[str, Any]]:
    revoked = Revoked(tls).serials()
    found = []
    for row in read_list(tls / LIST):
        state = "expired" if row["expires"] < time.time() else "active"
        if int(row["serial"], 16) in revoked:
            state = "revoked"
        found.append({**row, "state": state})
    return found
