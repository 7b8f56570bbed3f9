"""What an endpoint promises while its replicas die and its versions change."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clusters import until

from aios_jupyter.errors import AiosError
from aios_jupyter.models import fetch, rollback, set_alias
from aios_jupyter.models.alias_watch import all_of, interval, named
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.monitor import traffic
from aios_jupyter.models.store import registry_uri

from .conftest import TOKEN, Served
from .test_serve import ask

X = np.ones((1, 2), np.float32)


class Load:
    """Clients that ask all the time; `seen` counts answers, `failed` has what went wrong."""

    def __init__(self, served: Served, x: np.ndarray = X, clients: int = 6) -> None:
        self._x = x
        self.seen: Counter[float] = Counter()
        self.failed: list[AiosError] = []
        self._served = served
        self._end = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(clients)
        self._clients = [self._pool.submit(self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with EndpointClient(self._served.url, TOKEN) as client:
            while not self._end.is_set():
                try:
                    answer = client.infer(self._x)
                except AiosError as error:
                    self.failed.append(error)
                else:
                    assert answer[0, 0] == answer[0, 1]
                    self.seen[float(answer[0, 0])] += 1

    def wait_for(self, slope: float, count: int) -> None:
        """Until so many more answers of this slope have come."""
        start = self.seen[slope]
        until(lambda: self.seen[slope] >= start + count, f"{count} answers of {slope}", 60)

    def end(self) -> None:
        self._end.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()


@contextmanager
def loaded(served: Served, x: np.ndarray = X) -> Iterator[Load]:
    load = Load(served, x)
    try:
        yield load
    finally:
        load.end()


def replicas(served: Served) -> list[psutil.Process]:
    """The processes that answer; others ask the registry for a moment."""
    found = []
    for child in psutil.Process(served.process.pid).children():
        try:
            if "aios_jupyter.models.replica" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_promotion_and_rollback_lose_no_request(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    for slope in (1.0, 2.0):
        line("moving", slope)
    set_alias("moving/1", "champion")
    served = serve("moving@champion", "--replicas", "2")
    with loaded(served) as load:
        load.wait_for(1.0, 300)
        set_alias("moving/2", "champion")
        load.wait_for(2.0, 300)
        rollback("moving", "champion")
        load.wait_for(1.0, 300)
    assert load.failed == []
    assert set(load.seen) == {1.0, 2.0}
    assert served.process.stdout is not None
    said = [json.loads(served.process.stdout.readline())["version"] for _ in range(2)]
    assert said == ["2", "1"], "each change is announced"
    assert served.stop() == 0


def test_a_killed_replica_is_replaced_and_its_clients_retry(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    line("dying", 3.0)
    served = serve("dying")
    [first] = replicas(served)
    with loaded(served) as load:
        load.wait_for(3.0, 100)
        first.kill()
        until(lambda: {p.pid for p in replicas(served)} - {first.pid}, "a new replica", 60)
        load.wait_for(3.0, 100)
    # A client whose request was in flight asks once more by itself; the socket stayed open.
    assert load.failed == []
    assert served.stop() == 0


def test_replicas_share_the_work_and_tell_the_sum(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    line("shared", 1.0)
    served = serve("shared", "--replicas", "2")
    assert len(replicas(served)) == 2
    for _ in range(20):  # each on a connection of its own
        assert ask(served, "POST", "/predict", '{"inputs": [[1, 1]]}')[0] == 200
    _, metrics = ask(served, "GET", "/metrics")
    want = 'aios_endpoint_requests_total{code="200",model="shared",version="1"} 20.0'
    assert want in metrics.decode()
    assert served.stop() == 0


def test_a_canary_gets_its_share(serve: Callable[..., Served], line: Callable[..., Any]) -> None:
    line("careful", 1.0, alias="champion")
    line("careful", 5.0, alias="challenger")
    served = serve("careful@champion", "--canary", "challenger=0.25")
    with EndpointClient(served.url, TOKEN) as client:
        answers = Counter(float(client.infer(X)[0, 0]) for _ in range(400))
    assert set(answers) == {1.0, 5.0}
    assert 50 < answers[5.0] < 150  # 100 on average, 8.7 standard deviation
    assert ask(served, "GET", "/v2")[1]["model"]["versions"] == ["1", "2"]
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    )
    for version, answer in (("1", 1.0), ("2", 5.0)):
        path = f"/v2/models/careful/versions/{version}/infer"
        status, reply = ask(served, "POST", path, body)
        assert status == 200
        assert (reply["model_version"], reply["outputs"][0]["data"][0]) == (version, answer)
    _, metrics = ask(served, "GET", "/metrics")
    assert 'version="2"' in metrics.decode()
    assert served.stop() == 0


def test_what_an_alias_names_but_cannot_be_served_is_passed_over(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    for slope in (1.0, 2.0, 3.0):
        line("fragile", slope)
    set_alias("fragile/1", "champion")
    broken = Path(fetch("fragile/2").path) / "model.onnx"
    broken.write_bytes(broken.read_bytes() + b"\0")
    served = serve("fragile@champion")
    with loaded(served) as load:
        set_alias("fragile/2", "champion")
        set_alias("fragile/3", "champion")
        load.wait_for(3.0, 50)
        set_alias("fragile/2", "champion")
        load.wait_for(3.0, 500)
        [replica] = replicas(served)
        replica.kill()  # the next one does not open the broken version either
        load.wait_for(3.0, 50)
    assert load.failed == []
    assert 2.0 not in load.seen
    assert served.stop() == 0


def test_too_many_requests_are_refused_with_a_time(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    line("limited", 1.0)
    served = serve("limited", "--rate", "0.01", "--max-latency", "1000")
    good = '{"inputs": [[1, 1]]}'
    assert ask(served, "POST", "/predict", good)[0] == 200
    status, reply = ask(served, "POST", "/predict", good)
    assert status == 429
    assert "ask again" in reply["error"]
    assert ask(served, "GET", "/metrics")[0] == 200, "what is not counted is not limited"
    assert served.stop() == 0


def test_replicas_come_with_load_and_go_without(
    serve: Callable[..., Served], slow_model: str
) -> None:
    served = serve(slow_model, "--allow-pickle", "--replicas", "1:3", "--idle", "3")
    [first] = replicas(served)
    with loaded(served, np.ones((1, 3))) as load:
        until(lambda: len(replicas(served)) == 3, "three replicas", 60)
        # Clients keep their connections: some of those of the first are taken up by others. Which
        # of the others has them is chance where two come up at once.
        until(lambda: asked(served) - {first.pid}, "others to be asked", 60)
    until(lambda: replicas(served) == [first], "the first alone", 60)
    assert load.failed == [], "nobody notices"
    _, metrics = ask(served, "GET", "/metrics")
    assert traffic(metrics.decode()).requests == load.seen[2.0], "those that left count"
    assert served.stop() == 0


def asked(served: Served) -> set[int]:
    """Replicas that clients are connected to."""
    port = int(served.url.rpartition(":")[2])
    found = set()
    for one in replicas(served):
        connections = one.net_connections("tcp")
        if any(c.status == "ESTABLISHED" and c.laddr.port == port for c in connections):
            found.add(one.pid)
    return found


def test_nobody_answers_until_somebody_asks(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    for slope in (1.0, 2.0):
        line("sleeping", slope)
    set_alias("sleeping/1", "champion")
    served = serve("sleeping@champion", "--replicas", "0:2", "--idle", "1")
    with EndpointClient(served.url, TOKEN) as client:
        assert client.infer(X)[0, 0] == 1.0
        until(lambda: not replicas(served), "all to end", 60)
        assert client.infer(X)[0, 0] == 1.0, "the first request waits for the start"
    until(lambda: not replicas(served), "all to end", 60)
    broken = Path(fetch("sleeping/2").path) / "model.onnx"
    broken.write_bytes(broken.read_bytes() + b"\0")
    set_alias("sleeping/2", "champion")
    # Whether the move was seen before this or not, what cannot be served is passed over.
    assert ask(served, "POST", "/predict", '{"inputs": [[1, 1]]}')[1]["version"] == "1"
    assert served.stop() == 0


def test_a_shadow_answers_nobody_and_is_compared(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    line("watched-over", 1.0, alias="champion")
    line("watched-over", -1.0, alias="challenger")
    served = serve("watched-over@champion", "--shadow", "challenger")
    with EndpointClient(served.url, TOKEN) as client:
        for x in ([1.0, 2.0], [0.0, 0.0], [5.0, 3.0]):
            assert client.infer(np.array([x], np.float32)).tolist() == [x]

        def answers() -> dict[str, int]:
            return traffic(client.metrics()).shadow

        until(lambda: sum(answers().values()) == 3, "all copies to be compared")
        assert answers() == {"same": 1, "different": 2}, "by class: the highest is another one"
        assert traffic(client.metrics()).versions == {"1": 3}
        line("watched-over", 2.0, alias="challenger")
        versions = ask(served, "GET", "/v2")[1]["model"]["versions"]
        assert versions == ["1"], "nobody can ask it"

        def moved() -> bool:
            client.infer(np.array([[1.0, 2.0]], np.float32))
            return answers().get("same", 0) > 1

        until(moved, "the shadow to follow its alias", 60)
    assert served.stop() == 0


def test_gpus_are_shared_out_among_replicas(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    line("spread", 1.0)
    served = serve("spread", "--replicas", "3", "--devices", "GPU-a,GPU-b")
    seen = Counter(one.environ()["CUDA_VISIBLE_DEVICES"] for one in replicas(served))
    assert sorted(seen.values()) == [1, 2]
    [alone] = [one for one in replicas(served) if seen[one.environ()["CUDA_VISIBLE_DEVICES"]] == 1]
    device = alone.environ()["CUDA_VISIBLE_DEVICES"]
    alone.kill()
    until(
        lambda: any(
            one.pid != alone.pid and one.environ()["CUDA_VISIBLE_DEVICES"] == device
            for one in replicas(served)
        ),
        "its successor to have the same device",
        60,
    )
    until(lambda: ask(served, "GET", "/ping")[0] == 200, "an answer")
    assert served.stop() == 0


def test_an_endpoint_says_what_a_person_should_look_at(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    line("alarming", 1.0, profile=x)
    served = serve("alarming", "--watch", "0.2")
    assert served.process.stdout is not None
    with EndpointClient(served.url, TOKEN) as client:
        until(
            lambda: (client.infer(x[:50] + 9), len(client.window()["x[0]"]) >= 100)[1],
            "enough samples",
        )
        for _ in range(30):
            assert ask(served, "POST", "/predict", "{")[0] == 400
        subjects: set[str] = set()
        while not {"errors", "x[0]"} <= subjects:
            client.infer(x[:50] + 9)
            subjects |= set(json.loads(served.process.stdout.readline())["alerts"])
    assert served.stop() == 0


def test_replicas_end_with_what_started_them(
    serve: Callable[..., Served], line: Callable[..., Any]
) -> None:
    line("orphan", 1.0)
    served = serve("orphan", "--replicas", "2")
    left = replicas(served)
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait(20)
    _, alive = psutil.wait_procs(left, 20)
    assert alive == []


def test_an_alias_is_looked_up_without_mlflow(line: Callable[..., Any], tmp_path: Path) -> None:
    line("watched", 1.0, alias="champion")
    assert named(registry_uri(), "watched", "champion") == 1
    assert named(registry_uri(), "watched", "nobody") is None
    assert named(f"sqlite:///{tmp_path}/absent.db", "watched", "champion") is None
    assert all_of(registry_uri(), "watched") == {"champion": 1}
    assert all_of(f"sqlite:///{tmp_path}/absent.db", "watched") is None
    assert all_of("http://127.0.0.1:9", "watched") is None
    assert not (tmp_path / "absent.db").exists()
    started = time.monotonic()
    assert named("http://127.0.0.1:9", "watched", "champion") is None
    assert time.monotonic() - started < 10
    assert interval("postgresql://db") is None


@pytest.mark.parametrize("text", ["challenger", "challenger=2", "=0.1", "challenger=x"])
def test_a_canary_needs_a_name_and_a_share(text: str) -> None:
    from aios_jupyter.errors import UsageError
    from aios_jupyter.models.serve import _canary

    with pytest.raises(UsageError, match="ALIAS=SHARE"):
        _canary(text, "digits@champion")
    assert _canary("challenger=0.1", "digits@champion") == ("digits@challenger", 0.1)
