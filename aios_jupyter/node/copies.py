"""Gets a run from the agent of another node: the order that started it, and what was pushed."""

from __future__ import annotations

import ssl
from pathlib import Path

from ..broker.messages import VERSION
from ..broker.protocol import connect
from ..runs import messages as msg

TIMEOUT = 30.0


async def fetch(
    address: str, context: ssl.SSLContext, run: str, token: str, payload: Path
) -> msg.StartRun:
    """Ask the agent at `address`; pushed values go into the file `payload`.

    Raises
    ------
    AiosError
        It cannot be reached, has not got the run, or refuses.
    """
    connection = await connect(address, context, {})
    try:
        await connection.call("agent.hello", msg.AgentHello(version=VERSION), timeout=TIMEOUT)
        asked = msg.CopyRun(run=run, token=token)
        order = await connection.call("run.copy", asked, msg.StartRun, timeout=TIMEOUT)
        if order.payload:
            with payload.open("wb") as file:
                while True:
                    part = await connection.call(
                        "run.pushed",
                        msg.CopyPushed(run=run, token=token, offset=file.tell()),
                        msg.FilePart,
                        timeout=TIMEOUT,
                    )
                    file.write(part.data)
                    if file.tell() >= part.total or not part.data:
                        break
        # Whoever started it shares no memory with this node.
        result: msg.StartRun = order.__replace__(shared=False)
        return result
    finally:
        connection.close()
        await connection.wait_closed()
