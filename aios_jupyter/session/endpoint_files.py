"""What is kept of an endpoint on the machine of whoever started it: its token, and whom clients trust."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..config import private, settings
from ..errors import AccessError


def token_path(name: str) -> Path:
    """Where an endpoint's token is; its other files lie beside it."""
    # Whoever uses somebody else's cluster need not have one here.
    folder = private(settings().runtime_dir / settings().cluster)
    return folder / f"endpoint-{quote(name, safe='')}.token"


def token_of(row: dict[str, Any]) -> str:
    """The token of an endpoint, a row of `endpoints`.

    Raises
    ------
    AccessError
        It is not on this machine, or not for this user.
    """
    try:
        return Path(row["token_file"]).read_text().strip()
    except OSError:
        raise AccessError(
            f"The token of endpoint {row['name']!r} is with {row['user']}, who started it, on their "
            "machine; ask it from there."
        ) from None


def gather_folder(name: str) -> Path:
    """What admits other machines to run replicas of an endpoint."""
    return token_path(name).with_suffix(".gather")


def authority_of(name: str) -> Path | None:
    """What is trusted of an endpoint of this user; None where it speaks plain HTTP."""
    path = token_path(name).with_suffix(".pem")
    return path if path.exists() else None


def forget(name: str) -> None:
    """Remove all that is kept of an endpoint here."""
    path = token_path(name)
    for suffix in (".token", ".ref", ".pem"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    shutil.rmtree(gather_folder(name), ignore_errors=True)
    for suffix in (".pem", ".key"):
        path.with_name(f"{path.stem}-own{suffix}").unlink(missing_ok=True)


def follows(endpoint: str) -> str:
    """What an endpoint of this user was asked to serve; "" where that is not known here."""
    try:
        return token_path(endpoint).with_suffix(".ref").read_text()
    except OSError:
        return ""


def new_token(name: str) -> Path:
    """A new token, in its file."""
    forget(name)
    path = token_path(name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path
