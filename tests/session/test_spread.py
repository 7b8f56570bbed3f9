"""Endpoints with replicas on two nodes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from clusters import agent_of, free, until

from aios_jupyter.cluster import embedded
from aios_jupyter.errors import AiosError, AllocationError
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.monitor import traffic
from aios_jupyter.process import alive
from aios_jupyter.schema import Placement
from aios_jupyter.session import Endpoint, Session, connect
from aios_jupyter.session.spreading import Room, shares

X = np.ones((1, 2), np.float32)
ROOMS = [Room("a", 1, 4), Room("b", 2, 2), Room("c", 0, 0)]


@pytest.mark.parametrize(
    ("least", "most", "placement", "expected"),
    [
        (1, 1, None, [("", 1)]),
        (4, 4, None, [("", 4)]),
        (5, 5, None, [("b", 2), ("a", 3)]),
        (1, 6, None, [("", 6)]),
        (3, 3, Placement.NODE, [("", 3)]),
        (3, 3, Placement.PACK, [("b", 2), ("a", 1)]),
        (2, 2, Placement.SPREAD, [("b", 1), ("a", 1)]),
        (6, 6, Placement.SPREAD, [("b", 2), ("a", 4)]),
        (1, 9, Placement.SPREAD, [("b", 2), ("a", 1)]),
        (1, 2, Placement.PACK, [("b", 2)]),
    ],
)
def test_replicas_are_shared_out_among_nodes(
    least: int, most: int, placement: Placement | None, expected: list[tuple[str, int]]
) -> None:
    assert shares(least, most, ROOMS, placement) == expected


def test_more_replicas_than_there_are_devices_are_refused() -> None:
    with pytest.raises(AllocationError, match="the cluster has 6; ask for at most that"):
        shares(9, 9, ROOMS, None)
    assert shares(9, 9, ROOMS, Placement.NODE) == [("", 9)], "the broker says what it has"
    assert shares(2, 2, [], None) == [("", 2)]


@pytest.fixture
def published(second_node: Path, slopes: Path) -> None:
    with connect() as session:
        for slope in (1, 2):
            session.publish(str(slopes / f"{slope}.onnx"), "wide")
        session.promote("wide/1", "champion")


class Load:
    """Clients that ask all the time."""

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        self.answers = 0
        self.last = 0.0
        self.failed: list[AiosError] = []
        self._url, self._token = endpoint.url, Path(endpoint.token_file).read_text()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(count)
        self._clients = [self._pool.submit(self._ask) for _ in range(count)]

    def _ask(self) -> None:
        with EndpointClient(self._url, self._token) as client:
            while not self._over.is_set():
                try:
                    answer = float(client.infer(X)[0, 0])
                except AiosError as error:
                    self.failed.append(error)
                    continue
                with self._lock:
                    self.answers += 1
                    self.last = answer

    def end(self) -> None:
        self._over.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()


@contextlib.contextmanager
def asked(endpoint: Endpoint, clients: int) -> Iterator[Load]:
    load = Load(endpoint, clients)
    try:
        yield load
    finally:
        load.end()


def replicas() -> list[psutil.Process]:
    """Replicas of this cluster's nodes."""
    found = []
    for agent in (_node(), agent_of("far")):
        for child in psutil.Process(agent).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "aios_jupyter.models.replica" in child.cmdline():
                    found.append(child)
    return found


def _node() -> int:
    node = embedded.running(embedded.Paths.current().node)
    assert node is not None
    return int(node["pid"])


def answering() -> list[psutil.Process]:
    """Those that have a client."""
    return [
        one
        for one in replicas()
        if any(link.status == psutil.CONN_ESTABLISHED for link in one.net_connections("tcp"))
    ]


def counted(endpoint: Endpoint) -> int:
    with EndpointClient(endpoint.url, Path(endpoint.token_file).read_text()) as client:
        return traffic(client.metrics()).requests


def test_replicas_on_two_nodes_are_one_endpoint(published: None) -> None:
    with connect() as session:
        endpoint = session.serve("wide@champion", replicas=3, devices=3)
        assert endpoint.version == "1"
        (far,) = [run for run in session.runs() if run["kind"] == "replicas" and not run["ended"]]
        assert far["name"] == "wide on far"
        assert len(free(session)) == 1
        until(lambda: session.endpoints()[0]["metrics"].get("replicas") == 3, "their number")
        with asked(endpoint, 6) as load:
            until(lambda: len(answering()) == 3, "each has clients")
            session.promote("wide/2", "champion")
            until(lambda: load.last == 2.0, "the new version")
            session.rollback("wide", "champion")
            until(lambda: load.last == 1.0, "the old version")
        assert load.failed == []
        # Whichever replica is asked, it tells what all have done.
        until(lambda: counted(endpoint) == load.answers, "the sum of all")
        session.stop_endpoint("wide")
        until(lambda: len(free(session)) == 4, "all devices are free")
        assert _state(session, far["id"]) == "succeeded"


def test_an_endpoint_goes_on_without_a_node_that_dies(published: None) -> None:
    with connect() as session:
        endpoint = session.serve("wide@champion", replicas=2, devices=2, placement="spread")
        here = {child.pid for child in psutil.Process(_node()).children(recursive=True)}
        with asked(endpoint, 4) as load:
            until(lambda: len(answering()) == 2, "both have clients")
            (there,) = [one for one in replicas() if one.pid not in here]
            os.kill(agent_of("far"), signal.SIGKILL)
            until(lambda: not alive(there.pid), "its replica's end")
            before = load.answers
            until(lambda: load.answers > before + 300, "answers after it")
        # What was on its way there is lost.
        assert len(load.failed) <= 4
        assert [row["state"] for row in session.endpoints()] == ["running"]
        session.stop_endpoint("wide")


def test_a_node_that_leaves_loses_no_request(published: None) -> None:
    with connect() as session:
        endpoint = session.serve("wide@champion", replicas=2, devices=2, placement="spread")
        (far,) = [run for run in session.runs() if run["kind"] == "replicas" and not run["ended"]]
        with asked(endpoint, 4) as load:
            until(lambda: len(answering()) == 2, "both have clients")
            session.stop(far["id"])
            until(lambda: len(replicas()) == 1, "its replica's end")
            before = load.answers
            until(lambda: load.answers > before + 300, "answers after it")
        assert load.failed == []
        session.stop_endpoint("wide")


def _state(session: Session, run: str) -> str:
    return str(next(row["state"] for row in session.runs() if row["id"] == run))
