"""The quickstart runs unattended, from the data to the endpoint, and its figures hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_core.paths import jupyter_data_dir

import aios_jupyter
from aios_jupyter import kernel
from aios_jupyter.errors import NoClusterError

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_quickstart.ipynb"
SECONDS = 540

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 60)]


@pytest.fixture(autouse=True)
def own_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster that the notebook starts, with a state of its own; it ends with the test."""
    monkeypatch.setenv("AIOS_STATE_DIR", str(tmp_path / "state"))
    kernels = Path(jupyter_data_dir()) / "kernels"
    shutil.copytree(kernel.SPEC, kernels / kernel.NAME, dirs_exist_ok=True)
    yield
    try:
        aios_jupyter.down()
    except NoClusterError:
        pass


def run(output: Path, kernel_name: str, *parameters: str) -> dict[str, Any]:
    """Run the notebook under papermill; what its summary cell shows."""
    command = [sys.executable, "-m", "papermill", "--kernel", kernel_name, "--no-progress-bar"]
    command += ["--cwd", str(output.parent), str(NOTEBOOK), str(output), *parameters]
    done = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    notebook = nbformat.read(output, as_version=4)
    for cell in notebook.cells:
        for shown in cell.get("outputs", ()):
            assert shown.output_type != "error"
            data = shown.get("data", {})
            assert "application/vnd.jupyter.widget-view+json" not in data, (
                f"cell {cell.id} keeps a widget that nothing can draw"
            )
    (summary,) = [
        shown.data["application/json"]
        for cell in notebook.cells
        if "summary" in cell.metadata.get("tags", ())
        for shown in cell.outputs
    ]
    return dict(summary)


def test_the_quickstart_in_the_aios_kernel(tmp_path: Path) -> None:
    summary = run(tmp_path / "out.ipynb", kernel.NAME)
    assert len(summary["leases"]) == 1
    assert summary["images_augmented"] == 16_000
    assert summary["world_size"] == 2
    assert summary["train_seconds"] < 300
    assert summary["test_accuracy"] > 0.97
    assert summary["version"] == "digits/1"
    assert summary["endpoint"].startswith("http")
    assert summary["served"] == summary["own"]
    assert len(summary["labels"]) == len(summary["served"]) == 8


def test_parameters_reach_the_quickstart_in_a_plain_kernel(tmp_path: Path) -> None:
    given = {"devices": 1, "epochs": 1, "copies": 1}
    flags = [word for name, value in given.items() for word in ("-p", name, str(value))]
    summary = run(tmp_path / "out.ipynb", "python3", *flags)
    assert summary["world_size"] == 1
    assert summary["images_augmented"] == 8_000
    assert summary["test_accuracy"] > 0.85
    assert summary["served"] == summary["own"]


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", ())]
