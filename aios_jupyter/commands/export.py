"""`export`: a published model in a form that runs elsewhere."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from ..units import format_size, parse_count
from .base import as_json, echo_json
from .host import Host
from .signing import requires_signature, trust_of
from .views import Card, plural

FORMS = ("edge", "litert", "container", "kubernetes", "mlflow")


@click.command()
@click.argument("ref")
@click.option("--to", "form", required=True, type=click.Choice(FORMS), help="Where it is to run.")
@click.option("-o", "--output", metavar="PATH", help="A new folder, or a file ending in .zip.")
@click.option("--image", default="", metavar="NAME", help="kubernetes: the container image.")
@click.option(
    "--replicas", default="1:4", show_default=True, metavar="N[:M]", help="kubernetes: how many."
)
@click.option("--calibrate", metavar="X", help="litert: int8, with ranges from these samples.")
@requires_signature
@as_json
@click.pass_obj
def export(
    host: Host,
    ref: str,
    form: str,
    output: str | None,
    image: str,
    replicas: str,
    calibrate: str | None,
    require_signature: bool,
    json_: bool,
) -> Any:
    """Write the published model REF so that it runs elsewhere.

    edge: the ONNX model and a runner that needs numpy and onnxruntime alone (and pandas where a recipe
    is in front, which prepares rows there). litert: a Keras model for phones and small boards, with
    such a runner. container: all that podman build needs. kubernetes:
    manifests for that container. mlflow: MLflow's folder.
    """
    from ..models.export import Options
    from ..models.export import export as write

    least, most = parse_count(replicas)
    if least < 1:
        raise UsageError(f"--replicas {replicas}: give at least 1.")
    options = Options(
        image=image,
        replicas=(least, most),
        calibrate=None if calibrate is None else host.value(calibrate),
    )
    named = ref.replace("/", "-").replace("@", "-")
    trust = trust_of(host, required=require_signature)
    found = write(ref, form, output or f"{named}-{form}", options, trust)
    if json_:
        return echo_json(found)
    return host.show(
        Card(
            f"{found.ref} for {form}",
            badge="written",
            fields=(
                ("path", found.path),
                ("size", f"{plural(len(found.files), 'file')}, {format_size(found.size)}"),
            ),
            note=found.note,
        ),
        found,
    )
