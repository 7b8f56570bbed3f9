"""What a job of Slurm may offer of its machine: its own part, and nothing else."""

from __future__ import annotations

import os

import pytest

from aios_jupyter.devices import cpu, probe
from aios_jupyter.devices.given import Given, given
from aios_jupyter.schema import DeviceKind

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURMD_NODENAME": "n1",
    "SLURM_CPUS_ON_NODE": "3",
    "CUDA_VISIBLE_DEVICES": "1,2",
    "SLURM_MEM_PER_CPU": "500",
}
PRINT_DEVICES = """
import json, msgspec
from aios_jupyter.devices.probe import devices
print(json.dumps(msgspec.to_builtins(devices("n1", 2))))
"""
FOUR = [f"gpu name=A;uuid=GPU-{letter * 3}" for letter in "abcd"]


def test_a_process_of_no_job_has_the_whole_machine() -> None:
    assert given({"CUDA_VISIBLE_DEVICES": "0"}) is None
    # The shell of `salloc` is on the machine that it was typed on.
    assert given({"SLURM_JOB_ID": "7"}) is None


@pytest.mark.parametrize(
    ("told", "gpus"),
    [
        ("1,2", ("1", "2")),
        ("GPU-aaa, MIG-b", ("GPU-aaa", "MIG-b")),
        ("", ()),
        ("NoDevFiles", ()),
    ],
)
def test_a_job_says_what_it_was_given(told: str, gpus: tuple[str, ...]) -> None:
    assert given({**JOB, "CUDA_VISIBLE_DEVICES": told}) == Given(gpus, 3, 1500 * 2**20)
    whole = {name: value for name, value in JOB.items() if "MEM" not in name}
    assert given({**whole, "SLURM_MEM_PER_NODE": "800"}) == Given(("1", "2"), 3, 800 * 2**20)
    assert given(whole) == Given(("1", "2"), 3, 0)


@pytest.mark.parametrize("told", ["1,2", "GPU-bbb,GPU-c"])
def test_only_the_gpus_of_the_job_are_offered(told: str, fake_nvml, run_python) -> None:
    fake_nvml.write(*FOUR)
    found = run_python(PRINT_DEVICES, {**fake_nvml.env, **JOB, "CUDA_VISIBLE_DEVICES": told})
    assert [device["id"] for device in found if device["kind"] == "gpu"] == ["GPU-bbb", "GPU-ccc"]
    # Of all machines that this may run on, some have fewer cores than the job.
    slots = [device for device in found if device["kind"] == "cpu"]
    assert len(slots) == min(3, os.cpu_count() or 1)


def test_a_job_that_asked_for_no_gpu_offers_none_but_those_that_are_simulated(
    fake_nvml, run_python
) -> None:
    fake_nvml.write(*FOUR)
    found = run_python(PRINT_DEVICES, {**fake_nvml.env, **JOB, "CUDA_VISIBLE_DEVICES": ""})
    assert [device["kind"] for device in found].count("simulated") == 2
    assert "gpu" not in {device["kind"] for device in found}


def test_a_job_with_one_core_offers_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios_jupyter.devices.nvml.open_nvml", lambda: None)
    for name, value in {**JOB, "SLURM_CPUS_ON_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    (slot,) = probe.devices("n1")
    assert (slot.kind, slot.memory) == (DeviceKind.CPU, 500 * 2**20)
    assert cpu.usable_cores() == 1
