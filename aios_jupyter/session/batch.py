"""`batch`: one notebook for many parameters, so many at a time through the queue.

Each notebook is run by a process of its own (`kernel/job.py`) under a lease of its own. A file for
each in the batch's folder says how it ended; so a batch that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import secrets
import subprocess
import sys
import time as clock
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from ..broker.messages import BatchTold
from ..errors import ClusterError, NotFoundError, RunError, UsageError
from .asking import ASKS, COUNTS, Asks, request_of, settled
from .grid import Job, jobs
from .link import Link

LOOK_INTERVAL = 0.2
# A broker that was restarted has forgotten the batches.
SHOW_INTERVAL = 5.0
TELL_TIMEOUT = 2.0
# A job ends its kernel, which ends its cell, before it ends itself.
END_GRACE = 15.0
MOST_PARALLEL = 256
# Beside the notebooks: how each job ended, and what it said meanwhile.
STATE = ".batch"
# The id of a batch begins with it.
BATCH = "batch-"
ENDS = ("succeeded", "failed")

Told = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class BatchResult:
    """How a batch ended.

    Attributes
    ----------
    rows
        One dictionary for each notebook, in the order of the grid: `name`, `parameters`, `status`
        (`succeeded` or `failed`), `values` that it recorded, `error`, when it `started` (epoch
        seconds) after it had `waited` for so many seconds, how many `seconds` it took, the path of
        its `notebook`, and whether it was done `earlier`.
    directory
        Where the notebooks are, with `results.csv` and `results.json`.
    """

    rows: list[dict[str, Any]]
    directory: Path

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Those that failed."""
        return [row for row in self.rows if row["status"] == "failed"]


class BatchVerbs(Link):
    """A session that runs notebooks."""

    def batch(
        self,
        notebook: str | Path,
        parameters: Mapping[str, Sequence[Any]] | None = None,
        *,
        parallel: int = 4,
        output: str | Path | None = None,
        kernel: str = "",
        keep_failed: bool = False,
        again: bool = False,
        on_change: Told | None = None,
        **asks: Unpack[Asks],
    ) -> BatchResult:
        """Run a notebook once for each combination of parameters; returns when all have ended.

        Parameters
        ----------
        notebook
            Its cell tagged `parameters` is followed by one with the values, as papermill does it.
        parameters
            The values of each.
        parallel
            How many at a time ask for devices.
        output
            Where the notebooks go (default: the notebook's name and `-batch`, beside it).
        kernel
            What runs it in place of its own kernel.
        keep_failed, again
            Those that succeeded earlier with the same code and parameters are not run again; with
            `keep_failed` those that failed are not either, with `again` all are.
        on_change
            Called with all rows when one has changed.
        asks
            What each notebook leases: see `Asks`; one device where nothing is said. One that waits
            longer than `max_wait` has failed.

        Raises
        ------
        NotFoundError
            There is no such notebook.
        RunError
            It was stopped.
        UsageError
            What is asked for makes no sense.
        """
        path = Path(notebook).expanduser().absolute()
        if not 1 <= parallel <= MOST_PARALLEL:
            raise UsageError(f"{parallel} at a time makes no sense; give 1 to {MOST_PARALLEL}.")
        wanted = settled(asks, ASKS)
        if wanted.keys() & set(COUNTS):
            request_of(wanted)
        todo = jobs(path.stem, _code(path), parameters or {}, kernel)
        directory = (
            Path(output).expanduser().absolute() if output else path.with_name(f"{path.stem}-batch")
        )
        id = f"{BATCH}{secrets.token_hex(4)}"
        asked = {"notebook": str(path), "cwd": str(path.parent), "kernel": kernel, "batch": id}
        batch = _Batch(
            todo,
            directory,
            {**asked, "asks": wanted},
            on_change or (lambda rows: None),
            show=functools.partial(self._show_batch, id, path.name, str(directory)),
            stopped=lambda: self.stopped_batches.get(id, ""),
        )
        return batch.run(parallel, keep_failed=keep_failed, again=again)

    def batches(self) -> list[dict[str, Any]]:
        """Batches of everybody, those that have ended lately included, the newest first.

        Each with its `label`, `state` (`running`, `stopping`, `ended`, `stopped` or `interrupted`), the
        `directory` of its results (of the caller's own), and how many notebooks of its `total` are
        `done` (`failed` included) and `running`. Rows of queue, leases and runs name theirs as
        `batch`. `stop` ends one.
        """
        rows = self.status()["batches"].values()
        return sorted(rows, key=lambda row: row["started"], reverse=True)

    def _show_batch(
        self, id: str, label: str, directory: str, counts: Counter[str], over: bool
    ) -> None:
        """Have people see how far it is."""
        told = BatchTold(
            id=id,
            label=label,
            directory=directory,
            total=counts.total(),
            succeeded=counts["succeeded"],
            failed=counts["failed"],
            running=counts["running"],
            over=over,
        )
        # It is told again soon; no notebook waits for a broker that is away.
        with contextlib.suppress(ClusterError):
            self._loop.run(self.client.call("batch.tell", told, timeout=TELL_TIMEOUT))


@dataclass
class _Running:
    """A job at work."""

    job: Job
    process: subprocess.Popen[bytes]
    began: float
    state: Path


@dataclass
class _Batch:
    """`asked` is what all jobs have in common; `show` tells people how far it is.

    `stopped` says who has stopped it, if somebody has.
    """

    jobs: list[Job]
    directory: Path
    asked: dict[str, Any]
    on_change: Told
    show: Callable[[Counter[str], bool], None]
    stopped: Callable[[], str]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: float = 0.0

    def run(self, parallel: int, *, keep_failed: bool, again: bool) -> BatchResult:
        (self.directory / STATE).mkdir(parents=True, exist_ok=True)
        waiting = []
        for job in self.jobs:
            known = None if again else self._known(job)
            if known and (known["status"] == "succeeded" or keep_failed):
                self.rows[job.key] = {**known, "earlier": True}
            else:
                self.rows[job.key] = self._row(job, "pending")
                waiting.append(job)
        self._write_results()
        self._tell()
        running: list[_Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    running.append(self._start(waiting.pop(0)))
                clock.sleep(LOOK_INTERVAL)
                self._look(running)
                if waiting or running:
                    self._check_stopped()
        finally:
            _end([one.process for one in running])
            self._write_results()
            self.show(self._counts(), True)
        return BatchResult(self._listed(), self.directory)

    def _look(self, running: list[_Running]) -> None:
        before = [row["status"] for row in self.rows.values()]
        for one in list(running):
            if one.process.poll() is not None:
                _end([one.process])
                running.remove(one)
                self.rows[one.job.key] = self._ended(one)
                self._write_results()
            elif one.state.exists():
                self.rows[one.job.key]["status"] = "running"
        if before != [row["status"] for row in self.rows.values()]:
            self._tell()
        elif clock.monotonic() - self.shown > SHOW_INTERVAL:
            self._show()

    def _check_stopped(self) -> None:
        how = self.stopped()
        if how:
            done = sum(row["status"] in ENDS for row in self.rows.values())
            raise RunError(
                f"The batch was {how} with {done} of {len(self.jobs)} notebooks done; start it again "
                "to go on where it was."
            )

    def _counts(self) -> Counter[str]:
        return Counter(row["status"] for row in self.rows.values())

    def _tell(self) -> None:
        self._show()
        self.on_change(self._listed())

    def _show(self) -> None:
        self.shown = clock.monotonic()
        self.show(self._counts(), False)

    def _start(self, job: Job) -> _Running:
        """Start a job; the file that says how it ended before is gone from here on."""
        files = {name: self._file(job, name) for name in ("result", "state", "log", "order")}
        for path in files.values():
            path.unlink(missing_ok=True)
        order = {
            **self.asked,
            "output": self.rows[job.key]["notebook"],
            "parameters": dict(job.parameters),
            "state": str(files["state"]),
            "result": str(files["result"]),
            "job": {"key": job.key},
        }
        write_aside(files["order"], json.dumps(order))
        command = [sys.executable, "-m", "aios_jupyter.kernel.job", str(files["order"])]
        with files["log"].open("wb") as log:
            process = subprocess.Popen(
                command,
                # It ends when this closes, also because we were killed.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is for us, who end the jobs one by one.
                start_new_session=True,
            )
        self.rows[job.key] = self._row(job, "waiting")
        self._tell()
        return _Running(job, process, clock.time(), files["state"])

    def _ended(self, one: _Running) -> dict[str, Any]:
        for kind in ("order", "state"):
            self._file(one.job, kind).unlink(missing_ok=True)
        known = self._known(one.job)
        if known is None:
            log = self._file(one.job, "log").read_text(errors="replace").strip().splitlines()
            code = one.process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            known = {
                **self._row(one.job, "failed"),
                "error": f"its process {how}" + (f": {log[-1]}" if log else ""),
                "started": one.began,
                "seconds": clock.time() - one.began,
            }
            write_aside(self._file(one.job, "result"), json.dumps(known, default=str))
        return known

    def _known(self, job: Job) -> dict[str, Any] | None:
        """How a job ended, if it did."""
        try:
            found = json.loads(self._file(job, "result").read_text())
        except (FileNotFoundError, ValueError):
            return None
        if found.get("key") != job.key:
            return None
        if found["status"] == "succeeded" and not Path(self._notebook(job)).exists():
            return None
        return {**self._row(job, str(found["status"])), **found}

    def _row(self, job: Job, status: str) -> dict[str, Any]:
        return {
            "key": job.key,
            "name": job.name,
            "parameters": dict(job.parameters),
            "status": status,
            "values": {},
            "error": "",
            "started": None,
            "waited": None,
            "seconds": None,
            "notebook": self._notebook(job),
            "earlier": False,
        }

    def _notebook(self, job: Job) -> str:
        return str(self.directory / f"{job.name}.ipynb")

    def _file(self, job: Job, kind: str) -> Path:
        return self.directory / STATE / f"{job.key}.{kind}"

    def _listed(self) -> list[dict[str, Any]]:
        return [dict(self.rows[job.key]) for job in self.jobs]

    def _write_results(self) -> None:
        ended = [row for row in self._listed() if row["status"] in ENDS]
        write_aside(self.directory / "results.json", json.dumps(ended, indent=2, default=str))
        write_aside(self.directory / "results.csv", as_csv(ended))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a batch as CSV: the parameters, the values, and how each ended."""
    flat = [
        {
            **row["parameters"],
            **row["values"],
            **{name: row[name] for name in ("status", "waited", "seconds", "error", "notebook")},
        }
        for row in rows
    ]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def write_aside(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def _code(path: Path) -> list[str]:
    """The cells of a notebook that make it what it is."""
    import nbformat

    if not path.is_file():
        raise NotFoundError(f"There is no notebook '{path}'.")
    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except (ValueError, nbformat.ValidationError) as error:
        raise UsageError(f"'{path}' is not a notebook: {str(error).splitlines()[0]}.") from None
    return [str(cell.source) for cell in notebook.cells if cell.cell_type == "code"]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End jobs with their kernels; returns when they are gone."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        try:
            process.wait(2 * END_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
