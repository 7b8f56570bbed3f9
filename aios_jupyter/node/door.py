"""The agent's own TLS port: kernels bring cells here and read events and logs.

Admission is by certificate (whose run is it?) and, for what uses a device, by the token of the
lease, which only its owner and this agent have from the broker. A token of an older lease on the
same device no longer admits, as the broker has taken that lease away. Whoever is refused here is
named to the broker, for its audit records.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..broker.messages import ById, Grant, Refused
from ..broker.protocol import Connection, serve
from ..errors import AccessError, ConflictError, NotFoundError
from ..runs import messages as msg
from ..runs import tunnel
from ..runs.packed import Shared
from ..runs.rank import PULLED_FILE
from ..runs.spec import RankSpec, Rendezvous
from ..schema import Slot
from ..tls import Revoked
from . import stacks
from .guests import Guests
from .hosted import Hosted
from .memory import PAYLOAD_FILE
from .restarts import HostedRuns

GRANT_TIMEOUT = 5.0
LONGEST = 200
MAX_READ = 8 * 1024 * 1024


class Copy(NamedTuple):
    """A run here that another node may have, with what it was started by."""

    hosted: Hosted
    order: msg.StartRun


class Door:
    """Serves kernels.

    Parameters
    ----------
    runs
        This node's runs.
    grants
        Lease id → grant, kept current by the agent.
    revoked
        Certificates that no longer admit.
    on_refusal
        Called with each refusal.
    keys
        The folder of this node's certificates.
    """

    def __init__(
        self,
        runs: HostedRuns,
        grants: dict[str, Grant],
        node: str,
        revoked: Revoked,
        on_refusal: Callable[[Refused], None],
        keys: Path | None = None,
    ) -> None:
        self._runs = runs
        self._grants = grants
        self._node = node
        self._revoked = revoked
        self._on_refusal = on_refusal
        self._connections: set[Connection] = set()
        self.guests = Guests(runs, self._revoked.check, on_refusal, keys)
        runs.prepare = self.guests.prepare

    async def open(self, host: str, context: ssl.SSLContext) -> str:
        """Listen; returns `host:port`."""
        context.set_alpn_protocols([tunnel.PROTOCOL])
        self._server, port = await serve(host, 0, context, self._comer)
        return f"{host}:{port}"

    async def close(self) -> None:
        """Stop listening and let everybody go."""
        self._server.close()
        self.guests.close()
        for connection in list(self._connections):
            connection.close()

    def let_go(self) -> None:
        """End the connections of those whose access was revoked; called once a second."""
        revoked = self._revoked.serials()
        # One that has yet to say hello is refused by `_let_in`, with a sentence.
        for connection in [c for c in self._connections if c.greeted and c.serial in revoked]:
            connection.abort("its certificate was revoked")
        self.guests.let_go(revoked)

    def _comer(self) -> asyncio.Protocol:
        return _Comer(self._connection, self.guests.protocol)

    def _connection(self) -> Connection:
        calls: dict[str, Any] = {
            "run.open": (msg.OpenRun, self._open),
            "run.payload": (msg.Blob, self._payload),
            "run.share": (ById, self._share),
            "run.pulled": (ById, self._pulled),
            "run.start": (msg.StartRun, self._start),
            "run.abandon": (ById, self._abandon),
            "run.follow": (msg.Follow, self._follow),
            "run.read": (msg.ReadFile, self._read),
            "run.stacks": (msg.Inspect, self._stacks),
            "run.copy": (msg.CopyRun, self._copy),
            "run.pushed": (msg.CopyPushed, self._pushed),
            "kernel.attend": (ById, self.guests.attend),
            "kernel.signal": (msg.KernelSignal, self.guests.signal),
        }
        handlers: dict[str, Any] = {
            "agent.hello": (msg.AgentHello, lambda connection, hello: self._node),
            "beat": (Any, lambda connection, body: None),
            **{op: (body, self._guard(op, function)) for op, (body, function) in calls.items()},
        }
        connection = Connection(
            handlers, on_close=self._connections.discard, admit=self._let_in, server=True
        )
        self._connections.add(connection)
        return connection

    def _let_in(self, connection: Connection) -> None:
        try:
            self._revoked.check(connection.name, connection.serial)
        except AccessError as error:
            self._refuse(connection, "agent.hello", "", error)
            raise

    def _guard(self, op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(connection: Connection, body: Any) -> Any:
            try:
                return await function(connection, body)
            except AccessError as error:
                about = body.spec.id if isinstance(body, msg.StartRun) else ""
                about = about or getattr(body, "run", "") or getattr(body, "id", "")
                self._refuse(connection, op, about, error)
                raise

        return guarded

    def _refuse(self, connection: Connection, op: str, about: str, error: AccessError) -> None:
        why = str(error)[:LONGEST]
        self._on_refusal(Refused(who=connection.name, op=op, about=about[:LONGEST], why=why))

    async def _admit(self, connection: Connection, run: str, token: str) -> Hosted:
        hosted = await self._runs.expect(run)
        lease = hosted.run.lease
        deadline = asyncio.get_running_loop().time() + GRANT_TIMEOUT
        # The broker's word may come a moment after the kernel's.
        while lease not in self._grants and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        grant = self._grants.get(lease)
        if (
            grant is None
            or hosted.run.user != connection.name
            or not hmac.compare_digest(grant.token, token)
        ):
            raise AccessError(f"Lease {lease} does not admit you here; it may have ended.")
        return hosted

    async def _open(self, connection: Connection, body: msg.OpenRun) -> Rendezvous:
        return self._runs.open(await self._admit(connection, body.run, body.token))

    async def _payload(self, connection: Connection, body: msg.Blob) -> None:
        hosted = await self._runs.expect(body.run)
        self._only_owner(connection, hosted.run.user, body.run)
        path = hosted.directory / PAYLOAD_FILE
        await asyncio.to_thread(_append, path, body.data)

    async def _share(self, connection: Connection, body: ById) -> Shared:
        hosted = await self._runs.expect(body.id)
        self._only_owner(connection, hosted.run.user, body.id)
        if hosted.gang is not None or hosted.ended.is_set():
            raise ConflictError(f"Run {body.id} was started or stopped before.")
        return hosted.values.share()

    async def _pulled(self, connection: Connection, body: ById) -> Shared:
        self._only_owner(connection, self._runs.owner(body.id), body.id)
        values = self._runs.values(body.id)
        return values.offer_pulled() if values else Shared()

    async def _start(self, connection: Connection, body: msg.StartRun) -> None:
        hosted = await self._admit(connection, body.spec.id, body.token)
        lease = self._grants[hosted.run.lease].lease
        expected = [(rank, lease.slots[rank]) for rank in hosted.ranks if rank < len(lease.slots)]
        asked = sorted(body.ranks, key=lambda rank: rank.rank)
        here = {slot.device for slot in lease.slots if slot.node == self._node}
        if body.spec.lease != lease.id or [_place(rank) for rank in asked] != [
            (rank, *_device(slot)) for rank, slot in expected
        ]:
            raise AccessError(f"Lease {lease.id} has other devices on this node than you name.")
        if body.spec.resume:
            self._only_owner(connection, self._runs.owner(body.spec.resume), body.spec.resume)
        if any(set(rank.devices) - here for rank in asked):
            raise AccessError(f"Lease {lease.id} has other devices on this node than you show.")
        await self._runs.start(hosted, body)

    async def _abandon(self, connection: Connection, body: ById) -> None:
        hosted = await self._runs.expect(body.id)
        self._only_owner(connection, hosted.run.user, body.id)
        await self._runs.stop(body.id, body.reason)

    async def _follow(self, connection: Connection, body: msg.Follow) -> None:
        self._only_owner(connection, self._runs.owner(body.run), body.run)
        async for batch, end in self._runs.follow(body.run, body.seq, wait=body.wait):
            connection.tell(
                "events",
                msg.Events(
                    run=body.run, node=self._node, events=tuple(batch), end=end, tag=body.tag
                ),
            )
            await connection.drain()

    async def _read(self, connection: Connection, body: msg.ReadFile) -> msg.FilePart:
        self._only_owner(connection, self._runs.owner(body.run), body.run)
        offset, size = max(0, body.offset), max(0, min(body.size, MAX_READ))
        values = self._runs.values(body.run)
        if body.name == PULLED_FILE and values is not None:
            part = await asyncio.to_thread(values.pulled_part, offset, size)
            if part is not None:
                return part
        return await asyncio.to_thread(self._runs.part, body.run, body.name, offset, size)

    async def _copy(self, connection: Connection, body: msg.CopyRun) -> msg.StartRun:
        return (await self._of_this_lease(connection, body)).order

    async def _pushed(self, connection: Connection, body: msg.CopyPushed) -> msg.FilePart:
        values = (await self._of_this_lease(connection, body)).hosted.values
        return await asyncio.to_thread(values.part, max(0, body.offset), min(body.size, MAX_READ))

    async def _of_this_lease(self, connection: Connection, body: msg.CopyRun) -> Copy:
        """For another agent that has devices of the run's lease, as the token proves."""
        hosted = self._runs.hosted(body.run)
        deadline = asyncio.get_running_loop().time() + GRANT_TIMEOUT
        # That the run is under that lease now the broker may tell the other one first.
        while connection.role == "node" and not self._admits(hosted, body.token):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        if connection.role != "node" or not self._admits(hosted, body.token):
            raise AccessError(f"Run {body.run} is not one for that node.")
        if hosted.order is None:
            raise NotFoundError(f"Node {self._node} no longer has the code of run {body.run}.")
        return Copy(hosted, hosted.order)

    def _admits(self, hosted: Hosted, token: str) -> bool:
        grant = self._grants.get(hosted.run.lease)
        known = hosted.token or (grant.token if grant else "")
        return bool(known) and hmac.compare_digest(known, token)

    async def _stacks(
        self, connection: Connection, body: msg.Inspect
    ) -> tuple[msg.RankStacks, ...]:
        self._only_owner(connection, self._runs.owner(body.run), body.run)
        ranks = self._runs.at_work(body.run)
        if ranks:
            return await stacks.look([r for r in ranks if body.rank in (-1, r.number)])
        account = self._runs.account(body.run)
        directory = self._runs.directory / body.run
        found = await asyncio.to_thread(stacks.failures, directory, account)
        return tuple(rank for rank in found if body.rank in (-1, rank.rank))

    def _only_owner(self, connection: Connection, owner: str, run: str) -> None:
        if connection.name != owner and connection.role != "admin":
            raise AccessError(f"Run {run} belongs to {owner}, not to you.")


class _Comer(asyncio.Protocol):
    """Somebody comes: the handshake says whether to speak in frames or to have a stream."""

    def __init__(
        self, frames: Callable[[], asyncio.Protocol], stream: Callable[[], asyncio.Protocol]
    ) -> None:
        self._frames, self._stream = frames, stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        made = self._stream if tls.selected_alpn_protocol() == tunnel.PROTOCOL else self._frames
        protocol = made()
        cast("Any", transport).set_protocol(protocol)
        protocol.connection_made(transport)


def _place(rank: RankSpec) -> tuple[int, str, str, int]:
    return rank.rank, rank.device, rank.kind.value, rank.index


def _device(slot: Slot) -> tuple[str, str, int]:
    return slot.device, slot.kind.value, slot.index


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
