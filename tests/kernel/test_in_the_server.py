"""Kernels with devices in a real Jupyter server: what a front end asks for and is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from serving import Fetch, ask, eventually, message
from tornado.httpclient import HTTPClientError

from aios_jupyter.session import Session
from aios_jupyter.session import kernels as tenancies


async def test_a_kernel_waits_in_the_queue_under_its_notebooks_name(
    server: Any, jp_fetch: Fetch, session: Session
) -> None:
    lease = session.alloc(devices=4)
    asked = asyncio.ensure_future(ask(jp_fetch, "sleeper", "work/digits.ipynb"))
    (row,) = await eventually(session.queue, "it waits")
    assert row["label"] == "digits.ipynb"
    assert (await jp_fetch("api", "status")).code == 200, "the server goes on"
    assert not asked.done()

    session.release(lease.id)
    assert (await asked).code == 201
    assert len(session.status()["leases"]) == 1
    kernel = json.loads((await jp_fetch("api", "sessions")).body)[0]["kernel"]["id"]
    await jp_fetch("api", "kernels", kernel, method="DELETE")
    await eventually(lambda: not session.status()["leases"], "the devices are free")


async def test_who_is_refused_reads_why_and_the_server_forgets_the_kernel(
    server: Any, jp_fetch: Fetch
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await ask(jp_fetch, "many")
    assert message(refused.value).startswith("99 GPUs can never be granted here")
    assert server.kernel_manager._pending_kernels == {}


async def test_a_start_that_is_cancelled_in_the_queue_is_refused(
    server: Any, jp_fetch: Fetch, session: Session
) -> None:
    session.alloc(devices=4)
    asked = asyncio.ensure_future(ask(jp_fetch, "sleeper"))
    (row,) = await eventually(session.queue, "it waits")
    session.cancel(row["id"])
    with pytest.raises(HTTPClientError) as refused:
        await asked
    assert "cancelled by" in message(refused.value)


async def test_a_server_that_stops_waits_for_no_devices(
    server: Any, jp_fetch: Fetch, session: Session
) -> None:
    session.alloc(devices=4)
    asked = asyncio.ensure_future(ask(jp_fetch, "sleeper"))
    await eventually(session.queue, "it waits")
    await server.extension_manager.stop_all_extensions()
    await asyncio.wait_for(server.kernel_manager.shutdown_all(), 20)
    with pytest.raises(HTTPClientError) as refused:
        await asked
    assert "is stopping" in message(refused.value)
    assert session.queue() == []


async def test_a_kernel_that_died_too_often_gives_its_devices_back(
    server: Any, jp_fetch: Fetch, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenancies, "RESTART_GRACE", 1.0)
    await ask(jp_fetch, "dier")
    (kernel,) = server.kernel_manager.list_kernel_ids()
    manager = server.kernel_manager.get_kernel(kernel)
    dead = []
    manager.add_restart_callback(lambda: dead.append(kernel), "dead")
    (lease,) = session.status()["leases"]
    await eventually(lambda: dead, "Jupyter has given it up")
    await eventually(lambda: lease not in session.status()["leases"], "its devices are free")
