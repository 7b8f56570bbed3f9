"""The process behind an endpoint: `python -m aios_jupyter.models.serve --model REF`.

It runs as a rank under a lease, or by hand. It owns the listening socket and the replicas that
answer on it (`replica.py`): one that dies is started again while the socket stays open, there are
as many as the load needs, and where REF is NAME@ALIAS they change to what the alias names, with no
request lost. The token is in the
file that `AIOS_ENDPOINT_TOKEN_FILE` names (mode 0600). When it answers it says so on the run's
event channel, or with one JSON line on standard output. SIGTERM lets the requests in flight finish,
refuses new ones, and exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..config import settings
from ..errors import AiosError, ConflictError, UsageError
from ..runs import events
from .numbers import FOLDER
from .plan import MAX_BODY, Plan
from .predictor import Package
from .scaling import Scale
from .supervisor import Supervisor

MOST_REPLICAS = 256
TOKEN_FILE = "AIOS_ENDPOINT_TOKEN_FILE"  # noqa: S105  # a variable's name


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop.

    Raises
    ------
    AiosError
        The model, the token or the address cannot be used.
    """
    options = _options(argv)
    token = read_token(group=options.files is not None)
    scale = parse_scale(options.replicas, options.idle)
    certificate, key = check_certificate(options.certificate, options.key)
    plan = Plan(
        ref=options.model or "",
        package=package_in(options.files) if options.files else None,
        name=options.name or "",
        token=token,
        scale=scale,
        canary=_canary(options.canary, options.model),
        shadow=options.shadow and f"{_name(options.model)}@{options.shadow}",
        max_body=options.max_body,
        max_rows=options.max_batch,
        rate=options.rate,
        max_seconds=None if options.max_latency is None else options.max_latency / 1000,
        threads=options.threads,
        allow_pickle=options.allow_pickle,
        grace=options.grace,
        follow=not options.pinned,
        certificate=certificate,
        key=key,
        devices=tuple(filter(None, options.devices.split(","))),
        watch=options.watch,
        here=options.here,
        gather=options.gather,
    )
    with _bound(options.host or _own_host(), options.port) as listener, _shared_numbers(plan):
        asyncio.run(_serve(plan, listener, url_of(listener, tls=bool(certificate))))
    return 0


async def _serve(plan: Plan, listener: socket.socket, url: str) -> None:
    await Supervisor(plan, listener, url, _Voice(url)).run()


def _own_host() -> str:
    """Where a rank's node is reached by the others; this machine alone where it is no rank."""
    return (events.channel() is not None and os.environ.get("MASTER_ADDR")) or "127.0.0.1"


def parse_scale(text: str, idle: float) -> Scale:
    """`2`, `1:4` or `0:2` as numbers of replicas.

    Raises
    ------
    UsageError
        It is none of these.
    """
    least, colon, most = text.partition(":")
    if not (least.isdigit() and (not colon or most.isdigit())):
        raise UsageError(f"'{text}' is no number of replicas; write 2, or 1:4 for 1 to 4 by load.")
    scale = Scale(least=int(least), most=int(most or least), idle=idle)
    if not 0 < scale.most <= MOST_REPLICAS or scale.least > scale.most:
        raise UsageError(
            f"'{text}' replicas serve nobody; write 2, 1:4, or 0:2 to end all when idle; "
            f"{MOST_REPLICAS} at most."
        )
    return scale


def check_certificate(certificate: str | Path | None, key: str | Path | None) -> tuple[str, str]:
    """Paths of both files, once they fit each other; "" for no TLS.

    Raises
    ------
    UsageError
        One is missing, or they cannot be used.
    """
    if certificate is None and key is None:
        return "", ""
    if certificate is None or key is None:
        raise UsageError("For TLS give both --certificate and --key.")
    paths = str(Path(certificate).expanduser()), str(Path(key).expanduser())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"TLS is not possible with {certificate} and {key} ({error.strerror or error}); give a "
            "certificate and its key as PEM files, the key without a passphrase."
        ) from None
    return paths


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aios_jupyter.models.serve", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", help="NAME, NAME/VERSION or NAME@ALIAS, which is followed")
    where.add_argument("--files", type=Path, help="a folder that `aios export` wrote")
    parser.add_argument("--host", help="where to listen; 127.0.0.1 but for ranks")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--name", help="what it is called in URLs (the model's name)")
    parser.add_argument("--replicas", default="1", help="processes that answer: 2, or 1:4, 0:2")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds before there are fewer")
    parser.add_argument("--canary", help="ALIAS=SHARE: a second version for 0.1 of the requests")
    parser.add_argument("--shadow", help="ALIAS: a version that gets copies of the requests")
    parser.add_argument("--certificate", help="a PEM file, for TLS")
    parser.add_argument("--key", help="the certificate's")
    parser.add_argument("--devices", default="", help="GPUs for the replicas, one each")
    parser.add_argument(
        "--watch", type=float, default=60.0, help="seconds between looks for alerts"
    )
    parser.add_argument(
        "--here", type=int, default=1, help="replicas that this machine has room for"
    )
    parser.add_argument(
        "--gather", default="", help="certificates for machines that run the others"
    )
    parser.add_argument("--pinned", action="store_true", help="stay when an alias moves")
    parser.add_argument("--max-batch", type=int, default=64, help="samples run together at most")
    parser.add_argument("--max-body", type=int, default=MAX_BODY, help="bytes of a request at most")
    parser.add_argument("--max-latency", type=float, help="milliseconds that a request may take")
    parser.add_argument("--rate", type=float, help="requests a second that are let through")
    parser.add_argument("--threads", type=int, help="threads of the model")
    parser.add_argument("--grace", type=float, default=settings().stop_grace)
    parser.add_argument("--allow-pickle", action="store_true")
    return parser.parse_args(argv)


def _canary(text: str | None, ref: str | None) -> tuple[str, float] | None:
    """`challenger=0.1` as a reference and a share."""
    if text is None:
        return None
    alias, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not ref or not alias or not 0 < value < 1:
        raise UsageError(f"--canary {text}: write ALIAS=SHARE, as in challenger=0.1.")
    return f"{_name(ref)}@{alias}", value


def _name(ref: str) -> str:
    """The model's name in a reference."""
    return ref.partition("@")[0].partition("/")[0]


def read_token(*, group: bool = False) -> str:
    """The token that clients must send; with `group` the file's group may read it too.

    Raises
    ------
    UsageError
        There is no token file, others can read it, or it is empty.
    """
    name = os.environ.get(TOKEN_FILE)
    if not name:
        raise UsageError(f"No token: set {TOKEN_FILE} to a file (mode 0600) that holds one.")
    path = Path(name)
    try:
        text = path.read_text().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"The token file {path} cannot be read: {error.strerror}.") from None
    if mode & (0o007 if group else 0o077):
        raise UsageError(f"Others can read the token file {path}; run: chmod 600 {path}")
    if not text:
        raise UsageError(f"The token file {path} is empty; write a token into it.")
    return text


def package_in(folder: Path) -> Package:
    """The model of an exported folder."""
    try:
        package = msgspec.json.decode((folder / "package.json").read_bytes(), type=Package)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{folder} is no exported model ({error}); export it again.") from None
    return msgspec.structs.replace(package, path=str(folder))


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket: the address is ours at once, and refuses until the model is open."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConflictError(
                f"Cannot listen on {host}:{port} ({reason}); take another port, or 0 for a free one."
            ) from None
        listener.set_inheritable(True)
        yield listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The address that clients use."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@contextlib.contextmanager
def _shared_numbers(plan: Plan) -> Iterator[None]:
    """With several replicas, or none for a while: a folder in which each keeps its metrics, so that
    all tell the sum.
    """
    if plan.scale.least == plan.scale.most == 1 and not plan.gather:
        os.environ.pop(FOLDER, None)
        yield
        return
    with tempfile.TemporaryDirectory(prefix="aios-endpoint-") as folder:
        os.environ[FOLDER] = folder
        yield


class _Voice:
    """Says how it goes on the run's event channel, or with JSON lines on standard output."""

    def __init__(self, url: str) -> None:
        self._url = url

    def announce(self, model: str, version: str) -> None:
        if (channel := events.channel()) is None:
            _line({"url": self._url, "model": model, "version": version})
        else:
            channel.endpoint(self._url, model, version)

    def gather(self, address: str) -> None:
        if (channel := events.channel()) is None:
            _line({"gather": address})
        else:
            channel.send(events.Gathering(time=time.time(), address=address))

    def report(self, metrics: dict[str, float]) -> None:
        if (channel := events.channel()) is not None:
            channel.metrics(metrics)

    def alarm(self, alerts: dict[str, str]) -> None:
        if (channel := events.channel()) is None:
            _line({"alerts": alerts})
        else:
            channel.send(events.Alerted(time=time.time(), alerts=alerts))


def _line(said: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def run() -> int:
    """`main` for a shell: an error is one sentence. A rank's run tells its user itself."""
    if events.channel() is not None:
        return main()
    try:
        return main()
    except AiosError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(run())
