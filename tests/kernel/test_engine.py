"""`papermill --engine aios`, as cron and CI run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from clusters import until

from aios_jupyter.errors import AllocationError, UsageError
from aios_jupyter.kernel.engine import wanted
from aios_jupyter.session import Session


def write(path: Path, *cells: str, **metadata: Any) -> str:
    kernel = {"name": "python3", "display_name": "Python", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": kernel, **metadata},
    )
    nbformat.write(notebook, path)
    return str(path)


def command(path: str, output: Path, **environment: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "papermill", "--engine", "aios", path, str(output)]
    return subprocess.Popen(
        line, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_the_kernel_of_a_notebook_has_what_the_caller_asks_for(
    session: Session, tmp_path: Path
) -> None:
    path = write(tmp_path / "in.ipynb", "%load_ext aios_jupyter\n%aios leases", aios={"devices": 1})
    done = papermill.execute_notebook(
        path, None, engine_name="aios", gpus=2, time="1h", progress_bar=False
    )
    (output,) = done.cells[0].outputs
    assert "2 simulated GPUs" in output.data["text/plain"]
    assert "in.ipynb" in output.data["text/plain"]
    assert session.status()["leases"] == {}, "it gave them back"


def test_a_cell_that_fails_ends_the_command_with_an_error_and_the_lease(
    session: Session, tmp_path: Path
) -> None:
    path = write(tmp_path / "in.ipynb", "import os; raise ValueError(os.environ['AIOS_LEASE'])")
    status, said = outcome(command(path, tmp_path / "out.ipynb", AIOS_DEVICES="3"))
    assert status != 0
    assert "ValueError: L" in said
    assert session.status()["leases"] == {}


def test_a_refusal_is_raised_with_its_sentence(session: Session, tmp_path: Path) -> None:
    path = write(tmp_path / "in.ipynb", "1", aios={"gpus": 99})
    with pytest.raises(AllocationError, match="99 GPUs can never be granted here"):
        papermill.execute_notebook(path, None, engine_name="aios", progress_bar=False)


def test_a_command_that_is_told_to_end_while_it_waits_leaves_the_queue(
    session: Session, tmp_path: Path
) -> None:
    session.alloc(devices=4)
    process = command(write(tmp_path / "in.ipynb", "1"), tmp_path / "out.ipynb")
    assert process.stderr is not None
    said = next(line for line in process.stderr if "in.ipynb is waiting" in line)
    assert "position 1 in the queue" in said
    assert [row["label"] for row in session.queue()] == ["in.ipynb"]
    process.terminate()
    assert outcome(process)[0] != 0
    until(lambda: not session.queue(), "its request has gone")


def test_who_says_how_many_says_of_what() -> None:
    assert wanted({}, {}, {}) == {"devices": 1}
    assert wanted({"gpus": 2}, {}, {"devices": 1, "time": "1h"}) == {"gpus": 2, "time": "1h"}
    environment = {"AIOS_CPUS": "4", "AIOS_TIME": "2h", "AIOS_QUEUE": ""}
    assert wanted({}, environment, {"gpus": 1, "time": "1h"}) == {"cpus": "4", "time": "2h"}
    with pytest.raises(UsageError, match="'gpu'; what can be asked for is gpus"):
        wanted({}, {}, {"gpu": 1})
    with pytest.raises(UsageError, match="one of --gpus, --devices and --cpus"):
        wanted({"gpus": 1, "cpus": 1}, {}, {})
