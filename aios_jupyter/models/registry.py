"""Versioned models: publish, find by name, version or alias, and open again.

A version is written once. Its files carry their sha256 in the registry, an alias ("champion") is a
name that moves from one version to another. The registry is MLflow's (`store.py`), so MLflow's own
tools and clients see everything here. Importing this module is cheap.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConflictError, NotFoundError, UsageError
from ..schema import Struct
from .names import OWN_TAGS, TAG, check_alias, check_metrics, check_name, parse_ref
from .signing import SIGNED, SignedBy, Signer, check, signatures

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

    from .predictor import Package, Predictor
    from .trust import Trust


class ModelVersion(Struct):
    """A published model.

    Attributes
    ----------
    signature
        `{"inputs": [{"name", "datatype", "shape"}], "outputs": […]}` in the words of the Open
        Inference Protocol; -1 is a free size. Empty for a version that something else registered.
    framework
        "torch", "keras", "onnx", "sklearn" or "python": what it was made from.
    lineage
        Where it comes from: lease, run, notebook, data version.
    created
        Seconds since the epoch.
    signed
        Who has signed it, and whether that counts here.
    """

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    created: float = 0.0
    run_id: str = ""
    tags: dict[str, str] = {}
    signature: dict[str, Any] = {}
    framework: str = ""
    lineage: dict[str, str] = {}
    signed: tuple[SignedBy, ...] = ()

    @property
    def ref(self) -> str:
        """The name of exactly this version: "digits/3"."""
        return f"{self.name}/{self.version}"


def publish(
    model: Any,
    name: str,
    *,
    alias: str | None = None,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    input_example: Any = None,
    lineage: Mapping[str, Any] | None = None,
    profile: Any = None,
    recipe: Any = None,
    label: str | None = None,
    allow_pickle: bool = False,
    signer: Signer | None = None,
) -> ModelVersion:
    """Store `model` as the next version of `name`.

    A torch module (also wrapped by DDP or `torch.compile`) is stored as ONNX with a free batch
    size, with its weights as safetensors beside it; half-precision weights become float32. So is a
    Keras model, with its `.keras` file. The stored model is compared with the one that was given
    before the version appears.

    Parameters
    ----------
    model
        A torch module, a Keras model, what `optimize` gave, an ONNX model or its path, or, with
        `allow_pickle`, an object with `predict`.
    alias
        A name to move to this version, such as "champion".
    metrics, params
        Recorded with the version and as an MLflow run.
    input_example
        Samples with the batch as first dimension (`x[:1]`); needed for all but ONNX. Several inputs
        are a tuple or a dict.
    lineage
        Where it comes from, by name: lease, run, notebook, data.
    profile
        Samples of the training data (50 or more), which `monitor` compares an endpoint's traffic
        with; only their distributions are kept. With a recipe they are raw rows.
    recipe
        What prepared the data that the model was trained on: a dataset that a recipe made, a `Recipe`
        or its file. The version then takes raw rows, and the recipe (a copy of it) runs in front
        wherever it answers. `input_example` may be raw rows too, as a data frame; of a dataset they
        are found.
    label
        With `recipe`: the prepared column that the model does not take, where its name is none of
        "label", "y", "class" and "target".
    allow_pickle
        Store objects that are neither torch nor ONNX as a pickle, which runs code when opened.
    signer
        Who vouches for it with their signature.

    Raises
    ------
    UsageError
        The name, alias or a metric is not valid, or the model cannot be stored in this way.
    ClusterError
        The registry does not answer.
    """
    check_name(name)
    if alias is not None:
        check_alias(alias)
    if label is not None and recipe is None:
        raise UsageError("A label is named for a recipe; pass that too (--recipe).")
    from .package import build, build_with, save_profile
    from .store import room_for
    from .storing import store, tags_of
    from .variants import Optimized

    origin: dict[str, Any] = dict(lineage or {})
    if isinstance(model, Optimized):
        metrics = {**model.metrics, **(metrics or {})}
        origin |= model.lineage
    numbers = check_metrics(metrics or {})
    texts = {str(key): str(value) for key, value in (params or {}).items()}

    with room_for(name), tempfile.TemporaryDirectory(prefix="aios-publish-") as scratch:
        extras = Path(scratch) / "extras"
        extras.mkdir()
        if recipe is None:
            built = build(model, extras, input_example, allow_pickle=allow_pickle)
        else:
            from .prepared import ahead

            front = ahead(recipe, input_example, label)
            built = build_with(front, model, extras, input_example, allow_pickle=allow_pickle)
            origin["recipe"] = str(built.rows)
        if profile is not None:
            save_profile(built, extras, profile)
        tags = tags_of(built, numbers, texts, origin)
        source = str(origin.get("run", ""))
        version = store(built, name, Path(scratch), numbers, texts, tags, source, signer)
    if alias is not None:
        from .aliases import set_alias

        set_alias(f"{name}/{version}", alias)
    return resolve(f"{name}/{version}")


# --- finding -------------------------------------------------------------------------------------


def resolve(ref: str, trust: Trust | None = None) -> ModelVersion:
    """The version that "name" (its latest), "name/3" or "name@alias" stands for.

    `trust` says whose signatures count; the settings do where it is None.

    Raises
    ------
    UsageError
        `ref` is none of these.
    NotFoundError
        There is no such model, version or alias; the sentence names what there is.
    """
    name, version, alias = parse_ref(ref)
    from .store import missing, registry

    with registry() as client:
        aliases = aliases_of(client, name)
        if alias is not None and alias not in aliases:
            raise NotFoundError(
                f"{name} has no alias {alias!r}; {_have('it has', sorted(aliases))} "
                f"(set one with: aios promote {name}/VERSION {alias})."
            )
        number = int(aliases[alias]) if alias is not None else version
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_model_version(
                name, str(_latest(client, name) if number is None else number)
            )
        except MlflowException as error:
            if not missing(error):
                raise
            raise NotFoundError(
                f"{name} has no version {number}; its latest is {_latest(client, name)}."
            ) from None
        return _version(found, aliases, trust)


def versions(name: str | None = None, trust: Trust | None = None) -> list[dict[str, Any]]:
    """All versions (of one model, or of all), newest first within a model, as plain dicts.

    Each has the fields of `ModelVersion`, "ref", and "before": what `rollback` would give each of its
    aliases.
    """
    import msgspec

    from .aliases import named_before
    from .store import registry

    with registry() as client:
        if name is not None:
            check_name(name)
            aliases_of(client, name)  # refuses a name that is nobody's
            models = [client.get_registered_model(name)]
        else:
            models = _pages(client.search_registered_models)
        rows = []
        for model in sorted(models, key=lambda model: str(model.name)):
            found = _pages(client.search_model_versions, filter_string=f"name = '{model.name}'")
            some = [_version(item, dict(model.aliases), trust) for item in found]
            before = named_before(model.tags, some)
            for row in sorted(some, key=lambda v: -v.version):
                own = {alias: before[alias] for alias in row.aliases if alias in before}
                shown = {"aliases": list(row.aliases), "ref": row.ref, "before": own}
                rows.append({**msgspec.to_builtins(row), **shown})
    return rows


def fetch(ref: str, trust: Trust | None = None, *, use: bool = True) -> Package:
    """The files of a version on this machine, not yet checked (`predictor.open_package` does).

    Parameters
    ----------
    trust
        Whose signatures count, and whether one is required; by the settings where it is None.
    use
        False to look at it alone, whatever its signatures are.

    Raises
    ------
    ConflictError
        A signature does not fit the version.
    AccessError
        Nobody known has signed it, and that is required.
    """
    from .predictor import ONNX_MODEL, Package
    from .store import local_files, registry

    version = resolve(ref, trust)
    if use:
        check(version.ref, version.signed, required=_trusted(trust).required)
    recorded = version.tags.get(f"{TAG}files", "")
    digest = hashlib.sha256(recorded.encode()).hexdigest() if recorded else ""
    with registry() as client:
        path = local_files(client, version.name, version.version, digest)
    main = version.tags.get(f"{TAG}main") or _foreign_main(path, ONNX_MODEL)
    return Package(
        name=version.name,
        version=version.version,
        path=str(path),
        main=main,
        files=_recorded(version.ref, version.tags),
        framework=version.framework,
    )


def _trusted(trust: Trust | None) -> Trust:
    from .trust import current

    return current() if trust is None else trust


def _foreign_main(path: Path, onnx: str) -> str:
    """The model's file in a version that MLflow's own API registered."""
    from .predictor import DESCRIPTION

    found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*.onnx"))
    if found:
        return onnx if onnx in found else found[0]
    if (path / DESCRIPTION).is_file():
        return DESCRIPTION
    raise UsageError(
        "This version is no model that can be opened (it has neither ONNX nor MLflow's form); "
        "publish it with aios publish."
    )


def load(
    ref: str,
    *,
    threads: int | None = None,
    allow_pickle: bool = False,
    require_signature: bool = False,
) -> Predictor:
    """Open a version: `.predict(x)` gives arrays, `.signature` says what it takes.

    Parameters
    ----------
    threads
        Threads of the model; None takes the processors there are (or `OMP_NUM_THREADS`).
    allow_pickle
        Open a model that is stored as a pickle, which runs the code in it.
    require_signature
        Refuse a version that nobody known here has signed.

    Raises
    ------
    NotFoundError
        There is no such version.
    ConflictError
        A file was changed since it was published, or a signature does not hold.
    AccessError
        It is a pickle and `allow_pickle` was not given, or it lacks a signature.
    """
    from .predictor import open_package
    from .trust import current

    package = fetch(ref, current().requiring(require_signature))
    return open_package(package, threads=threads, allow_pickle=allow_pickle)


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    """Version by alias: asked of the model, for a search of versions leaves aliases out."""
    from mlflow.exceptions import MlflowException

    from .store import missing

    try:
        return {str(a): int(v) for a, v in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if not missing(error):
            raise
    names = [model.name for model in _pages(client.search_registered_models)]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"{_have('there is', names)}."
    raise NotFoundError(f"There is no model {name!r}; {hint}")


def _have(words: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"{words} {shown}" if names else f"{words} none yet"


def _latest(client: MlflowClient, name: str) -> int:
    found = client.search_model_versions(
        f"name = '{name}'", max_results=1, order_by=["version_number DESC"]
    )
    if not found:
        raise NotFoundError(f"{name} has no versions; publish one with: aios publish MODEL.")
    return int(found[0].version)


def _pages(search: Any, **query: Any) -> list[Any]:
    items: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        items += page
        token = page.token
        if not token:
            return items


def _version(
    found: MlflowVersion, aliases: Mapping[str, int], trust: Trust | None = None
) -> ModelVersion:
    tags = dict(found.tags)
    own = {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        aliases=tuple(sorted(a for a, v in aliases.items() if int(v) == int(found.version))),
        metrics=json.loads(own.get("metrics", "{}")),
        params=json.loads(own.get("params", "{}")),
        created=found.creation_timestamp / 1000,
        run_id=found.run_id or "",
        tags=tags,
        signature=json.loads(own.get("signature", "{}")),
        framework=own.get("framework", ""),
        lineage={
            key: value
            for key, value in own.items()
            if key not in OWN_TAGS and not (TAG + key).startswith(SIGNED)
        },
        signed=_signed(f"{found.name}/{found.version}", tags, trust),
    )


def _signed(ref: str, tags: Mapping[str, str], trust: Trust | None) -> tuple[SignedBy, ...]:
    if not any(key.startswith(SIGNED) for key in tags):
        return ()
    try:
        files = _recorded(ref, tags)
    except ConflictError:
        files = {}  # then no signature holds
    return signatures(ref, files, tags, _trusted(trust))


def _recorded(ref: str, tags: Mapping[str, str]) -> dict[str, str]:
    """sha256 by file, as it was recorded when a version was published; {} where it was not."""
    import msgspec

    try:
        return msgspec.json.decode(tags.get(f"{TAG}files") or "{}", type=dict[str, str])
    except msgspec.DecodeError as error:
        raise ConflictError(
            f"{ref} was changed after it was published (the list of its files cannot be read: {error}); "
            "publish the model again."
        ) from error
