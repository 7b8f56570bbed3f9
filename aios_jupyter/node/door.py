"""The agent's own TLS port: kernels bring cells here and read events and logs.

Admission is by certificate (whose run is it?) and, for what uses a device, by the token of the
lease, which only its owner and this agent have from the broker. A token of an older lease on the
same device no longer admits, as the broker has taken that lease away.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from pathlib import Path
from typing import Any

from ..broker.messages import ById, Grant
from ..broker.protocol import Connection, serve
from ..errors import AccessError
from ..runs import messages as msg
from ..runs.spec import Rendezvous
from .hosting import Hosted, HostedRuns

GRANT_TIMEOUT = 5.0
MAX_READ = 8 * 1024 * 1024


class Door:
    """Serves kernels.

    Parameters
    ----------
    runs
        This node's runs.
    grants
        Lease id → grant, kept current by the agent.
    """

    def __init__(self, runs: HostedRuns, grants: dict[str, Grant], node: str) -> None:
        self._runs = runs
        self._grants = grants
        self._node = node
        self._connections: set[Connection] = set()

    async def open(self, host: str, context: ssl.SSLContext) -> str:
        """Listen; returns `host:port`."""
        self._server, port = await serve(host, 0, context, self._connection)
        return f"{host}:{port}"

    async def close(self) -> None:
        """Stop listening and let everybody go."""
        self._server.close()
        for connection in list(self._connections):
            connection.close()

    def _connection(self) -> Connection:
        handlers: dict[str, Any] = {
            "agent.hello": (msg.AgentHello, lambda connection, hello: self._node),
            "run.open": (msg.OpenRun, self._open),
            "run.payload": (msg.Blob, self._payload),
            "run.start": (msg.StartRun, self._start),
            "run.abandon": (ById, self._abandon),
            "run.follow": (msg.Follow, self._follow),
            "run.read": (msg.ReadFile, self._read),
            "beat": (Any, lambda connection, body: None),
        }
        connection = Connection(handlers, on_close=self._connections.discard, server=True)
        self._connections.add(connection)
        return connection

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
        path = hosted.directory / "payload.pkl"
        await asyncio.to_thread(_append, path, body.data)

    async def _start(self, connection: Connection, body: msg.StartRun) -> None:
        hosted = await self._admit(connection, body.spec.id, body.token)
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
                msg.Events(run=body.run, node=self._node, events=tuple(batch), end=end),
            )
            await connection.drain()

    async def _read(self, connection: Connection, body: msg.ReadFile) -> msg.FilePart:
        self._only_owner(connection, self._runs.owner(body.run), body.run)
        path = self._runs.file(body.run, body.name)
        return await asyncio.to_thread(_part, path, body.offset, min(body.size, MAX_READ))

    def _only_owner(self, connection: Connection, owner: str, run: str) -> None:
        if connection.name != owner and connection.role != "admin":
            raise AccessError(f"Run {run} belongs to {owner}, not to you.")


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _part(path: Path, offset: int, size: int) -> msg.FilePart:
    with path.open("rb") as file:
        total = file.seek(0, 2)
        file.seek(min(offset, total))
        return msg.FilePart(data=file.read(size), total=total)
