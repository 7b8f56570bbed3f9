"""Dask tasks go where the data is: to workers whose machine has a copy, while these have time for them.

A module of its own, so that what a worker imports to be asked is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import cache, storage
from .entries import Entry

if TYPE_CHECKING:
    from distributed import Client


def remote_version(entry: Entry) -> str:
    """The version of a dataset that is remote, so that a copy of it is worth a way; "" of another."""
    return entry.version if storage.is_remote(entry.url) else ""


def preferred(client: Client, version: str) -> dict[str, Any]:
    """What `Client.map` takes so that tasks go to workers that have a copy of a version.

    Others take tasks over when those have more than they can do; where none or all have one, or
    there is no version, anybody does.
    """
    if not version:
        return {}
    answers: dict[str, bool] = client.run(cache.has, version, on_error="ignore")
    holders = [address for address, there in answers.items() if there]
    if not holders or len(holders) == len(answers):
        return {}
    return {"workers": holders, "allow_other_workers": True}
