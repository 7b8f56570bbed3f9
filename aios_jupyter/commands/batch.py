"""`batch NOTEBOOK -p lr=0.1,0.01 -p seed=1..5`."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import RunError, UsageError
from ..units import format_duration
from .base import as_json, echo_json
from .host import Host
from .kernels import asks_for_devices
from .views import Column, Table, number, plural

LIVE = ("running", "waiting", "pending")


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUES",
    help="Like lr=0.1,0.01 or seed=1..5; given again for each parameter.",
)
@asks_for_devices
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="How many at a time.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where notebooks and results go (default: NOTEBOOK-batch beside it).",
)
@click.option("-k", "--kernel", default="", metavar="NAME", help="In place of the notebook's own.")
@click.option("--keep-failed", is_flag=True, help="Leave those alone that failed earlier.")
@click.option("--again", is_flag=True, help="Run those again, too, that succeeded earlier.")
@as_json
@click.pass_obj
def batch(
    host: Host,
    /,
    notebook: Path,
    parameters: Sequence[str],
    parallel: int,
    output: Path | None,
    kernel: str,
    keep_failed: bool,
    again: bool,
    json_: bool,
    **asks: Any,
) -> Any:
    """Run a notebook once for each combination of parameters.

    Each notebook waits in the queue for devices of its own. Started again, a batch goes on where it
    was: what succeeded with the same code and parameters is not run again, what failed is. The
    table is also in DIR, as results.csv and results.json; aios_jupyter.record(name, value) in the
    notebook puts a value there. The status is 1 when a notebook failed.
    """
    from ..session.grid import parse_parameters

    if keep_failed and again:
        raise UsageError("--again runs all and --keep-failed not; give one of them.")
    grid = parse_parameters(parameters)
    session = host.session(start=True)
    seen: dict[str, str] = {}
    with host.progress(notebook.stem) as advance, _ended_by_sigterm():

        def changed(rows: list[dict[str, Any]]) -> None:
            advance(sum(row["status"] not in LIVE for row in rows), len(rows))
            for row in rows:
                if seen.get(row["key"]) != row["status"] and row["status"] != "pending":
                    host.say(_line(row, rows))
                seen[row["key"]] = row["status"]

        result = session.batch(
            notebook,
            grid,
            **asks,
            parallel=parallel,
            output=output,
            kernel=kernel,
            keep_failed=keep_failed,
            again=again,
            on_change=changed,
        )
    if json_:
        echo_json(result.rows)
    else:
        host.show(batch_table(result.rows, result.directory), result)
    if result.failed:
        raise RunError(
            f"{plural(len(result.failed), 'notebook')} of {len(result.rows)} failed, the first "
            f"with {result.failed[0]['error']}; see {result.failed[0]['notebook']}"
        )
    return None if json_ else result


def batch_table(rows: Sequence[Mapping[str, Any]], directory: Path) -> Table:
    """One line for each notebook: its parameters, what it recorded, and how it ended."""
    parameters = list(dict.fromkeys(name for row in rows for name in row["parameters"]))
    values = list(dict.fromkeys(name for row in rows for name in row["values"]))
    columns = (
        *(Column(f"p:{name}", name, right=True) for name in parameters),
        *(Column(f"v:{name}", name, right=True) for name in values),
        Column("status", "status"),
        Column("time", "time", right=True),
        Column("file", "notebook"),
    )
    shown = [
        {
            **{f"p:{name}": _text(value) for name, value in row["parameters"].items()},
            **{f"v:{name}": _text(value) for name, value in row["values"].items()},
            "status": row["status"] + (" earlier" if row["earlier"] else ""),
            "time": "" if row["seconds"] is None else format_duration(row["seconds"]),
            "file": Path(row["notebook"]).name,
        }
        for row in rows
    ]
    return Table(columns, shown, empty="There was nothing to run.", title=f"In {directory}:")


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _line(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(one["status"] for one in rows)
    done = f"{counts['succeeded'] + counts['failed']}/{len(rows)}"
    text = f"[{done}] {row['name']} {row['status']}" + (" earlier" if row["earlier"] else "")
    return f"{text}: {row['error']}" if row["error"] else text


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, so that no notebook is left; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
