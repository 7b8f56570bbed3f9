"""The connection of a session: opened, kept, opened again after the cluster was restarted."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ..broker.client import AsyncClient, Loop
from ..cluster import bundle, embedded
from ..config import settings
from ..errors import ClusterError, UsageError
from ..process import alive, process_start
from ..runs.launcher import Launcher
from ..schema import Keep, Lease
from ..tls import Bundle


class Link:
    """A session without verbs.

    Attributes
    ----------
    label
        What people see as the owner of this session's leases.
    on_notice
        Called with a sentence that the user should see, from another thread: a lease that is about
        to end, or a reservation that has begun.
    preempted
        Leases of this session that were taken for others.
    """

    def __init__(
        self,
        *,
        start: bool = True,
        simulate_gpus: int | None = None,
        label: str = "",
        shell: bool = False,
        passive: bool = False,
    ) -> None:
        self.label = label
        self.on_notice: Callable[[str], None] | None = None
        self.preempted: dict[str, Lease] = {}
        self._start = start
        self._simulate = simulate_gpus
        self._shell = shell
        self._passive = passive
        # Once and for all: a session is one person's, with one cluster.
        self._bundle = bundle.current()
        self._loop = Loop()
        self._client: AsyncClient | None = None
        self._launcher: Launcher | None = None
        self._dask: Any = None
        self._open()
        if not shell:
            atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; its leases end now. A shell's leases stay until the shell ends."""
        atexit.unregister(self.close)
        if self._dask is not None:
            self._dask.close()
            self._dask = None
        if self._client is not None:
            self._loop.run(self._client.close(goodbye=not self._shell))
            self._client = None
        if self._launcher is not None:
            self._loop.run(self._launcher.close())
        self._loop.stop()

    # --- the connection

    def _open(self) -> AsyncClient:
        first = True

        async def locate() -> tuple[str, Any]:
            nonlocal first
            start, first = self._start and first, False
            simulate = self._simulate if start else None
            return await asyncio.to_thread(_locate, self._bundle, start, simulate)

        async def connect_() -> AsyncClient:
            options: dict[str, Any] = {"label": self.label, "passive": self._passive}
            if self._shell:
                pid = os.getppid()
                options |= {
                    "keep": Keep.PROCESS,
                    "pid": pid,
                    "secret": _shell_secret(pid, self._bundle),
                }
            return await AsyncClient(locate, **options).open()

        self._client = self._loop.run(connect_())
        self._client.listen(self._told)
        own = bundle.load(self._bundle)[1] if self._bundle else embedded.Paths.current().user
        self._launcher = Launcher(self._client, own)
        return self._client

    def _told(self, topic: str, body: Any) -> None:
        if topic == "notice" and self.on_notice:
            self.on_notice(body.text)
        if topic == "lease.ended" and body.preempted:
            self.preempted[body.id] = body

    @property
    def client(self) -> AsyncClient:
        """The connection; a new one when the cluster was stopped and started since."""
        if self._client is None:
            raise ClusterError("This session is closed; connect again.")
        if self._client.closed.is_set():
            return self._open()
        return self._client

    def _call(self, op: str, body: Any = None, result: Any = Any) -> Any:
        return self._loop.run(self.client.call(op, body, result))

    @property
    def user(self) -> str:
        """Who the broker takes us for."""
        return self.client.welcome.user

    def status(self) -> dict[str, Any]:
        """The snapshot that the sidebar shows: cluster, nodes, devices, queue, leases, runs."""
        return dict(self._call("status"))


async def observe(*, label: str) -> AsyncClient:
    """An asyncio client that only looks on, with the cluster that runs: for servers.

    Raises
    ------
    NoClusterError
        No cluster runs.
    """

    async def locate() -> tuple[str, Any]:
        return await asyncio.to_thread(_locate, bundle.current(), False, None)

    return await AsyncClient(locate, label=label, passive=True).open()


def _locate(directory: Path | None, start: bool, simulate_gpus: int | None) -> tuple[str, Bundle]:
    """Where the broker is, and who we are: by the bundle, or in a cluster of our own."""
    if directory is None:
        facts = embedded.ensure(start=start, simulate_gpus=simulate_gpus)
        return str(facts["address"]), embedded.Paths.current().user
    if simulate_gpus is not None:
        raise UsageError(
            "AIOS_BUNDLE names a cluster that runs already, so that no devices can be simulated "
            "for it; unset it to start one of your own."
        )
    return bundle.load(directory)


def _shell_secret(pid: int, directory: Path | None) -> str:
    """The secret of a shell's session: in a private file named after the shell's process.

    Another one for each bundle, as a session is one person's.
    """
    own = _own_shell_secret(pid)
    if directory is None:
        return own
    return hashlib.sha256(f"{own} {directory}".encode()).hexdigest()[:32]


def _own_shell_secret(pid: int) -> str:
    directory = settings().runtime_dir / "shells"
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.iterdir():
        shell, _, start = path.name.partition("-")
        if not alive(int(shell), int(start)):
            path.unlink(missing_ok=True)
    path = directory / f"{pid}-{process_start(pid)}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    secret = secrets.token_hex(16)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
    return secret
