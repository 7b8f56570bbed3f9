"""`data ls|show|add|rm` and `augment`. The catalog needs no cluster; augmenting does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..units import format_duration, format_size
from .base import VerbGroup, as_json, echo_json
from .host import Host
from .views import Card, Column, Table

if TYPE_CHECKING:
    from ..data.catalog import Entry

DATASET_COLUMNS = (
    Column("name", "dataset"),
    Column("version", "version"),
    Column("rows", "rows", right=True),
    Column("format", "format"),
    Column("size", "size", right=True),
    Column("age", "age", right=True),
    Column("url", "where"),
)


PREVIEW_TILES = 36


@click.group(cls=VerbGroup)
def data() -> None:
    """List, show, add and forget datasets."""


@data.command("ls")
@as_json
@click.pass_obj
def data_ls(host: Host, json_: bool) -> Any:
    """List datasets."""
    from ..data.catalog import Catalog

    found = Catalog().list()
    if json_:
        return echo_json(found)
    return host.show(dataset_table(found, time.time()), found)


@data.command("show")
@click.argument("dataset")
@as_json
@click.pass_obj
def data_show(host: Host, dataset: str, json_: bool) -> Any:
    """Show what is in DATASET and what it was made from.

    DATASET is a name, name@version, a path or a URL.
    """
    from ..data.catalog import Catalog

    entry = Catalog().get(dataset)
    if json_:
        return echo_json(entry)
    return host.show(dataset_card(entry, _preview(host, entry)), entry)


@data.command("add")
@click.argument("name")
@click.argument("url")
@click.pass_obj
def data_add(host: Host, name: str, url: str) -> Any:
    """Put the data at URL in the catalog as NAME.

    URL is a path to an .npz or Parquet file or to a folder of images, or any URL fsspec knows.
    """
    from ..data.catalog import Catalog

    entry = Catalog().add(name, url)
    return host.show(dataset_card(entry, _preview(host, entry)), entry)


@data.command("rm")
@click.argument("dataset")
@click.pass_obj
def data_rm(host: Host, dataset: str) -> None:
    """Forget DATASET; its files stay."""
    from ..data.catalog import Catalog

    Catalog().remove(dataset)
    host.show(Card(f"dataset {dataset}", badge="forgotten"))


def dataset_table(found: Sequence[Entry], now: float) -> Table:
    """Datasets, one a line."""
    rows = [
        {
            "name": entry.name,
            "version": entry.version,
            "rows": f"{entry.rows:,}",
            "format": entry.format,
            "size": format_size(entry.size),
            "age": format_duration(max(0.0, now - entry.created)) if entry.created else None,
            "url": entry.url,
        }
        for entry in found
    ]
    return Table(DATASET_COLUMNS, rows, empty="The catalog is empty; fill it with: data add")


def dataset_card(entry: Entry, image: bytes | None = None) -> Card:
    """A dataset and what is known about it."""
    classes = ", ".join(entry.classes[:12])
    if len(entry.classes) > 12:
        classes += f", … ({len(entry.classes)} classes)"
    return Card(
        entry.ref,
        fields=(
            ("rows", f"{entry.rows:,}"),
            ("holds", ", ".join(f"{name} {kind}" for name, kind in entry.schema.items())),
            ("classes", classes),
            ("size", f"{format_size(entry.size)} ({entry.format})"),
            ("from", ", ".join(entry.made_from)),
            ("how", entry.how),
            ("where", entry.url),
        ),
        image=image,
    )


def _list_operations(context: click.Context) -> None:
    from ..data.policy import OPERATIONS

    rows = [{"usage": kind.usage, "meaning": kind.meaning} for kind in OPERATIONS.values()]
    columns = (Column("usage", "operation"), Column("meaning", "what it does"))
    context.obj.show(Table(columns, rows, empty=""), list(OPERATIONS))
    context.exit()


def _preview(host: Host, entry: Entry) -> bytes | None:
    if not host.shows_images:
        return None
    from .preview import grid

    return grid(entry)


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="NAME", help="Name of the new dataset.")
@click.option(
    "--policy",
    required=True,
    metavar="TEXT",
    help='What is done to each image: "rotate(15), shift(0.1), hflip, noise(0.05)".',
)
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Augmented copies of each image, beside the image itself.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S")
@click.option(
    "--operations",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, given: _list_operations(context) if given else None,
    help="List what a policy may consist of.",
)
@click.pass_obj
def augment(host: Host, source: str, output: str, policy: str, copies: int, seed: int) -> Any:
    """Make a larger dataset from SOURCE by varying images.

    SOURCE itself is in the new dataset, followed by the copies, with their labels. The same seed
    gives the same bytes on any cluster.
    """
    session = host.session(start=True)
    with host.progress(f"augmenting {source}") as advance:
        entry = session.augment(
            source, output, policy, copies=copies, seed=seed, on_progress=advance
        )
    image = None
    if host.shows_images:
        from ..data.preview import preview, to_png

        image = to_png(preview(source, policy, n=PREVIEW_TILES, seed=seed))
    return host.show(dataset_card(entry, image), entry)
