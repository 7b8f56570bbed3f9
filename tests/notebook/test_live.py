"""The story of a notebook on a real cluster with two simulated GPUs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import aios_jupyter

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two simulated GPUs; gone with the last test of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        command = [str(Path(sys.executable).with_name("aios")), "up", "--simulate-gpus", "2"]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
        yield
        aios_jupyter.down()


def execute(*cells: str) -> list[list[Any]]:
    """Run cells in one kernel, on after errors; the outputs of each but the first."""
    sources = ("%load_ext aios_jupyter", *cells)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True).execute()
    return [cell.outputs for cell in notebook.cells[1:]]


def text(outputs: list[Any]) -> str:
    """Everything that a cell shows, as text."""
    parts = []
    for output in outputs:
        if output.output_type == "error":
            parts.append("\n".join(output.traceback))
        else:
            parts.append(output.get("text") or output.data["text/plain"])
    return "\n".join(parts)


def test_a_cell_runs_on_each_device_with_its_variables(cluster: None) -> None:
    alloc, _, train, pulled, status, release = execute(
        "%aios alloc --gpus 2 --time 10m",
        "factor = 3\ndef times(x):\n    return x * factor",
        "%%aios train --pull answer,world\n"
        "from aios_jupyter import train\n"
        "answer, world = times(14), train.world_size()\n"
        "print('hello from', train.rank())\n"
        "for step in range(3):\n"
        "    train.log(loss=1 / (step + 1))\n"
        "    train.progress(step + 1, 3, 'steps')",
        "print(answer, world, _.state)",
        "%aios status",
        "%aios release",
    )
    assert "2 simulated GPUs (#0, #1)" in text(alloc)
    assert "hello from 0" in text(train)
    assert "3/3 steps" in text(train)
    assert "hello from 1" in train[0].data["text/html"]
    assert text(pulled).strip() == "42 2 succeeded"
    assert "simulated GPU" in text(status)
    assert "released" in text(release)
    assert "[released]" in text(alloc)


def test_a_failure_on_one_rank_shows_that_ranks_lines_and_the_lease_survives(
    cluster: None,
) -> None:
    _, failed, killed, after, _ = execute(
        "%aios alloc --gpus 2",
        "%%aios train\n"
        "import time\n"
        "from aios_jupyter import train\n"
        "if train.rank() == 1:\n"
        "    raise ValueError('rank one gives up')\n"
        "time.sleep(60)",
        "%%aios train\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "%%aios train\nprint('still here')",
        "%aios release",
    )
    shown = text(failed)
    assert "Traceback of rank 1:" in shown
    assert "raise ValueError('rank one gives up')" in shown
    assert "RunError" in shown
    assert "display.py" not in shown
    assert failed[-1].output_type == "error"
    assert "SIGKILL" in text(killed)
    assert "still here" in text(after)


def test_bad_input_is_a_sentence_and_leaves_nothing_behind(cluster: None) -> None:
    bad = {
        "%aios alloc --gpus 9": "9",
        "%%aios train --gpus 1\nx = (": "syntax error in line 1",
        "import threading\nlock = threading.Lock()\n"
        "get_ipython().run_cell_magic('aios', 'train --gpus 1', 'print(lock)')": "--no-push lock",
        "%aios augment absent -o x --policy 'rotate(15)'": "There is no dataset 'absent'",
        "%aios augment mnist -o x --policy 'rotate(15), swirl(3)'": "swirl",
        "%aios serve nothing@champion": "There is no model 'nothing'",
        "%aios predict nothing@champion [1]": "The notebook has no variable '[1]'",
        "%aios release no-such-lease": "no-such-lease",
        "%aios stop no-such-run": "no-such-run",
        "%aios logs no-such-run": "no-such-run",
        "%aios cancel no-such-request": "no-such-request",
    }
    *outputs, left = execute(*bad, "%aios leases\n%aios runs")
    for (code, sentence), shown in zip(bad.items(), outputs, strict=True):
        assert shown[-1].output_type == "error", code
        assert sentence in shown[-1].evalue, code
        assert len(shown[-1].traceback) == 1, code
        # Only a policy's error has a second line, which points at the place.
        assert "\n" not in shown[-1].evalue or "^" in shown[-1].evalue, code
    assert "You hold no leases" in text(left)


def test_a_cell_without_a_lease_takes_one_for_itself(cluster: None) -> None:
    train, leases = execute(
        "%%aios train --gpus 2\nprint('once')", "import time\ntime.sleep(1)\n%aios leases"
    )
    assert "once" in text(train)
    assert "You hold no leases" in text(leases)


def test_ipython_in_a_terminal_gets_plain_lines(cluster: None, tmp_path: Path) -> None:
    script = tmp_path / "story.ipy"
    script.write_text(
        "%load_ext aios_jupyter\n"
        "%aios alloc --gpus 1\n"
        "get_ipython().run_cell_magic('aios', 'run', 'print(6 * 7)')\n"
        "%aios release\n"
        "%aios alocc\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 simulated GPU (#0)" in done.stdout
    assert "\n42\n" in done.stdout
    assert "succeeded" in done.stdout
    assert "did you mean 'alloc'?" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode != 0
