"""What an alias names now, asked often and cheaply: without MLflow in the process that asks.

A SQLite registry is read as it lies, a server through its REST interface. Other stores are not
watched.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

_QUERY = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
_ALL = "SELECT alias, version FROM registered_model_aliases WHERE name = ?"
_TIMEOUT = 10.0


def interval(uri: str) -> float | None:
    """Seconds between two looks at a registry; None where it cannot be watched."""
    if uri.startswith("sqlite:"):
        return 0.5
    return 2.0 if uri.startswith(("http:", "https:")) else None


def named(uri: str, name: str, alias: str) -> int | None:
    """The version that `name@alias` stands for; None where that cannot be told now."""
    try:
        if uri.startswith("sqlite:"):
            return _from_sqlite(Path(uri.removeprefix("sqlite:///")), name, alias)
        return _from_server(uri, name, alias)
    except (sqlite3.Error, OSError, ValueError, KeyError, urllib.error.URLError):
        return None  # it is looked at again soon


def all_of(uri: str, name: str) -> dict[str, int] | None:
    """What each alias of a model names, of a registry that lies on this machine; None elsewhere."""
    if not uri.startswith("sqlite:"):
        return None
    try:
        with _opened(Path(uri.removeprefix("sqlite:///"))) as database:
            return {str(alias): int(version) for alias, version in database.execute(_ALL, (name,))}
    except (sqlite3.Error, OSError, ValueError):
        return None  # it is looked at again soon


def _opened(path: Path) -> contextlib.closing[sqlite3.Connection]:
    uri = f"file:{urllib.parse.quote(str(path))}?mode=ro"
    return contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0))


def _from_sqlite(path: Path, name: str, alias: str) -> int | None:
    with _opened(path) as database:
        row = database.execute(_QUERY, (name, alias)).fetchone()
    return int(row[0]) if row else None


def _from_server(uri: str, name: str, alias: str) -> int | None:
    query = urllib.parse.urlencode({"name": name, "alias": alias})
    parts = urllib.parse.urlsplit(uri)
    host = parts.hostname or ""
    address = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    url = f"{address}{parts.path.rstrip('/')}/api/2.0/mlflow/registered-models/alias?{query}"
    request = urllib.request.Request(url, headers=_credentials(parts))  # noqa: S310  # http(s) alone
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:  # noqa: S310
        return int(json.load(reply)["model_version"]["version"])


def _credentials(parts: urllib.parse.SplitResult) -> dict[str, str]:
    """What MLflow's own client would send."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        return {}
    password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    both = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {both}"}
