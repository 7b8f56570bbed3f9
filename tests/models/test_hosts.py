"""Replicas of an endpoint on other machines: here each machine is a process that has joined it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clusters import until
from relay import Relay

from aios_jupyter import tls
from aios_jupyter.errors import AiosError, ClusterError
from aios_jupyter.models import numbers
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.monitor import traffic

from .conftest import TOKEN

X = np.ones((1, 2), np.float32)
FILES = ("ca.pem", "endpoint.pem", "endpoint.key")
# It has other files than the endpoint's machine, and gives up soon.
HOST = """
import json, sys
import aios_jupyter.models.host as host
host._same = lambda package: False
host.GIVE_UP_SECONDS = 2.0
address, files, slots = json.loads(sys.argv[1])
host.run(address, files, slots, ())
"""


@dataclass
class Gathered:
    """An endpoint, and what has joined it."""

    process: subprocess.Popen[str]
    address: str
    material: Path
    hosts: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _url: str = ""

    @property
    def url(self) -> str:
        """Once it answers."""
        if not self._url:
            self._url = self._said()["url"]
        return self._url

    def _said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def join(self, slots: int = 1, material: Path | None = None) -> subprocess.Popen[bytes]:
        files = {name: ((material or self.material) / name).read_text() for name in FILES}
        told = json.dumps([self.address, files, slots])
        host = subprocess.Popen([sys.executable, "-c", HOST, told], env={**os.environ})
        self.hosts.append(host)
        return host

    def ask(self, authority: Path | None = None) -> float:
        with EndpointClient(self.url, TOKEN, authority=authority) as client:
            return float(client.infer(X)[0, 0])

    def counted(self) -> int:
        with EndpointClient(self.url, TOKEN) as client:
            return traffic(client.metrics()).requests


@pytest.fixture
def gather(state_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Gathered]]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    tls.create_closed(tmp_path / "gather", "AIOS endpoint test", "endpoint", "node")
    started: list[Gathered] = []

    def start(model: str, *options: str, here: int = 0) -> Gathered:
        fixed = ("--model", model, "--gather", str(tmp_path / "gather"), "--here", str(here))
        process = subprocess.Popen(
            [sys.executable, "-m", "aios_jupyter.models.serve", *fixed, *options],
            env={**os.environ, "AIOS_ENDPOINT_TOKEN_FILE": str(token)},
            stdout=subprocess.PIPE,
            text=True,
        )
        one = Gathered(process, "", tmp_path / "gather")
        started.append(one)
        one.address = one._said()["gather"]
        return one

    yield start
    for one in started:
        for process in (one.process, *one.hosts):
            process.terminate()
            process.wait(20)
        assert one.process.stdout is not None
        one.process.stdout.close()


def below(process: subprocess.Popen[Any], module: str) -> list[int]:
    """The processes of a module that another has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if f"aios_jupyter.models.{module}" in child.cmdline():
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def test_a_machine_without_the_files_fetches_them_and_another_may_take_its_place(
    gather: Callable[..., Gathered], line: Callable[..., Any]
) -> None:
    line("fetched", 3.0)
    endpoint = gather("fetched")
    first = endpoint.join()
    assert endpoint.ask() == 3.0
    assert below(endpoint.process, "replica") == []
    first.kill()
    first.wait()
    endpoint.join()
    # Whoever asks meanwhile waits until somebody answers.
    assert until(lambda: _answer(endpoint), "the second machine") == 3.0
    endpoint.process.terminate()
    assert endpoint.process.wait(20) == 0
    assert endpoint.hosts[1].wait(20) == 0, "it was told that this is the end"


def _answer(endpoint: Gathered) -> float:
    try:
        return endpoint.ask()
    except AiosError:  # on a connection that the first had
        return 0.0


def test_connections_are_encrypted_up_to_the_replica(
    gather: Callable[..., Gathered], line: Callable[..., Any], tmp_path: Path
) -> None:
    line("sealed", 2.0)
    tls.create(tmp_path / "tls")
    authority = tls.issue_endpoint(tmp_path / "tls", "own", ["127.0.0.1"], tmp_path)
    files = ("--certificate", str(tmp_path / "own.pem"), "--key", str(tmp_path / "own.key"))
    endpoint = gather("sealed", *files)
    endpoint.join()
    assert endpoint.url.startswith("https://")
    assert endpoint.ask(authority) == 2.0


def test_nobody_answers_until_somebody_asks(
    gather: Callable[..., Gathered], line: Callable[..., Any]
) -> None:
    line("sleepy", 2.0)
    endpoint = gather("sleepy", "--replicas", "0:2", "--idle", "0.5", here=1)
    endpoint.join()
    assert endpoint.ask() == 2.0

    def there() -> list[int]:
        return below(endpoint.process, "replica") + below(endpoint.hosts[0], "replica")

    until(lambda: not there(), "it to be at rest")
    assert endpoint.ask() == 2.0


def test_machines_tell_the_sum_and_a_relay_that_dies_is_started_again(
    gather: Callable[..., Gathered], line: Callable[..., Any]
) -> None:
    line("summed", 2.0)
    endpoint = gather("summed", "--replicas", "3", here=1)
    endpoint.join(2)
    for _ in range(30):  # each by a connection of its own
        assert endpoint.ask() == 2.0
    until(lambda: endpoint.counted() == 30, "all of them")
    (relay,) = below(endpoint.process, "relay")
    os.kill(relay, signal.SIGKILL)
    until(lambda: below(endpoint.process, "relay") not in ([], [relay]), "another relay")
    assert until(lambda: _answer(endpoint), "an answer") == 2.0
    # What those on the machine that is lost have done and told stays.
    endpoint.hosts[0].kill()
    until(lambda: _answer(endpoint) and endpoint.counted() > 30, "no request forgotten")


def test_a_machine_that_joins_again_counts_nothing_twice(
    gather: Callable[..., Gathered], line: Callable[..., Any]
) -> None:
    line("again", 2.0)
    endpoint = gather("again")
    cable = Relay(0, endpoint.address, calm=True)
    try:
        endpoint.address = cable.address
        host = endpoint.join()
        (replica,) = until(lambda: below(host, "replica"), "its replica")
        assert [endpoint.ask() for _ in range(5)] == [2.0] * 5
        until(lambda: endpoint.counted() == 5, "all five")
        cable.cut()
        until(lambda: below(host, "replica") not in ([], [replica]), "another")
        assert until(lambda: _answer(endpoint), "an answer") == 2.0
        until(lambda: endpoint.counted() == 6, "one more")
    finally:
        cable.close()


def test_a_machine_without_the_certificate_does_not_join(
    gather: Callable[..., Gathered], line: Callable[..., Any], tmp_path: Path
) -> None:
    line("closed", 2.0)
    endpoint = gather("closed", here=1)
    assert endpoint.ask() == 2.0
    tls.create_closed(tmp_path / "other", "AIOS endpoint other", "endpoint", "node")
    assert endpoint.join(material=tmp_path / "other").wait(30) == 1


def test_machines_end_with_an_endpoint_that_is_killed(
    gather: Callable[..., Gathered], line: Callable[..., Any]
) -> None:
    line("killed", 2.0)
    endpoint = gather("killed", "--replicas", "2", here=1)
    host = endpoint.join()
    assert endpoint.ask() == 2.0
    own = [psutil.Process(pid) for pid in below(endpoint.process, "replica")]
    own += [psutil.Process(pid) for pid in below(endpoint.process, "relay")]
    own += [psutil.Process(pid) for pid in below(host, "replica")]
    assert len(own) == 3
    endpoint.process.kill()
    endpoint.process.wait()
    assert host.wait(30) == 0
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in own), "all")


def test_a_model_that_cannot_be_served_is_a_sentence(
    gather: Callable[..., Gathered], slow_model: str
) -> None:
    endpoint = gather(slow_model)
    endpoint.join()
    assert endpoint.process.wait(60) == 1


def test_numbers_of_another_machine_stand_beside_ours(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    code = (
        "from prometheus_client import Counter\n"
        "import sys\n"
        "Counter('asked', 'Requests.').inc(float(sys.argv[1]))\n"
    )
    for folder, count in ((there, "2"), (here, "3")):
        environment = {**os.environ, numbers.FOLDER: str(folder)}
        subprocess.run([sys.executable, "-c", code, count], env=environment, check=True)
    seen: dict[str, bytes] = {}
    files = numbers.changed(there, seen)
    assert files
    assert numbers.changed(there, seen) == {}
    numbers.keep(here, 1, files)
    assert b"asked_total 5.0" in numbers.summed(here)
    before = sorted(here.iterdir())
    for name in ("../counter_1.db", "counter_../../x.db", "counter.db", "/etc/counter_1.db"):
        numbers.keep(here, 1, {name: b"no"})
    assert sorted(here.iterdir()) == before


def test_an_endpoint_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    from aios_jupyter.models import host

    tls.create_closed(tmp_path, "AIOS endpoint test", "endpoint", "node")
    files = {name: (tmp_path / name).read_text() for name in FILES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "GIVE_UP_SECONDS", 0.5)
        patch.delenv(numbers.FOLDER, raising=False)
        with pytest.raises(ClusterError, match="does not answer"):
            host.run("127.0.0.1:9", files, 1, ())
        patch.delenv(numbers.FOLDER, raising=False)
