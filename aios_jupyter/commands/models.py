"""`publish`, `models`, `promote`, `serve`, `endpoints`, `predict`.

The registry needs no cluster; publishing records the lease and the run, and serving needs one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..units import format_duration
from .base import DURATION, VerbGroup, as_json, echo_json, pairs
from .host import Host
from .views import Card, Column, Table, number

if TYPE_CHECKING:
    from ..models.registry import ModelVersion

MODEL_COLUMNS = (
    Column("ref", "model"),
    Column("aliases", "aliases"),
    Column("metrics", "metrics"),
    Column("framework", "made with"),
    Column("age", "age", right=True),
)
ENDPOINT_COLUMNS = (
    Column("name", "endpoint"),
    Column("model", "model"),
    Column("state", "state"),
    Column("url", "url"),
    Column("lease", "lease"),
    Column("age", "age", right=True),
)


@click.command()
@click.argument("model")
@click.option("--name", required=True, metavar="NAME", help="The model's name in the registry.")
@click.option("--alias", metavar="ALIAS", help="A name that moves to this version: champion.")
@click.option(
    "--metrics", multiple=True, metavar="K=V,…", help="Figures to record, or a dict's name."
)
@click.option(
    "--params", multiple=True, metavar="K=V,…", help="Settings to record, or a dict's name."
)
@click.option(
    "--input-example", metavar="X", help="Samples that the model takes, batch first: x_test."
)
@click.option("--run", metavar="RUN", help="The run that trained it, with its figures.")
@click.option("--data", metavar="DATASET", help="The dataset it was trained on.")
@click.option(
    "--allow-pickle", is_flag=True, help="Also store what is neither torch nor ONNX, as a pickle."
)
@click.pass_obj
def publish(
    host: Host,
    model: str,
    name: str,
    alias: str | None,
    metrics: tuple[str, ...],
    params: tuple[str, ...],
    input_example: str | None,
    run: str | None,
    data: str | None,
    allow_pickle: bool,
) -> Any:
    """Store MODEL as the next version of NAME.

    In a notebook MODEL is a variable; in a shell, and there too, the path of an ONNX file.
    """
    subject = model if model.endswith(".onnx") else host.value(model)
    version = host.session(start=True).publish(
        subject,
        name,
        alias=alias,
        metrics=pairs(metrics, "metrics", host.value),
        params=pairs(params, "params", host.value),
        input_example=None if input_example is None else _example(host.value(input_example)),
        run=run or host.origin(subject),
        data=data,
        allow_pickle=allow_pickle,
    )
    return host.show(model_card(version), version)


def _example(value: Any) -> Any:
    """A few samples are enough to learn a signature from."""
    return value[:2] if hasattr(value, "shape") else value


def model_card(version: ModelVersion) -> Card:
    """A version and what is known about it."""
    metrics = ", ".join(f"{name} {number(value)}" for name, value in version.metrics.items())
    params = ", ".join(f"{name}={value}" for name, value in version.params.items())
    lineage = ", ".join(f"{name} {value}" for name, value in version.lineage.items())
    return Card(
        version.ref,
        badge=", ".join(version.aliases),
        fields=(
            ("metrics", metrics),
            ("params", params),
            ("takes", _tensors(version.signature.get("inputs", ()))),
            ("gives", _tensors(version.signature.get("outputs", ()))),
            ("made with", version.framework),
            ("from", lineage),
        ),
        note=f"Serve it with: aios serve {_reference(version)}",
    )


def _reference(version: ModelVersion) -> str:
    return f"{version.name}@{version.aliases[0]}" if version.aliases else version.ref


def _tensors(tensors: Sequence[dict[str, Any]]) -> str:
    shown = []
    for tensor in tensors:
        sizes = " x ".join("n" if size == -1 else str(size) for size in tensor["shape"])
        shown.append(f"{tensor['name']}: {tensor['datatype']} {sizes}")
    return "; ".join(shown)


@click.command()
@as_json
@click.pass_obj
def models(host: Host, json_: bool) -> Any:
    """List published models."""
    from ..models.registry import versions

    rows = versions()
    if json_:
        return echo_json(rows)
    return host.show(model_table(rows, time.time()), rows)


def model_table(rows: Sequence[dict[str, Any]], now: float) -> Table:
    """Versions, one a line."""
    shown = [
        {
            **row,
            "aliases": ", ".join(row["aliases"]),
            "metrics": ", ".join(f"{k} {number(v)}" for k, v in row["metrics"].items()),
            "age": format_duration(max(0.0, now - row["created"])),
        }
        for row in rows
    ]
    return Table(
        MODEL_COLUMNS, shown, empty="No models are published yet; use: publish MODEL --name NAME"
    )


@click.command()
@click.argument("ref")
@click.argument("alias")
@click.pass_obj
def promote(host: Host, ref: str, alias: str) -> Any:
    """Move ALIAS to the version REF.

    REF is name (its newest version), name/3 or name@alias.
    """
    from ..models.registry import set_alias

    version = set_alias(ref, alias)
    return host.show(model_card(version), version)


@click.command()
@click.argument("ref")
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    help="Lease N devices for it alone, so that it outlives this notebook or shell.",
)
@click.option("--name", metavar="NAME", help="The endpoint's name; the model's otherwise.")
@click.option("--timeout", type=DURATION, default=60.0, metavar="TIME", help="To be ready (60s).")
@click.pass_obj
def serve(host: Host, ref: str, devices: int | None, name: str | None, timeout: float) -> Any:
    """Serve the model REF over HTTP on a leased device.

    REF is name (its newest version), name/3 or name@alias. Without --devices it uses the lease held
    here, or a device of its own.
    """
    endpoint = host.session(start=True).serve(ref, devices=devices, name=name, timeout=timeout)
    return host.show(endpoint_card(endpoint), endpoint)


def endpoint_card(endpoint: Any) -> Card:
    """Where an endpoint is, and how to ask it."""
    return Card(
        f"endpoint {endpoint.name}",
        badge="ready",
        fields=(("model", f"{endpoint.model}/{endpoint.version}"), ("url", endpoint.url)),
        note="Ask it with predict, or over HTTP with its token (Open Inference Protocol v2).",
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
        {**row, "age": format_duration(max(0.0, now - row["started"])) if "started" in row else ""}
        for row in rows
    ]
    return Table(ENDPOINT_COLUMNS, shown, empty="Nothing is served; start with: serve MODEL@ALIAS")


@click.command()
@click.argument("ref")
@click.argument("input_", metavar="INPUT")
@click.option("--json", "json_", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
def predict(host: Host, ref: str, input_: str, json_: bool) -> Any:
    """Ask a served model REF for its prediction on INPUT.

    INPUT is a variable in a notebook; else a file: .npy, .npz, .json, or an image.
    """
    data = host.value(input_)
    answer = host.session(start=False).predict(ref, data)
    if json_:
        return echo_json(answer)
    return host.result(answer)
