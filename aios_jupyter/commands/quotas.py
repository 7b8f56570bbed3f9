"""`quota`, `quota set`, `quota rm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ..errors import UsageError
from .base import VerbGroup, as_json, echo_json
from .host import Host
from .views import Column, Table

NO_LIMIT = -1
QUOTA_COLUMNS = (
    Column("queue", "queue"),
    Column("pool", "of"),
    Column("nominal", "nominal quota", right=True),
    Column("borrow", "borrowing limit", right=True),
    Column("used", "used", right=True),
    Column("borrowed", "borrowed", right=True),
    Column("waiting", "waiting", right=True),
    Column("weight", "weight", right=True),
    Column("user", "one user"),
    Column("members", "members"),
)
POOLS = {"accelerator": "GPUs", "cpu": "CPU slots"}


class _Limit(click.ParamType[int]):
    """A whole number, or `none` for no limit."""

    name = "limit"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text of a flag."""
        if isinstance(value, int):
            return value
        if value == "none":
            return NO_LIMIT
        if not value.isdecimal() or int(value) < self._least:
            raise click.UsageError(
                f"'{value}' is not a limit; give a whole number from {self._least} on, or 'none'.",
                ctx=ctx,
            )
        return int(value)


@click.group(cls=VerbGroup, invoke_without_command=True)
@as_json
@click.pass_context
def quota(ctx: click.Context, json_: bool) -> Any:
    """Show who may use how much, or change it.

    Each queue can count on its nominal quota, and may borrow what others leave unused up to its
    borrowing limit. Requests beyond that wait, and hold nobody up. Whoever is a member of no queue
    is in 'default', which has the rest.
    """
    if ctx.invoked_subcommand is not None:
        return None
    host: Host = ctx.obj
    return _show(host, host.session(start=False).quota(), json_)


@quota.command("set")
@click.argument("name")
@click.option("--gpus", type=_Limit(), metavar="N", help="Nominal quota of accelerators.")
@click.option("--cpus", type=_Limit(), metavar="N", help="Nominal quota of CPU slots.")
@click.option("--borrow", type=_Limit(), metavar="N", help="Borrowing limit; 0: it may not borrow.")
@click.option("--user-devices", type=_Limit(1), metavar="N", help="What one user may hold in it.")
@click.option("--user-leases", type=_Limit(1), metavar="N", help="Leases of one user in it.")
@click.option("--weight", type=float, metavar="N", help="Its part under the policy 'fair'; 1.")
@click.option("--members", metavar="A,B", help="Users who may ask in it; '' for nobody.")
@as_json
@click.pass_obj
def set_(host: Host, /, name: str, members: str | None, json_: bool, **limits: Any) -> Any:
    """Make queue NAME, or change what is given of it (for admins).

    'none' takes a limit away. Requests that may start now do so at once; who holds a lease keeps it,
    unless another queue takes its own quota back from preemptible ones.
    """
    if members is None and all(limit is None for limit in limits.values()):
        raise UsageError(
            "Say what to change of it, like --gpus 4; 'quota' alone shows what is set."
        )
    names = None if members is None else [m.strip() for m in members.split(",") if m.strip()]
    return _show(host, host.session(start=False).quota(name, members=names, **limits), json_)


@quota.command("rm")
@click.argument("name")
@as_json
@click.pass_obj
def rm(host: Host, name: str, json_: bool) -> Any:
    """Remove queue NAME (for admins).

    What waits in it and its leases go to their users' other queues.
    """
    return _show(host, host.session(start=False).quota(name, remove=True), json_)


def _show(host: Host, rows: list[dict[str, Any]], json_: bool) -> Any:
    if json_:
        return echo_json(rows)
    return host.show(quota_table(rows), rows)


def quota_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Queues, a line for each pool that says something."""
    shown = [
        {
            **row,
            "pool": POOLS[row["pool"]],
            "nominal": "no limit" if row["nominal"] is None else str(row["nominal"]),
            "borrow": _borrow(row),
            "weight": f"{row['weight']:g}",
            "user": _user(row),
            "members": ", ".join(row["members"]) or ("others" if row["queue"] == "default" else ""),
        }
        for row in rows
        if row["nominal"] is not None
        or row["used"]
        or row["waiting"]
        or row["pool"] == "accelerator"
    ]
    return Table(QUOTA_COLUMNS, shown, empty="")


def _borrow(row: dict[str, Any]) -> str:
    if row["nominal"] is None:
        return ""
    return "no limit" if row["borrow"] is None else str(row["borrow"])


def _user(row: dict[str, Any]) -> str:
    parts = []
    if row["user_devices"] is not None:
        parts.append(f"{row['user_devices']} devices")
    if row["user_leases"] is not None:
        parts.append(f"{row['user_leases']} leases")
    return ", ".join(parts)
