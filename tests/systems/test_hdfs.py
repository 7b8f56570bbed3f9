"""Datasets on a real HDFS, by its own protocol and by WebHDFS."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import requests
from clusters import no_cluster, until
from distributed import get_task_stream, get_worker
from distributed.comm import get_address_host
from pyarrow import parquet
from systems.conftest import ASKED_FOR, system

from aios_jupyter.cluster import embedded
from aios_jupyter.data import Catalog, blocks, near, pieces, sql, storage
from aios_jupyter.data.augment import augment
from aios_jupyter.errors import AccessError, ConflictError, NotFoundError
from aios_jupyter.session import Session, connect, join_node, leave_node

__all__ = ["no_cluster"]

pytestmark = [
    pytest.mark.systems,
    pytest.mark.skipif(
        not (ASKED_FOR and shutil.which("java")),
        reason="HDFS is not here: make test-systems",
    ),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with system("hdfs.sh") as port:
        yield port


@pytest.fixture(params=["hdfs", "webhdfs"])
def place(request, port) -> str:
    if request.param == "hdfs":
        return f"hdfs://127.0.0.1:{port}/data-{request.node.name[:12]}-h"
    return f"webhdfs://{getpass.getuser()}@127.0.0.1:{port + 1}/data-{request.node.name[:12]}-w"


def test_a_dataset_is_copied_read_and_augmented(place, catalog, npz, tmp_path):
    local = catalog.add("noise", npz)
    catalog.copy("noise", f"{place}/noise.npz")
    remote = catalog.add("far", f"{place}/noise.npz")
    assert remote.version == local.version
    assert np.array_equal(catalog.load("far")[0], catalog.load("noise")[0])
    made = augment("far", f"{place}/more.npz", "hflip(1), resize(16)", copies=1)
    assert catalog.load(made)[0].shape == (600, 16, 16, 3)
    catalog.copy("far", tmp_path / "back.npz")
    assert (tmp_path / "back.npz").read_bytes() == npz.read_bytes()


def test_a_table_is_read_in_ranges_and_what_is_missing_is_named(place, catalog, tmp_path):
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    catalog.copy(str(tmp_path / "t.csv"), f"{place}/t.csv")
    assert catalog.frame(catalog.add("t", f"{place}/t.csv"))["a"].tolist() == [1, 2]
    fs, path = storage.locate(f"{place}/t.csv")
    assert fs.cat_file(path, start=2, end=7) == b"label"
    with pytest.raises(NotFoundError, match="nothing at"):
        catalog.get(f"{place}/none.csv")


def test_what_has_changed_since_it_was_added_is_not_used(place, catalog, tmp_path):
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    catalog.copy(str(tmp_path / "t.csv"), f"{place}/t.csv")
    catalog.add("t", f"{place}/t.csv")
    (check,) = catalog.checks(catalog.get("t"))
    assert check.mark
    asked = "SELECT sum(a) AS a FROM t"
    assert sql.frame(asked, sql.Tables())["a"].tolist() == [3]
    time.sleep(0.01)  # a NameNode keeps times in thousandths of a second
    with storage.written_aside(f"{place}/t.csv") as file:
        file.write(b"a,label\n3,x\n2,y\n")
    fs, path = storage.locate(place)
    assert [Path(name).name for name in fs.ls(path, detail=False)] == ["t.csv"]
    with pytest.raises(ConflictError, match=r"/t\.csv has changed since t@.* was added"):
        sql.frame(asked, sql.Tables())
    catalog.add("t", f"{place}/t.csv")
    assert sql.frame(asked, sql.Tables())["a"].tolist() == [5]


def test_a_second_user_is_refused(port, catalog, npz):
    mine = f"webhdfs://{getpass.getuser()}@127.0.0.1:{port + 1}/private"
    catalog.copy(str(npz), f"{mine}/noise.npz")
    fs, path = storage.locate(mine)
    fs._call("SETPERMISSION", method="put", path=path, permission="700")
    with pytest.raises(AccessError):
        catalog.get(f"webhdfs://stranger@127.0.0.1:{port + 1}/private/noise.npz")


class Place(NamedTuple):
    """A cluster of two nodes on the machines of the two DataNodes, as far as their names say."""

    session: Session
    workers: dict[str, str]


@pytest.fixture
def nodes(no_cluster: Path) -> Iterator[Place]:
    embedded.ensure(simulate_gpus=1)
    with connect() as session:
        session.node_add("second", no_cluster / "second", data=True)
        join_node(no_cluster / "second", host="127.0.0.2")
        try:
            info = session.dask().scheduler_info
            until(lambda: len(info()["workers"]) == 2, "both workers are there")
            yield Place(session, {get_address_host(worker): worker for worker in info()["workers"]})
        finally:
            leave_node("second")


def write_once(fs: Any, path: str, data: bytes) -> list[str]:
    """Write a file whose blocks of a MiB lie on one DataNode each; where, as the NameNode's fsck says."""
    size = {"replication": "1", "blocksize": str(2**20)}
    door = fs._call("CREATE", method="put", path=path, redirect=False, **size)
    requests.put(door.headers["Location"], data, timeout=60).raise_for_status()
    answer = requests.get(
        fs.url.replace("/webhdfs/v1", "/fsck"),
        params={**fs.pars, "path": path, "files": 1, "blocks": 1, "locations": 1},
        timeout=30,
    )
    ports = re.findall(r"DatanodeInfoWithStorage\[127\.0\.0\.1:(\d+),", answer.text)
    first = int(fs.url.rpartition(":")[2].split("/")[0]) + 1
    return [f"127.0.0.{1 + (int(port) - first) // 3}" for port in ports]


def test_blocks_are_where_the_name_node_says(port, tmp_path, monkeypatch):
    user = getpass.getuser()
    fs, _ = storage.locate(f"webhdfs://{user}@127.0.0.1:{port + 1}/")
    where = write_once(fs, "/large.bin", bytes(5 * 2**20 + 7))
    assert len(where) == 6
    url = f"webhdfs://{user}@127.0.0.1:{port + 1}/large.bin"
    found = blocks.of_files([url])[url]
    assert [block.hosts for block in found] == [frozenset({host}) for host in where]
    assert [block.start for block in found] == [n * 2**20 for n in range(6)]
    assert found[-1].stop == 5 * 2**20 + 7
    # Hadoop's configuration tells where the other protocol's NameNode can be asked.
    site = f"<property><name>dfs.namenode.http-address</name><value>0.0.0.0:{port + 1}</value></property>"
    (tmp_path / "hdfs-site.xml").write_text(f"<configuration>{site}</configuration>")
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    url = f"hdfs://127.0.0.1:{port}/large.bin"
    assert blocks.of_files([url]) == {url: found}


@pytest.mark.skipif(
    (os.cpu_count() or 1) < 2, reason="a worker of one thread lets others take over"
)
def test_tasks_go_to_the_node_that_has_the_block(port, nodes, tmp_path):
    base = f"webhdfs://{getpass.getuser()}@127.0.0.1:{port + 1}"
    fs, _ = storage.locate(f"{base}/")
    random, number = np.random.default_rng(0), 0
    lying: dict[str, list[str]] = {"127.0.0.1": [], "127.0.0.2": []}
    # The NameNode draws one of the two for each file.
    while len(lying["127.0.0.1"]) < 1 or len(lying["127.0.0.2"]) < 3:
        number += 1
        assert number < 60
        buffer = pa.BufferOutputStream()
        parquet.write_table(pa.table({"age": random.normal(40, 9, 500)}), buffer)
        path = f"/drawn/{number}.parquet"
        (host,) = write_once(fs, path, buffer.getvalue().to_pybytes())
        lying[host].append(path)
    first, second = lying["127.0.0.1"], lying["127.0.0.2"]
    fs.makedirs("/one")
    fs.makedirs("/both")
    for source, target in (
        *((second.pop(), f"/one/{n}.parquet") for n in range(2)),
        (first.pop(), "/both/0.parquet"),
        (second.pop(), "/both/1.parquet"),
    ):
        fs.mv(source, target)
    client, catalog = nodes.session.dask(), Catalog()

    parts = pieces.parts(catalog.add("both", f"{base}/both"), tmp_path)
    expected = [nodes.workers["127.0.0.1"], nodes.workers["127.0.0.2"]]
    assert near.workers_for(client, parts) == [(worker,) for worker in expected]
    futures = near.submit(client, lambda part: get_worker().address, parts, key="where")
    assert client.gather(futures) == expected

    catalog.add("one", f"{base}/one")
    with get_task_stream(client=client) as stream:
        nodes.session.prepare("one", "ready", "scale(age)")
    done = {row["worker"] for row in stream.data if str(row["key"]).startswith("prepare")}
    assert done == {nodes.workers["127.0.0.2"]}
    assert Catalog().get("ready").rows == 1000
    # Who cannot be asked is no reason to fail.
    lost = [replace(part, url="webhdfs://127.0.0.1:1/both") for part in parts]
    assert near.workers_for(client, lost) == [(), ()]


def test_a_process_that_is_forked_after_a_read_goes_on(place, catalog, npz):
    """As a `DataLoader` forks its workers; fsspec forgets its file systems then."""
    catalog.copy(str(npz), f"{place}/noise.npz")
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        until(
            lambda: os.waitpid(child, os.WNOHANG)[0], "the forked process is at its first line", 20
        )
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
