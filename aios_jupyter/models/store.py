"""Our door to MLflow: which server, its client, and the files of a model version.

MLflow takes seconds to import and configures itself from the environment and from globals; a user
may have a server and a run of their own in the same kernel. So it is imported when a registry verb
runs, always through a client with explicit addresses, never through its global state.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import settings
from ..errors import ClusterError, ConflictError, UsageError
from .quiet import quiet

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

EXPERIMENT = "aios"
_LOGGERS = ("mlflow", "mlflow.store.db.utils", "alembic", "sqlalchemy", "fsspec")


def registry_uri() -> str:
    """Where the registry is: `AIOS_REGISTRY_URI`, `MLFLOW_TRACKING_URI`, or SQLite in our state."""
    for variable in ("AIOS_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        if uri := os.environ.get(variable):
            return uri
    return f"sqlite:///{_local_dir() / 'mlflow.db'}"


def _local_dir() -> Path:
    path = settings().state_dir / "mlflow"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def registry() -> Iterator[MlflowClient]:
    """A client of the registry; within the block MLflow is quiet and its errors are ours.

    Raises
    ------
    ClusterError
        The server cannot be reached or refused.
    ConflictError
        The same thing was written by somebody else at this moment.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with quiet():  # importing it sets the levels of its loggers
        from mlflow.exceptions import MlflowException

    with quiet(*_LOGGERS):
        client = _client(registry_uri())
        try:
            yield client
        except MlflowException as error:
            raise _translated(error) from error


def _translated(error: MlflowException) -> Exception:
    text = _shown(" ".join(str(error).split()).rstrip("."))
    if error.error_code == "RESOURCE_ALREADY_EXISTS":
        return ConflictError(f"The registry has this already ({text}); try again.")
    if error.error_code == "INVALID_PARAMETER_VALUE":
        return UsageError(f"The registry does not take this: {text}.")
    return ClusterError(
        f"The model registry at {_shown(registry_uri())} failed ({text[:300]}); check that it runs and "
        "that AIOS_REGISTRY_URI is right."
    )


def _shown(text: str) -> str:
    """Without the user and password that an address in it may have."""
    return re.sub(r"//[^/@\s]*@", "//", text)


@functools.cache
def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    with _first_use(uri):
        # This creates or migrates the tables; two processes must not do it at once.
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if uri.startswith("sqlite:"):
            client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def creating() -> Iterator[None]:
    """While something is looked for and made where it is not there: one process at a time.

    For the embedded store alone: servers elsewhere have no such lock.
    """
    with _first_use(registry_uri()):
        yield


@contextlib.contextmanager
def room_for(name: str) -> Iterator[None]:
    """While files of a model are written: a disk that takes no more is a sentence.

    Raises
    ------
    ConflictError
        It is full, or a limit or quota is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ConflictError(
            f"There is no room for the model {name!r} ({error.strerror}); make some and publish it "
            "again."
        ) from error


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def discard(location: str) -> None:
    """Remove what lies at an artifact location, where it is on this machine."""
    if location.startswith(("file:", "/")):
        shutil.rmtree(_local(location), ignore_errors=True)


def _local(location: str) -> Path:
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(location))


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:") or os.name != "posix":
        yield
        return
    import fcntl

    with (_local_dir() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def experiment_id(client: MlflowClient) -> str:
    """The experiment that our runs are in, made when there is none."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if registry_uri().startswith("sqlite:"):
        location = (_local_dir() / "artifacts").as_uri()
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        found = client.get_experiment_by_name(EXPERIMENT)  # made by another process just now
        assert found is not None
        return str(found.experiment_id)


def ensure_registered(client: MlflowClient, name: str) -> None:
    """Make the registered model `name` where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def add_params(client: MlflowClient, run: str, params: Mapping[str, str]) -> None:
    """Give a run the parameters that it has not; what it has stays.

    Publishing a model and telling of its run do this at the same time, and what is written twice is
    refused: so once more without what has come meanwhile.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    def new() -> list[Param]:
        known = client.get_run(run).data.params
        return [Param(key, value) for key, value in params.items() if key not in known]

    wanted = new()
    try:
        client.log_batch(run, params=wanted)
    except MlflowException:
        left = new()
        if len(left) == len(wanted):
            raise
        client.log_batch(run, params=left)


def missing(error: Exception) -> bool:
    """Whether an MLflow error says that a model, version or alias does not exist."""
    code = getattr(error, "error_code", "")
    return code == "RESOURCE_DOES_NOT_EXIST" or (
        code == "INVALID_PARAMETER_VALUE" and "alias" in str(error) and "not found" in str(error)
    )


def _repository(client: MlflowClient, name: str, version: int) -> tuple[str, ArtifactRepository]:
    """Where the files of a version are, and what reads them there."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = registry_uri()
    source = client.get_model_version_download_uri(name, str(version))
    if source.startswith("models:/m-"):
        source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    return source, get_artifact_repository(source, tracking_uri=uri, registry_uri=uri)


def file_of(client: MlflowClient, name: str, version: int, path: str) -> bytes:
    """One file of a version, without the others.

    Raises
    ------
    OSError
        It is not there.
    """
    source, repository = _repository(client, name, version)
    if source.startswith(("file:", "/")):
        return (_local(source) / path).read_bytes()
    with tempfile.TemporaryDirectory(prefix="aios-file-") as room:
        return Path(repository.download_artifacts(path, dst_path=room)).read_bytes()


def local_files(client: MlflowClient, name: str, version: int, digest: str) -> Path:
    """The files of a version on this machine; those of a remote store are kept in a cache.

    Parameters
    ----------
    digest
        Names the content, so that a version of another registry is not taken for this one; ""
        where it is not known, and then nothing is cached.
    """
    source, repository = _repository(client, name, version)
    if source.startswith(("file:", "/")):
        if not _local(source).is_dir():
            raise ConflictError(
                f"The files of {name}/{version} are gone from {source}; publish the model again."
            )
        return Path(repository.download_artifacts(""))
    cache = settings().state_dir / "model-cache"
    target = cache / (digest or f"unverified-{name}-{version}")
    if not digest:
        shutil.rmtree(target, ignore_errors=True)
    elif target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=cache, prefix=".download-"))
    try:
        repository.download_artifacts("", dst_path=os.fspath(aside))
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was quicker
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
