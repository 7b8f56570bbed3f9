"""`optimize`: smaller and quicker variants of a model, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotFoundError, UsageError
from ..units import format_size
from .base import as_json, echo_json, parsed
from .charts import Bar, Bars, Panel
from .host import Host
from .views import Card, Column, Table, number

if TYPE_CHECKING:
    from ..models.trial import Row
    from ..models.variants import Optimized

EVEN = 0.95  # of the baseline's speed, above which a variant is not called slower
COLUMNS = (
    Column("chosen", ""),
    Column("name", "variant"),
    Column("size", "size", right=True),
    Column("smaller", "smaller", right=True),
    Column("p50", "p50 ms", right=True),
    Column("p95", "p95 ms", right=True),
    Column("rate", "samples/s", right=True),
    Column("quicker", "quicker", right=True),
    Column("score", "score", right=True),
    Column("loss", "loss", right=True),
    Column("note", "note"),
)


def parse_share(text: str) -> float:
    """`0.5%` or `0.005`: a share of one.

    Raises
    ------
    UsageError
        It is neither, or not between 0 and 1.
    """
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"'{text}' is no share; write 0.5% or 0.005.")
    return value


SHARE = parsed("share", parse_share)


@click.command()
@click.argument("model")
@click.option(
    "--data",
    required=True,
    metavar="X[,Y]",
    help="Samples and labels to measure on: variables, files, or a dataset.",
)
@click.option("--int8", is_flag=True, help="Weights and activations in 8 bits.")
@click.option(
    "--prune", type=SHARE, default="0", metavar="SHARE", help="Take 0.5 of the channels out."
)
@click.option("--unstructured", is_flag=True, help="Prune single weights, which become zero.")
@click.option(
    "--finetune", metavar="F", help="A function that trains the pruned network: f(model)."
)
@click.option("--onnx", is_flag=True, help="Compare with plain ONNX alone.")
@click.option(
    "--max-loss",
    type=SHARE,
    default="0.5%",
    show_default=True,
    metavar="SHARE",
    help="What the score may fall by.",
)
@click.option("--score", metavar="F", help="A function instead of accuracy: f(outputs, labels).")
@click.option("--calibrate", metavar="X", help="Samples to take int8 ranges from, such as x_train.")
@click.option("-o", "--output", metavar="FILE", help="Write the chosen variant as an ONNX file.")
@as_json
@click.pass_obj
def optimize(
    host: Host,
    model: str,
    data: str,
    int8: bool,
    prune: float,
    unstructured: bool,
    finetune: str | None,
    onnx: bool,
    max_loss: float,
    score: str | None,
    calibrate: str | None,
    output: str | None,
    json_: bool,
) -> Any:
    """Make MODEL smaller and quicker, measured on your data.

    MODEL is a torch or Keras network in a notebook; anywhere an ONNX file or a published model (digits,
    digits/3, digits@champion). The smallest variant within --max-loss is chosen; `publish` takes
    what this gives. Without --int8, --prune or --onnx it tries int8.
    """
    from ..models.optimize import Wish
    from ..models.optimize import optimize as try_variants

    subject = _subject(host, model)
    wish = Wish(
        int8=int8 or not (prune or onnx),
        prune=prune,
        unstructured=unstructured,
        finetune=None if finetune is None else host.value(finetune),
        max_loss=max_loss,
    )
    found = try_variants(
        subject,
        _data(host, data),
        wish,
        calibrate=None if calibrate is None else host.value(calibrate),
        score=None if score is None else host.value(score),
        on_step=lambda text: host.say(f"optimize: {text} …"),
    )
    host.derived(subject, found)
    if output is not None:
        found.save(Path(output).expanduser())
    if json_:
        return echo_json({**_plain(found), "rows": list(found.rows)})
    return host.show(panel(found, output), found)


def _subject(host: Host, name: str) -> Any:
    """A variable, or else what names a published model or a file."""
    if name.endswith(".onnx") or any(mark in name for mark in "@/"):
        return name
    try:
        return host.value(name)
    except NotFoundError as error:
        from ..models.registry import resolve

        try:
            return resolve(name).ref
        except NotFoundError as other:
            raise NotFoundError(f"{str(error).rstrip('.')}, and {_lower(str(other))}") from None


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _data(host: Host, text: str) -> tuple[Any, Any]:
    """Samples and labels: two names, an .npz with x and y, a dataset, or samples alone."""
    names = [name.strip() for name in text.split(",")]
    if len(names) > 2 or not all(names):
        raise UsageError(f"--data {text}: name samples and labels, as in x_val,y_val.")
    if len(names) == 2:
        return host.value(names[0]), host.value(names[1])
    from ..data.catalog import Catalog

    if not text.endswith(".npz"):
        try:
            return host.value(text), None
        except NotFoundError as error:
            try:
                return Catalog().load(text)
            except NotFoundError:
                raise error from None
    return Catalog().load(text)


def _plain(found: Optimized) -> dict[str, Any]:
    return {
        "baseline": found.baseline,
        "chosen": found.chosen,
        "score": found.score_name,
        "samples": found.samples,
        "max_loss": found.max_loss,
        "smaller": found.smaller,
        "gain": found.row.gain if found.row.clear else None,
    }


def panel(found: Optimized, output: str | None = None) -> Panel:
    """The choice in words, every variant with its figures, and two charts."""
    base = found.of(found.baseline)
    rows = [_line(row, base, found) for row in found.rows]
    size = [
        Bar(row.name, row.size, format_size(row.size), row.name == found.chosen, row.holds)
        for row in found.rows
    ]
    time = [
        Bar(row.name, row.p50_ms, f"{row.p50_ms:.3g} ms", row.name == found.chosen, row.holds)
        for row in found.rows
    ]
    limit = f"{base.name} as published"
    return Panel(
        (
            _card(found, output),
            Table(
                COLUMNS, rows, empty="", title=f"{found.score_name} on {found.samples:,} samples"
            ),
            Bars("size", size, base.size, limit),
            Bars("time for one sample (p50)", time, base.p50_ms, limit),
        )
    )


def _line(row: Row, base: Row, found: Optimized) -> dict[str, Any]:
    smaller = base.size / row.size
    notes = [row.note] if row.note else []
    if not row.holds:
        notes.insert(0, f"over {found.max_loss:.3g} loss")
    if not row.stored and not row.note:
        notes.insert(0, "as trained")
    return {
        "chosen": "*" if row.name == found.chosen else " ",
        "name": row.name,
        "size": format_size(row.size),
        "smaller": "" if row is base else f"{smaller:.2f}x",
        "p50": f"{row.p50_ms:.3g}",
        "p95": f"{row.p95_ms:.3g}",
        "rate": f"{row.per_second:,.0f}",
        "quicker": _quicker(row, base),
        "score": number(row.score),
        "loss": f"{row.loss:.4f}" if row is not base else "",
        "note": "; ".join(notes) or " ",
    }


def _quicker(row: Row, base: Row) -> str:
    if row is base:
        return ""
    if row.clear:
        return f"{row.gain:.2f}x"
    return "no" if row.gain >= EVEN else f"{row.gain:.2f}x"


def _card(found: Optimized, output: str | None) -> Card:
    row, base = found.row, found.of(found.baseline)
    if row is base:
        held = [other for other in found.rows if other.holds and other.stored and other is not base]
        reason = (
            "no variant is smaller"
            if held
            else f"every variant loses more than {found.max_loss:.2%}"
        )
        if len(found.rows) <= 2 and not any(o.stored and o is not base for o in found.rows):
            reason = "nothing else was tried"
        return Card(f"{base.name} stays", badge="no gain", fields=(("because", reason),))
    times = f"({base.p50_ms:.3g} to {row.p50_ms:.3g} ms for one sample)"
    if row.clear:
        speed = f"{row.gain:.2f} times quicker {times}"
    elif row.gain < EVEN:
        speed = f"slower {times}"
    else:
        speed = f"no gain that the measurement shows clearly {times}"
    step = 1 / found.samples
    fine = f", one sample of {found.samples:,} is {step:.2%}" if step > found.max_loss else ""
    return Card(
        row.name,
        badge="chosen",
        fields=(
            (
                "size",
                f"{found.smaller:.2f} times smaller ({format_size(base.size)} to {format_size(row.size)})",
            ),
            ("speed", speed),
            (
                found.score_name,
                f"{base.score:.4f} to {row.score:.4f} (allowed loss {found.max_loss:.2%}{fine})",
            ),
            ("file", output or ""),
        ),
        note="Publish it with: opt = %aios optimize …; %aios publish opt --name NAME",
    )
