"""`aios up --foreground`: a cluster that is mended without anybody's session, and ends with its keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import free, pid_of, until

from aios_jupyter.cluster import embedded
from aios_jupyter.cluster.processes import read
from aios_jupyter.commands import Host, invoke
from aios_jupyter.errors import NoClusterError, UsageError
from aios_jupyter.process import alive
from aios_jupyter.session import connect

UP = (sys.executable, "-c", "from aios_jupyter.commands import main; main()", "up", "--foreground")


class Keeper:
    """The process, and what it has said."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen([*UP, *flags], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.stream = self.process.stderr
        self.first = self.stream.readline()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        rest = self.stream.read()
        return self.process.wait(60), rest


@pytest.fixture
def keeper(no_cluster: Path) -> Iterator[Keeper]:
    made = Keeper("--simulate-gpus", "2")
    yield made
    if made.process.poll() is None:
        made.end()
    made.stream.close()


def nothing_runs() -> bool:
    paths = embedded.Paths.current()
    return not (embedded.running(paths.broker) or embedded.running(paths.node))


def replaced(which: str, pid: int) -> bool:
    facts = embedded.running(getattr(embedded.Paths.current(), which))
    return facts is not None and facts["pid"] != pid and has_worker()


def has_worker() -> bool:
    """The node's Dask worker is there, and on record: then the next agent ends it."""
    paths = embedded.Paths.current()
    node = embedded.running(paths.node)
    found = (read(paths.children) or {}).get("processes", [])
    live = [row["pid"] for row in found if alive(row["pid"], row["start"])]
    return node is not None and any(psutil.Process(pid).ppid() == node["pid"] for pid in live)


def test_what_dies_is_started_again_and_all_ends_with_the_keeper(keeper: Keeper) -> None:
    assert "is kept until this ends" in keeper.first
    until(has_worker, "it has a Dask worker")
    for which in ("broker", "node"):
        pid = pid_of(which)
        os.kill(pid, signal.SIGKILL)
        until(lambda: replaced(which, pid), f"the {which} is there again")  # noqa: B023
    pids = {which: pid_of(which) for which in ("broker", "node")}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    for which, pid in pids.items():
        until(lambda: replaced(which, pid), "both are there again")  # noqa: B023
    with connect(start=False) as session:
        until(lambda: len(free(session)) == 2, "with the devices that were asked for")
    code, said = keeper.end()
    assert code == 0
    # Two that die at once are told of once.
    assert "The broker had ended; it is started again as process" in said
    assert "The node agent had ended; it is started again as process" in said
    assert said.endswith("The cluster is stopped.\n")
    assert nothing_runs()


def test_it_does_not_end_by_disuse(keeper: Keeper) -> None:
    environment = Path(f"/proc/{pid_of('broker')}/environ").read_text().split("\0")
    assert "AIOS_IDLE_TIMEOUT=inf" in environment
    assert keeper.end(signal.SIGINT)[0] == 0
    assert nothing_runs()


def test_it_ends_when_somebody_stops_the_cluster(keeper: Keeper) -> None:
    embedded.down()
    code, said = keeper.ended()
    assert code == 0
    assert "was stopped by 'aios down'" in said
    assert nothing_runs()


def test_a_keeper_that_is_killed_leaves_a_cluster_for_the_next(keeper: Keeper) -> None:
    pid = pid_of("broker")
    keeper.process.kill()
    keeper.process.wait()
    assert alive(pid)
    following = Keeper()
    assert "is kept until this ends" in following.first
    assert pid_of("broker") == pid
    assert following.end()[0] == 0
    following.stream.close()
    assert nothing_runs()


def test_what_cannot_start_is_told(no_cluster: Path) -> None:
    keeper = Keeper("--host", "192.0.2.1")
    code, rest = keeper.ended()
    keeper.stream.close()
    assert code == 1
    assert "did not start" in keeper.first + rest
    assert "Traceback" not in keeper.first + rest


def test_a_notebook_would_wait_for_ever(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "shell_leases", False)
    with pytest.raises(UsageError, match="for terminals and services"):
        invoke(["up", "--foreground"], Host())
    with pytest.raises(NoClusterError):
        embedded.ensure(start=False)
