"""`models sign`, `models verify`, and whose signatures count for other verbs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import NoClusterError
from .base import as_json, echo_json
from .host import Host
from .views import Card

if TYPE_CHECKING:
    from ..models.signing import SignedBy
    from ..models.trust import Trust

requires_signature: Callable[[Any], Any] = click.option(
    "--require-signature", is_flag=True, help="Refuse a version that nobody known has signed."
)


def trust_of(host: Host, *, required: bool = False) -> Trust:
    """Whose signatures count: the cluster says so where one runs; the registry does not need one."""
    from ..models.trust import current

    try:
        return host.session(start=False).trust(required=required)
    except NoClusterError:
        return current().requiring(required)


def signed_text(signed: Sequence[SignedBy]) -> str:
    """Who has signed a version, and what is wrong with that."""
    shown = []
    for one in signed:
        broken = one.standing == "broken"
        shown.append(f"{one.name}: does not hold, {one.problem}" if broken else str(one))
    return "; ".join(shown)


@click.command("sign")
@click.argument("ref")
@click.pass_obj
def models_sign(host: Host, ref: str) -> Any:
    """Sign the version REF with your key: you vouch for it.

    Its files are compared with their hashes first. Each person's signature is kept.
    """
    from .models import model_card

    version = host.session(start=True).sign_model(ref)
    return host.show(model_card(version), version)


@click.command("verify")
@click.argument("ref")
@requires_signature
@as_json
@click.pass_obj
def models_verify(host: Host, ref: str, require_signature: bool, json_: bool) -> Any:
    """Check the files and signatures of the version REF.

    A file that was changed and a signature that does not hold are errors. A signer who is not known
    here is named; with --require-signature it takes one who is.
    """
    from ..models.card import verify

    version = verify(ref, trust_of(host, required=require_signature))
    if json_:
        return echo_json({"ref": version.ref, "intact": True, "signed": version.signed})
    return host.show(
        Card(
            version.ref,
            badge="verified",
            fields=(
                ("integrity", "unchanged since it was published"),
                ("signed by", signed_text(version.signed) or "nobody"),
            ),
        ),
        version,
    )
