"""Datasets, models and endpoints: `augment`, `publish`, `serve`, `predict` and their listings."""

from __future__ import annotations

import math
import os
import queue
import secrets
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..cluster import embedded
from ..config import settings
from ..errors import AccessError, ClusterError, ConflictError, NotFoundError, RunError
from ..runs.handle import RunHandle
from ..schema import LIVE, RunKind, RunState, Scope, Struct
from ..tls import Bundle as TlsBundle
from .runs import RunVerbs

if TYPE_CHECKING:
    from ..data.augment import Source
    from ..data.catalog import Entry as Dataset
    from ..models.registry import ModelVersion

WORKER_TIMEOUT = 60
ANNOUNCE_TIMEOUT = 10.0
ENDPOINT_MODULE = "aios_jupyter.models.serve"


class Endpoint(Struct, frozen=True, kw_only=True):
    """A model being served. The token is in the private file `token_file`."""

    name: str
    model: str
    version: str
    url: str
    run: str
    lease: str
    token_file: str


class AssetVerbs(RunVerbs):
    """A session that makes datasets, publishes models and serves them."""

    # --- data

    def dask(self) -> Any:
        """A `distributed.Client` of the cluster's workers, made once.

        Raises
        ------
        ClusterError
            No worker has come up in time.
        """
        if self._bundle:
            raise AccessError(
                "Whoever reaches a cluster's Dask workers can run code as its owner, so that a "
                "bundle (AIOS_BUNDLE) does not admit there; work under a lease with 'aios train'."
            )
        facts = embedded.ensure(start=False)
        if self._dask is not None and self._dask.scheduler.address == facts["dask"]:
            return self._dask
        if self._dask is not None:
            self._dask.close()
        from distributed import Client
        from distributed.security import Security

        own = TlsBundle.dask(embedded.Paths.current().tls)
        security = Security(
            tls_ca_file=str(own.authority),
            tls_client_cert=str(own.certificate),
            tls_client_key=str(own.key),
            require_encryption=True,
        )
        self._dask = Client(facts["dask"], security=security, set_as_default=False)
        try:
            self._dask.wait_for_workers(1, timeout=WORKER_TIMEOUT)
        except TimeoutError:
            log = settings().cluster_dir / "dask" / "worker.log"
            raise ClusterError(f"The cluster's Dask worker does not come up; see {log}") from None
        return self._dask

    def augment(
        self,
        src: Source,
        dst: str | Path,
        policy: str,
        copies: int = 1,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Dataset:
        """Make a dataset of originals and augmented copies, as tasks on the cluster's workers.

        Where the cluster is somebody else's (AIOS_BUNDLE) it is made in this process.
        `data.augment.augment` has the parameters and errors.
        """
        from ..data.augment import augment
        from ..data.policy import parse

        parse(policy)
        client = None if self._bundle else self.dask()
        return augment(src, dst, policy, copies, seed, client, on_progress)

    def datasets(self) -> list[Dataset]:
        """The catalogue."""
        from ..data.catalog import Catalog

        return list(Catalog().list())

    def data_add(self, name: str, url: str | Path) -> Dataset:
        """Put data that lies at `url` into the catalogue."""
        from ..data.catalog import Catalog

        return Catalog().add(name, str(url))

    def data_show(self, name: str) -> Dataset:
        """A dataset by name, `name@version`, path or URL."""
        from ..data.catalog import Catalog

        return Catalog().get(name)

    # --- models

    def publish(
        self,
        model: Any,
        name: str,
        *,
        alias: str | None = None,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        input_example: Any = None,
        run: str | None = None,
        data: str | None = None,
        allow_pickle: bool = False,
    ) -> ModelVersion:
        """Store a model as the next version of `name`, with where it comes from.

        `run` is the run that trained it (its metrics and parameters are recorded too), `data` the
        dataset. `models.registry.publish` has the other parameters and errors.
        """
        from ..models import registry

        lineage: dict[str, Any] = {"user": self.user, "notebook": self.label}
        numbers: dict[str, float] = {}
        values = dict(params or {})
        if run is not None:
            row = self._run_row(run)
            numbers |= {key: x for key, x in row["metrics"].items() if math.isfinite(x)}
            lineage |= {"run": run, "lease": row["lease"]}
            values |= {"world_size": row["world_size"], "framework": row["framework"]}
        if data is not None:
            lineage["data"] = self.data_show(data).ref
        numbers |= dict(metrics or {})
        return registry.publish(
            model,
            name,
            alias=alias,
            metrics=numbers,
            params=values,
            input_example=input_example,
            lineage={key: value for key, value in lineage.items() if value},
            allow_pickle=allow_pickle,
        )

    def models(self) -> list[dict[str, Any]]:
        """All versions of all models."""
        from ..models import registry

        return registry.versions()

    def promote(self, ref: str, alias: str) -> ModelVersion:
        """Move an alias to a version."""
        from ..models import registry

        return registry.set_alias(ref, alias)

    def _run_row(self, run: str) -> dict[str, Any]:
        row = self.status()["runs"].get(run)
        if row is None:
            raise NotFoundError(f"There is no run {run!r}; 'aios runs' lists them.")
        return dict(row)

    # --- endpoints

    def serve(
        self,
        ref: str,
        *,
        devices: int | None = None,
        name: str | None = None,
        timeout: float = 60.0,
    ) -> Endpoint:
        """Serve a model over HTTP in a process of its own on a leased device.

        Parameters
        ----------
        devices
            Lease so many for the endpoint alone, which then outlives this session. None: a device
            of the lease that this session holds, with which it ends; or one of its own.

        Raises
        ------
        NotFoundError
            There is no such model or alias.
        ConflictError
            An endpoint of that name is live.
        """
        from ..models import registry

        version = registry.resolve(ref)
        name = name or version.name
        if any(row["name"] == name for row in self.endpoints()):
            raise ConflictError(
                f"An endpoint {name!r} is live; stop it with 'aios endpoints stop {name}', or "
                "give another with --name."
            )
        token_file = _new_token(name)
        if devices is None:
            lease = self._lease_for_run(None, {"devices": None}, None)
        else:
            lease = self.alloc(devices=devices, scope=Scope.DETACHED, label=f"endpoint {name}")
        handle = self.start(
            ENDPOINT_MODULE,
            module=True,
            kind=RunKind.ENDPOINT,
            argv=("--model", version.ref, "--name", name),
            lease=lease.id,
            devices=1,
            framework="none",
            name=name,
            env={"AIOS_ENDPOINT_TOKEN_FILE": str(token_file), **_registry_environment()},
        )
        event = _ready(handle, timeout)
        self._announced(name)
        return Endpoint(
            name=name,
            model=version.name,
            version=str(version.version),
            url=event["url"],
            run=handle.id,
            lease=handle.run["lease"],
            token_file=str(token_file),
        )

    def _announced(self, name: str) -> None:
        """The broker hears of an endpoint a moment after us; `predict` asks the broker."""
        deadline = clock.monotonic() + ANNOUNCE_TIMEOUT
        while not any(row["name"] == name and row["url"] for row in self.endpoints()):
            if clock.monotonic() > deadline:
                raise ClusterError(f"The broker has not heard of endpoint {name!r}; try again.")
            clock.sleep(0.01)

    def endpoints(self) -> list[dict[str, Any]]:
        """Live endpoints: name, model (with version), url, state, run, lease, token_file."""
        return [
            {
                "name": row["name"],
                "model": "/".join(
                    str(row["detail"][key]) for key in ("model", "version") if key in row["detail"]
                ),
                "url": row["detail"].get("url", ""),
                "state": row["state"],
                "run": row["id"],
                "lease": row["lease"],
                "started": row["started"],
                "user": row["user"],
                "metrics": row["metrics"],
                "token_file": str(_token_file(row["name"])),
            }
            for row in self.runs()
            if row["kind"] == RunKind.ENDPOINT.value and RunState(row["state"]) in LIVE
        ]

    def stop_endpoint(self, name: str) -> None:
        """Let an endpoint finish the requests in flight, and end it.

        Raises
        ------
        NotFoundError
            None of that name is live.
        """
        row = next((row for row in self.endpoints() if row["name"] == name), None)
        if row is None:
            raise NotFoundError(f"No endpoint {name!r} is live; 'aios endpoints' lists them.")
        self.stop(row["run"])
        handle = self.attach(row["run"])
        for _ in handle.events():
            pass
        _token_file(name).unlink(missing_ok=True)

    def predict(self, ref: str, x: Any) -> Any:
        """Ask the endpoint that serves a model (or that has this name) for its prediction.

        Raises
        ------
        NotFoundError
            Nobody serves it.
        """
        from ..models.client import infer

        with self._served(ref) as row:
            return infer(row["url"], Path(row["token_file"]).read_text().strip(), x)

    @contextmanager
    def _served(self, ref: str) -> Iterator[dict[str, Any]]:
        rows = [row for row in self.endpoints() if row["url"]]
        by_name = next((row for row in rows if row["name"] == ref), None)
        if by_name:
            yield by_name
            return
        from ..models import registry

        version = registry.resolve(ref)
        row = next((row for row in rows if row["model"] == version.ref), None)
        if row is None:
            raise NotFoundError(f"Nobody serves {ref}; start an endpoint with: aios serve {ref}")
        yield row


def _ready(handle: RunHandle, timeout: float) -> dict[str, Any]:
    """Wait until an endpoint says where it is; one that does not is ended."""
    deadline = clock.monotonic() + timeout
    try:
        while clock.monotonic() < deadline:
            try:
                event = handle.next_event(min(0.5, timeout))
            except queue.Empty:
                continue
            if event is None:
                handle.wait()
                raise RunError(
                    f"The endpoint ended before it was ready; see: aios logs {handle.id}"
                )
            if event["type"] == "endpoint":
                return event
    except KeyboardInterrupt:
        handle.stop()
        raise
    handle.stop()
    raise ClusterError(
        f"The endpoint was not ready within {timeout:g} s and was stopped; see its log with "
        f"'aios logs {handle.id}', or give it longer with --timeout."
    )


def _token_file(name: str) -> Path:
    return settings().runtime_dir / settings().cluster / f"endpoint-{quote(name, safe='')}.token"


def _new_token(name: str) -> Path:
    path = _token_file(name)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path


def _registry_environment() -> dict[str, str]:
    """The registry that this session uses; an endpoint gets no other `AIOS_` variable."""
    names = ("AIOS_REGISTRY_URI", "AIOS_STATE_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}
