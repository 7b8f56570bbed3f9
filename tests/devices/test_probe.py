from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

from aios_jupyter.devices import cpu, probe, simulated
from aios_jupyter.schema import Device, DeviceKind

PRINT_DEVICES = """
import json, msgspec
from aios_jupyter.devices.probe import devices
print(json.dumps(msgspec.to_builtins(devices("n1", {count}))))
"""


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios_jupyter.devices.nvml.open_nvml", lambda: None)


def kinds(devices: Any) -> list[str]:
    return [device["kind"] for device in devices]


def test_gpus_come_first_by_uuid_and_cpu_slots_follow(fake_nvml, run_python):
    fake_nvml.write(
        "gpu name=NVIDIA A100;uuid=GPU-aaa;total=1000", "gpu name=NVIDIA L4;uuid=GPU-bbb"
    )
    found = run_python(PRINT_DEVICES.format(count=0), fake_nvml.env)
    assert [(d["id"], d["name"], d["index"]) for d in found[:2]] == [
        ("GPU-aaa", "NVIDIA A100", 0),
        ("GPU-bbb", "NVIDIA L4", 1),
    ]
    assert found[0]["memory"] == 1000
    assert kinds(found[:2]) == ["gpu", "gpu"]
    assert set(kinds(found[2:])) == {"cpu"}


def test_mig_slices_stand_in_for_their_parent(fake_nvml, run_python):
    fake_nvml.write(
        "gpu name=NVIDIA H100;uuid=GPU-aaa;mig=1;slices=2;total=70000", "gpu uuid=GPU-bbb"
    )
    found = run_python(PRINT_DEVICES.format(count=0), fake_nvml.env)
    assert [d["id"] for d in found[:3]] == ["MIG-aaa-0", "MIG-aaa-1", "GPU-bbb"]
    assert kinds(found[:3]) == ["mig", "mig", "gpu"]
    assert [d["index"] for d in found[:3]] == [0, 1, 2]
    assert found[0]["memory"] == 10000
    assert "MIG 1g" in found[0]["name"]


def test_real_gpus_are_not_joined_by_simulated_ones(fake_nvml, run_python):
    fake_nvml.write("gpu uuid=GPU-aaa")
    found = run_python(PRINT_DEVICES.format(count=3), fake_nvml.env)
    assert "simulated" not in kinds(found)


def test_nvml_without_a_gpu_is_as_good_as_none(fake_nvml, run_python):
    found = run_python(PRINT_DEVICES.format(count=1), fake_nvml.env)
    assert kinds(found)[0] == "simulated"
    assert set(kinds(found)[1:]) == {"cpu"}


@pytest.mark.usefixtures("no_nvml")
def test_simulated_gpus_say_what_they_are_and_cpu_slots_follow():
    found = probe.devices("n1", simulate_gpus=2)
    assert [(d.id, d.name, d.memory) for d in found[:2]] == [
        ("sim-n1-0", "Simulated GPU", 16 * 2**30),
        ("sim-n1-1", "Simulated GPU", 16 * 2**30),
    ]
    slots = found[2:]
    assert len(slots) >= 2
    assert [d.id for d in slots] == [f"cpu-n1-{i}" for i in range(len(slots))]
    assert len({d.id for d in found}) == len(found)


@pytest.mark.usefixtures("no_nvml")
def test_without_hardware_there_are_cpu_slots_alone():
    assert {d.kind for d in probe.devices("n1")} == {DeviceKind.CPU}


def test_a_library_that_does_not_load_is_no_gpu(tmp_path, run_python, fake_nvml):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "libnvidia-ml.so.1").write_text("not a library")
    env = {**fake_nvml.env, "LD_LIBRARY_PATH": str(broken)}
    assert set(kinds(run_python(PRINT_DEVICES.format(count=0), env))) == {"cpu"}


def test_the_probe_does_nothing_at_import(run_python):
    code = "import sys, json, aios_jupyter.devices.probe; print(json.dumps(list(sys.modules)))"
    loaded = set(run_python(code))
    assert not loaded & {"pynvml", "numpy", "distributed", "torch"}


class Plugin:
    """Stands for an installed entry point."""

    def __init__(self, name: str, result: Any) -> None:
        self.name = name
        self._result = result

    def load(self) -> Any:
        if isinstance(self._result, Exception):
            raise self._result
        return lambda node: self._result


@pytest.mark.usefixtures("no_nvml")
def test_plugins_add_devices_and_a_broken_one_costs_only_its_own(monkeypatch, caplog):
    tpu = Device(id="tpu-0", kind=DeviceKind.GPU, name="TPU", index=0)
    plugins = [Plugin("broken", ImportError("no driver")), Plugin("odd", ["x"])]
    plugins.append(Plugin("tpu", [tpu]))

    def entry_points(*, group: str) -> list[Plugin]:
        return plugins if group == "aios_jupyter.devices" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    found = probe.devices("n1")
    assert found[0] == tpu
    assert {d.kind for d in found[1:]} == {DeviceKind.CPU}
    assert "'broken' failed" in caplog.text
    assert "'odd' gave 'x'" in caplog.text


def cgroup_tree(tmp_path, membership: str, files: dict[str, str]):
    own = tmp_path / "own"
    own.write_text(membership)
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"cgroups": root, "own": own}


@pytest.fixture
def many_cores(monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("affinity and cgroups are Linux's")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/job\n", {"job/cpu.max": "250000 100000"}, 3),
        ("0::/not/mounted/here\n", {"cpu.max": "400000 100000"}, 4),
        (
            "2:cpu,cpuacct:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("", {}, 16),
        ("0::/tiny\n", {"tiny/cpu.max": "10000 100000"}, 1),
    ],
)
def test_usable_cores_obey_affinity_and_every_quota_above(tmp_path, membership, files, cores):
    assert cpu.usable_cores(**cgroup_tree(tmp_path, membership, files)) == cores


def test_usable_memory_obeys_the_cgroup(tmp_path):
    tree = cgroup_tree(tmp_path, "0::/job\n", {"job/memory.max": "1073741824"})
    assert cpu.usable_memory(**tree) == 2**30
    whole = cgroup_tree(tmp_path, "0::/job\n", {"job/memory.max": "max"})
    assert cpu.usable_memory(**whole) > 2**30


@pytest.mark.parametrize(("cores", "slots"), [(1, 2), (2, 2), (5, 5)])
def test_there_are_at_least_two_cpu_slots(monkeypatch, cores, slots):
    monkeypatch.setattr(cpu, "usable_cores", lambda: cores)
    assert len(cpu.devices("n")) == slots


def test_no_simulated_gpu_unless_asked():
    assert simulated.devices("n", 0) == ()
