"""Real deaths on a live cluster: a kernel, a rank, the broker, the agent. Nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import environment, free, holder, pid_of, until

from aios_jupyter.cluster import embedded
from aios_jupyter.errors import AllocationError, RunError
from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect

KERNEL = """
import sys, time, aios_jupyter
session = aios_jupyter.connect(label="victim")
lease = session.alloc(gpus=2)
handle = session.start("import os, time\\nprint(os.getpid(), flush=True)\\ntime.sleep(600)", cell=True)
pids = []
for event in handle.events():
    if event["type"] == "log":
        pids += event["text"].split()
    if len(pids) == 2:
        break
print(lease.id, *pids, flush=True)
time.sleep(600)
"""


@pytest.fixture
def victim(session: Session) -> Iterator[tuple[subprocess.Popen[str], str, list[int]]]:
    """A kernel's process, its lease of two devices, and the pids of the two ranks."""
    with subprocess.Popen(
        [sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        lease, *pids = process.stdout.readline().split()
        yield process, lease, [int(pid) for pid in pids]
        process.kill()


def test_a_killed_kernel_frees_its_devices_and_its_ranks_are_gone(
    session: Session, victim: tuple[subprocess.Popen[str], str, list[int]]
) -> None:
    process, lease, pids = victim
    assert sum(holder(session, device) == lease for device in session.status()["devices"]) == 2
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    until(lambda: len(free(session)) == 4, "the devices are free")
    assert not any(alive(pid) for pid in pids)


def test_a_stopped_kernel_keeps_its_lease_for_the_grace(
    session: Session, victim: tuple[subprocess.Popen[str], str, list[int]]
) -> None:
    process, _, pids = victim
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(AllocationError, match="could not be granted within"):
            session.alloc(gpus=4, wait=2)
        assert all(alive(pid) for pid in pids)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
    until(lambda: len(free(session)) == 4, "the devices are free")


TRAINING = """
import time
from aios_jupyter import train
for step in range(60):
    train.progress(step + 1, 60)
    time.sleep(0.1)
print("finished", flush=True)
"""


def test_the_broker_killed_during_training_comes_back_and_all_goes_on(no_cluster: Path) -> None:
    with connect(simulate_gpus=2, label="trainer") as session:
        lease = session.alloc(gpus=2)
        handle = session.start(TRAINING, cell=True)
        steps = []
        killed = 0
        text = ""
        for event in handle.events():
            if event["type"] == "log":
                text += event["text"]
            if event["type"] == "progress" and event["rank"] == 0:
                steps.append(event["done"])
                if event["done"] >= 10 and not killed:
                    killed = pid_of("broker")
                    os.kill(killed, signal.SIGKILL)
        result = handle.wait()
        assert result.state == "succeeded"
        assert text.count("finished") == 2
        assert steps == sorted(steps)
        assert steps[-1] == 60
        assert pid_of("broker") != killed
        assert [held.id for held in session.leases()] == [lease.id]
        until(
            lambda: [run["state"] for run in session.runs()] == ["succeeded"],
            "the new broker knows how the run ended",
        )
        session.release(lease.id)
        later = session.alloc(gpus=2, wait=60)
        assert later.fence > lease.fence, "tokens rise through a crash"


def test_a_queued_request_survives_the_broker(no_cluster: Path) -> None:
    with connect(simulate_gpus=1) as first, connect() as second:
        lease = first.alloc(gpus=1)
        asked = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import aios_jupyter as a; s = a.connect(); print(s.alloc(gpus=1).id, flush=True)",
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        until(lambda: second.queue(), "it waits")
        os.kill(pid_of("broker"), signal.SIGKILL)
        until(lambda: embedded.running(embedded.Paths.current().broker), "the broker is back", 60)
        until(lambda: second.queue(), "it still waits")
        first.release(lease.id)
        output, _ = asked.communicate(timeout=60)
        assert output.startswith("L")


def test_the_agent_killed_ends_the_run_with_the_node_named(no_cluster: Path) -> None:
    with connect(simulate_gpus=2) as session:
        session.alloc(gpus=2)
        source = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
        handle = session.start(source, cell=True)
        pids: list[int] = []
        killed = 0
        for event in handle.events():
            if event["type"] == "log":
                pids += [int(word) for word in event["text"].split()]
            if len(pids) == 2 and not killed:
                killed = pid_of("node")
                os.kill(killed, signal.SIGKILL)
        with pytest.raises(RunError, match="agent"):
            handle.wait()
        until(lambda: not any(alive(pid) for pid in pids), "the ranks are gone")


def test_a_rank_killed_ends_the_gang_and_the_lease_survives(session: Session) -> None:
    lease = session.alloc(gpus=2)
    source = (
        "import os, signal, time\nfrom aios_jupyter import train\n"
        "time.sleep(0.3)\n"
        "if train.rank() == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    )
    handle = session.start(source, cell=True)
    list(handle.events())
    with pytest.raises(RunError, match="rank 1 was killed by SIGKILL") as caught:
        handle.wait()
    assert caught.value.rank == 1
    assert session.leases()[0].id == lease.id
    assert session.train("print('again')", cell=True).state == "succeeded"
