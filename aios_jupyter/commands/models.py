"""`publish`, `models`, `promote`, `rollback`.

The registry needs no cluster; publishing records the lease and the run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import ClusterError, UsageError
from ..units import format_duration, format_size
from .base import VerbGroup, as_json, echo_json, pairs
from .host import Host
from .signing import models_sign, models_verify, signed_text
from .views import Card, Column, Table, number

if TYPE_CHECKING:
    from ..models.card import ModelCard
    from ..models.registry import ModelVersion
    from ..models.trust import Trust

LINEAGE_SHOWN = ("data", "run", "optimized_from")  # in the lineage's own line
MODEL_COLUMNS = (
    Column("ref", "model"),
    Column("aliases", "aliases"),
    Column("metrics", "metrics"),
    Column("framework", "made with"),
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
@click.option(
    "--profile", metavar="X", help="Training data, to compare an endpoint's traffic with: x_train."
)
@click.option(
    "--recipe",
    metavar="DATASET",
    help="Take raw rows, prepared as DATASET was (or a recipe's file).",
)
@click.option("--label", metavar="COLUMN", help="With --recipe: a column that it does not take.")
@click.option("--run", metavar="RUN", help="The run that trained it, with its figures.")
@click.option("--data", metavar="DATASET", help="The dataset it was trained on.")
@click.option(
    "--allow-pickle", is_flag=True, help="Also store what is neither torch nor ONNX, as a pickle."
)
@click.option("--sign", is_flag=True, help="Sign it with your key: you vouch for it.")
@click.option("--live", is_flag=True, help="In a notebook: a card that is kept up to date.")
@click.pass_obj
def publish(
    host: Host,
    model: str,
    name: str,
    alias: str | None,
    metrics: tuple[str, ...],
    params: tuple[str, ...],
    input_example: str | None,
    profile: str | None,
    recipe: str | None,
    label: str | None,
    run: str | None,
    data: str | None,
    allow_pickle: bool,
    sign: bool,
    live: bool,
) -> Any:
    """Store MODEL as the next version of NAME.

    In a notebook MODEL is a variable; in a shell, and there too, the path of an ONNX file.
    """
    subject = model if model.endswith(".onnx") else host.value(model)
    session = host.session(start=True)
    version = session.publish(
        subject,
        name,
        alias=alias,
        metrics=pairs(metrics, "metrics", host.value),
        params=pairs(params, "params", host.value),
        input_example=None if input_example is None else _example(host.value(input_example)),
        profile=None if profile is None else host.value(profile),
        recipe=recipe,
        label=label,
        run=run or host.origin(subject),
        data=data,
        allow_pickle=allow_pickle,
        sign=sign,
    )
    if live:
        return host.model(session, version, model_card(version))
    return host.show(model_card(version), version)


def _example(value: Any) -> Any:
    """A few samples are enough to learn a signature from."""
    if hasattr(value, "columns"):
        return value[:200]  # raw rows, of which a recipe may drop some
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
            ("signed by", signed_text(version.signed)),
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


@click.group(cls=VerbGroup, invoke_without_command=True)
@as_json
@click.pass_context
def models(ctx: click.Context, json_: bool) -> Any:
    """List published models, show one, compare two."""
    if ctx.invoked_subcommand is not None:
        return None
    from ..models.registry import versions

    host: Host = ctx.obj
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


@models.command("show")
@click.argument("ref")
@as_json
@click.pass_obj
def models_show(host: Host, ref: str, json_: bool) -> Any:
    """Show all that is known about the version REF.

    Its files are read and compared with their hashes. REF is name (its newest version), name/3 or
    name@alias.
    """
    from ..models.card import card

    found = card(ref, *_live(host))
    if json_:
        return echo_json(found)
    return host.show(full_card(found), found)


def _live(host: Host) -> tuple[list[dict[str, Any]], Trust | None]:
    """Endpoints, and whose signatures count; none where no cluster runs: the registry needs none."""
    try:
        session = host.session(start=False)
        return session.endpoints(), session.trust()
    except ClusterError:
        return [], None


def full_card(found: ModelCard) -> Card:
    """The model card as fields."""
    from ..models.card import own_tags, paths

    version = found.version
    fields = dict(model_card(version).fields)
    del fields["from"], fields["signed by"]
    lines = [" → ".join(line) for line in paths(found.edges)]
    past = [
        f"{alias} was {', '.join(map(str, reversed(named)))}"
        for alias, named in found.history.items()
    ]
    facts = {**version.lineage, **own_tags(version)}
    return Card(
        version.ref,
        badge=", ".join(version.aliases),
        fields=(
            *fields.items(),
            ("published", time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created))),
            ("lineage", "; ".join(lines)),
            *((key, facts[key]) for key in facts if key not in LINEAGE_SHOWN),
            ("aliases before", "; ".join(past)),
            ("files", f"{len(found.files)} of {format_size(found.size)}" if found.files else ""),
            ("integrity", _integrity(found)),
            ("signed by", signed_text(version.signed) or "nobody"),
        ),
        note=f"Serve it with: aios serve {_reference(version)}" if found.intact else "",
    )


def _integrity(found: ModelCard) -> str:
    if found.problem:
        return found.problem
    return "unchanged since it was published" if found.intact else "no hashes: not published here"


models.add_command(models_sign)
models.add_command(models_verify)


@models.command("compare")
@click.argument("first")
@click.argument("second")
@as_json
@click.pass_obj
def models_compare(host: Host, first: str, second: str, json_: bool) -> Any:
    """Compare two versions: figures, and what else differs."""
    from ..models.card import compare

    rows = compare(first, second)
    if json_:
        return echo_json(rows)
    return host.show(compare_table(rows, first, second), rows)


def compare_table(rows: Sequence[dict[str, Any]], first: str, second: str) -> Table:
    """One line for each figure and each difference."""
    columns = (
        Column("what", "what"),
        Column("a", first, right=True),
        Column("b", second, right=True),
        Column("change", "change", right=True),
    )
    shown = [
        {
            "what": row["what"],
            "a": _side(row["a"]),
            "b": _side(row["b"]),
            "change": f"{row['change']:+.4g}" if "change" in row else " ",
        }
        for row in rows
    ]
    return Table(columns, shown, empty="They are the same in all that is recorded.")


def _side(value: Any) -> str:
    if isinstance(value, list):
        return _tensors(value)
    return number(value) if isinstance(value, int | float) else str(value or "")


@models.command("tag")
@click.argument("ref")
@click.argument("tags", nargs=-1, required=True, metavar="KEY=VALUE…")
@click.pass_obj
def models_tag(host: Host, ref: str, tags: tuple[str, ...]) -> Any:
    """Set tags of the version REF; KEY= takes one off."""
    from ..models.aliases import tag

    wanted = {}
    for text in tags:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"'{text}' is no tag; write KEY=VALUE.")
        wanted[key] = value
    version = tag(ref, wanted)
    return host.show(model_card(version), version)


@click.command()
@click.argument("ref")
@click.argument("alias")
@click.pass_obj
def promote(host: Host, ref: str, alias: str) -> Any:
    """Move ALIAS to the version REF.

    REF is name (its newest version), name/3 or name@alias.
    """
    from ..models.aliases import set_alias

    version = set_alias(ref, alias)
    host.models_changed()
    return host.show(model_card(version), version)


@click.command()
@click.argument("name")
@click.argument("alias")
@click.pass_obj
def rollback(host: Host, name: str, alias: str) -> Any:
    """Move ALIAS of the model NAME back to the version before.

    A second time goes back further. Endpoints that serve NAME@ALIAS follow.
    """
    from ..models.aliases import rollback as back

    version = back(name, alias)
    host.models_changed()
    return host.show(model_card(version), version)
