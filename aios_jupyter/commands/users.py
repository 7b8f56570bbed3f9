"""`user add|ls|revoke`, `audit`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .base import VerbGroup, as_json, echo_json
from .host import Host
from .views import Card, Column, Table

USER_COLUMNS = (
    Column("name", "user"),
    Column("role", "role"),
    Column("state", "state"),
    Column("added", "since"),
    Column("expires", "until"),
)
AUDIT_COLUMNS = (
    Column("time", "time"),
    Column("who", "who"),
    Column("what", "what"),
    Column("detail", "detail"),
)


@click.group(cls=VerbGroup)
def user() -> None:
    """Say who may use your cluster besides you."""


@user.command("add")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["user", "admin", "viewer"]),
    default="user",
    show_default=True,
    help="A viewer looks on; an admin may end what is anybody's.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the bundle goes (default: aios-NAME here).",
)
@click.option("--days", type=float, default=365.0, metavar="N", help="How long it is valid.")
@click.pass_obj
def add(host: Host, name: str, role: str, output: Path | None, days: float) -> Any:
    """Give NAME access, as a bundle of files to hand over.

    NAME points AIOS_BUNDLE at the directory; every verb then uses your cluster. Their code runs in
    the account that started it, so give access to people whom you trust with that account.
    """
    row = host.session(start=True).user_add(name, role, output, days=days)
    fields = (("role", role), ("until", _day(row["expires"])), ("bundle", row["bundle"]))
    use = ("they use it with", f"AIOS_BUNDLE={row['bundle']}")
    return host.show(Card(f"user {name}", badge="added", fields=(*fields, use)), row)


@user.command("ls")
@as_json
@click.pass_obj
def ls(host: Host, json_: bool) -> Any:
    """List who has access, and who had."""
    rows = host.session(start=True).user_list()
    if json_:
        return echo_json(rows)
    return host.show(user_table(rows), rows)


def user_table(rows: Sequence[dict[str, Any]]) -> Table:
    """People, one a line."""
    shown = [{**row, "added": _day(row["added"]), "expires": _day(row["expires"])} for row in rows]
    return Table(USER_COLUMNS, shown, empty="Nobody has access.")


@user.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(host: Host, name: str) -> Any:
    """Take NAME's access away.

    What NAME holds or waits for ends at once, with its processes.
    """
    row = host.session(start=True).user_revoke(name)
    return host.show(Card(f"user {name}", badge="revoked"), row)


@click.command()
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1, max=10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="So many of the newest.",
)
@as_json
@click.pass_obj
def audit(host: Host, limit: int, json_: bool) -> Any:
    """Show who was granted or refused what, and why.

    Grants, ends, refusals and changes of users, for admins.
    """
    records = host.session(start=False).audit(limit)
    if json_:
        return echo_json(records)
    return host.show(audit_table(records), records)


def audit_table(records: Sequence[dict[str, Any]]) -> Table:
    """Audit records, one a line, the newest last as in a log."""
    rows = [
        {
            **record,
            "time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["time"])),
            "detail": ", ".join(
                f"{key} {value if isinstance(value, str) else json.dumps(value)}"
                for key, value in record["detail"].items()
                if value not in ("", None)
            ),
        }
        for record in reversed(records)
    ]
    return Table(AUDIT_COLUMNS, rows, empty="There are no records yet.")


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(when))
