"""What a person gets wrong in a shell: one sentence, an exit status, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import environment, pid_of, private_directories, until

from aios_jupyter.cluster import embedded
from aios_jupyter.session import connect

AIOS = Path(sys.executable).with_name("aios")


def aios(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the console script as a person would."""
    return subprocess.run(
        [AIOS, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def cpu_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster without a GPU, and a directory with files to get wrong."""
    root = tmp_path_factory.mktemp("bad")
    (root / "broken.py").write_text("value = (\n")
    (root / "fails.py").write_text("raise ValueError('no such digit')\n")
    np.save(root / "x.npy", np.zeros((1, 28, 28), np.uint8))
    with private_directories(root):
        embedded.ensure()
        yield root


MISTAKES = {
    "unknown verb": (["alocate"], 2, ["alocate", "alloc"]),
    "unknown flag": (["alloc", "--gpu", "2"], 2, ["--gpu", "--gpus"]),
    "no count": (["alloc"], 2, ["--devices"]),
    "zero devices": (["alloc", "--devices", "0"], 2, ["0"]),
    "a time that does not parse": (["alloc", "--devices", "1", "--time", "soon"], 2, ["soon"]),
    "gpus without a gpu": (["alloc", "--gpus", "2"], 1, ["--devices", "--simulate-gpus"]),
    "more devices than exist": (["alloc", "--devices", "4096"], 1, ["4096", "at most"]),
    "a policy that does not parse": (
        ["augment", "mnist", "-o", "x", "--policy", "rotate(15), shfit(0.1)"],
        2,
        ["column 13", "shift", "^"],
    ),
    "a missing dataset": (["augment", "nope", "-o", "x", "--policy", "hflip"], 1, ["nope"]),
    "an unknown model": (["serve", "nope@champion"], 1, ["nope"]),
    "a model that nobody serves": (["predict", "nope@champion", "x.npy"], 1, ["nope"]),
    "a missing script": (["train", "nope.py"], 1, ["nope.py"]),
    "a syntax error": (["train", "broken.py"], 2, ["syntax error", "line 1"]),
    "a failing script": (["train", "fails.py"], 1, ["no such digit"]),
    "an unknown run": (["logs", "r-none"], 1, ["r-none"]),
    "an unknown lease": (["release", "L999"], 1, ["L999"]),
    "an unknown request": (["cancel", "q-none"], 1, ["q-none"]),
    "nothing to release": (["release"], 1, ["no lease"]),
    "an unknown queue": (["alloc", "--devices", "1", "--queue", "nope"], 1, ["nope", "quota"]),
    "a quota that is no number": (["quota", "set", "a", "--gpus", "many"], 2, ["many", "none"]),
    "a negative quota": (["quota", "set", "a", "--borrow", "-1"], 2, ["-1"]),
    "a quota of nothing": (["quota", "set", "a"], 2, ["--gpus 4"]),
    "a queue's bad name": (["quota", "set", "a b", "--gpus", "1"], 2, ["'a b'", "letters"]),
    "a limit over nothing": (["quota", "set", "a", "--borrow", "1"], 2, ["nominal"]),
    "no such queue": (["quota", "rm", "nope"], 1, ["nope"]),
    "a queue for a given lease": (
        ["train", "--lease", "L1", "--queue", "a", "fails.py"],
        2,
        ["--lease"],
    ),
}


@pytest.mark.parametrize(("arguments", "status", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_a_sentence_and_leaves_nothing(
    cpu_cluster: Path, arguments: list[str], status: int, says: list[str]
) -> None:
    done = aios(*arguments, cwd=cpu_cluster)
    assert done.returncode == status, done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("aios: ")]
    assert len(last) == 1
    for text in says:
        assert text in done.stderr
    if "fails.py" not in arguments:
        assert "Traceback" not in done.stderr
    with connect(start=False, passive=True) as session:
        until(lambda: not session.status()["leases"], "no lease is left")
        assert session.queue() == []


def test_a_cluster_killed_under_a_run_is_a_sentence(no_cluster: Path) -> None:
    (no_cluster / "long.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    embedded.ensure()
    with subprocess.Popen(
        [AIOS, "train", "long.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=no_cluster,
    ) as process:
        assert process.stdout is not None
        assert "up" in process.stdout.readline()
        for pid in (pid_of("broker"), pid_of("node")):
            os.kill(pid, signal.SIGKILL)
        started = time.monotonic()
        _, errors = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "Traceback" not in errors
    # Whoever looks when one of the two is gone mends the cluster, which then knows what was lost.
    last = errors.splitlines()[-1]
    assert "aios up" in last or "was lost when the agent of node" in last
    assert time.monotonic() - started < 45
