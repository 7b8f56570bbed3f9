"""Endpoints: `serve`, `predict`, `monitor` and their listings."""

from __future__ import annotations

import ipaddress
import os
import queue
import secrets
import socket
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..cluster import embedded
from ..config import settings
from ..errors import AccessError, ClusterError, ConflictError, NotFoundError, RunError
from ..runs.handle import RunHandle
from ..schema import LIVE, DeviceKind, Lease, RunKind, RunState, Scope, Struct
from ..tls import issue_endpoint
from .models import ModelVerbs

if TYPE_CHECKING:
    from ..data.catalog import Entry
    from ..models.card import ModelCard

ANNOUNCE_TIMEOUT = 10.0
ENDPOINT_MODULE = "aios_jupyter.models.serve"
_REAL = (DeviceKind.GPU, DeviceKind.MIG)


class Endpoint(Struct, frozen=True, kw_only=True):
    """A model being served. The token is in the private file `token_file`.

    With HTTPS `authority` is the certificate that clients trust.
    """

    name: str
    model: str
    version: str
    url: str
    run: str
    lease: str
    token_file: str
    authority: str = ""


class EndpointVerbs(ModelVerbs):
    """A session that serves models."""

    def model_card(self, ref: str) -> ModelCard:
        """All that is known about a version: figures, lineage from data to endpoints, integrity."""
        from ..models import card

        return card.card(ref, self.endpoints(), self.trust())

    def serve(
        self,
        ref: str,
        *,
        devices: int | None = None,
        name: str | None = None,
        timeout: float = 60.0,
        replicas: int | str = 1,
        idle: float = 60.0,
        canary: tuple[str, float] | None = None,
        shadow: str | None = None,
        tls: bool | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        follow: bool = True,
        max_latency: float | None = None,
        rate: float | None = None,
        max_body: int | None = None,
        watch: float = 60.0,
        allow_pickle: bool = False,
        require_signature: bool = False,
    ) -> Endpoint:
        """Serve a model over HTTP in a process of its own on a leased device.

        Parameters
        ----------
        devices
            Lease so many for the endpoint alone, which then outlives this session. None: a device
            of the lease that this session holds, with which it ends; or one of its own.
        replicas
            Processes that answer, one for each device of the lease; all on one machine. One that
            dies is started again, without the others noticing. "1:4" has between one and four, as
            many as the load needs and devices are free at the beginning; "0:2" none while nobody
            asks, and the next request waits for the start.
        idle
            Seconds without need before there are fewer.
        canary
            An alias of the same model, and the share of requests that it answers.
        shadow
            An alias of the same model that gets a copy of each request: `monitor` says how often it
            would have answered the same.
        tls
            Whether over HTTPS, with a certificate of the cluster's; None where other machines can
            reach the endpoint.
        certificate, key
            For HTTPS, PEM files of one's own.
        follow
            Where `ref` is name@alias: change to what the alias names when it moves, with no request
            lost.
        max_latency, rate, max_body
            Seconds that a request may take, requests a second, bytes of one; beyond them a request
            is refused (503, 429, 413).
        watch
            Seconds between two looks of the endpoint at itself: whether errors, times or drift have
            crossed their limits, of which this session is told (`on_notice`).
        allow_pickle
            Also open a model that runs code of its own.
        require_signature
            Answer with versions that somebody known has signed, and no others, also when an alias
            moves; admins may demand that for all endpoints (`policy`).

        Raises
        ------
        NotFoundError
            There is no such model or alias.
        ConflictError
            An endpoint of that name is live, or a signature does not hold.
        AccessError
            The version lacks a signature that is required.
        """
        from ..models import registry, signing
        from ..models.serve import check_certificate, parse_scale

        scale = parse_scale(str(replicas), idle)
        own = check_certificate(certificate, key)
        trust = self.trust(required=require_signature)
        version = registry.resolve(ref, trust)
        beside = [f"{version.name}@{a}" for a in (canary and canary[0], shadow) if a is not None]
        for one in (version, *(registry.resolve(other, trust) for other in beside)):
            signing.check(one.ref, one.signed, required=trust.required)
        name = name or version.name
        if any(row["name"] == name for row in self.endpoints()):
            raise ConflictError(
                f"An endpoint {name!r} is live; stop it with 'aios endpoints stop {name}', or "
                "give another with --name."
            )
        token_file = _new_token(name)
        wish = str(scale.most) if scale.least == scale.most else f"{scale.first}:{scale.most}"
        if devices is None:
            want = {"devices": wish if scale.most > 1 else None}
            lease = self._lease_for_run(None, want, None, placement="node")
        else:
            lease = self.alloc(
                devices=wish if devices < scale.most else devices,
                scope=Scope.DETACHED,
                label=f"endpoint {name}",
                placement="node",
            )
        most = min(scale.most, len(lease.slots))
        host, files = self._door(name, lease, tls, own)
        served = ref.strip() if follow and "@" in ref else version.ref
        flags = {
            "--model": served,
            "--name": name,
            "--host": host,
            "--replicas": f"{min(scale.least, most)}:{most}",
            "--idle": f"{idle:g}",
            "--canary": canary and f"{canary[0]}={canary[1]:g}",
            "--shadow": shadow,
            "--certificate": files[0] or None,
            "--key": files[1] or None,
            "--devices": ",".join(s.device for s in lease.slots if s.kind in _REAL) or None,
            "--max-latency": max_latency and max_latency * 1000,
            "--rate": rate,
            "--max-body": max_body,
            "--watch": f"{watch:g}",
        }
        options = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
        handle = self.start(
            ENDPOINT_MODULE,
            module=True,
            kind=RunKind.ENDPOINT,
            argv=(*options, *(("--allow-pickle",) if allow_pickle else ())),
            lease=lease.id,
            devices=1,
            framework="none",
            name=name,
            env={
                "AIOS_ENDPOINT_TOKEN_FILE": str(token_file),
                **_registry_environment(),
                **trust.as_environment(),
            },
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
            authority=str(authority_of(name) or ""),
        )

    def _door(
        self, name: str, lease: Lease, tls: bool | None, own: tuple[str, str]
    ) -> tuple[str, tuple[str, str]]:
        """Where an endpoint listens, and its certificate and key; "" where it needs none."""
        host = lease.slots[0].address.rpartition(":")[0].strip("[]") or "127.0.0.1"
        trusted = _token_file(name).with_suffix(".pem")
        if any(own):
            trusted.write_bytes(Path(own[0]).read_bytes())
            return host, own
        if tls is False or (tls is None and (self._bundle or _loopback(host))):
            # A token does not travel in the open: where there is no certificate, this machine alone.
            return "127.0.0.1", ("", "")
        directory = settings().runtime_dir / settings().cluster
        names = {host, "127.0.0.1", "localhost", "::1", socket.gethostname()}
        stem = f"{trusted.stem}-own"
        authority = issue_endpoint(embedded.Paths.current().tls, stem, sorted(names), directory)
        trusted.write_bytes(authority.read_bytes())
        return host, (str(directory / f"{stem}.pem"), str(directory / f"{stem}.key"))

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
                "alerts": list(row["detail"].get("alerts", {}).values()),
                "authority": str(authority_of(row["name"]) or ""),
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
        _forget(name)

    def predict(self, ref: str, x: Any) -> Any:
        """Ask the endpoint that serves a model (or that has this name) for its prediction.

        Raises
        ------
        NotFoundError
            Nobody serves it.
        """
        from ..models.client import infer

        with self._served(ref) as row:
            return infer(row["url"], token_of(row), x, authority=authority_of(row["name"]))

    def predict_dataset(
        self,
        ref: str,
        dataset: str,
        to: str,
        *,
        allow_pickle: bool = False,
        require_signature: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Entry:
        """Make dataset `to`: `dataset` with a model's predictions, by the cluster's workers.

        Nobody need serve the model. Where the cluster is somebody else's (AIOS_BUNDLE) it is made in
        this process. `models.batch.predict_dataset` says how data becomes inputs, and has the errors.
        """
        from ..models import batch, registry

        trust = self.trust(required=require_signature)
        version = registry.resolve(ref, trust)
        package = registry.fetch(version.ref, trust)
        return batch.predict_dataset(
            package,
            version.ref,
            dataset,
            to,
            client=self._workers(),
            on_progress=on_progress,
            allow_pickle=allow_pickle,
        )

    def monitor(self, ref: str) -> dict[str, Any]:
        """How an endpoint does: `name`, `model`, and what `models.monitor.observe` gives.

        Raises
        ------
        NotFoundError
            Nobody serves it.
        """
        from ..models import monitor

        with self._served(ref) as row:
            authority = authority_of(row["name"])
            seen = monitor.observe(row["url"], token_of(row), row["model"], authority)
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


def token_of(row: dict[str, Any]) -> str:
    """The token of an endpoint, a row of `endpoints`.

    Raises
    ------
    AccessError
        It is not on this machine, or not for this user.
    """
    try:
        return Path(row["token_file"]).read_text().strip()
    except OSError:
        raise AccessError(
            f"The token of endpoint {row['name']!r} is with {row['user']}, who started it, on their "
            "machine; ask it from there."
        ) from None


def authority_of(name: str) -> Path | None:
    """What is trusted of an endpoint of this user; None where it speaks plain HTTP."""
    path = _token_file(name).with_suffix(".pem")
    return path if path.exists() else None


def _forget(name: str) -> None:
    path = _token_file(name)
    for suffix in (".token", ".ref", ".pem"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    for suffix in (".pem", ".key"):
        path.with_name(f"{path.stem}-own{suffix}").unlink(missing_ok=True)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _follows(endpoint: str) -> str:
    """What an endpoint of this user was asked to serve; "" where that is not known here."""
    try:
        return _token_file(endpoint).with_suffix(".ref").read_text()
    except OSError:
        return ""


def _new_token(name: str) -> Path:
    _forget(name)
    path = _token_file(name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path


def _registry_environment() -> dict[str, str]:
    """The registry that this session uses; an endpoint gets no other `AIOS_` variable."""
    names = ("AIOS_REGISTRY_URI", "AIOS_STATE_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}
