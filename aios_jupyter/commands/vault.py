"""`data encrypt|decrypt|require|identity`: datasets encrypted at rest. They need no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from .data import dataset_card
from .host import Host
from .views import Card

_output = click.option(
    "-o", "--output", default="", metavar="NEW", help="Another name for the result."
)


@click.command()
@click.argument("dataset")
@click.option(
    "--to",
    "people",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Who may decrypt it: a name with a key here, or a public key.",
)
@_output
@click.pass_obj
def encrypt(host: Host, dataset: str, people: Sequence[str], output: str) -> Any:
    """Make an encrypted copy of a dataset.

    It is the newest version of DATASET. The plain data stays where it is until you remove it. The
    standard tool age decrypts it too.
    """
    from ..data.vault import encrypt as run

    entry = run(dataset, people, output)
    return host.show(dataset_card(entry), entry)


@click.command()
@click.argument("dataset")
@_output
@click.pass_obj
def decrypt(host: Host, dataset: str, output: str) -> Any:
    """Make a plain copy of an encrypted dataset.

    It is the newest version of DATASET, or NEW.
    """
    from ..data.vault import decrypt as run

    entry = run(dataset, output)
    return host.show(dataset_card(entry), entry)


@click.command()
@click.argument("dataset")
@click.option("--remove", is_flag=True, help="Allow plain versions again.")
@click.pass_obj
def require(host: Host, dataset: str, remove: bool) -> None:
    """Refuse new versions of DATASET that are not encrypted.

    Those that are there stay as they are; a plain copy has to have another name.
    """
    from ..data.catalog import Catalog

    Catalog().seal(dataset, not remove)
    rule = "as they are" if remove else "only when they are encrypted"
    host.show(Card(f"dataset {dataset}", (("new versions", rule),)))


@click.command()
@click.argument("name", default="")
@click.option("--public", default="", metavar="AGE1…", help="Remember this as NAME's public key.")
@click.pass_obj
def identity(host: Host, name: str, public: str) -> Any:
    """Show somebody's public key, made if need be.

    Without NAME it is yours. The secret key stays in a file that only you can read.
    """
    from ..data.vault import key as run
    from ..data.vault import key_file

    found = run(name, public)
    file = key_file(name) if name else None
    fields = (("public key", found), ("secret key", str(file) if file and file.exists() else ""))
    return host.show(Card(name or "your key", fields=fields), found)
