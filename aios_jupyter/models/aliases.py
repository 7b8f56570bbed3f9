"""Names that move: set an alias, take it back to what it was before, tag a version, sign it.

What an alias named before is kept with the registered model, in a tag of its own, so that any
client of the same registry can roll back. Importing this module is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConflictError, NotFoundError, UsageError
from .names import check_alias
from .registry import ModelVersion, aliases_of, resolve

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .signing import Signer

_WAS = "aios.was."
_TAG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,199}")
MOST_REMEMBERED = 50


def set_alias(ref: str, alias: str) -> ModelVersion:
    """Move `alias` to the version `ref` stands for; gives the version with its aliases."""
    check_alias(alias)
    version = resolve(ref)
    from .store import registry

    with registry() as client:
        current = aliases_of(client, version.name).get(alias)
        if current is not None and current != version.version:
            # First what it was: a crash in between leaves one entry too many, which is skipped.
            _remember(
                client, version.name, alias, [*_history(client, version.name, alias), current]
            )
        client.set_registered_model_alias(version.name, alias, str(version.version))
    return resolve(version.ref)


def rollback(name: str, alias: str) -> ModelVersion:
    """Move `alias` back to the version it named before it was moved last.

    A second time goes back further. Versions that are gone are passed over.

    Raises
    ------
    NotFoundError
        There is no such model or alias.
    ConflictError
        The alias has named nothing else.
    """
    check_alias(alias)
    now = resolve(f"{name}@{alias}")
    from .store import registry

    with registry() as client:
        history = _history(client, name, alias)
        while history:
            try:
                before = resolve(f"{name}/{history.pop()}")
            except NotFoundError:
                continue
            if before.version == now.version:
                continue
            client.set_registered_model_alias(name, alias, str(before.version))
            _remember(client, name, alias, history)
            return resolve(before.ref)
    raise ConflictError(
        f"{name}@{alias} has named no other version than {now.version}; move it with: aios promote "
        f"{name}/VERSION {alias}."
    )


def history(name: str) -> dict[str, list[int]]:
    """Versions that each alias of a model has named before, the last one last."""
    from .store import registry

    with registry() as client:
        return {alias: _history(client, name, alias) for alias in aliases_of(client, name)}


def named_before(tags: Mapping[str, str], versions: Iterable[ModelVersion]) -> dict[str, int]:
    """The version to which `rollback` would move each alias of a model, by the model's tags."""
    aliases = {version.version: version.aliases for version in versions}
    now = {alias: version for version, names in aliases.items() for alias in names}
    found = {}
    for alias, version in now.items():
        past = [one for one in _past(tags, alias) if one in aliases and one != version]
        if past:
            found[alias] = past[-1]
    return found


def _history(client: MlflowClient, name: str, alias: str) -> list[int]:
    return _past(client.get_registered_model(name).tags, alias)


def _past(tags: Mapping[str, str], alias: str) -> list[int]:
    return [int(word) for word in tags.get(_WAS + alias, "").split() if word.isdigit()]


def _remember(client: MlflowClient, name: str, alias: str, versions: list[int]) -> None:
    text = " ".join(str(version) for version in versions[-MOST_REMEMBERED:])
    client.set_registered_model_tag(name, _WAS + alias, text)


def tag(ref: str, tags: Mapping[str, Any]) -> ModelVersion:
    """Set tags of a version; an empty value takes one off.

    Raises
    ------
    UsageError
        A name is not one for a tag.
    """
    version = resolve(ref)
    for key in tags:
        if not _TAG_NAME.fullmatch(key) or key.startswith(("aios.", "mlflow.")):
            raise UsageError(
                f"{key!r} cannot be a tag's name; use letters, digits, dots, dashes (not aios. or "
                "mlflow. at its beginning)."
            )
    from .store import registry

    with registry() as client:
        for key, value in tags.items():
            if str(value) != "":
                client.set_model_version_tag(version.name, str(version.version), key, str(value))
            elif key in version.tags:
                client.delete_model_version_tag(version.name, str(version.version), key)
    return resolve(version.ref)


def sign(ref: str, signer: Signer) -> ModelVersion:
    """Vouch for a version that is there: its files are compared with their hashes first.

    Raises
    ------
    ConflictError
        A file is missing or was changed.
    UsageError
        No hashes of its files are known.
    """
    from .predictor import verify
    from .registry import fetch
    from .store import registry

    package = fetch(ref, use=False)
    tag_of = signer.sign(f"{package.name}/{package.version}", package.files)
    verify(package)
    with registry() as client:
        client.set_model_version_tag(package.name, str(package.version), *tag_of)
    return resolve(f"{package.name}/{package.version}")
