"""Runs are in the MLflow store too, with what they reported and where they come from."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import environment, until

from aios_jupyter.cluster import embedded
from aios_jupyter.config import settings
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.errors import RunError
from aios_jupyter.models import store
from aios_jupyter.models.tracking import find_run
from aios_jupyter.session import Session, connect

LOGS = """
from aios_jupyter import train
for step in range(50):
    train.log(step, loss=1 / (step + 1), accuracy=0.5)
"""


READS = """
from aios_jupyter.data.catalog import Catalog
images, labels = Catalog().load("mnist")
again = Catalog().load("mnist")
"""


@pytest.fixture
def tracked(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("AIOS_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings.cache_clear()
    embedded.ensure(simulate_gpus=2)
    with connect(label="digits.ipynb") as session:
        yield session


def _find(run: str, timeout: float = 60) -> Any:
    """The run as MLflow has it, once it has ended there."""

    def ended() -> Any:
        with store.registry() as client:
            found = find_run(client, store.experiment_id(client), run)
            known = client.get_run(found) if found else None
            return known if known and known.info.status != "RUNNING" else None

    return until(ended, f"run {run} is told", timeout)


def test_what_a_run_was_given_and_reported_is_told(tracked: Session) -> None:
    handle = tracked.start(
        LOGS,
        cell=True,
        gpus=2,
        push={"rate": 0.1, "api_key": "hush", "table": [1, 2]},
        explicit=["rate"],
    )
    handle.wait()
    known = _find(handle.id)
    assert known.info.status == "FINISHED"
    data = known.data
    assert data.params == {"rate": "0.1", "world_size": "2", "framework": "none"}
    assert data.metrics["loss"] == pytest.approx(1 / 50)
    assert data.metrics["accuracy"] == 0.5
    digest = hashlib.sha256(LOGS.encode()).hexdigest()
    said = {key.removeprefix("aios."): value for key, value in data.tags.items()}
    lease = handle.run["lease"]
    assert (said["run"], said["lease"], said["source"]) == (handle.id, lease, digest)
    assert (said["notebook"], said["user"]) == ("digits.ipynb", tracked.user)
    with store.registry() as client:
        steps = [m.step for m in client.get_metric_history(known.info.run_id, "loss")]
    assert steps[-1] == 49
    # Nothing is left to be told, and the entry is gone.
    spool = embedded.Paths.current().state / "tracking"
    until(lambda: not list(spool.glob("*.json")), "the entry is gone")


def test_a_failure_and_a_dead_kernel_are_told_too(tracked: Session, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        tracked.train("raise ValueError('no luck')", cell=True, gpus=1)
    code = f"""
import pathlib, time
from aios_jupyter import connect
session = connect(label="gone.ipynb")
handle = session.start({LOGS!r} + "import time; time.sleep(600)", cell=True, gpus=1)
pathlib.Path({str(tmp_path / "run")!r}).write_text(handle.id)
time.sleep(600)
"""
    kernel = subprocess.Popen([sys.executable, "-c", code], env=environment())
    file = tmp_path / "run"
    run = until(lambda: file.exists() and file.read_text(), "the kernel has started its run")
    until(lambda: _metrics(tracked, run), "the run has reported")
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    failed, stopped = _find(caught.value.run), _find(run)
    assert failed.info.status == "FAILED"
    assert "ValueError: no luck" in failed.data.tags["aios.reason"]
    assert stopped.info.status == "KILLED"
    assert "has ended" in stopped.data.tags["aios.reason"]
    assert stopped.data.metrics["loss"] == pytest.approx(1 / 50)


def test_a_published_model_belongs_to_its_run(tracked: Session) -> None:
    torch = pytest.importorskip("torch")
    handle = tracked.start(LOGS + READS, cell=True, gpus=2)
    handle.wait()
    version = tracked.publish(
        torch.nn.Linear(2, 1), "line", run=handle.id, input_example=torch.zeros(1, 2)
    )
    # To publish ends the run there, perhaps before all of it has been told.
    told = "the run's data is told"
    known = until(lambda: (one := _find(handle.id)).inputs.dataset_inputs and one, told, 60)
    assert version.run_id == known.info.run_id
    assert known.data.metrics["loss"] == pytest.approx(1 / 50)
    with store.registry() as client:
        runs = client.search_runs([store.experiment_id(client)])
    assert [run.info.run_id for run in runs] == [known.info.run_id]
    # The data that its code has read is named, in its version, by itself.
    entry = Catalog().get("mnist")
    row = next(row for row in tracked.runs() if row["id"] == handle.id)
    assert row["detail"]["data"] == [entry.ref]
    assert known.data.tags["aios.data"] == version.lineage["data"] == entry.ref
    (read,) = known.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("mnist", entry.version)


def test_it_can_be_turned_off(tracked: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_TRACKING", "off")
    settings.cache_clear()
    tracked.train(LOGS, cell=True, gpus=1)
    assert not (embedded.Paths.current().state / "tracking").exists()


def test_what_a_dead_agent_had_to_tell_is_told_by_the_next(
    tracked: Session, tmp_path: Path
) -> None:
    handle = tracked.start(LOGS + "import time; time.sleep(600)", cell=True, gpus=1, detach=True)
    until(lambda: _metrics(tracked, handle.id), "the run has reported")
    node = embedded.running(embedded.Paths.current().node)
    assert node is not None
    os.kill(node["pid"], signal.SIGKILL)
    with connect():  # which brings the agent back
        known = _find(handle.id)
    assert known.info.status == "FAILED"


def _metrics(session: Session, run: str) -> dict[str, float]:
    rows: Callable[[], dict[str, Any]] = session.status
    row = rows()["runs"].get(run)
    return dict(row["metrics"]) if row else {}
