"""`data label-noise`: rows whose label is probably wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .base import as_json, echo_json
from .charts import Panel
from .data import dataset_card
from .host import Host
from .views import Card, Column, Table, number, plural

if TYPE_CHECKING:
    from ..data.label_noise import Suspects

PICTURES, MOST_COLUMNS = 24, 8


@click.command("label-noise")
@click.argument("dataset")
@click.option(
    "--label", default="", metavar="COLUMN", help="The labels of a table, if not named like one."
)
@click.option(
    "--features",
    metavar="NAME",
    help="Judge by these, row by row, such as embeddings: a dataset, a variable or an .npy file.",
)
@click.option("-o", "--output", default="", metavar="NEW", help="Keep the others as a dataset.")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N")
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True, metavar="K")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S")
@as_json
@click.pass_obj
def data_label_noise(
    host: Host,
    dataset: str,
    label: str,
    features: str | None,
    output: str,
    top: int,
    folds: int,
    seed: int,
    json_: bool,
) -> Any:
    """Find rows whose label is probably wrong.

    It is confident learning: models that have not seen a row judge it. The most doubtful come first; -o keeps the dataset
    without them, which is worth looking at before.
    """
    from ..data.label_noise import label_noise, without

    given = features if features is None or features not in host.variables else host.value(features)
    with host.progress(f"judging {dataset}") as advance:
        found = label_noise(
            dataset, label=label, features=given, folds=folds, seed=seed, on_progress=advance
        )
    kept = without(found, output) if output else None
    if json_:
        return echo_json(_plain(found))
    image = picture(found) if host.shows_images else None
    parts: list[Card | Table] = [noise_card(found, image), suspects_table(found, top)]
    if kept is not None:
        parts.append(dataset_card(kept))
    return host.show(Panel(parts), found)


def noise_card(found: Suspects, image: bytes | None = None) -> Card:
    """How many labels are doubted, and how far to trust that."""
    return Card(
        f"labels of {found.entry.ref or found.entry.url}",
        fields=(
            ("suspected", f"{len(found.rows):,} of {found.judged:,} ({_share(found):.2%})"),
            ("not judged", _unjudged(found)),
            ("model agrees", f"with {found.accuracy:.1%} of all labels"),
        ),
        note=""
        if found.accuracy >= 0.7
        else "The model is often wrong itself; give better features with --features.",
        image=image,
    )


def suspects_table(found: Suspects, top: int) -> Table:
    """The most doubtful rows, and what a table has in them."""
    from ..data.catalog import Catalog
    from ..data.rows import is_table

    shown = list(zip(found.rows[:top], found.given, found.likely, strict=False))
    rows = [
        {
            "row": f"{row:,}",
            "given": f"{given} ({number(own, 2)})",
            "likely": f"{likely} ({number(other, 2)})",
        }
        for (row, given, likely), own, other in zip(
            shown, found.given_probability, found.likely_probability, strict=False
        )
    ]
    columns = [
        Column("row", "row", right=True),
        Column("given", "label (probability)"),
        Column("likely", "rather (probability)"),
    ]
    if is_table(found.entry) and rows:
        frame = Catalog().frame(found.entry).iloc[found.rows[:top], :MOST_COLUMNS].astype(object)
        columns += [Column(f"column {name}", str(name)) for name in frame.columns]
        for row, values in zip(rows, frame.to_numpy(), strict=True):
            row |= {f"column {n}": str(v) for n, v in zip(frame.columns, values, strict=True)}
    more = f" (the first {top} of {len(found.rows):,})" if len(found.rows) > top else ""
    empty = "No label is suspected."
    return Table(tuple(columns), rows, empty, f"the most doubtful first{more}")


def picture(found: Suspects) -> bytes | None:
    """The most doubtful images above `label (rather?)`; None of what are no images."""
    import numpy as np

    from ..data.rows import source_of
    from .preview import captioned

    if found.entry.format not in {"folder", "webdataset", "npz", "zarr", "parquet"}:
        return None
    x, _ = source_of(found.entry).take(np.asarray(found.rows[:PICTURES]))
    words = [f"{a} ({b}?)" for a, b in zip(found.given, found.likely, strict=True)]
    return captioned(list(x), words)


def _share(found: Suspects) -> float:
    return len(found.rows) / found.judged


def _unjudged(found: Suspects) -> str:
    left = found.entry.rows - found.judged
    return f"{plural(left, 'row')} without a label or of a rare class" if left else ""


def _plain(found: Suspects) -> dict[str, Any]:
    columns = (found.given, found.likely, found.given_probability, found.likely_probability)
    return {
        "dataset": found.entry.ref,
        "judged": found.judged,
        "accuracy": found.accuracy,
        "suspects": [
            {
                "row": int(row),
                "given": given,
                "likely": likely,
                "given_probability": float(own),
                "likely_probability": float(other),
            }
            for row, given, likely, own, other in zip(found.rows, *columns, strict=True)
        ],
    }
