"""Runs in MLflow: `python -m aios_jupyter.models.tracking SPOOL`, started by a node's agent.

With `-` in place of SPOOL it is started in the account of a run's owner, when that is over, and reads
from its input: a line of JSON (`run`, `end`), then the events.

The agent leaves an entry for each run in the folder SPOOL (`node/tracking.py`), and another when the
run has ended; here they become runs of the tracking server that the run's user has chosen, with the
metrics that rank 0 has reported. A server that does not answer is tried again for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..config import IS_LINUX
from ..errors import AiosError, ClusterError
from ..process import end_with_parent
from ..runs.events import EVENTS_FILE, EventReader

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOOK_INTERVAL = 1.0
LINGER = 15.0
RETRY_INTERVAL = 10.0
GIVE_UP = 600.0
# So many seconds at least between two values of a metric; the last one is always kept.
THINNED = 0.5
BATCH = 500
LONGEST = 490
LONGEST_DIGEST = 36
TAG = "aios."
RUN_TAG = f"{TAG}run"
_STATES = {"succeeded": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_METRIC = re.compile(r"[^\w./ -]")


def find_run(client: MlflowClient, experiment: str, run: str) -> str | None:
    """The id in MLflow of one of our runs; None where it is not there (yet)."""
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
    return str(found[0].info.run_id) if found else None


class TrackedRun:
    """One run, told piece by piece.

    Parameters
    ----------
    entry
        The agent's file about it; one of the same name with the suffix `.end` says how it ended.
    """

    def __init__(self, entry: Path) -> None:
        self._entry = entry
        self._facts: dict[str, Any] = json.loads(entry.read_text())
        self._reader = EventReader(Path(self._facts["directory"]))
        self._id = ""
        self._kept: list[tuple[str, float, float, int]] = []
        self._last: dict[str, tuple[float, float, int]] = {}
        self._told: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        # Datasets by `name@version`, with their URLs: all, and those that are to be told.
        self._data: dict[str, str] = {}
        self._new_data: dict[str, str] = {}
        self._wait_until = 0.0
        self._failing_since: float | None = None

    def step(self, now: float) -> bool:
        """Tell what is new; True when all is told, or cannot be."""
        if now < self._wait_until:
            return False
        try:
            over = self._tell()
        except ClusterError as error:
            self._failing_since = self._failing_since or now
            self._wait_until = now + RETRY_INTERVAL
            sys.stderr.write(f"{self._facts['run']}: {error}\n")
            return now - self._failing_since > GIVE_UP
        self._failing_since = None
        return over

    def forget(self) -> None:
        """Remove the entry."""
        self._reader.close()
        self._entry.unlink(missing_ok=True)
        self._entry.with_suffix(".end").unlink(missing_ok=True)

    def _tell(self) -> bool:
        from .store import registry

        end = self._ending()
        self._read(last=end is not None)
        if self._id and not self._kept and not self._new_data and end is None:
            return False
        with _as_the_user(self._facts), registry() as client:
            if not self._id:
                self._open(client)
            self._log(client)
            if end is not None:
                self._close(client, end)
        return end is not None

    def _ending(self) -> dict[str, Any] | None:
        """How the run ended; looked at before the events, which are all there then."""
        try:
            return dict(json.loads(self._entry.with_suffix(".end").read_text()))
        except FileNotFoundError:
            return None

    def _open(self, client: MlflowClient) -> None:
        from mlflow.entities import RunTag

        from .store import add_params, creating, experiment_id

        facts = self._facts
        tags = {f"{TAG}{key}": str(value) for key, value in facts["tags"].items() if value}
        tags |= {
            "mlflow.user": facts["tags"]["user"],
            "mlflow.source.name": facts["tags"].get("notebook", "") or "aios",
            "mlflow.runName": facts["name"],
        }
        with creating():
            experiment = experiment_id(client)
            self._id = find_run(client, experiment, facts["run"]) or str(
                client.create_run(
                    experiment,
                    start_time=int(facts["started"] * 1000),
                    tags={RUN_TAG: facts["run"]},
                    run_name=facts["name"],
                ).info.run_id
            )
        add_params(
            client, self._id, {key: value[:LONGEST] for key, value in facts["params"].items()}
        )
        client.log_batch(
            self._id, tags=[RunTag(key, value[:LONGEST]) for key, value in tags.items()]
        )

    def _read(self, *, last: bool) -> None:
        while events := self._reader.read():
            for event in events:
                if event["type"] == "metrics" and event["rank"] == 0:
                    for name, value in event["values"].items():
                        self._value(name, value, event)
                elif event["type"] == "data" and event["ref"] not in self._data:
                    self._data[event["ref"]] = self._new_data[event["ref"]] = event["url"]
                elif event["type"] == "usage":
                    for name in ("utilization", "memory"):
                        if event[name] is not None:
                            self._value(f"system/rank {event['rank']} {name}", event[name], event)
        if last:
            for name, (value, at, step) in self._last.items():
                self._kept.append((name, value, at, step))
            self._last.clear()

    def _value(self, name: str, value: float, event: dict[str, Any]) -> None:
        count = self._counts[name] = self._counts.get(name, -1) + 1
        step = count if event.get("step") is None else int(event["step"])
        at = float(event["time"])
        if at - self._told.get(name, 0.0) < THINNED:
            self._last[name] = (value, at, step)
            return
        self._told[name] = at
        self._last.pop(name, None)
        self._kept.append((name, value, at, step))

    def _log(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        while self._kept:
            part = self._kept[:BATCH]
            client.log_batch(
                self._id,
                metrics=[
                    Metric(_METRIC.sub("_", name)[:LONGEST], value, int(at * 1000), step)
                    for name, value, at, step in part
                ],
            )
            del self._kept[:BATCH]
        if self._new_data:
            self._log_data(client)

    def _log_data(self, client: MlflowClient) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client.set_tag(self._id, f"{TAG}data", ", ".join(self._data)[:LONGEST])
        inputs = []
        for ref, url in self._new_data.items():
            name, _, version = ref.rpartition("@")
            inputs.append(
                DatasetInput(
                    dataset=Dataset(
                        name=name[:LONGEST],
                        digest=version[:LONGEST_DIGEST],
                        source_type="uri",
                        source=json.dumps({"uri": url}),
                    ),
                    tags=[InputTag("mlflow.data.context", "training")],
                )
            )
        client.log_inputs(self._id, inputs)
        self._new_data.clear()

    def _close(self, client: MlflowClient, end: dict[str, Any]) -> None:
        if end["reason"]:
            client.set_tag(self._id, f"{TAG}reason", end["reason"][:LONGEST])
        ended = int((end["ended"] or time.time()) * 1000)
        client.set_terminated(self._id, _STATES.get(end["state"], "FAILED"), ended)


@contextlib.contextmanager
def _as_the_user(facts: dict[str, Any]) -> Any:
    """In the environment of the run's user: which server, and its password."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(facts["env"])
    os.environ["AIOS_REGISTRY_URI"] = facts["uri"]
    os.environ["AIOS_STATE_DIR"] = facts["state"]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(spool: Path) -> None:
    """Tell what is in the folder, until nothing has been for a while."""
    runs: dict[str, TrackedRun] = {}
    busy = time.monotonic()
    while time.monotonic() - busy < LINGER:
        for entry in sorted(spool.glob("*.json")):
            busy = time.monotonic()
            try:
                run = runs.get(entry.stem) or runs.setdefault(entry.stem, TrackedRun(entry))
                over = run.step(busy)
            except (AiosError, OSError, ValueError, KeyError) as error:
                # This one can never be told; the others can.
                sys.stderr.write(f"{entry.stem}: {type(error).__name__}: {error}\n")
                entry.rename(entry.with_suffix(".failed"))
                runs.pop(entry.stem, None)
                continue
            if over:
                runs.pop(entry.stem).forget()
        time.sleep(LOOK_INTERVAL)


def tell_once(told: IO[bytes]) -> None:
    """Tell of one run that is over."""
    facts = json.loads(told.readline())
    with tempfile.TemporaryDirectory(prefix="aios-") as directory:
        (Path(directory) / EVENTS_FILE).write_bytes(told.read())
        entry = Path(directory) / "run.json"
        entry.write_text(json.dumps({**facts["run"], "directory": directory}))
        entry.with_suffix(".end").write_text(json.dumps(facts["end"]))
        run = TrackedRun(entry)
        while not run.step(time.monotonic()):
            time.sleep(LOOK_INTERVAL)
        run.forget()


def main() -> None:
    """Entry point: beside ranks that need the cores, and for a spool no longer than the agent."""
    if IS_LINUX:
        os.nice(19)
    if sys.argv[1] == "-":
        tell_once(sys.stdin.buffer)
        return
    if IS_LINUX:
        end_with_parent()
    serve(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
