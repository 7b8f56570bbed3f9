"""`policy`: who goes first, and the limits that admins set."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from ..units import format_duration
from .base import DURATION, LIMIT, as_json, echo_json, pairs
from .host import Host
from .views import Column, Table

POLICY_NAMES = ("fifo", "sjf", "priority", "fair", "las", "gittins")
POLICY_COLUMNS = (
    Column("now", ""),
    Column("name", "policy"),
    Column("about", "who goes first"),
    Column("aging", "nobody waits behind others for more than"),
)


@click.command()
@click.argument("name", required=False, type=click.Choice(POLICY_NAMES))
@click.option("--aging", type=DURATION, metavar="TIME", help="Who waited so long goes first.")
@click.option("--weight", multiple=True, metavar="USER=N", help="A user's part under 'fair'.")
@click.option("--idle", type=LIMIT, metavar="TIME", help="End leases idle for so long, or 'off'.")
@click.option("--queue", "queue_", default="", metavar="NAME", help="The queue that --idle is for.")
@click.option("--max-time", type=LIMIT, metavar="TIME", help="Leases last no longer, or 'off'.")
@click.option(
    "--require-signature/--any-model",
    default=None,
    help="Use only models that somebody known has signed, or any.",
)
@as_json
@click.pass_obj
def policy(
    host: Host,
    name: str | None,
    aging: float | None,
    weight: tuple[str, ...],
    idle: float | str | None,
    queue_: str,
    max_time: float | str | None,
    require_signature: bool | None,
    json_: bool,
) -> Any:
    """Show who goes first in the queue, or change it.

    NAME and the options are for admins. Requests that wait are put in the new order at once; who
    holds a lease keeps it. A lease on which nothing is computed for --idle is warned, and ended a
    few minutes later. --max-time holds for extensions too, and not for admins. --require-signature
    holds for everybody who serves, predicts with or exports models on this cluster.
    """
    if queue_ and idle is None:
        raise UsageError("--queue says for which queue --idle is; give both.")
    weights = pairs(weight, "weight", lambda text: None)
    wrong = next((user for user, value in weights.items() if isinstance(value, str)), None)
    if wrong is not None:
        raise UsageError(f"--weight {wrong}={weights[wrong]}: write a number, like {wrong}=2.")
    found = host.session(start=False).policy(
        name,
        aging=aging,
        weights=weights,
        idle=idle,
        queue=queue_,
        max_time=max_time,
        require_signature=require_signature,
    )
    if json_:
        return echo_json(found)
    return host.show(policy_table(found), found)


def policy_table(found: dict[str, Any]) -> Table:
    """The policies, the one in force marked, and the weights that are not 1."""
    rows = [
        {
            **row,
            "now": "*" if row["name"] == found["name"] else "",
            "aging": format_duration(row["aging"]) if row["aging"] else "",
        }
        for row in found["policies"]
    ]
    weights = ", ".join(f"{user} {value:g}" for user, value in found["weights"].items())
    title = f"* in force; weights: {weights}" if weights else "* in force"
    for queue, seconds in found.get("idle", {}).items():
        of = f" in queue {queue}" if queue else ""
        title += f"; leases{of} end when idle for {format_duration(seconds)}"
    if found.get("max_time"):
        title += f"; leases last {format_duration(found['max_time'])} at most"
    if found.get("require_signature"):
        title += "; models have to be signed"
    return Table(POLICY_COLUMNS, rows, empty="", title=title)
