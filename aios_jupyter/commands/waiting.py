"""`queue`, `explain`, `cancel`, `priority`: requests that wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from ..errors import NotFoundError
from ..schema import DEFAULT_QUEUE
from ..units import format_duration
from .base import as_json, echo_json
from .forecasts import accuracy_text
from .host import Host
from .views import Card, Column, Table
from .wishes import wish_text

QUEUE_COLUMNS = (
    Column("position", "#", right=True),
    Column("id", "request"),
    Column("user", "user"),
    Column("label", "name"),
    Column("want", "wants"),
    Column("queue", "queue"),
    Column("waited", "waiting", right=True),
    Column("eta", "starts in", right=True),
    Column("reason", "because"),
)


@click.command()
@as_json
@click.pass_obj
def queue(host: Host, json_: bool) -> Any:
    """List waiting requests in their order."""
    session = host.session(start=False)
    rows = session.queue()
    if json_:
        return echo_json(rows)
    accuracy = session.forecast_accuracy() if rows else None
    return host.show(queue_table(rows, time.time(), accuracy), rows)


def queue_table(
    rows: Sequence[dict[str, Any]], now: float, accuracy: dict[str, Any] | None = None
) -> Table:
    """Requests, one a line, and how good such forecasts have been."""
    shown = [
        {
            **row,
            "want": wish_text(row),
            "queue": row.get("queue", DEFAULT_QUEUE),
            "waited": format_duration(max(0.0, now - row["submitted"])),
            "eta": about(row.get("eta"), now),
        }
        for row in rows
    ]
    title = f"forecasts so far: {accuracy_text(accuracy)}" if accuracy else ""
    return Table(QUEUE_COLUMNS, shown, empty="Nobody waits.", title=title)


def about(when: float | None, now: float) -> str:
    """How long until a forecast time, `?` when there is none."""
    return "?" if when is None else f"~{format_duration(max(0.0, when - now))}"


@click.command("explain")
@click.argument("request")
@as_json
@click.pass_obj
def explain_request(host: Host, request: str, json_: bool) -> Any:
    """Say why REQUEST waits, and when it will probably start."""
    found = host.session(start=False).explain(request)
    if json_:
        return echo_json(found)
    return host.show(explain_card(found, time.time()), found)


def explain_card(found: dict[str, Any], now: float) -> Card:
    """Position, reason and forecast of a request."""
    title, what = f"request {found['id']}", wish_text(found)
    if found["state"] != "queued":
        fields = (("wanted", what), ("lease", found["lease"]), ("because", found["reason"]))
        return Card(title, badge=found["state"], fields=fields)
    starts = "not known: leases before it have no end that is known"
    if found["eta"] is not None:
        latest = "?" if found["latest"] is None else about(found["latest"], now)
        starts = f"{about(found['eta'], now)} ({about(found['earliest'], now)} to {latest})"
    predicted = ""
    if found["predicted"]:
        predicted = f"{format_duration(found['predicted'])}, as earlier leases did"
        if found["error"]:
            predicted += f"; they last {found['error']:.2g} times as predicted"
    first = ""
    if found["first_at"] is not None:
        first = f"in {format_duration(max(0.0, found['first_at'] - now))} at the latest"
    return Card(
        title,
        badge=found["reason"],
        fields=(
            ("wants", what),
            ("position", f"{found['position']} of {found['waiting']}"),
            ("starts in", starts),
            ("forecasts", accuracy_text(found.get("accuracy"))),
            ("first in line", first),
            ("may last", format_duration(found["time"]) if found["time"] else ""),
            ("will last", predicted),
            ("priority", _priority_text(found)),
            ("queue", found["queue"]),
            ("has run", f"{format_duration(found['ran'])}, preempted" if found["ran"] else ""),
            ("policy", found["policy"]),
        ),
        note=found["why"],
    )


def _priority_text(found: dict[str, Any]) -> str:
    given, policy = found["priority"], found["policy"]
    if policy == "priority":
        return str(given)
    return f"{given}, which the policy '{policy}' does not look at" if given else ""


@click.command()
@click.argument("request")
@click.pass_obj
def cancel(host: Host, request: str) -> None:
    """Take REQUEST out of the queue, or a reservation back."""
    session = host.session(start=False)
    known = {row["id"] for row in (*session.queue(), *session.reservations())}
    if request not in known:
        raise NotFoundError(
            f"No request '{request}' waits; 'queue' lists those that do, and 'reservations' those."
        )
    session.cancel(request)
    host.show(Card("cancelled", fields=(("request", request),)))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("request")
@click.argument("number", metavar="N", type=int)
@as_json
@click.pass_obj
def priority(host: Host, request: str, number: int, json_: bool) -> Any:
    """Give REQUEST, which waits, the priority N.

    Under the policy 'priority' higher goes first, and an hour of waiting is worth one. Above 0 is
    for admins, who may change anybody's.
    """
    found = host.session(start=False).reprioritize(request, number)
    if json_:
        return echo_json(found)
    return host.show(explain_card(found, time.time()), found)
