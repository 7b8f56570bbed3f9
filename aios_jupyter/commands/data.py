"""`data ls|show|add|tag|rm` and `augment`. The catalog needs no cluster; augmenting does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AiosError, NotFoundError, UsageError
from ..units import format_duration, format_size
from .base import VerbGroup, as_json, echo_json
from .charts import Panel
from .host import Host
from .views import Card, Column, Table, number

if TYPE_CHECKING:
    from ..data.catalog import Entry

DATASET_COLUMNS = (
    Column("name", "dataset"),
    Column("version", "version"),
    Column("rows", "rows", right=True),
    Column("format", "format"),
    Column("size", "size", right=True),
    Column("age", "age", right=True),
    Column("tags", "tags"),
    Column("url", "where"),
)
FIELD_COLUMNS = (
    Column("name", "column"),
    Column("kind", "type"),
    Column("missing", "missing", right=True),
    Column("least", "min", right=True),
    Column("mean", "mean", right=True),
    Column("most", "max", right=True),
    Column("deviation", "std", right=True),
    Column("example", "example"),
)


PREVIEW_TILES = 36
SAMPLE_ROWS, SAMPLE_COLUMNS, LONGEST_VALUE = 5, 12, 40
NO_DATASET = "No dataset; put one in the catalog with: data add NAME URL"


@click.group(cls=VerbGroup)
def data() -> None:
    """List, show, add and forget datasets."""


@data.command("ls")
@click.option("--tag", metavar="TAG", help="Only those with this tag.")
@click.option("--owner", metavar="USER", help="Only those of this user.")
@as_json
@click.pass_obj
def data_ls(host: Host, tag: str | None, owner: str | None, json_: bool) -> Any:
    """List datasets."""
    from ..data.catalog import Catalog

    found = [
        entry
        for entry in Catalog().list()
        if (tag is None or tag in entry.tags) and (owner is None or owner == entry.owner)
    ]
    if json_:
        return echo_json(found)
    empty = "No such dataset; 'aios data ls' lists all." if tag or owner else NO_DATASET
    return host.show(dataset_table(found, time.time(), empty=empty), found)


@data.command("show")
@click.argument("dataset")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write what it looks like, as a PNG.",
)
@as_json
@click.pass_obj
def data_show(host: Host, dataset: str, picture: Path | None, json_: bool) -> Any:
    """Show what is in DATASET and what it was made from.

    DATASET is a name, name@version, a path or a URL.
    """
    from ..data.catalog import Catalog

    catalog = Catalog()
    entry = catalog.get(dataset)
    if picture is not None:
        drawn = _picture(entry)
        if drawn is None:
            raise NotFoundError(f"There is nothing to draw of {entry.ref or dataset}.")
        picture.write_bytes(drawn)
    if json_:
        return echo_json(entry)
    versions = catalog.versions(entry.name) if entry.name else []
    panel = dataset_panel(entry, _preview(host, entry), versions, sample_table(entry))
    return host.show(panel, entry)


@data.command("add")
@click.argument("name")
@click.argument("url")
@click.option("--format", "format_", metavar="FORMAT", help="Where its name does not say it.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A word to find it by.")
@click.option("--made-from", "made_from", multiple=True, metavar="DATASET", help="Its lineage.")
@click.option("--how", default="", metavar="TEXT", help="What was done to make it.")
@click.pass_obj
def data_add(
    host: Host,
    name: str,
    url: str,
    format_: str | None,
    tags: tuple[str, ...],
    made_from: tuple[str, ...],
    how: str,
) -> Any:
    """Put the data at URL in the catalog as NAME.

    URL is a path or any URL that fsspec knows: an .npz, .npy, Parquet, CSV, .tsv, JSON lines, .wav, .txt
    or WebDataset .tar file, a folder of such files or of images, or Zarr. New content is a new
    version.
    """
    from ..data.catalog import Catalog

    entry = Catalog().add(name, url, format_, made_from=made_from, how=how, tags=tags)
    return host.show(dataset_panel(entry, _preview(host, entry)), entry)


@data.command("tag")
@click.argument("dataset")
@click.argument("tags", nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Take the tags away.")
@click.pass_obj
def data_tag(host: Host, dataset: str, tags: tuple[str, ...], remove: bool) -> Any:
    """Give DATASET tags to find it by."""
    from ..data.catalog import Catalog

    add, gone = ((), tags) if remove else (tags, ())
    entry = Catalog().tag(dataset, add, gone)
    return host.show(dataset_card(entry), entry)


@data.command("rm")
@click.argument("dataset")
@click.pass_obj
def data_rm(host: Host, dataset: str) -> None:
    """Forget DATASET, or DATASET@VERSION; its files stay."""
    from ..data.catalog import Catalog

    Catalog().remove(dataset)
    host.show(Card(f"dataset {dataset}", badge="forgotten"))


def dataset_table(
    found: Sequence[Entry], now: float, title: str = "", empty: str = NO_DATASET
) -> Table:
    """Datasets, one a line."""
    rows = [
        {
            "name": entry.name,
            "version": entry.version,
            "rows": f"{entry.rows:,}",
            "format": entry.format,
            "size": format_size(entry.size),
            "age": format_duration(max(0.0, now - entry.created)) if entry.created else None,
            "tags": ", ".join(entry.tags),
            "url": entry.url,
        }
        for entry in found
    ]
    return Table(DATASET_COLUMNS, rows, empty, title)


def dataset_panel(
    entry: Entry,
    image: bytes | None = None,
    versions: Sequence[Entry] = (),
    sample: Table | None = None,
) -> Panel:
    """A dataset, its columns, some rows, and its versions where it has several."""
    parts: list[Card | Table] = [dataset_card(entry, image)]
    if entry.fields:
        rows = [
            {
                "name": field.name,
                "kind": field.kind,
                "missing": f"{field.missing:,}" if field.missing else None,
                "example": field.example,
            }
            | {
                name: None if value is None else number(value)
                for name in ("least", "mean", "most", "deviation")
                for value in [getattr(field, name)]
            }
            for field in entry.fields
        ]
        parts.append(Table(FIELD_COLUMNS, rows, empty=""))
    if sample is not None:
        parts.append(sample)
    if len(versions) > 1:
        parts.append(dataset_table(versions, time.time(), "versions, the oldest first"))
    return Panel(parts)


def sample_table(entry: Entry) -> Table | None:
    """The first rows of a table; None of what is none."""
    from ..data.rows import is_table

    if not is_table(entry):
        return None
    from ..data.tables import head

    try:
        found = head(entry.url, entry.format, SAMPLE_ROWS)
    except AiosError as error:
        return Table((), [], empty=f"Its rows cannot be shown: {error}")
    names = found.column_names[:SAMPLE_COLUMNS]
    rows = [{name: _shown(row[name]) for name in names} for row in found.to_pylist()]
    right = {
        name for name in names if all(isinstance(r[name], int | float) for r in found.to_pylist())
    }
    columns = tuple(Column(name, name, right=name in right) for name in names)
    more = (
        f" ({len(names)} of {found.num_columns} columns)" if found.num_columns > len(names) else ""
    )
    return Table(columns, rows, empty="", title=f"the first rows{more}")


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float):
        return number(value)
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def dataset_card(entry: Entry, image: bytes | None = None) -> Card:
    """A dataset and what is known about it."""
    counts = entry.counts or (None,) * len(entry.classes)
    classes = ", ".join(
        name if count is None else f"{name} ({count:,})"
        for name, count in list(zip(entry.classes, counts, strict=True))[:12]
    )
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
            ("tags", ", ".join(entry.tags)),
            ("owner", entry.owner),
            ("where", entry.url),
        ),
        image=image,
    )


def policy_card(source: str, policy: str, seed: int, picture: bytes) -> Card:
    """What a policy does to some of a dataset's images; each row begins with the original."""
    return Card(
        f"augmented {source}",
        fields=(("policy", policy), ("seed", str(seed))),
        image=picture,
        note=f'Make a dataset of it with: aios augment {source} -o NAME --policy "{policy}" '
        f"--seed {seed}",
    )


def _augment_preview(host: Host, source: str, file: str | None, policy: str, seed: int) -> Any:
    from ..data.preview import png

    def draw(policy: str, seed: int) -> bytes:
        return png(source, policy, n=PREVIEW_TILES, seed=seed)

    if file is None and not host.shows_images:
        raise UsageError("No picture is shown here; give a file to write it to: -o FILE.png.")
    if file is None:
        return host.policy(source, policy, seed, draw)
    path = Path(file).expanduser()
    path.write_bytes(draw(policy, seed))
    return host.show(Card(str(path), badge=format_size(path.stat().st_size)), path)


def _list_operations(context: click.Context) -> None:
    from ..data.policy import MEDIA

    columns = (Column("usage", "operation"), Column("meaning", "what it does"))
    tables = [
        Table(
            columns,
            [{"usage": kind.usage, "meaning": kind.meaning} for kind in kinds.values()],
            empty="",
            title=f"of {medium}s",
        )
        for medium, kinds in MEDIA.items()
    ]
    context.obj.show(Panel(tables), {medium: list(kinds) for medium, kinds in MEDIA.items()})
    context.exit()


def _preview(host: Host, entry: Entry) -> bytes | None:
    return _picture(entry) if host.shows_images else None


def _picture(entry: Entry) -> bytes | None:
    files = any(kind.startswith(("binary", "struct")) for kind in entry.schema.values())
    if entry.format in {"csv", "jsonl", "parquet", "database"} and not files:
        from .pictures import spread

        return spread(entry)
    if entry.format == "sounds":
        from .pictures import waves

        return waves(entry)
    from .preview import grid

    return grid(entry)


@click.command()
@click.argument("source")
@click.option(
    "-o", "--output", metavar="NAME", help="Name of the new dataset; of a file with --preview."
)
@click.option(
    "--preview",
    "preview_",
    is_flag=True,
    help="Only show what the policy does to some; in a notebook with a field for other policies.",
)
@click.option(
    "--policy",
    required=True,
    metavar="TEXT",
    help='What is done to each: "rotate(15), shift(0.1), hflip, noise(0.05)".',
)
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Augmented copies of each, beside the original.",
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
def augment(
    host: Host,
    source: str,
    output: str | None,
    preview_: bool,
    policy: str,
    copies: int,
    seed: int,
) -> Any:
    """Make a larger dataset from SOURCE by varying what it holds.

    It holds images, sounds or texts. SOURCE itself is in the new dataset, followed by the copies,
    with their labels. The same seed gives the same bytes on any cluster.
    """
    if preview_:
        return _augment_preview(host, source, output, policy, seed)
    if output is None:
        raise UsageError(
            "Say what the new dataset is called: -o NAME; or only look with --preview."
        )
    session = host.session(start=True)
    with host.progress(f"augmenting {source}") as advance:
        entry = session.augment(
            source, output, policy, copies=copies, seed=seed, on_progress=advance
        )
    image = None
    if host.shows_images and entry.format not in {"sounds", "text"}:
        from ..data.preview import preview, to_png

        image = to_png(preview(source, policy, n=PREVIEW_TILES, seed=seed))
    return host.show(dataset_card(entry, image), entry)
