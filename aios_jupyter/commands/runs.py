"""`train`, `run`, `runs`, `logs`, `stop`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotFoundError, UsageError
from ..schema import RunKind
from ..session.batch import BATCH
from ..units import format_duration, format_size
from .base import NAMES, as_json, echo_json, labelled
from .host import Host
from .views import Card, Column, Table, number
from .wishes import (
    details,
    devices_wanted,
    from_queue,
    gpus_wanted,
    in_detail,
    may_be_preempted,
)

if TYPE_CHECKING:
    from ..runs.messages import RankStacks

RUN_COLUMNS = (
    Column("id", "run"),
    Column("name", "name"),
    Column("kind", "kind"),
    Column("state", "state"),
    Column("world_size", "ranks", right=True),
    Column("progress", "progress", right=True, meter="percent"),
    Column("use", "use", right=True, meter="utilization"),
    Column("held", "memory", right=True),
    Column("metrics", "metrics"),
    Column("took", "time", right=True),
    Column("reason", "reason"),
)

_SCRIPT = {"allow_interspersed_args": False}


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags that `train` and `run` share; those about names mean something for a cell alone."""
    decorators = (
        click.argument("script", required=False),
        click.argument("args", nargs=-1, type=click.UNPROCESSED),
        click.option("--lease", default=None, metavar="LEASE", help="Run on this lease."),
        click.option(
            "--framework",
            type=click.Choice(["auto", "torch", "tensorflow", "horovod", "none"]),
            default="auto",
            help="What to set up before the code runs.",
        ),
        click.option("--push", type=NAMES, metavar="A,B", help="Also send these variables."),
        click.option("--no-push", type=NAMES, metavar="A,B", help="Do not send these."),
        click.option("--pull", type=NAMES, metavar="A,B", help="Bring rank 0's values back."),
        click.option(
            "--max-restarts",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="Start all ranks again when one fails, N times at most.",
        ),
        click.option(
            "--checkpoints",
            default="",
            metavar="URL",
            help="Where train.checkpoint writes, instead of the run's own folder.",
        ),
        click.option(
            "--resume", default="", metavar="RUN", help="Go on from the checkpoints of this run."
        ),
        click.option(
            "--profile",
            is_flag=True,
            help="Profile some steps of rank 0 with torch's profiler: see 'profile'.",
        ),
        click.option(
            "--compress",
            type=click.Choice(["none", "fp16", "bf16", "powersgd"]),
            default="none",
            help="Send fewer bytes of the gradients between ranks (torch's DDP).",
        ),
        click.option("--profile-all", is_flag=True, help="Profile every rank."),
        labelled,
        in_detail,
        click.option(
            "--detach", is_flag=True, help="On a lease of its own, and do not wait: see 'attach'."
        ),
        from_queue,
        may_be_preempted,
        click.option("-v", "--verbose", is_flag=True, help="Show every rank's output."),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@click.command(context_settings=_SCRIPT)
@devices_wanted
@gpus_wanted
@_options
@click.pass_obj
def train(host: Host, /, script: str | None, args: tuple[str, ...], **flags: Any) -> Any:
    """Run code on every leased device.

    One process each, with the environment of torchrun, so that its scripts run unchanged.

    A shell gives SCRIPT and its ARGS. In a notebook, %%aios train runs the cell: variables that it
    reads are sent along, and --pull brings rank 0's back. Without a lease, --devices or --gpus
    takes one for this run alone.
    """
    return _start(host, script, args, flags)


@click.command(context_settings=_SCRIPT)
@gpus_wanted
@_options
@click.pass_obj
def run(host: Host, /, script: str | None, args: tuple[str, ...], **flags: Any) -> Any:
    """Run code in one process on one device.

    Like 'train' in everything else.
    """
    flags["devices"] = 1
    if flags["gpus"] is not None:
        if flags["gpus"] != 1:
            raise UsageError("'run' starts one process, so that --gpus can only be 1; use 'train'.")
        flags["devices"] = None
    return _start(host, script, args, flags, kind=RunKind.RUN)


def _start(
    host: Host,
    script: str | None,
    args: tuple[str, ...],
    flags: dict[str, Any],
    *,
    kind: RunKind = RunKind.TRAIN,
) -> Any:
    given = ("devices", "gpus", "lease", "name", "framework", "queue", "preemptible")
    options = {key: flags[key] for key in given} | details(flags)
    options["detach"] = flags["detach"]
    options["kind"] = kind
    options |= {key: flags[key] for key in ("max_restarts", "checkpoints", "resume", "compress")}
    options["profile"] = "all" if flags["profile_all"] else "first" if flags["profile"] else ""
    if flags["devices"] is not None and flags["gpus"] is not None:
        raise UsageError("Give --devices or --gpus, not both.")
    if host.cell is not None:
        if script:
            raise UsageError(
                f"The cell is the code, so that '{script}' says nothing; leave it out."
            )
        return _left(host, host.run_cell(options, flags), flags)
    if not script:
        raise UsageError("Name the script to run: aios train SCRIPT -- ARGS.")
    named = [flag for flag in ("push", "no_push", "pull") if flags[flag]]
    if named:
        raise UsageError(f"--{named[0].replace('_', '-')} is for cells; a script has no notebook.")
    path = Path(script).expanduser()
    if not path.is_file():
        raise NotFoundError(f"There is no script '{script}'.")
    argv = args[1:] if args[:1] == ("--",) else args
    session = host.session(start=True)
    if flags["detach"]:
        with host.waiting(session, "devices") as on_wait:
            handle = session.start(path, argv=argv, on_wait=on_wait, **options)
        return _left(host, handle, flags)
    return host.follow_on(
        session,
        lambda given: session.start(path, argv=argv, **given),
        options,
        verbose=flags["verbose"],
    )


def _left(host: Host, handle: Any, flags: dict[str, Any]) -> Any:
    """Say how to find a run again that goes on by itself."""
    if not flags["detach"]:
        return handle
    note = f"It goes on without us. Follow it with: aios attach {handle.id}"
    return host.show(Card(f"run {handle.id}", badge="detached", note=note), handle)


@click.command()
@click.argument("run")
@click.option("-v", "--verbose", is_flag=True, help="Show every rank's output.")
@click.pass_obj
def attach(host: Host, run: str, verbose: bool) -> Any:
    """Follow RUN from its first line on, from anywhere.

    Ctrl-C, or interrupting the cell, leaves it running. In a notebook, what it pulls arrives.
    """
    session = host.session(start=False)
    result = host.follow(session, session.attach(run), verbose=verbose)
    host.take(result)
    return result


@click.command()
@as_json
@click.pass_obj
def runs(host: Host, json_: bool) -> Any:
    """List runs, the last first."""
    session = host.session(start=False)
    rows = session.runs()
    if json_:
        return echo_json(rows)
    going = [row for row in session.batches() if row["ended"] is None]
    return host.show(run_table(rows, time.time(), "; ".join(map(batch_text, going))), rows)


def batch_text(row: dict[str, Any]) -> str:
    """`batch-1f of ana, sweep.ipynb: 5 of 12 done, 1 failed, 2 running`."""
    failed = f", {row['failed']} failed" if row["failed"] else ""
    counts = f"{row['done']} of {row['total']} done{failed}, {row['running']} running"
    return f"{row['id']} of {row['user']}, {row['label']}: {counts}"


def run_table(rows: Sequence[dict[str, Any]], now: float, title: str = "") -> Table:
    """Runs, one a line."""
    return Table(
        RUN_COLUMNS,
        [_run_row(row, now) for row in rows],
        empty=title or "There are no runs; start one with: train SCRIPT",
        title=title,
    )


def _run_row(row: dict[str, Any], now: float) -> dict[str, Any]:
    progress = row.get("progress") or {}
    total = progress.get("total") or 0
    percent = 100 * min(1.0, progress.get("done", 0) / total) if total else None
    metrics = ", ".join(f"{name} {number(value)}" for name, value in row["metrics"].items())
    use, memory = row.get("utilization"), row.get("memory")
    return {
        **row,
        "use": None if use is None else f"{use:.0f}%",
        "held": None if memory is None else format_size(memory),
        "percent": percent,
        "progress": f"{percent:.0f}%" if percent is not None else None,
        "metrics": metrics,
        "took": format_duration(max(0.0, (row["ended"] or now) - row["started"])),
    }


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="Only this rank's output.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.pass_obj
def logs(host: Host, run: str, rank: int | None, follow: bool) -> None:
    """Print what RUN wrote."""
    for text in host.session(start=False).logs(run, rank=rank, follow=follow):
        click.echo(text, nl=not text.endswith("\n"))


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="Only this rank.")
@as_json
@click.pass_obj
def stacks(host: Host, run: str, rank: int | None, json_: bool) -> Any:
    """Show what every rank of RUN is doing now.

    These are the Python stacks of its threads, your own code marked with >, also of a rank that is
    stuck in a collective. Once RUN has failed: where, and with which variables. Works from anywhere.
    """
    found = host.session(start=False).stacks(run, rank)
    if json_:
        return echo_json(found)
    click.echo("\n\n".join(stacks_text(each) for each in found))
    return None


def stacks_text(rank: RankStacks) -> str:
    """One rank's stacks, or its failure, as lines."""
    if rank.failure:
        return f"rank {rank.rank} failed:\n{rank.failure.rstrip()}"
    lines = [f"rank {rank.rank} · pid {rank.pid} · {rank.device}"]
    lines += [f"  ({rank.note})"] if rank.note else []
    for thread in rank.threads:
        does = {True: " (running)", False: " (waiting)", None: ""}[thread.active]
        lines.append(f"  thread {thread.name}{does}")
        for frame in thread.frames:
            mark = ">" if frame.users else " "
            name = frame.file if frame.users else _short(frame.file)
            lines.append(f"  {mark} {frame.function}  {name}:{frame.line}")
            lines += [f"        {frame.source}"] if frame.source else []
    return "\n".join(lines)


def _short(file: str) -> str:
    """A library's file from its package on."""
    return re.sub(r".*/(?:site-packages|dist-packages|python3\.\d+)/", "", file)


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), default=0, metavar="N", help="Instead of 0.")
@click.option(
    "-o",
    "--output",
    default="",
    metavar="FILE",
    help="Where to write it, instead of RUN-profile.json.",
)
@click.pass_obj
def profile(host: Host, run: str, rank: int, output: str) -> Any:
    """Fetch the trace of a RUN that was profiled.

    'train --profile' records ten steps. Open the file in chrome://tracing or ui.perfetto.dev; the
    table of what took longest is in the run's log.
    """
    path = host.session(start=False).profile(run, output or f"{run}-profile.json", rank)
    size = path.stat().st_size
    return host.show(Card(str(path), badge=f"{size / 1e6:.1f} MB"), path)


@click.command()
@click.argument("run_or_batch", metavar="RUN")
@click.pass_obj
def stop(host: Host, run_or_batch: str) -> None:
    """Stop RUN, or a batch of notebooks by its id.

    Its processes are asked to end, and killed after a few seconds. What a batch has done stays; started
    again it goes on.
    """
    host.session(start=False).stop(run_or_batch)
    what = run_or_batch if run_or_batch.startswith(BATCH) else f"run {run_or_batch}"
    host.show(Card(what, badge="stopping"))
