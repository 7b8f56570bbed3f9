"""`gallery`: applications to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .base import VerbGroup, as_json, echo_json
from .host import Host
from .views import Card, Column, Table

if TYPE_CHECKING:
    from ..models.gallery import App

COLUMNS = (
    Column("name", "application"),
    Column("task", "for"),
    Column("summary", "what it shows"),
    Column("missing", "not installed"),
)


@click.group(cls=VerbGroup, invoke_without_command=True)
@as_json
@click.pass_context
def gallery(ctx: click.Context, json_: bool) -> Any:
    """List applications: notebooks that make a model and serve it."""
    if ctx.invoked_subcommand is not None:
        return None
    from ..models.gallery import apps

    host: Host = ctx.obj
    rows = apps()
    if json_:
        return echo_json(rows)
    return host.show(gallery_table(rows), rows)


def gallery_table(rows: Sequence[App]) -> Table:
    """Applications, one a line."""
    shown = [
        {
            "name": app.name,
            "task": app.task,
            "summary": app.summary,
            "missing": ", ".join(app.missing),
        }
        for app in rows
    ]
    return Table(COLUMNS, shown, empty="There are no applications.")


@gallery.command("install")
@click.argument("name")
@click.option("-o", "--output", metavar="FILE", help="Where the notebook goes; NAME.ipynb here.")
@click.pass_obj
def gallery_install(host: Host, name: str, output: str | None) -> Any:
    """Write the notebook of the application NAME to a file."""
    from ..models.gallery import install

    app, path = install(name, output)
    note = f"Open {path.name}, or run it: papermill -k aios {path} out.ipynb"
    if app.missing:
        note = f"First: {app.first}. {note}"
    return host.show(
        Card(
            app.title,
            badge="written",
            fields=(("notebook", str(path)), ("for", app.task), ("shows", app.summary)),
            note=note,
        ),
        path,
    )
