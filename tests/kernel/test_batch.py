"""`aios batch` with real notebooks, each under a lease of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from clusters import pid_of, session_of, until

from aios_jupyter.broker import batches
from aios_jupyter.broker.messages import BatchTold
from aios_jupyter.commands import Host, invoke, main
from aios_jupyter.errors import AccessError, ConflictError, NotFoundError, RunError, UsageError
from aios_jupyter.kernel import job
from aios_jupyter.session import Session
from aios_jupyter.session.asking import request_of

Sweep = Callable[..., Path]
# Each notebook imports papermill and starts a kernel: much for a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Makes a notebook with the parameter `x` and a cell of code."""

    def make(code: str) -> Path:
        first = nbformat.v4.new_code_cell("x = 0", metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(
            cells=[first, nbformat.v4.new_code_cell(code)],
            metadata={"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},
        )
        path = tmp_path / "sweep.ipynb"
        nbformat.write(notebook, path)
        return path

    return make


def ran(directory: Path) -> str:
    """What the notebooks have written when they ran, in order."""
    return "".join(sorted((directory / "ran").read_text()))


def test_a_batch_runs_each_notebook_once_and_failed_ones_again(
    session: Session, sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep(
        "import os, aios_jupyter\n"
        "aios_jupyter.record('lease', os.environ['AIOS_LEASE'])\n"
        "aios_jupyter.record('double', 2 * x)\n"
        "open('ran', 'a').write(str(x))\n"
        "if x == 2 and not os.path.exists('mended'): raise ValueError('two')"
    )
    line = ["batch", str(path), "-p", "x=1..3", "--devices", "2", "--parallel", "2"]
    shown = {"state": "ended", "total": 3, "done": 3, "running": 0, "label": "sweep.ipynb"}

    with pytest.raises(RunError, match="1 notebook of 3 failed, the first with ValueError: two"):
        invoke([*line, "-o", str(tmp_path / "out")], Host())
    assert ran(tmp_path) == "123"
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["X", "LEASE", "DOUBLE", "STATUS", "TIME", "NOTEBOOK"]
    assert [line.split()[3] for line in table[2:]] == ["succeeded", "failed", "succeeded"]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["status"] for row in rows] == ["succeeded", "failed", "succeeded"]
    assert [row["values"]["double"] for row in rows] == [2, 4, 6]
    assert len({row["values"]["lease"] for row in rows}) == 3
    assert all(Path(row["notebook"]).exists() for row in rows)
    assert session.status()["leases"] == {}
    assert session.batches()[0].items() >= {**shown, "failed": 1}.items()

    kept = session.batch(path, {"x": [1, 2, 3]}, output=tmp_path / "out", keep_failed=True)
    assert [row["earlier"] for row in kept.rows] == [True, True, True]
    assert ran(tmp_path) == "123"

    (tmp_path / "mended").touch()
    changes: list[list[dict[str, Any]]] = []
    whole = session.batch(
        path, {"x": [1, 2, 3]}, devices=1, output=tmp_path / "out", on_change=changes.append
    )
    assert not whole.failed
    assert [row["earlier"] for row in whole.rows] == [True, False, True]
    assert ran(tmp_path) == "1223"
    seen = [rows[1]["status"] for rows in changes]
    assert list(dict.fromkeys(seen)) == ["pending", "waiting", "running", "succeeded"]
    assert session.batches()[0].items() >= {**shown, "failed": 0}.items()


def test_a_notebook_whose_process_dies_has_failed_and_the_others_go_on(
    session: Session, sweep: Sweep, tmp_path: Path
) -> None:
    path = sweep("import os, signal\nif x == 1: os.kill(os.getppid(), signal.SIGKILL)")
    result = session.batch(path, {"x": [1, 2]}, output=tmp_path / "out")
    assert [row["status"] for row in result.rows] == ["failed", "succeeded"]
    assert "killed by signal 9" in result.rows[0]["error"]
    until(lambda: not session.status()["leases"], "the killed one's lease has ended", 60)


def test_a_job_that_is_refused_has_failed_with_the_sentence(
    session: Session, sweep: Sweep, tmp_path: Path
) -> None:
    paths = {name: str(tmp_path / name) for name in ("output", "state", "result")}
    order = {
        "notebook": str(sweep("1")),
        "cwd": str(tmp_path),
        "kernel": "",
        "parameters": {},
        **paths,
        "output": f"{paths['output']}.ipynb",
        "asks": {"gpus": 99},
        "batch": "",
        "job": {"key": "k"},
    }
    (tmp_path / "order").write_text(json.dumps(order))
    assert job.main(tmp_path / "order") == 1
    result = json.loads(Path(paths["result"]).read_text())
    assert (result["key"], result["status"]) == ("k", "failed")
    assert result["error"].startswith("99 GPUs can never be granted here")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "stop"])
def test_a_batch_that_is_ended_leaves_nothing_running(
    session: Session, sweep: Sweep, tmp_path: Path, how: str
) -> None:
    path = sweep("import os, time\nopen(f'{x}.pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    line = [sys.executable, "-c", "from aios_jupyter.commands import main; main()"]
    line += ["batch", str(path), "-p", "x=1..3", "--devices", "3", "--parallel", "2"]
    said = tmp_path / "said"
    with (
        said.open("wb") as out,
        subprocess.Popen(line, stderr=out, stdout=subprocess.DEVNULL) as process,
    ):
        pid = until(lambda: list(tmp_path.glob("*.pid")), "one is at work", 60)[0]
        until(session.queue, "one waits", 60)
        batch = session.batches()[0]
        assert batch.items() >= {"state": "running", "total": 3, "done": 0, "ended": None}.items()
        shown = session.status()
        members = [*shown["leases"].values(), *shown["queue"].values()]
        assert [row["batch"] for row in members] == [batch["id"]] * 2
        jobs = psutil.Process(process.pid).children()
        assert len(jobs) == 2
        assert batch["directory"] == str(tmp_path / "sweep-batch")
        if how == "stop":
            invoke(["stop", batch["id"]], Host())
            assert session.batches()[0]["state"] in ("stopping", "stopped")
        else:
            process.send_signal(signal.Signals[how])
    assert process.returncode == {"SIGTERM": 130, "SIGKILL": -signal.SIGKILL, "stop": 1}[how]
    if how == "stop":
        by = f"The batch was stopped by {session.user} with 0 of 3 notebooks done"
        assert by in said.read_text()
    until(lambda: not session.status()["leases"] and not session.queue(), "nothing is held", 60)
    until(lambda: not any(job.is_running() for job in jobs), "its processes are gone", 60)
    until(lambda: not psutil.pid_exists(int(pid.read_text() or 0)), "its kernel is gone", 60)
    state = "stopped" if how == "stop" else "interrupted"
    assert (session.batches()[0]["state"], session.batches()[0]["running"]) == (state, 0)
    with pytest.raises(ConflictError, match=f"does not run any more: it is {state}"):
        session.stop(batch["id"])


def test_a_batch_is_its_owners_and_told_again_to_a_broker_that_was_restarted(
    session: Session, tmp_path: Path
) -> None:
    def tell(who: Session, running: int) -> None:
        told = BatchTold(
            id="batch-1", label="sweep.ipynb", total=3, running=running, directory="/secret"
        )
        who._call("batch.tell", told)

    tell(session, 1)
    session.user_add("mallory", "user", tmp_path / "mallory")
    with session_of(tmp_path / "mallory") as mallory:
        with pytest.raises(AccessError, match="Batch batch-1 belongs to"):
            tell(mallory, 2)
        with pytest.raises(AccessError, match="Batch batch-1 belongs to"):
            mallory._call("submit", request_of({"devices": 1}, batch="batch-1"))
        with pytest.raises(AccessError, match=f"belongs to {session.user}; ask them or an admin"):
            mallory.stop("batch-1")
        with pytest.raises(NotFoundError, match="There is no batch 'batch-none'"):
            mallory.stop("batch-none")
        row = mallory.batches()[0]
        assert (row["running"], row["state"], row["directory"]) == (1, "running", "")
        assert session.batches()[0]["directory"] == "/secret"
        with pytest.raises(UsageError, match="A path has at most"):
            mallory._call("batch.tell", BatchTold(id="m", label="m", total=1, directory=5000 * "d"))
        with pytest.raises(UsageError, match="is not an id"):
            mallory._call("submit", request_of({"devices": 1}, batch="../batch"))
        for number in range(batches.MOST_RUNNING):
            mallory._call("batch.tell", BatchTold(id=f"m-{number}", label="m", total=1))
        with pytest.raises(ConflictError, match="batches run from here already"):
            mallory._call("batch.tell", BatchTold(id="m-more", label="m", total=1))
    os.kill(pid_of("broker"), signal.SIGKILL)
    until(lambda: not session.batches(), "another broker knows of none")
    tell(session, 2)
    assert session.batches()[0]["running"] == 2


def test_what_a_notebook_of_a_batch_asks_for_besides_is_of_the_batch(session: Session) -> None:
    session._call("submit", request_of({"devices": 1}, batch="batch-2"))
    lease = session.alloc(devices=1)
    assert lease.batch == "batch-2"
    run = session.start("import time; time.sleep(600)", cell=True, lease=lease.id)
    assert session.status()["runs"][run.id]["batch"] == "batch-2"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no.ipynb"], "There is no notebook"),
        (["broken.ipynb"], "is not a notebook"),
        (["broken.ipynb", "--again", "--keep-failed"], "--again runs all and --keep-failed not"),
        (["broken.ipynb", "-p", "x"], "'x' is not a parameter"),
        (["broken.ipynb", "--parallel", "0"], "0 is not in the range"),
    ],
)
def test_misuse_is_one_sentence(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.ipynb").write_text("{")
    with pytest.raises(SystemExit) as ended:
        main(["batch", *arguments])
    assert ended.value.code in (1, 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said


def test_a_session_refuses_what_makes_no_sense(session: Session, sweep: Sweep) -> None:
    path = sweep("1")
    with pytest.raises(UsageError, match="0 at a time"):
        session.batch(path, parallel=0)
    with pytest.raises(UsageError, match="one of --gpus"):
        session.batch(path, gpus=1, devices=1)
    with pytest.raises(NotFoundError, match="There is no notebook"):
        session.batch(path.with_name("none.ipynb"))
    assert not path.with_name("sweep-batch").exists()


STUBBORN = """
import signal, threading, time
from aios_jupyter.kernel import job
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=job.end_with_batch, args=(0.5,), daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""


def test_a_notebook_that_overhears_the_end_of_its_batch_ends_all_the_same() -> None:
    line = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) == 1
