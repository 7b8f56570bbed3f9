"""What an agent makes of the broker's words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from aios_jupyter import tls
from aios_jupyter.broker import messages as msg
from aios_jupyter.broker.protocol import Connection, serve
from aios_jupyter.node.agent import Agent
from aios_jupyter.schema import DeviceKind, Lease, Node, Slot


def grant(lease: str) -> msg.Grant:
    slot = Slot(node="n", device="d", kind=DeviceKind.CPU, index=0, address="a:1")
    return msg.Grant(
        lease=Lease(
            id=lease, request="q", session="s", user="ana", slots=(slot,), fence=1, granted=0.0
        ),
        token="t",
    )


def test_a_lease_that_is_granted_right_after_the_welcome_is_kept(tmp_path: Path) -> None:
    """Who waits for a node is granted it as it joins, and the two words come as one."""
    tls.create(tmp_path / "tls")

    def hello(connection: Connection, _: msg.NodeHello) -> msg.NodeWelcome:
        loop = asyncio.get_running_loop()
        loop.call_soon(connection.tell, "lease.granted", grant("L2"))
        return msg.NodeWelcome(grants=(grant("L1"),))

    async def join() -> set[str]:
        handlers: dict[str, Any] = {"node.hello": (msg.NodeHello, hello)}
        context = tls.Bundle.of(tmp_path / "tls", "broker").server_context()
        server, port = await serve(
            "127.0.0.1", 0, context, lambda: Connection(handlers, server=True)
        )
        (tmp_path / "broker.json").write_text(json.dumps({"address": f"127.0.0.1:{port}"}))
        agent = Agent(tmp_path, tmp_path / "state", "127.0.0.1", 0, bare=True)
        agent._node = Node(id="n", host="n", address="a:1", pid=1, devices=())
        # Of an earlier life of the broker, which has ended it since.
        agent._grants["L0"] = grant("L0")
        await agent._connect()
        async with asyncio.timeout(30):
            while "L2" not in agent._grants:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.01)
        assert agent._broker is not None
        agent._broker.close()
        await agent._broker.wait_closed()
        server.close()
        return set(agent._grants)

    assert asyncio.run(join()) == {"L1", "L2"}
