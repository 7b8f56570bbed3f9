"""A person's way into a cluster that somebody else started: the directory that `aios user add` made.

    ca.pem            the cluster's authority
    user.pem          who this person is
    user.key          mode 0600
    connection.json   the broker's address, and the person's name and role for people to read

`AIOS_BUNDLE=DIR` has every verb use it in place of a cluster of one's own. Under a JupyterHub
`AIOS_BUNDLE=/srv/aios/{username}` is a bundle for each of its users.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from ..config import settings
from ..errors import ClusterError
from ..tls import Bundle, facts

FILES = ("ca.pem", "user.pem", "user.key", "connection.json")
USERNAME = "{username}"
# A hub's user becomes a directory's name: nothing leads out of the one that has the bundles.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,127}")
ANEW = "ask for a new one, made with 'aios user add'"


def current() -> Path | None:
    """The bundle that the settings name, None for a cluster of one's own.

    `{username}` in it is the hub's user, so that one setting of a JupyterHub serves everybody.

    Raises
    ------
    ClusterError
        There is no such user here.
    """
    named = settings().bundle
    if USERNAME in named:
        user = os.environ.get("JUPYTERHUB_USER", "")
        if not NAME.fullmatch(user):
            raise ClusterError(
                f"AIOS_BUNDLE is {named}, but JUPYTERHUB_USER is {user!r}; start this from the hub."
            )
        named = named.replace(USERNAME, user)
    return Path(named).expanduser() if named else None


def load(directory: Path) -> tuple[str, Bundle]:
    """The broker's address and the certificates in a bundle.

    Raises
    ------
    ClusterError
        A file is missing or does not read, the certificate is over, or the key is not private.
    """
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise ClusterError(f"The bundle {directory} (AIOS_BUNDLE) has no {missing[0]}; {ANEW}.")
    key = directory / "user.key"
    if key.stat().st_mode & 0o077:
        raise ClusterError(f"Others can read the key {key}; make it private with: chmod 600 {key}")
    try:
        address = str(_connection(directory)["address"])
        *_, ends = facts(directory / "user.pem")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"The bundle {directory} cannot be read ({error}); {ANEW}.") from None
    if ends < time.time():
        day = time.strftime("%Y-%m-%d", time.localtime(ends))
        raise ClusterError(f"The certificate in the bundle {directory} ended on {day}; {ANEW}.")
    return address, Bundle.of(directory, "user")


def _connection(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "connection.json").read_text()))
