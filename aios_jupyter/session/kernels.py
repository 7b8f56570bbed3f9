"""A kernel's devices: taken by whoever starts the kernel, and the kernel's own from then on.

The session that holds them stands for the starting process (a Jupyter server, papermill) until
there is a kernel, and for the kernel's process after that: the broker ends it when that process is
gone, whether or not anybody tells. The kernel joins the same session (`identity.py`).

One whose devices are on another node runs there (`far_kernels.py`). Its session stands for the starting
process all the time: with that it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from ..broker.client import AsyncClient, Pending
from ..broker.loop import Loop
from ..broker.messages import ById
from ..cluster import bundle
from ..errors import AllocationError, ClusterError, ConflictError, NotFoundError
from ..process import alive, process_start
from ..runs.launcher import Launcher
from ..schema import Keep, Lease, LeaseState, Request, Scope
from .asking import not_granted
from .far_kernels import FarKernel
from .identity import keep_kernel_secret, kernel_keep, secret_for
from .link import locate_broker, locate_tasks

T = TypeVar("T")
WATCH_INTERVAL = 0.5
# A kernel that has died may be started again: Jupyter looks every 3 s. One that failed too often
# in a row is left dead without a word to its provisioner.
RESTART_GRACE = 15.0
ACTIVE_INTERVAL = 3.0

_waiting: set[Tenancy] = set()


@functools.cache
def _loop() -> Loop:
    """A thread for all kernels of this process: a busy server or notebook delays no heartbeat."""
    return Loop()


def give_up_waiting(reason: str) -> None:
    """Have every kernel that waits for devices in this process be refused."""
    for tenancy in list(_waiting):
        tenancy.give_up(reason)


class Tenancy:
    """The devices of one kernel, through all its restarts. May be awaited in any event loop.

    Parameters
    ----------
    request
        What to ask for.
    wait
        Give up after so many seconds.
    on_wait
        Called with the request's row of the queue whenever that changes, from another thread.
    on_notice
        Called with a sentence that the user should see, from another thread.
    on_end
        Called with the lease when it has ended before its kernel, from another thread.
    busy
        Whether the kernel has computed since it was last asked, from another thread.
    """

    def __init__(
        self,
        request: Request,
        *,
        wait: float,
        on_wait: Callable[[dict[str, Any]], None],
        on_notice: Callable[[str], None],
        on_end: Callable[[Lease], None],
        busy: Callable[[], bool],
    ) -> None:
        self.request = request
        self.lease: Lease | None = None
        self._wait = wait
        self._on_wait, self._on_notice, self._on_end = on_wait, on_notice, on_end
        self._busy = busy
        self._secret = secrets.token_hex(16)
        self._bundle = bundle.current()
        self._client: AsyncClient | None = None
        self._started = False
        self._given_up = ""
        self._pid, self._start = 0, 0
        self._watch: asyncio.Task[None] | None = None
        self._launcher: Launcher | None = None
        self._far: FarKernel | None = None

    @property
    def held(self) -> bool:
        """Whether there is a lease now that a kernel can be started with."""
        client = self._client
        if self.lease is None or client is None or client.closed.is_set():
            return False
        return self._far is None or not self._far.stranded

    async def take(self) -> Lease:
        """Wait in the queue until the devices are there.

        Raises
        ------
        AllocationError
            Refused, cancelled, given up, or not granted in the time given.
        ClusterError
            There is no cluster, and none can be started.
        """
        try:
            return await _elsewhere(self._take())
        except BaseException:
            await self.close()
            raise

    async def hand_over(self, pid: int) -> None:
        """The kernel runs: from now on the devices are its own, and go with it."""
        await _elsewhere(self._hand_over(pid))

    async def listen(self, ip: str, ports: Mapping[str, int]) -> dict[str, int]:
        """Have a port here for each channel of a kernel elsewhere, those of `ports` where given."""
        return await _elsewhere(self._listen(ip, ports))

    async def start_far(
        self,
        command: Sequence[str],
        connection: Mapping[str, Any],
        environment: Mapping[str, str],
        cwd: str,
    ) -> FarProcess:
        """Start the kernel on the node of its devices; the parameters are those of `FarKernel.start`.

        Raises
        ------
        AiosError
            The broker or the node has refused; nothing runs.
        """
        await _elsewhere(self._start_far(command, connection, environment, cwd))
        assert self._far is not None
        return FarProcess(self._far)

    async def close_far(self) -> None:
        """The kernel is to be one of this machine: leave its ports to it."""
        await _elsewhere(self._close_far())

    async def take_back(self) -> None:
        """The kernel has ended and is about to be started again: keep its devices meanwhile.

        What it had asked for besides, and the runs that it has left, end as with any kernel.
        """
        await _elsewhere(self._take_back())

    async def close(self) -> None:
        """Give everything back; closing twice does no harm."""
        await _elsewhere(self._close())

    def give_up(self, reason: str) -> None:
        """Stop waiting; may be called from any thread."""
        self._given_up = reason

    # --- in the thread of `_loop`

    async def _take(self) -> Lease:
        _waiting.add(self)
        try:
            self._client = await self._open()
            pending = await self._client.submit(self.request)
            await self._granted(self._client, pending)
            grant = pending.granted.result()
        finally:
            _waiting.discard(self)
        self.lease = grant.lease
        return grant.lease

    async def _granted(self, client: AsyncClient, pending: Pending) -> None:
        deadline = time.monotonic() + self._wait
        shown: dict[str, Any] | None = None
        while not pending.granted.done():
            if self._given_up:
                raise AllocationError(self._given_up)
            left = deadline - time.monotonic()
            if left <= 0:
                raise AllocationError(not_granted(self.request, self._wait, shown))
            row = await client.call("queue.row", ById(id=self.request.id))
            if row and row != shown:
                shown = row
                self._on_wait(row)
            await asyncio.wait([pending.granted], timeout=min(left, WATCH_INTERVAL))

    async def _open(self) -> AsyncClient:
        secret = secret_for(self._secret, self._bundle)
        client = AsyncClient(self._locate, label=self.request.label, secret=secret)
        client.listen(self._told)
        return await client.open()

    async def _locate(self) -> tuple[str, Any]:
        # A cluster that is stopped later is not brought back for a kernel that had its devices.
        start, self._started = not self._started, True
        return await asyncio.to_thread(locate_broker, self._bundle, start, None)

    async def _listen(self, ip: str, ports: Mapping[str, int]) -> dict[str, int]:
        assert self._client is not None
        if self._far is None:
            _, own = await self._locate()
            self._launcher = Launcher(self._client, own)
            secret = secret_for(self._secret, self._bundle)
            self._far = FarKernel(
                self._client,
                self._launcher,
                self._locate,
                secret,
                self._on_notice,
                tasks=lambda: locate_tasks(self._bundle),
            )
        return await self._far.listen(ip, ports)

    async def _start_far(self, *how: Any) -> None:
        assert self._far is not None
        if self.lease is None:
            raise AllocationError("Its lease has ended while the kernel was started; try again.")
        await self._far.start(self.lease, *how)
        if self._watch is None:
            self._watch = asyncio.create_task(self._look_after())

    async def _close_far(self) -> None:
        far, self._far = self._far, None
        launcher, self._launcher = self._launcher, None
        if far is not None:
            await far.close()
        if launcher is not None:
            await launcher.close()

    def _told(self, topic: str, body: Any) -> None:
        if topic == "notice":
            self._on_notice(body.text)
        elif topic == "lease.ended" and self.lease is not None and body.id == self.lease.id:
            self.lease = None
            self._on_end(body)

    async def _hand_over(self, pid: int) -> None:
        assert self._client is not None
        self._pid, self._start = pid, process_start(pid)
        keep_kernel_secret(pid, self._secret)
        await self._client.stand_for(pid, kernel_keep(self._bundle), kernel=True)
        if self._watch is None:
            self._watch = asyncio.create_task(self._look_after())

    async def _take_back(self) -> None:
        self._stop_watching()
        if not self.held:
            return
        client, lease = self._client, self.lease
        assert client is not None
        assert lease is not None
        await client.stand_for(os.getpid(), Keep.CONNECTION, kernel=False)
        with contextlib.suppress(NotFoundError):  # then it was told that it has ended
            lease = await client.call("lease.get", ById(id=lease.id), Lease)
        if lease.state is LeaseState.ENDING and self.lease is not None:
            # The kernel had to go so that others can have its devices.
            self.lease = None
            self._on_end(lease)
        elif self.lease is not None:
            self.lease = lease  # its node may be back with another address
        for op, id in await self._left_behind(client, lease):
            with contextlib.suppress(NotFoundError, ConflictError):  # it has ended meanwhile
                await client.call(op, ById(id=id, reason="its kernel was restarted"))

    async def _left_behind(self, client: AsyncClient, lease: Lease) -> list[tuple[str, str]]:
        """What the kernel's last life has left: how it is ended, and its id."""
        status = await client.call("status")
        runs = [
            ("run.stop", row["id"])
            for row in status["runs"].values()
            if row["lease"] == lease.id and row["ended"] is None
        ]
        others = [
            ("release", row["id"])
            for row in status["leases"].values()
            if row["session"] == client.session
            and row["id"] != lease.id
            and row["scope"] not in (Scope.DETACHED, Scope.RESERVED)
        ]
        waiting = [
            ("cancel", row["id"])
            for row in status["queue"].values()
            if row["session"] == client.session
        ]
        return waiting + runs + others

    async def _look_after(self) -> None:
        """Tell when the kernel computes; let go when it has died and nobody starts it again."""
        died: float | None = None
        told = 0.0
        while self.held:
            await asyncio.sleep(WATCH_INTERVAL)
            if self._far.code is None if self._far else alive(self._pid, self._start):
                died = None
                if time.monotonic() - told > ACTIVE_INTERVAL and self._busy():
                    told = time.monotonic()
                    await self._active()
            elif died is None:
                died = time.monotonic()
            elif time.monotonic() - died > RESTART_GRACE:
                self._watch = None
                await self._close()

    async def _active(self) -> None:
        """The kernel computes, which nobody sees at its devices: they do not count as idle."""
        client, lease = self._client, self.lease
        if client is not None and lease is not None:
            # It ends just now, or the broker is away; then it is told the next time.
            with contextlib.suppress(NotFoundError, ClusterError):
                await client.call("lease.active", ById(id=lease.id))

    async def _close(self) -> None:
        self._stop_watching()
        self.lease = None
        await self._close_far()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()


class FarProcess:
    """A kernel elsewhere, as `subprocess.Popen` shows one of this machine."""

    stdin = stdout = stderr = None

    def __init__(self, kernel: FarKernel) -> None:
        self._kernel = kernel
        self.pid = kernel.pid
        self.node = kernel.node

    def poll(self) -> int | None:
        """How it has ended; None while it runs."""
        return self._kernel.code

    wait = poll

    def send_signal(self, number: int) -> None:
        """Have its node send it a signal; returns at once."""
        asyncio.run_coroutine_threadsafe(self._kernel.signal(number), _loop().loop)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


async def _elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await what runs in the thread of `_loop`."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, _loop().loop))
