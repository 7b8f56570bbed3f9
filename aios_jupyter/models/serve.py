"""The process behind an endpoint: `python -m aios_jupyter.models.serve --model REF`.

It runs as a rank under a lease, or by hand. The token is in the file that
`AIOS_ENDPOINT_TOKEN_FILE` names (mode 0600). When it answers it says so on the run's event channel,
or with one JSON line on standard output. SIGTERM lets the requests in flight finish, refuses new
ones, and exits with 0. torch and MLflow are never imported here: another process asks the registry.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import uvicorn

from ..config import settings
from ..errors import AiosError, ConflictError, UsageError, from_kind
from ..runs import events
from .predictor import Package, Predictor, open_package, zeros
from .service import MAX_BODY, Service

TOKEN_FILE = "AIOS_ENDPOINT_TOKEN_FILE"  # noqa: S105  # a variable's name
REPORT_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop.

    Raises
    ------
    AiosError
        The model, the token or the address cannot be used.
    """
    options = _options(argv)
    token = read_token(group=options.files is not None)
    with _bound(options.host, options.port) as listener:
        package = _package(options.model) if options.model else package_in(options.files)
        predictor = open_package(
            package, threads=options.threads, allow_pickle=options.allow_pickle
        )
        _warm_up(predictor)
        service = Service(
            predictor,
            options.name or package.name,
            str(package.version),
            token,
            max_body=options.max_body,
            max_rows=options.max_batch,
        )
        _Server(service, package.name, listener, options.grace).run(sockets=[listener])
    service.batcher.close()
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aios_jupyter.models.serve", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", help="NAME, NAME/VERSION or NAME@ALIAS")
    where.add_argument("--files", type=Path, help="a folder that `aios export` wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--name", help="what it is called in URLs (the model's name)")
    parser.add_argument("--max-batch", type=int, default=64, help="samples run together at most")
    parser.add_argument("--max-body", type=int, default=MAX_BODY, help="bytes of a request at most")
    parser.add_argument("--threads", type=int, help="threads of the model")
    parser.add_argument("--grace", type=float, default=settings().stop_grace)
    parser.add_argument("--allow-pickle", action="store_true")
    return parser.parse_args(argv)


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


def _package(ref: str) -> Package:
    """Ask the registry in another process: MLflow's imports and memory do not stay with us."""
    command = [sys.executable, "-m", "aios_jupyter.models.download", ref]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as lookup:
        import onnxruntime  # noqa: F401  # while the other process works

        output, _ = lookup.communicate()
    try:
        if lookup.returncode == 0:
            return msgspec.json.decode(output, type=Package)
        refused = msgspec.json.decode(output, type=dict[str, str])
    except msgspec.DecodeError:
        raise ConflictError(
            f"The registry could not be asked (exit status {lookup.returncode}); the reason is "
            "above in this log."
        ) from None
    raise from_kind(refused["kind"], refused["message"])


def _warm_up(predictor: Predictor) -> None:
    """Run once before anybody waits: the first run allocates."""
    sample = zeros(predictor.signature)
    if sample is not None:
        with contextlib.suppress(Exception):  # zeros may be no valid input; requests will tell
            predictor.run(sample)


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
        yield listener


class _Server(uvicorn.Server):
    """uvicorn with an announcement when it answers, a report now and then, and a clean end."""

    def __init__(self, service: Service, model: str, listener: socket.socket, grace: float) -> None:
        self._service = service
        self._model = model  # in the registry; in URLs it may have another name
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        super().__init__(
            uvicorn.Config(
                service.app(),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=1024,
                timeout_keep_alive=75,
                # What is left of the grace is for our own end before SIGKILL comes.
                timeout_graceful_shutdown=max(1, int(grace * 0.8)),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT in the loop; uvicorn's own would raise them again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _drain(self) -> None:
        self._service.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door, then say so."""
        await super().startup(sockets)
        self._announce()
        self._reporter = asyncio.create_task(self._report())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is in flight."""
        self._reporter.cancel()
        await super().shutdown(sockets)
        self._report_now()

    def _announce(self) -> None:
        model, version = self._model, self._service.version
        channel = events.channel()
        if channel is None:
            said = {"url": self.url, "model": model, "version": version}
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
        else:
            channel.send(
                events.EndpointReady(time=time.time(), url=self.url, model=model, version=version)
            )

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._report_now()

    def _report_now(self) -> None:
        changes = self._service.telemetry.changes()
        channel = events.channel()
        if changes and channel is not None:
            channel.metrics(changes)


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
