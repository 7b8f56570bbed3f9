"""`serve`, `endpoints`, `predict`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..schema import Placement
from ..units import format_duration, parse_duration
from .base import DURATION, SIZE, VerbGroup, as_json, echo_json, parsed
from .data import dataset_card
from .host import Host
from .optimize import parse_share
from .signing import requires_signature
from .views import Card, Column, Table, number

if TYPE_CHECKING:
    from ..session import Endpoint

NOTHING: Mapping[str, float] = MappingProxyType({})

ENDPOINT_COLUMNS = (
    Column("name", "endpoint"),
    Column("model", "model"),
    Column("state", "state"),
    Column("url", "url"),
    Column("lease", "lease"),
    Column("replicas", "replicas", right=True),
    Column("age", "age", right=True),
    Column("alerts", "alerts"),
)


def parse_latency(text: str) -> float:
    """`20ms`, or a length of time such as `1s`: seconds."""
    if text.endswith("ms"):
        return parse_duration(text.removesuffix("ms")) / 1000
    return parse_duration(text)


def parse_canary(text: str | None) -> tuple[str, float] | None:
    """`challenger=10%` as an alias and a share."""
    if text is None:
        return None
    alias, _, share = text.partition("=")
    if not alias or not share or not 0 < parse_share(share) < 1:
        raise UsageError(f"--canary {text}: write ALIAS=SHARE, as in challenger=10%.")
    return alias, parse_share(share)


@click.command()
@click.argument("ref")
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    help="Lease N devices for it alone, so that it outlives this notebook or shell.",
)
@click.option("--name", metavar="NAME", help="The endpoint's name; the model's otherwise.")
@click.option(
    "--replicas",
    default="1",
    show_default=True,
    metavar="N",
    help="Processes that answer, a device each; 1:4 by load, 0:2 none while nobody asks.",
)
@click.option(
    "--placement",
    type=click.Choice([placement.value for placement in Placement]),
    help="Replicas on one node (node), on few (pack) or many (spread); one if it is large enough.",
)
@click.option(
    "--idle",
    type=DURATION,
    default=60.0,
    metavar="TIME",
    help="Without need, before there are fewer (1m).",
)
@click.option("--canary", metavar="ALIAS=SHARE", help="A second version: challenger=10%.")
@click.option("--shadow", metavar="ALIAS", help="A version that gets copies of all requests.")
@click.option(
    "--tls/--no-tls",
    default=None,
    help="HTTPS with the cluster's certificate; the default where other machines reach it.",
)
@click.option("--certificate", metavar="FILE", help="HTTPS with your own, a PEM file.")
@click.option("--key", metavar="FILE", help="The certificate's key.")
@click.option("--pinned", is_flag=True, help="Stay with this version when the alias moves.")
@click.option(
    "--max-latency",
    type=parsed("latency", parse_latency),
    metavar="TIME",
    help="Refuse what would wait for longer: 20ms.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Requests a second at most.",
)
@click.option("--max-body", type=SIZE, metavar="SIZE", help="Largest request (64MB).")
@click.option("--allow-pickle", is_flag=True, help="Also open a model that runs code of its own.")
@requires_signature
@click.option("--timeout", type=DURATION, default=60.0, metavar="TIME", help="To be ready (60s).")
@click.pass_obj
def serve(
    host: Host,
    ref: str,
    devices: int | None,
    name: str | None,
    replicas: str,
    placement: str | None,
    idle: float,
    canary: str | None,
    shadow: str | None,
    tls: bool | None,
    certificate: str | None,
    key: str | None,
    pinned: bool,
    max_latency: float | None,
    rate: float | None,
    max_body: int | None,
    allow_pickle: bool,
    require_signature: bool,
    timeout: float,
) -> Any:
    """Serve the model REF over HTTP on a leased device.

    REF is name (its newest version), name/3 or name@alias, which is followed when the alias moves.
    Without --devices it uses the lease held here, or a device of its own.
    """
    session = host.session(start=True)
    endpoint = session.serve(
        ref,
        devices=devices,
        name=name,
        timeout=timeout,
        replicas=replicas,
        placement=placement or "",
        idle=idle,
        canary=parse_canary(canary),
        shadow=shadow,
        tls=tls,
        certificate=certificate,
        key=key,
        follow=not pinned,
        max_latency=max_latency,
        rate=rate,
        max_body=max_body,
        allow_pickle=allow_pickle,
        require_signature=require_signature,
    )
    return host.endpoint(session, endpoint, endpoint_card(endpoint))


def endpoint_card(
    endpoint: Endpoint, metrics: Mapping[str, float] = NOTHING, state: str = "ready", note: str = ""
) -> Card:
    """Where an endpoint is, how much it is asked, and how to ask it."""
    traffic = (
        ("requests_per_second", "{} requests/s"),
        ("p95_ms", "p95 {} ms"),
    )
    said = [text.format(number(metrics[name])) for name, text in traffic if name in metrics]
    how = "Ask it with predict, or over HTTP with its token (Open Inference Protocol v2)."
    return Card(
        f"endpoint {endpoint.name}",
        badge=state,
        fields=(
            ("model", f"{endpoint.model}/{endpoint.version}"),
            ("url", endpoint.url),
            ("trust", endpoint.authority),
            ("traffic", ", ".join(said)),
        ),
        note=note or (how if state == "ready" else ""),
    )


@click.group(cls=VerbGroup, invoke_without_command=True)
@as_json
@click.pass_context
def endpoints(ctx: click.Context, json_: bool) -> Any:
    """List endpoints, or stop one."""
    if ctx.invoked_subcommand is not None:
        return None
    host: Host = ctx.obj
    rows = host.session(start=False).endpoints()
    if json_:
        return echo_json(rows)
    return host.show(endpoint_table(rows, time.time()), rows)


@endpoints.command("stop")
@click.argument("endpoint", metavar="NAME")
@click.pass_obj
def endpoints_stop(host: Host, endpoint: str) -> None:
    """Stop the endpoint NAME and give its device back."""
    host.session(start=False).stop_endpoint(endpoint)
    host.leases_changed()
    host.show(Card(f"endpoint {endpoint}", badge="stopped"))


def endpoint_table(rows: Sequence[dict[str, Any]], now: float) -> Table:
    """Endpoints, one a line."""
    shown = [
        {
            **row,
            "age": format_duration(max(0.0, now - row["started"])) if "started" in row else "",
            "replicas": f"{row.get('metrics', {}).get('replicas', 1):g}",
            "alerts": " ".join(row.get("alerts", ())),
        }
        for row in rows
    ]
    return Table(ENDPOINT_COLUMNS, shown, empty="Nothing is served; start with: serve MODEL@ALIAS")


@click.command()
@click.argument("ref")
@click.argument("input_", metavar="INPUT")
@click.option(
    "-o", "--output", metavar="NAME", help="Predict for all of the dataset INPUT, as a new one."
)
@click.option("--allow-pickle", is_flag=True, help="With -o: a model that runs code of its own.")
@requires_signature
@click.option("--json", "json_", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
def predict(
    host: Host,
    ref: str,
    input_: str,
    output: str | None,
    allow_pickle: bool,
    require_signature: bool,
    json_: bool,
) -> Any:
    """Ask a served model REF for its prediction on INPUT.

    INPUT is a variable in a notebook; else a file: .npy, .npz, .json, or an image. A model with a recipe
    takes a data frame, or a list of objects, one for each row. With -o it is a
    dataset of the catalogue, and the cluster's workers open the model: nobody need serve it.
    """
    if output is not None:
        session = host.session(start=True)
        with host.progress(f"predicting {input_}") as advance:
            made = session.predict_dataset(
                ref,
                input_,
                output,
                allow_pickle=allow_pickle,
                require_signature=require_signature,
                on_progress=advance,
            )
        return echo_json(made) if json_ else host.show(dataset_card(made), made)
    if require_signature:
        raise UsageError(
            "An endpoint's version was chosen when it was served; use --require-signature there, or "
            "here with -o."
        )
    data = host.value(input_)
    answer = host.session(start=False).predict(ref, data)
    if json_:
        return echo_json(answer)
    return host.result(answer)
