"""Endpoints: `serve`, `predict`, `monitor` and their listings."""

from __future__ import annotations

import os
import queue
import secrets
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..config import settings
from ..errors import ClusterError, ConflictError, NotFoundError, RunError
from ..runs.handle import RunHandle
from ..schema import LIVE, RunKind, RunState, Scope, Struct
from .models import ModelVerbs

if TYPE_CHECKING:
    from ..models.card import ModelCard

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


class EndpointVerbs(ModelVerbs):
    """A session that serves models."""

    def model_card(self, ref: str) -> ModelCard:
        """All that is known about a version: figures, lineage from data to endpoints, integrity."""
        from ..models import card

        return card.card(ref, self.endpoints())

    def serve(
        self,
        ref: str,
        *,
        devices: int | None = None,
        name: str | None = None,
        timeout: float = 60.0,
        replicas: int = 1,
        canary: tuple[str, float] | None = None,
        follow: bool = True,
        max_latency: float | None = None,
        rate: float | None = None,
        max_body: int | None = None,
        allow_pickle: bool = False,
    ) -> Endpoint:
        """Serve a model over HTTP in a process of its own on a leased device.

        Parameters
        ----------
        devices
            Lease so many for the endpoint alone, which then outlives this session. None: a device
            of the lease that this session holds, with which it ends; or one of its own.
        replicas
            Processes that answer, one for each device of the lease; all on one machine. One that
            dies is started again, without the others noticing.
        canary
            An alias of the same model, and the share of requests that it answers.
        follow
            Where `ref` is name@alias: change to what the alias names when it moves, with no request
            lost.
        max_latency, rate, max_body
            Seconds that a request may take, requests a second, bytes of one; beyond them a request
            is refused (503, 429, 413).
        allow_pickle
            Also open a model that runs code of its own.

        Raises
        ------
        NotFoundError
            There is no such model or alias.
        ConflictError
            An endpoint of that name is live.
        """
        from ..models import registry

        version = registry.resolve(ref)
        if canary is not None:
            registry.resolve(f"{version.name}@{canary[0]}")
        name = name or version.name
        if any(row["name"] == name for row in self.endpoints()):
            raise ConflictError(
                f"An endpoint {name!r} is live; stop it with 'aios endpoints stop {name}', or "
                "give another with --name."
            )
        token_file = _new_token(name)
        if devices is None:
            wish = {"devices": replicas if replicas > 1 else None}
            lease = self._lease_for_run(None, wish, None, placement="node")
        else:
            lease = self.alloc(
                devices=max(devices, replicas),
                scope=Scope.DETACHED,
                label=f"endpoint {name}",
                placement="node",
            )
        served = ref.strip() if follow and "@" in ref else version.ref
        flags = {
            "--canary": canary and f"{canary[0]}={canary[1]:g}",
            "--max-latency": max_latency and max_latency * 1000,
            "--rate": rate,
            "--max-body": max_body,
        }
        options = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
        handle = self.start(
            ENDPOINT_MODULE,
            module=True,
            kind=RunKind.ENDPOINT,
            argv=(
                *("--model", served, "--name", name, "--replicas", str(replicas)),
                *options,
                *(("--allow-pickle",) if allow_pickle else ()),
            ),
            lease=lease.id,
            devices=1,
            framework="none",
            name=name,
            env={"AIOS_ENDPOINT_TOKEN_FILE": str(token_file), **_registry_environment()},
        )
        event = _ready(handle, timeout)
        self._announced(name)
        token_file.with_suffix(".ref").write_text(served)
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
        _token_file(name).with_suffix(".ref").unlink(missing_ok=True)

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

    def monitor(self, ref: str) -> dict[str, Any]:
        """How an endpoint does: `name`, `model`, and what `models.monitor.observe` gives.

        Raises
        ------
        NotFoundError
            Nobody serves it.
        """
        from ..models import monitor

        with self._served(ref) as row:
            token = Path(row["token_file"]).read_text().strip()
            seen = monitor.observe(row["url"], token, row["model"])
            return {"name": row["name"], "model": row["model"], **seen}

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
        if row is None:  # it follows this alias, which has moved just now
            row = next((row for row in rows if _follows(row["name"]) == ref), None)
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


def _follows(endpoint: str) -> str:
    """What an endpoint of this user was asked to serve; "" where that is not known here."""
    try:
        return _token_file(endpoint).with_suffix(".ref").read_text()
    except OSError:
        return ""


def _new_token(name: str) -> Path:
    path = _token_file(name)
    path.unlink(missing_ok=True)
    path.with_suffix(".ref").unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path


def _registry_environment() -> dict[str, str]:
    """The registry that this session uses; an endpoint gets no other `AIOS_` variable."""
    names = ("AIOS_REGISTRY_URI", "AIOS_STATE_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}
