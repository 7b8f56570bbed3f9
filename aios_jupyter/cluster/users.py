"""Who may use the embedded cluster besides its owner: bundles, their list, and revocation.

Signing needs the authority's key, so that this works on the machine and in the account that started
the cluster. `users.json` in the TLS directory says who has had a bundle; `revoked.json` beside it
has the serial numbers that broker and agents refuse (`tls.Revoked`).
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from ..errors import AccessError, ConflictError, NoClusterError, NotFoundError, UsageError
from ..tls import Revoked, facts, issue
from . import bundle, embedded
from .processes import read_list, write

ROLES = ("user", "admin", "viewer")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# Who the broker and the agents themselves are, and what its own words call others.
RESERVED = frozenset({"broker", "node", "dask", "authority"})
LONGEST_DAYS = 3650.0


def add(name: str, role: str, to: Path, *, days: float = 365.0) -> dict[str, Any]:
    """Sign a certificate for a person and write their bundle.

    Returns
    -------
    dict
        Name, role, serial, added and expires (epoch seconds).

    Raises
    ------
    UsageError
        The name, role or number of days makes no sense.
    ConflictError
        That name has access already, or there is a bundle in `to`.
    """
    if not NAME.fullmatch(name) or name.lower() in RESERVED:
        raise UsageError(
            f"{name[:80]!r} cannot be a user's name; use letters, digits, '.', '_', '-' and '@', "
            f"and none of {', '.join(sorted(RESERVED))}."
        )
    if role not in ROLES:
        raise UsageError(f"{role!r} is not a role; give one of {', '.join(ROLES)}.")
    if not 0 < days <= LONGEST_DAYS:
        raise UsageError(f"{days:g} is not a number of days up to {LONGEST_DAYS:.0f}.")
    tls = tls_directory()
    with embedded.lock(tls / "lock"):
        live = {row["name"] for row in _rows(tls) if row["state"] in ("owner", "active")}
        if name in live:
            raise ConflictError(f"{name} has access already; 'aios user revoke {name}' ends it.")
        if any((to / file).exists() for file in bundle.FILES):
            raise ConflictError(f"There is a bundle in {to} already; give another directory.")
        facts_of_broker = embedded.ensure(start=False)
        to.mkdir(parents=True, exist_ok=True, mode=0o700)
        serial = issue(tls, "user", name, role, to=to, days=days)
        (to / "ca.pem").write_bytes((tls / "ca.pem").read_bytes())
        added = time.time()
        row = {
            "name": name,
            "role": role,
            "serial": f"{serial:X}",
            "added": added,
            "expires": added + days * 86400,
        }
        write(to / "connection.json", {"address": facts_of_broker["address"], **row})
        write(tls / "users.json", [*read_list(tls / "users.json"), row])
    return row


def rows() -> list[dict[str, Any]]:
    """Everybody who has or had access: name, role, added, expires, state, serial.

    State is `owner`, `active`, `expired` or `revoked`.
    """
    return _rows(tls_directory())


def revoke(name: str) -> dict[str, Any]:
    """Take somebody's access away; broker and agents notice by themselves.

    Raises
    ------
    NotFoundError
        Nobody of that name has access.
    AccessError
        It is the owner.
    """
    tls = tls_directory()
    with embedded.lock(tls / "lock"):
        found = [row for row in _rows(tls) if row["name"] == name]
        if any(row["state"] == "owner" for row in found):
            raise AccessError(f"{name} owns this cluster; 'aios down' stops it for everybody.")
        live = [row for row in found if row["state"] != "revoked"]
        if not live:
            raise NotFoundError(f"Nobody called {name!r} has access; 'aios user ls' lists who has.")
        serials = [row["serial"] for row in live]
        write(tls / Revoked.FILE, [*read_list(tls / Revoked.FILE), *serials])
    return {**live[-1], "state": "revoked"}


def _rows(tls: Path) -> list[dict[str, Any]]:
    owner, role, serial, expires = facts(tls / "user.pem")
    added = (tls / "user.pem").stat().st_mtime
    revoked = Revoked(tls).serials()
    found = [
        {
            "name": owner,
            "role": role,
            "serial": f"{serial:X}",
            "added": added,
            "expires": expires,
            "state": "owner",
        }
    ]
    for row in read_list(tls / "users.json"):
        state = "expired" if row["expires"] < time.time() else "active"
        if int(row["serial"], 16) in revoked:
            state = "revoked"
        found.append({**row, "state": state})
    return found


def tls_directory() -> Path:
    """The TLS directory of this user's own cluster.

    Raises
    ------
    AccessError
        The cluster in use is somebody else's.
    NoClusterError
        There is none yet.
    """
    if bundle.current():
        raise AccessError(
            "AIOS_BUNDLE is set, and the cluster that it names has another owner; ask them, or "
            "unset it to manage your own cluster's users."
        )
    tls = embedded.Paths.current().tls
    if not (tls / "user.pem").exists():
        raise NoClusterError("There is no cluster yet; start one with: aios up")
    return tls
