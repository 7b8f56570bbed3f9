"""Kernelspecs that ask for devices, as front ends and three doors see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from aios_jupyter import kernel
from aios_jupyter.commands import Host, invoke, main
from aios_jupyter.errors import ConflictError, NotFoundError, UsageError
from aios_jupyter.kernel import specs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))


def test_an_added_kernel_is_one_for_jupyter_and_asks_for_devices() -> None:
    row = kernel.add(gpus=2, time="4h", queue="vision")
    assert (row["name"], row["asks"]) == ("aios-2-gpus-4-h", "2 GPUs, 4 h")
    spec = KernelSpecManager().get_kernel_spec(row["name"])
    assert spec.display_name == "Python (AIOS, 2 GPUs, 4 h)"
    assert spec.metadata["kernel_provisioner"] == {
        "provisioner_name": "aios-provisioner",
        "config": {"gpus": 2, "time": 14400.0, "queue": "vision"},
    }
    assert Path(spec.resource_dir, "logo-svg.svg").exists()
    assert row in kernel.ls()

    assert kernel.rm(row["name"]) == row["path"]
    assert row["name"] not in [other["name"] for other in kernel.ls()]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"devices": 1}, "1 device"),
        ({"gpus": "2:4", "gpu_model": "a100"}, "2 to 4 GPUs a100"),
        ({"gpus": 1, "gpu_memory": "16GiB"}, "1 GPU, 16 GiB"),
        ({"cpus": 3, "time": 5400.0}, "3 CPU slots, 1 h 30 min"),
    ],
)
def test_a_kernel_says_what_it_asks_for(config: dict[str, object], text: str) -> None:
    assert specs.asks_text(config) == text


def test_a_kernel_takes_no_other_ones_place_unasked() -> None:
    kernel.add(devices=1, name="mine")
    with pytest.raises(ConflictError, match="--replace"):
        kernel.add(devices=2, name="mine")
    assert kernel.add(devices=2, name="mine", replace=True)["asks"] == "2 devices"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "one of --gpus, --devices and --cpus"),
        ({"gpus": 1, "devices": 1}, "one of --gpus, --devices and --cpus"),
        ({"gpus": 1, "name": "../up"}, "not a kernel's name"),
        ({"gpus": 1, "time": "soon"}, "not a length of time"),
    ],
)
def test_a_kernel_that_makes_no_sense_is_not_made(
    arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        kernel.add(**arguments)  # type: ignore[arg-type]


def test_only_ones_own_kernels_are_removed(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'aios kernel add' makes one"):
        kernel.rm("python3")
    with pytest.raises(ConflictError, match="installed for everybody"):
        kernel.rm("aios-device")


def test_the_shell_and_the_magics_have_the_same_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["kernel", "add", "--devices", "2", "--time", "1h", "--name", "mine"], Host())
    assert "2 devices, 1 h" in capsys.readouterr().out
    invoke(["kernel", "ls", "--json"], Host())
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mine"]["config"] == {"devices": 2, "time": 3600.0}
    invoke(["kernel", "rm", "mine"], Host())
    with pytest.raises(SystemExit) as ended:
        main(["kernel", "rm", "mine"])
    assert ended.value.code == 1
    assert "There is no kernel 'mine'" in capsys.readouterr().err


def test_the_shipped_kernels_make_sense() -> None:
    shipped = {
        path.parent.name: json.loads(path.read_text())
        for path in ROOT.glob("aios_jupyter/kernel/spec*/kernel.json")
    }
    assert set(shipped) == {"spec", "spec-device"}
    stanza = shipped["spec-device"]["metadata"]["kernel_provisioner"]
    assert stanza["provisioner_name"] == specs.PROVISIONER
    assert specs.asks_text(stanza["config"]) in shipped["spec-device"]["display_name"]
