"""The verbs as one click group, behind three doors: `aios VERB`, `%aios VERB` and `%%aios VERB`.

base      groups that suggest spellings, types of parameters
host      where a verb runs: the shell (here) or a notebook (`notebook/display.py`)
views, charts, terminal     what a verb shows: tables, cards, bars; and again and again
feed      what a run has said so far
cluster, top, nodes, leases, reservations, forecasts, runs, batch, data, kernels, users    the verbs
prepare, validate, sql, kv, vault    and those of tables, shared values and encrypted data
models, optimize, endpoints, monitor, export, gallery    and those of models

Only click is imported here; a verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..errors import AiosError, UsageError
from .base import VerbGroup, explain
from .batch import batch
from .cluster import doctor, down, status, up
from .data import augment
from .endpoints import endpoints, predict, serve
from .export import export
from .forecasts import forecast
from .gallery import gallery
from .host import Host
from .kernels import kernel
from .kv import kv
from .leases import alloc, extend, leases, release
from .models import models, promote, publish, rollback
from .monitor import monitor
from .nodes import node
from .noise import data_label_noise
from .optimize import optimize
from .policies import policy
from .prepare import data_clean, data_features, data_split, data_steps
from .quotas import quota
from .reservations import reservations, reserve
from .runs import attach, logs, profile, run, runs, stacks, stop, train
from .sql import sql
from .storage import data
from .top import top
from .users import audit, user
from .validate import data_validate
from .vault import decrypt, encrypt, identity, require
from .views import printable
from .waiting import cancel, explain_request, priority, queue

__all__ = ["Host", "aios", "explain", "invoke", "main"]


@click.group(
    cls=VerbGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="aios-jupyter", message="aios-jupyter %(version)s")
@click.pass_context
def aios(ctx: click.Context) -> None:
    """Lease devices, train on them, publish models and serve them.

    In a notebook the same verbs are %aios VERB; %%aios train runs a cell on every leased device.
    Times are written like 30s, 5m, 2h, 1d or 1:30:00 (a bare number is seconds), memory like 8GB.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _verb in (
    *(up, down, status, top, doctor),
    *(alloc, release, extend, leases, queue, explain_request, priority, cancel),
    *(policy, quota, forecast),
    *(reserve, reservations),
    *(train, run, runs, attach, logs, stacks, profile, stop, batch),
    *(data, augment, sql, kv),
    *(optimize, publish, models, promote, rollback, serve, endpoints, predict, monitor, export),
    gallery,
    *(kernel, user, node, audit),
):
    aios.add_command(_verb)
for _verb in (
    *(data_clean, data_features, data_split, data_steps),
    *(data_validate, data_label_noise),
    *(encrypt, decrypt, identity, require),
):
    data.add_command(_verb)


def invoke(arguments: Sequence[str], host: Host, prog: str = "aios") -> Any:
    """Run one command line and give back what its verb returns (None after `--help`).

    Raises
    ------
    AiosError
        A verb failed.
    click.ClickException
        The command line makes no sense; `base.explain` has the sentence.
    """
    try:
        with aios.make_context(prog, list(arguments), obj=host) as context:
            return aios.invoke(context)
    except click.exceptions.Exit:
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: 0 when all went well, 1 after an error, 2 after a misuse, 130 on Ctrl-C.

    What a user did wrong is one line on stderr and never a traceback.
    """
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    host = Host()
    try:
        invoke(arguments, host)
        sys.stdout.flush()
    except click.ClickException as error:
        click.echo(f"aios: {explain(error)}", err=True)
        return error.exit_code
    except AiosError as error:
        _echo_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("aios: interrupted.", err=True)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone (`aios logs | head`); the interpreter's own flush at
        # exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        host.close()
    return 0


def _echo_error(error: AiosError) -> None:
    traceback = getattr(error, "traceback", "")
    if traceback:
        click.echo(traceback.rstrip(), err=True)
        if run := getattr(error, "run", ""):
            click.echo(f"The variables at the failure: aios stacks {run}", err=True)
    click.echo(printable(f"aios: {error}"), err=True)
