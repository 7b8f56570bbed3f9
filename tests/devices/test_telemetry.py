from __future__ import annotations

import contextlib
import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from aios_jupyter.devices import simulated
from aios_jupyter.node import telemetry
from aios_jupyter.node.telemetry import Sampler, outside
from aios_jupyter.schema import Process, Usage

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SPIN = "while True: pass"
# A parent that sleeps, whose child spins: the use of a tree is more than that of its root.
TREE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPIN!r}])"
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def start() -> Iterator:
    children: list[subprocess.Popen] = []

    def run(code: str) -> subprocess.Popen:
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        children.append(child)
        return child

    yield run
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait(10)


def wait_until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 10 s")


@linux
def test_utilization_and_memory_follow_the_process_tree_on_a_device(start):
    busy, idle = start(TREE), start(SLEEP)
    devices = simulated.devices("n", 3)
    on = {devices[0].id: [busy.pid], devices[1].id: [idle.pid], devices[2].id: []}
    wait_until(lambda: len(telemetry.descendants([busy.pid], telemetry.processes())) == 2)
    sampler = Sampler(devices, on.__getitem__)
    first = sampler.sample()
    assert first[0].utilization is None
    time.sleep(1.0)
    spinning, sleeping, empty = sampler.sample()
    # A busy machine gives it only a part of a second.
    assert 5 < spinning.utilization <= 100
    assert len(spinning.processes) == 2
    assert spinning.memory_used > 5e6
    assert sleeping.utilization < spinning.utilization
    assert (empty.utilization, empty.memory_used, empty.processes) == (0.0, 0, ())
    assert spinning.processes[0] == Process(
        pid=busy.pid,
        memory=spinning.processes[0].memory,
        name=spinning.processes[0].name,
        user=getpass.getuser(),
    )
    assert spinning.processes[0].name.startswith("python")


@linux
def test_a_process_that_ended_is_gone_from_the_next_sample(start):
    child = start(SLEEP)
    device = simulated.devices("n", 1)
    sampler = Sampler(device, lambda _: [child.pid])
    assert [p.pid for p in sampler.sample()[0].processes] == [child.pid]
    child.kill()
    child.wait(10)
    assert sampler.sample()[0].processes == ()


@linux
def test_a_long_lived_process_put_on_an_idle_device_does_not_count_its_past(start):
    child = start(SPIN)
    time.sleep(1.0)
    on: list[int] = []
    sampler = Sampler(simulated.devices("n", 1), lambda _: on)
    sampler.sample()
    os.kill(child.pid, 19)  # SIGSTOP
    time.sleep(0.1)
    on.append(child.pid)
    assert sampler.sample()[0].utilization == 0.0


@linux
def test_outside_are_those_that_descend_from_none_of_ours(start):
    ours, stranger = start(TREE), start(SLEEP)
    wait_until(lambda: len(telemetry.descendants([ours.pid], telemetry.processes())) == 2)
    child = telemetry.descendants([ours.pid], telemetry.processes())
    usage = Usage(
        device="GPU-1", processes=tuple(Process(pid=pid) for pid in (*child, stranger.pid))
    )
    assert [p.pid for p in outside(usage, {ours.pid})] == [stranger.pid]
    assert [p.pid for p in outside(usage, set())] == [*child, stranger.pid]
    assert outside(Usage(device="GPU-1"), {ours.pid}) == ()


def test_where_there_is_no_proc_use_is_unknown(monkeypatch):
    monkeypatch.setattr(telemetry, "IS_LINUX", False)
    usage = Sampler(simulated.devices("n", 1), lambda _: [os.getpid()]).sample()[0]
    assert usage == Usage(device="sim-n-0")


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_parser():
    numbers = " ".join(str(n) for n in range(1, 50))
    info = telemetry._parse_stat(f"42 (a) (b c) S {numbers}", 4096)
    assert (info.pid, info.name, info.parent, info.start) == (42, "a) (b c", 1, 19)
    assert telemetry._parse_stat(f"42 (gone) Z {numbers}", 4096) is None


SAMPLE_TWICE = """
import json, msgspec, sys
from aios_jupyter.devices.probe import devices
from aios_jupyter.node.telemetry import Sampler
found = [d for d in devices("n") if d.kind != "cpu"]
sampler = Sampler(found, lambda device: [])
for _ in range(2):
    print(json.dumps(msgspec.to_builtins(sampler.sample())), flush=True)
    sys.stdin.readline()
"""


def test_gpus_are_sampled_through_nvml_as_they_change(fake_nvml, start):
    stranger = start(SLEEP)
    fake_nvml.write(
        "gpu uuid=GPU-a;util=10;used=1000;temp=40;power=123000;limit=400000",
        "gpu uuid=GPU-b;mig=1;slices=1;total=70000;used=7000",
    )
    child = subprocess.Popen(
        [sys.executable, "-c", SAMPLE_TWICE],
        env=fake_nvml.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        gpu, part = json.loads(child.stdout.readline())
        assert gpu == {
            "device": "GPU-a",
            "utilization": 10.0,
            "memory_used": 1000,
            "temperature": 40.0,
            "power": 123.0,
            "power_limit": 400.0,
            "processes": [],
        }
        assert (part["utilization"], part["memory_used"]) == (None, 1000)
        # The second GPU has fallen off the bus.
        fake_nvml.write(f"gpu uuid=GPU-a;util=90;procs={stranger.pid}:5000,4194303:7")
        child.stdin.write("\n")
        child.stdin.flush()
        gpu, part = json.loads(child.stdout.readline())
        child.communicate("\n", timeout=20)
    assert gpu["utilization"] == 90.0
    known, unknown = gpu["processes"]
    assert known["pid"] == stranger.pid
    assert (known["memory"], known["user"]) == (5000, getpass.getuser())
    assert known["name"].startswith("python")
    assert unknown == {"pid": 4194303, "memory": 7, "name": "", "user": ""}
    assert part == {
        "device": "MIG-b-0",
        "utilization": None,
        "memory_used": None,
        "temperature": None,
        "power": None,
        "power_limit": None,
        "processes": [],
    }
