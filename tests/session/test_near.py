"""Data tasks go to the node that has a copy of a remote dataset, and read that."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from clusters import until
from distributed import get_task_stream
from pyarrow import parquet
from s3_server import S3Server, s3_server

from aios_jupyter.cluster import embedded
from aios_jupyter.config import settings
from aios_jupyter.data import Catalog, cache, near, pieces
from aios_jupyter.data.formats import encode_image
from aios_jupyter.errors import AiosError
from aios_jupyter.session import Session, connect, join_node, leave_node


class Place(NamedTuple):
    """A cluster of two nodes that do data tasks, `near` with a cache of its own; and a bucket."""

    session: Session
    server: S3Server
    near: str
    other: str


@pytest.fixture
def place(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    (no_cluster / "served" / "lab").mkdir(parents=True)
    with s3_server(no_cluster / "served") as server:
        quick = {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2}}
        monkeypatch.setenv("AIOS_CREDENTIALS_LAB", json.dumps(server.options | quick))
        embedded.ensure(simulate_gpus=1)
        with connect() as session:
            session.node_add("near", no_cluster / "near", data=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AIOS_STATE_DIR", str(no_cluster / "state-of-near"))
                settings.cache_clear()
                join_node(no_cluster / "near")
            settings.cache_clear()
            try:
                info = session.dask().scheduler_info
                until(lambda: len(info()["workers"]) == 2, "both workers are there")
                found = {facts["name"]: address for address, facts in info()["workers"].items()}
                address = found.pop("near")
                yield Place(session, server, address, *found.values())
            finally:
                leave_node("near")


class Reading(NamedTuple):
    """A task that is asked where it would go."""

    version: str

    def reads(self) -> list[near.Span]:
        return []


def workers_of(place: Place, prefix: str, work: Any) -> set[str]:
    """Which workers have done the tasks of a kind."""
    with get_task_stream(client=place.session.dask()) as stream:
        work()
    return {row["worker"] for row in stream.data if str(row["key"]).startswith(prefix)}


@pytest.mark.skipif(
    (os.cpu_count() or 1) < 2, reason="a worker of one thread lets others take over"
)
def test_tasks_go_where_the_copy_is_and_read_it(place: Place, tmp_path: Path) -> None:
    client, catalog = place.session.dask(), Catalog()
    random = np.random.default_rng(0)
    # Two parts: no more than one worker does at a time, so that the other has none to take over.
    for part in range(2):
        path = tmp_path / "people" / f"{part}.parquet"
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pa.table({"age": random.normal(40, 9, 500)}), path)
        for number in range(8):
            image = tmp_path / "photos" / str(part) / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(encode_image(random.integers(0, 256, (8, 8), np.uint8)))
    for name in ("people", "photos"):
        catalog.add(f"{name}-here", tmp_path / name)
        catalog.copy(f"{name}-here", f"s3://lab@lab/{name}")
        entry = catalog.add(name, f"s3://lab@lab/{name}")
        for known in (entry, catalog.get(f"{name}-here")):
            assert near.workers_for(client, [Reading(near.remote_version(known))]) == [()]
        kept = client.submit(cache.local, entry, workers=[place.near], pure=False).result()
        assert "state-of-near" in kept.url and not cache.has(entry.version)
        assert near.workers_for(client, [Reading(entry.version)]) == [(place.near,)]

    made = workers_of(
        place, "prepare", lambda: place.session.prepare("people", "ready", "scale(age)")
    )
    assert made == {place.near}
    made = workers_of(place, "augment", lambda: place.session.augment("photos", "more", "hflip"))
    assert made == {place.near}
    assert Catalog().get("more").rows == 32
    alone = Catalog().frame(place.session.prepare("people-here", "same", "scale(age)").entry)
    assert Catalog().frame("ready").equals(alone)

    part, _ = pieces.parts(catalog.get("people"), tmp_path)
    place.server.stop()
    # The copy is read where there is one, and the bucket elsewhere.
    read = client.submit(pieces.read, part, workers=[place.near], pure=False).result()
    assert len(read) == 500
    with pytest.raises(AiosError, match="does not answer"):
        client.submit(pieces.read, part, workers=[place.other], pure=False).result()
