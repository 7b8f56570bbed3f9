"""The policies' notebook runs unattended, and shows what its text says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from aios_jupyter.broker.policy import POLICIES

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "02_policies.ipynb"
SECONDS = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 60)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("policies") / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar"]
    command += [str(NOTEBOOK), str(output), "-p", "benchmarks", str(ROOT / "benchmarks")]
    done = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return nbformat.read(output, as_version=4)


def test_what_the_text_says_of_the_policies_is_what_came_out(ran: Any) -> None:
    (summary,) = [
        shown.data["application/json"]
        for cell in ran.cells
        if "summary" in cell.metadata.get("tags", ())
        for shown in cell.outputs
    ]
    assert set(summary["policies"]) == set(POLICIES)
    for trace in ("synthetic", "philly"):
        mean = summary["mean_wait_hours"][trace]
        assert mean.keys() == summary["max_wait_hours"][trace].keys() == POLICIES.keys()
        assert mean["sjf"] < mean["fifo"] / 2, "sjf makes the mean wait shortest"
        assert mean["priority"] == mean["fifo"], "until somebody uses --priority"
    longest = summary["max_wait_hours"]["synthetic"]
    assert longest["fifo"] < longest["sjf"], "at the price of the longest"
    synthetic = summary["mean_wait_hours"]["synthetic"]
    assert synthetic["fair"] < synthetic["fifo"] / 2, "users are protected from one another"
    assert summary["needed"] == {"mean": 10, "p95": 13}
    assert summary["cell_wait_seconds"]["40"] == pytest.approx(9.53, abs=0.01)


def test_every_plot_is_drawn(ran: Any) -> None:
    plots = [out for cell in ran.cells for out in cell.get("outputs", ()) if "data" in out
             and "image/png" in out.data]  # fmt: skip
    assert len(plots) == 3


def test_the_notebook_is_kept_without_outputs() -> None:
    code = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", ())]
