"""`data cp|keys|du|quota|keep|gc|verify`: where datasets are, what they take, and whether they are whole."""

from __future__ import annotations

import getpass
import os
import warnings
from typing import TYPE_CHECKING, Any

import click

from ..errors import AiosError, UsageError
from ..units import format_duration, format_size
from .base import DURATION, SIZE, VerbGroup, as_json, echo_json
from .data import data, dataset_card
from .host import Host
from .views import Card, Column, Table

if TYPE_CHECKING:
    from ..data.upkeep import Finding

__all__ = ["data"]

USE_COLUMNS = (
    Column("size", "size", right=True),
    Column("kind", "what"),
    Column("name", "dataset"),
)
QUOTA_COLUMNS = (
    Column("owner", "whose"),
    Column("used", "used", right=True),
    Column("limit", "limit", right=True),
)
GARBAGE_COLUMNS = (
    Column("size", "size", right=True),
    Column("what", "what"),
    Column("why", "why"),
)
FINDING_COLUMNS = (
    Column("dataset", "dataset"),
    Column("file", "file"),
    Column("what", "what is wrong"),
    Column("mended", "mended"),
)
KEY_COLUMNS = (Column("name", "name"), Column("options", "options"))


@data.command("cp")
@click.argument("dataset")
@click.argument("target")
@click.option(
    "--bandwidth",
    type=SIZE,
    metavar="SIZE",
    help="At most so much a second, like 10MB.",
)
@click.option(
    "--compress",
    is_flag=False,
    flag_value="auto",
    default="",
    metavar="[gzip|zstd|auto]",
    help="CSV, JSON lines and text, which are read so; auto: where a sample shrinks.",
)
@click.pass_obj
def data_cp(host: Host, dataset: str, target: str, bandwidth: int | None, compress: str) -> Any:
    """Copy DATASET to TARGET, and verify it.

    TARGET is a new name, or a path or URL; the same again goes on where it was interrupted. What is
    compressed on its way is called so (.csv.zst), and is read as it is.
    """
    from ..data.catalog import Catalog

    with host.progress(f"copying {dataset}") as advance:
        entry = Catalog().copy(
            dataset, target, compress=compress, bandwidth=bandwidth, on_progress=advance
        )
    return host.show(dataset_card(entry), entry)


@data.group("keys", cls=VerbGroup)
def keys() -> None:
    """Keep the secrets of storage systems, by name.

    A URL names them before its host, as in s3://NAME@bucket/file.npz.
    """


@keys.command("ls")
@as_json
@click.pass_obj
def keys_ls(host: Host, json_: bool) -> Any:
    """List names and their options; secrets are not shown."""
    from ..data import credentials

    found = credentials.names()
    if json_:
        return echo_json(found)
    rows = [
        {"name": name, "options": ", ".join(f"{k}={v}" for k, v in options.items())}
        for name, options in found.items()
    ]
    empty = "No credentials are stored; add some with: data keys add NAME"
    return host.show(Table(KEY_COLUMNS, rows, empty), found)


@keys.command("add")
@click.argument("name")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="OPTION",
    help="Asked for without an echo; key and secret where none is named.",
)
@click.pass_obj
def keys_add(host: Host, name: str, options: tuple[str, ...], secrets: tuple[str, ...]) -> None:
    """Store credentials as NAME.

    OPTION=VALUE is what fsspec's file system takes, such as endpoint_url=http://store:9000.
    Secrets are asked for; without a terminal they are read from variables like AIOS_SECRET_KEY.
    """
    from ..data import credentials

    given: dict[str, Any] = {}
    for text in options:
        option, equals, value = text.partition("=")
        if not equals or option in {"key", "secret", "token", "password"}:
            raise UsageError(
                f"'{option}' is not OPTION=VALUE, or a secret, which a shell would write in its "
                f"history; use --secret {option or 'NAME'}."
            )
        given[option] = value
    for option in secrets or ("key", "secret"):
        variable = f"AIOS_SECRET_{option.upper()}"
        given[option] = os.environ.get(variable) or _ask(option, variable)
    credentials.put(name, given)
    host.show(Card(f"credentials {name}", (("use", f"s3://{name}@bucket/…"),), badge="stored"))


def _ask(option: str, variable: str) -> str:
    try:
        with warnings.catch_warnings():
            # Without a terminal it would go on, and show what is typed.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return str(click.prompt(option, hide_input=True))
    except (click.Abort, EOFError, getpass.GetPassWarning):
        raise UsageError(
            f"There is no terminal to ask for {option}; set the variable {variable}."
        ) from None


@keys.command("rm")
@click.argument("name")
@click.pass_obj
def keys_rm(host: Host, name: str) -> None:
    """Forget the credentials NAME."""
    from ..data import credentials

    credentials.remove(name)
    host.show(Card(f"credentials {name}", badge="forgotten"))


@data.command("du")
@as_json
@click.pass_obj
def data_du(host: Host, json_: bool) -> Any:
    """Show what takes how much space."""
    from ..data.catalog import Catalog
    from ..data.upkeep import usage

    found = usage(Catalog())
    if json_:
        return echo_json([{"kind": u.kind, "name": u.name, "size": u.size} for u in found])
    rows = [{"size": format_size(u.size), "kind": u.kind, "name": u.name} for u in found]
    return host.show(Table(USE_COLUMNS, rows, "Nothing takes any space."), found)


@data.command("quota")
@click.argument("user", default="")
@click.option("--size", type=SIZE, metavar="SIZE", help="At most so much, like 50GB.")
@click.option("--remove", is_flag=True, help="Take the limit away.")
@as_json
@click.pass_obj
def data_quota(host: Host, user: str, size: int | None, remove: bool, json_: bool) -> Any:
    """Limit the data that USER's datasets take here.

    Without USER it is the limit of all together; without --size or --remove they are listed. What
    lies elsewhere and is only in the catalog does not count.
    """
    from ..data.catalog import Catalog
    from ..data.records import EVERYBODY

    catalog = Catalog()
    if size is not None and remove:
        raise UsageError("Give --size or --remove, not both.")
    if size is not None or remove:
        catalog.set_quota(user or EVERYBODY, size)
    found = [quota for quota in catalog.quotas() if user in {"", quota.owner}]
    if json_:
        return echo_json(found)
    rows = [
        {
            "owner": "all together" if quota.owner == EVERYBODY else quota.owner,
            "used": format_size(quota.used),
            "limit": None if quota.limit is None else format_size(quota.limit),
        }
        for quota in found
    ]
    return host.show(Table(QUOTA_COLUMNS, rows, f"'{user}' has no datasets and no limit."), found)


@data.command("keep")
@click.argument("dataset")
@click.option("--versions", type=click.IntRange(min=0), required=True, metavar="N")
@click.option("--age", type=DURATION, metavar="TIME", help="And all that are younger, like 30d.")
@click.pass_obj
def data_keep(host: Host, dataset: str, versions: int, age: float | None) -> None:
    """Say which versions of DATASET a gc keeps.

    The newest N, and all younger than TIME; 0 versions takes the rule away.
    """
    from ..data.catalog import Catalog

    Catalog().keep(dataset, versions, (age or 0) / 86400)
    young = f", and all younger than {format_duration(age)}" if age else ""
    kept = f"the newest {versions}{young}" if versions else "all"
    host.show(Card(f"dataset {dataset}", (("keeps", kept),)))


@data.command("gc")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@as_json
@click.pass_obj
def data_gc(host: Host, dry_run: bool, json_: bool) -> Any:
    """Remove what nothing refers to, or no rule keeps.

    Only data in the state directory is ever removed.
    """
    from ..data.catalog import Catalog
    from ..data.upkeep import collect, garbage

    catalog = Catalog()
    found = garbage(catalog) if dry_run else collect(catalog)
    if json_:
        return echo_json([{"what": g.what, "size": g.size, "why": g.why} for g in found])
    rows = [
        {"size": format_size(g.size) if g.size else None, "what": g.what, "why": g.why}
        for g in found
    ]
    title = "what would go" if dry_run else "what is gone"
    return host.show(Table(GARBAGE_COLUMNS, rows, "There is nothing to remove.", title), found)


@data.command("verify")
@click.argument("datasets", nargs=-1, metavar="[DATASET]...")
@click.option(
    "--mend/--no-mend",
    default=None,
    help="Bring back also what was written since it was added, or only look.",
)
@click.pass_obj
def data_verify(host: Host, datasets: tuple[str, ...], mend: bool | None) -> Any:
    """Read datasets and compare them with their hashes.

    What is damaged is mended from another copy where there is one ('data cp' makes them). A file that
    somebody has written since stays as it is, unless you say --mend. All datasets, where none is
    named.
    """
    from ..data.catalog import Catalog
    from ..data.upkeep import verify_all

    catalog = Catalog()
    with host.progress("verifying") as advance:
        count, found = verify_all(catalog, datasets, mend=mend, on_progress=advance)
    rows = [
        {
            "dataset": f.entry.ref,
            "file": f.file or f.entry.url,
            "what": f.what,
            "mended": "yes" if f.mended else "no",
        }
        for f in found
    ]
    empty = f"All as it was added ({count} looked at)."
    shown = host.show(Table(FINDING_COLUMNS, rows, empty), found)
    left = [f for f in found if not f.mended]
    if left:
        raise AiosError(_what_to_do(left[0], mend))
    return shown


def _what_to_do(finding: Finding, mend: bool | None) -> str:
    """The sentence for a file that is still not what it was."""
    entry, file = finding.entry, finding.file or finding.entry.url
    if finding.written and not mend:
        return (
            f"{file} of {entry.ref} was written since it was added; 'aios data add {entry.name} "
            f"{entry.url}' makes a new version of what is there now, and 'aios data verify "
            f"{entry.ref} --mend' brings back what was, from another copy."
        )
    tail = (
        "it was only looked at; mend it without --no-mend."
        if mend is False
        else "there is no whole copy to mend it from; get it again."
    )
    return f"{file} of {entry.ref} is {finding.what}, and {tail}"
