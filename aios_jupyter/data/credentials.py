"""Secrets of storage systems, by name: a private file, or the environment.

`s3://lab@bucket/digits.npz` is read with the credentials `lab`. The name alone stands in URLs, and
so in the catalogue; what it stands for is options of fsspec's file system in `credentials.json` of
the state directory (mode 0600), or as JSON in the variable `AIOS_CREDENTIALS_LAB`. This module
imports no fsspec.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..config import settings
from ..errors import AccessError, NotFoundError, UsageError
from .entries import check_name

_VARIABLE = "AIOS_CREDENTIALS_"
# What one may print; all other options are taken for secrets.
_PUBLIC = frozenset({"endpoint_url", "anon", "user", "host", "port", "use_ssl", "profile"})


def path() -> Path:
    """The file."""
    return settings().state_dir / "credentials.json"


def names() -> dict[str, dict[str, str]]:
    """Each name with its options, where those that may be secret read `***`."""
    found = dict(_stored())
    for variable in sorted(os.environ):
        if variable.startswith(_VARIABLE):
            name = variable.removeprefix(_VARIABLE).lower().replace("_", "-")
            found[name] = _parse(os.environ[variable], variable)
    return {
        name: {k: str(v) if k in _PUBLIC else "***" for k, v in options.items()}
        for name, options in sorted(found.items())
    }


def get(name: str) -> dict[str, Any] | None:
    """The options of a name, None where there is none; the environment comes first.

    Raises
    ------
    AccessError, UsageError
        Others may read the file, or it is damaged.
    """
    variable = _VARIABLE + re.sub(r"[^A-Z0-9]", "_", name.upper())
    if variable in os.environ:
        return _parse(os.environ[variable], variable)
    return _stored().get(name)


def put(name: str, options: Mapping[str, Any]) -> None:
    """Store the options of a name, in place of those it had."""
    check_name(name, "a name of credentials")
    _write({**_stored(), name: dict(options)})


def remove(name: str) -> None:
    """Forget a name.

    Raises
    ------
    NotFoundError
        The file has none by that name.
    """
    stored = _stored()
    if name not in stored:
        raise NotFoundError(f"There are no credentials '{name}'; 'aios data keys ls' lists them.")
    del stored[name]
    _write(stored)


def resolve(url: str) -> tuple[str, dict[str, Any]]:
    """A URL without the name of its credentials, and the options they stand for.

    The user in the URL of a system that has users of its own (HDFS, SSH) is left where it is.

    Raises
    ------
    NotFoundError
        Nothing is known by that name.
    """
    parts = urlsplit(url)
    name, at, rest = parts.netloc.rpartition("@")[0], "@" in parts.netloc, parts.netloc
    if not at or not name:
        return url, {}
    options = get(name)
    if options is None:
        if parts.scheme not in {"s3", "s3a", "gs", "gcs", "abfs", "az"}:
            return url, {}
        raise NotFoundError(
            f"There are no credentials '{name}' for {parts.scheme}://{rest}; store them with: "
            f"aios data keys add {name}"
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), options


def _stored() -> dict[str, dict[str, Any]]:
    file = path()
    try:
        if file.stat().st_mode & 0o077:
            raise AccessError(
                f"Others on this machine may read {file}; make it private with: chmod 600 {file}"
            )
        return _parse_all(file.read_text(), str(file))
    except FileNotFoundError:
        return {}


def _write(stored: Mapping[str, Any]) -> None:
    aside = path().with_suffix(f".{os.getpid()}.partial")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(stored, file, indent=2)
    aside.replace(path())


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # The text itself is a secret: it is not repeated.
        raise UsageError(f'{where} is not a JSON object such as {{"key": "…", "secret": "…"}}.')
    return found


def _parse_all(text: str, where: str) -> dict[str, dict[str, Any]]:
    found = _parse(text, where)
    if not all(isinstance(options, dict) for options in found.values()):
        raise UsageError(f"{where} does not give each name an object of options; correct it.")
    return found
