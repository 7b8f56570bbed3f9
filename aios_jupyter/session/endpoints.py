"""Endpoints: `serve`, `predict`, `monitor` and their listings."""

from __future__ import annotations

import os
import queue
import socket
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cluster import embedded
from ..config import settings
from ..errors import AiosError, ClusterError, ConflictError, NotFoundError, RunError, UsageError
from ..runs.handle import RunHandle
from ..schema import LIVE, Lease, RunKind, RunState, Struct
from ..tls import create_closed, issue_endpoint
from .endpoint_files import (
    authority_of,
    follows,
    forget,
    gather_folder,
    new_token,
    token_of,
    token_path,
)
from .spreading import SpreadVerbs, here, host_of, loopback, real_devices

if TYPE_CHECKING:
    from ..data.catalog import Entry
    from ..models.card import ModelCard

ANNOUNCE_TIMEOUT = 10.0
ENDPOINT_MODULE = "aios_jupyter.models.serve"


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


class EndpointVerbs(SpreadVerbs):
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
        placement: str = "",
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
            Processes that answer, one for each device. One that dies is started again, without the
            others noticing. "1:4" has between one and four, as many as the load needs and devices
            are free at the beginning; "0:2" none while nobody asks, and the next request waits for
            the start.
        placement
            `node`: all on one node, with what is free there; `pack` on few, or `spread` over many,
            under a lease for each node. By default on one where one is large enough for those
            that there are at first, else packed. The first node has the address: it passes
            connections on to the others, which fetch the model from it and may be lost.
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
        token_file = new_token(name)
        leases = self._endpoint_leases(name, scale, devices, placement)
        lease, others = leases[0], leases[1:]
        served = ref.strip() if follow and "@" in ref else version.ref
        most = min(scale.most, here(lease) + sum(len(other.slots) for other in others))
        try:
            host, files = self._door(name, leases, tls, own)
            flags = {
                "--model": served,
                "--name": name,
                "--host": host,
                "--replicas": f"{min(scale.least, most)}:{most}",
                "--here": here(lease),
                "--gather": _gathers(name) if others else None,
                "--idle": f"{idle:g}",
                "--canary": canary and f"{canary[0]}={canary[1]:g}",
                "--shadow": shadow,
                "--certificate": files[0] or None,
                "--key": files[1] or None,
                "--devices": ",".join(real_devices(lease)) or None,
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
            event = self._ready(name, handle, timeout, others)
        except BaseException:
            self._give_back(leases)
            raise
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

    def _ready(
        self, name: str, handle: RunHandle, timeout: float, others: Sequence[Lease]
    ) -> dict[str, Any]:
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
                if event["type"] == "gathering":
                    for lease in others:
                        self._start_host(name, event["address"], gather_folder(name), lease)
                elif event["type"] == "endpoint":
                    return event
        except (AiosError, KeyboardInterrupt):
            handle.stop()
            raise
        handle.stop()
        raise ClusterError(
            f"The endpoint was not ready within {timeout:g} s and was stopped; see its log with "
            f"'aios logs {handle.id}', or give it longer with --timeout."
        )

    def _door(
        self, name: str, leases: Sequence[Lease], tls: bool | None, own: tuple[str, str]
    ) -> tuple[str, tuple[str, str]]:
        """Where an endpoint listens, and its certificate and key; "" where it needs none."""
        host = host_of(leases[0])
        trusted = token_path(name).with_suffix(".pem")
        if len(leases) > 1 and not all(loopback(host_of(lease)) for lease in leases):
            if tls is False and not any(own):
                raise UsageError(
                    "The token of an endpoint on several nodes travels between them, which needs "
                    "HTTPS; leave --no-tls out, or have all on one node with --placement node."
                )
            tls = True
        if any(own):
            trusted.write_bytes(Path(own[0]).read_bytes())
            return host, own
        if tls is False or (tls is None and (self._bundle or loopback(host))):
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
                "token_file": str(token_path(row["name"])),
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
        forget(name)

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
            row = next((row for row in rows if follows(row["name"]) == ref), None)
        if row is None:
            raise NotFoundError(f"Nobody serves {ref}; start an endpoint with: aios serve {ref}")
        yield row


def _gathers(name: str) -> Path:
    """Certificates for the other machines of an endpoint, new ones, and where they are."""
    folder = gather_folder(name)
    folder.mkdir(mode=0o700)
    create_closed(folder, f"AIOS endpoint {name}", "endpoint", "node")
    return folder


def _registry_environment() -> dict[str, str]:
    """The registry that this session uses; an endpoint gets no other `AIOS_` variable."""
    names = ("AIOS_REGISTRY_URI", "AIOS_STATE_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}
