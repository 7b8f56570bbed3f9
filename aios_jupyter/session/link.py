"""The connection of a session: opened, kept, opened again after the cluster was restarted."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ..broker.client import AsyncClient
from ..broker.loop import Loop
from ..cluster import bundle, embedded
from ..errors import AccessError, ClusterError, UsageError
from ..runs.launcher import Launcher
from ..runs.tunnel import BROKER, forwarded
from ..schema import Keep, Lease
from ..tls import Bundle
from .identity import kernel_keep, kernel_secret, shell_secret

# Names the lease of a kernel to what it starts. That is no secret: the broker asks whose it is.
LEASE = "AIOS_LEASE"


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
    stopped_batches
        Batches that this session runs and somebody has stopped, each with who.
    for_children
        Whether what this process starts uses what this session has leased: `!aios` in a notebook.
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
        self.stopped_batches: dict[str, str] = {}
        self.for_children = False
        self._start = start
        self._simulate = simulate_gpus
        self._shell = shell
        self._passive = passive
        # Once and for all: a session is one person's, with one cluster.
        self._bundle = bundle.current()
        self._forward = forwarded()
        # Of a kernel that was started with devices: it joins the session that holds them, and one that
        # is far from who holds them does so with what it starts.
        self._kernel = ""
        if self._forward and not passive:
            self._kernel = self._forward.standing().secret
        elif not (shell or passive):
            self._kernel = kernel_secret(os.getpid(), self._bundle)
        self._loop = Loop()
        self._client: AsyncClient | None = None
        self._launcher: Launcher | None = None
        self._dask: Any = None
        try:
            self._open()
        except BaseException:
            self._loop.stop()
            raise
        if not shell:
            atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; its leases end now.

        A shell's leases stay until the shell ends, those of a kernel that was started with devices
        until that kernel does.
        """
        atexit.unregister(self.close)
        if self._dask is not None:
            self._dask.close()
            self._dask = None
        if self._client is not None:
            self._loop.run(self._client.close(goodbye=not (self._shell or self._kernel)))
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
            if self._forward:
                return BROKER, self._forward
            return await asyncio.to_thread(locate_broker, self._bundle, start, simulate)

        async def connect_() -> AsyncClient:
            options: dict[str, Any] = {"label": self.label, "passive": self._passive}
            if self._forward and self._kernel:
                # What keeps the session is who started the kernel.
                options |= {"secret": self._kernel, "passive": True}
            elif self._shell:
                pid = os.getppid()
                options |= {
                    "keep": Keep.PROCESS,
                    "pid": pid,
                    "secret": shell_secret(pid, self._bundle),
                }
            elif self._kernel:
                options |= {
                    "keep": kernel_keep(self._bundle),
                    "secret": self._kernel,
                    "kernel": True,
                }
            return await AsyncClient(locate, **options).open()

        self._client = self._loop.run(connect_())
        self._client.listen(self._told)
        own: Any = self._forward
        if own is None:
            own = bundle.load(self._bundle)[1] if self._bundle else embedded.Paths.current().user
        self._launcher = Launcher(self._client, own)
        return self._client

    def _told(self, topic: str, body: Any) -> None:
        if topic == "notice" and self.on_notice:
            self.on_notice(body.text)
        if topic == "batch.stop":
            self.stopped_batches[body.id] = body.reason
        if topic == "lease.ended" and body.preempted:
            self.preempted[body.id] = body
        if topic != "lease.ended" or body.id != os.environ.get(LEASE):
            return
        if not self._kernel:
            del os.environ[LEASE]
        else:
            # What has not looked for GPUs yet finds none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            if self.on_notice:
                self.on_notice(
                    f"Lease {body.id} of this kernel has ended: {body.reason}. Restart the kernel "
                    "for other devices; without, it goes on and keeps its variables."
                )

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
        return await asyncio.to_thread(locate_broker, bundle.current(), False, None)

    return await AsyncClient(locate, label=label, passive=True).open()


def locate_tasks(directory: Path | None) -> str:
    """Where Dask's scheduler is, in a cluster of our own.

    Raises
    ------
    AccessError
        The cluster is somebody else's.
    """
    if directory:
        raise AccessError(
            "Whoever reaches a cluster's Dask workers can run code as its owner, so that a bundle "
            "(AIOS_BUNDLE) does not admit there; work under a lease with 'aios train'."
        )
    return str(embedded.ensure(start=False)["dask"])


def locate_broker(
    directory: Path | None, start: bool, simulate_gpus: int | None
) -> tuple[str, Bundle]:
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
