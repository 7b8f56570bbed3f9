"""Write what was built into the registry, as one version: its files, figures, and who vouches.

Imported when a model is published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .names import NAME, OWN_TAGS, TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .package import Built
    from .signing import Signer


def store(
    built: Built,
    name: str,
    scratch: Path,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: dict[str, str],
    source: str,
    signer: Signer | None = None,
) -> int:
    """Write the files, then the version, signed where somebody vouches for it; gives its number.

    It appears complete or not at all. It belongs to the run of ours that is its `source`, where there
    is one, else to one of its own.
    """
    from .predictor import file_hashes
    from .store import creating, discard, ensure_registered, experiment_id, registry
    from .tracking import RUN_TAG, find_run

    with registry() as client:
        from .mlflow_files import write_files

        experiment = experiment_id(client)
        with creating():
            tracked = find_run(client, experiment, source) if source else None
            run = (
                tracked
                or client.create_run(
                    experiment, run_name=name, tags={RUN_TAG: source} if source else None
                ).info.run_id
            )
        logged = client.create_logged_model(experiment, name=name, source_run_id=run)
        done = False
        try:
            _log(client, run, metrics, params)
            files = scratch / "model"
            write_files(built, files, scratch / "extras", logged.model_id, run)
            hashes = file_hashes(files)
            tags[f"{TAG}files"] = json.dumps(hashes)
            client.log_model_artifacts(logged.model_id, str(files))
            client.finalize_logged_model(logged.model_id, "READY")
            ensure_registered(client, name)
            version = client.create_model_version(
                name, logged.artifact_location, run_id=run, tags=tags, model_id=logged.model_id
            ).version
            if signer is not None:
                _sign(client, name, version, signer, hashes)
            done = True
        finally:
            if not done:
                discard(logged.artifact_location)
                client.finalize_logged_model(logged.model_id, "FAILED")
            if not tracked:
                client.set_terminated(run, "FINISHED" if done else "FAILED")
    return int(version)


def _sign(
    client: MlflowClient, name: str, version: str, signer: Signer, hashes: Mapping[str, str]
) -> None:
    """Its number is part of what is signed, so that the version is there by now."""
    signed = False
    try:
        client.set_model_version_tag(name, version, *signer.sign(f"{name}/{version}", hashes))
        signed = True
    finally:
        if not signed:
            client.delete_model_version(name, version)


def _log(
    client: MlflowClient, run: str, metrics: Mapping[str, float], params: Mapping[str, str]
) -> None:
    from mlflow.entities import Metric

    from .store import add_params

    now = int(time.time() * 1000)
    add_params(client, run, params)
    client.log_batch(run, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])


def tags_of(
    built: Built,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    lineage: Mapping[str, Any],
) -> dict[str, str]:
    import msgspec

    tags = {
        "main": built.main,
        "framework": built.framework,
        "signature": msgspec.json.encode(built.takes).decode(),
        "metrics": json.dumps(dict(metrics)),
        "params": json.dumps(dict(params)),
    }
    for key, value in lineage.items():
        if key in OWN_TAGS or not NAME.fullmatch(str(key)):
            raise UsageError(f"The lineage cannot have an entry {key!r}; use another word.")
        if value not in (None, ""):
            tags[str(key)] = str(value)
    return {TAG + key: value for key, value in tags.items()}
