"""What becomes of a kernel when its devices are not used, or are taken from it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import private_directories
from fake_nvml import FakeNvml
from serving import DIRECTORIES, Fetch, ask, eventually, served

from aios_jupyter.cluster import embedded
from aios_jupyter.kernel import specs
from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect
from aios_jupyter.session import kernels as tenancies

GPU = "GPU-11111111-2222-3333-4444-555555555555"


@pytest.fixture
def gpus(fake_nvml: FakeNvml) -> FakeNvml:
    fake_nvml.write(f"gpu uuid={GPU}")
    return fake_nvml


@pytest.fixture
def live(
    gpus: FakeNvml,
    tmp_path: Path,
    jp_environ: None,
    request: pytest.FixtureRequest,
    jp_asyncio_loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Any, Session]]:
    """A Jupyter server on a cluster with one GPU, where an idle lease has little time."""
    for name in ("LD_LIBRARY_PATH", "FAKE_NVML_STATE"):
        monkeypatch.setenv(name, gpus.env[name])
    monkeypatch.setenv("AIOS_IDLE_GRACE", "3")
    monkeypatch.setattr(tenancies, "ACTIVE_INTERVAL", 0.2)
    with private_directories(tmp_path / "cluster"):
        embedded.ensure()
        specs.add(gpus=1, name="gpu")
        specs.add(gpus=1, name="idle", idle="3s")
        directories = {name: os.environ[name] for name in DIRECTORIES}
        with (
            connect(label="test") as session,
            served(request, directories, jp_asyncio_loop) as app,
        ):
            yield app, session


class Cells:
    """A notebook's end of a kernel of the server."""

    def __init__(self, manager: Any) -> None:
        self._client = manager.client()
        self._client.start_channels()
        self.printed = ""

    async def run(self, code: str) -> str:
        """What a cell printed; it must not fail."""
        before = len(self.printed)
        await self._client.wait_for_ready(timeout=60)
        reply = await self._client.execute_interactive(code, timeout=60, output_hook=self._take)
        assert reply["content"]["status"] == "ok", reply["content"]
        return self.printed[before:]

    async def said(self, text: str) -> None:
        """Wait until the notebook has been told something between two cells."""
        while text not in self.printed:
            self._take(await self._client.get_iopub_msg(timeout=60))

    def _take(self, message: dict[str, Any]) -> None:
        self.printed += message["content"].get("text", "")

    def close(self) -> None:
        self._client.stop_channels()


async def start(app: Any, fetch: Fetch, name: str) -> Any:
    await ask(fetch, name)
    (kernel,) = app.kernel_manager.list_kernel_ids()
    return app.kernel_manager.get_kernel(kernel)


async def test_a_kernel_that_is_not_used_gives_its_devices_back_and_keeps_its_variables(
    live: tuple[Any, Session], jp_fetch: Fetch
) -> None:
    app, session = live
    cells = Cells(await start(app, jp_fetch, "idle"))
    (lease,) = session.status()["leases"]
    await cells.run("import os, time; x = 41; time.sleep(7)")
    assert list(session.status()["leases"]) == [lease], "a busy cell is use"

    await cells.said("Nothing has been computed on lease")
    await cells.said("variables too")
    await cells.said("of this kernel has ended: idle for")
    await eventually(lambda: not session.status()["leases"], "the devices are free")
    assert await cells.run("print(x + 1, repr(os.environ['CUDA_VISIBLE_DEVICES']))") == "42 ''\n"
    cells.close()


async def test_a_kernel_that_is_on_a_gpu_when_it_is_taken_is_ended_and_starts_without(
    live: tuple[Any, Session], jp_fetch: Fetch, gpus: FakeNvml
) -> None:
    app, session = live
    manager = await start(app, jp_fetch, "gpu")
    cells = Cells(manager)
    look = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert await cells.run(look) == f"{GPU}\n"
    pid = manager.provisioner.pid
    gpus.write(f"gpu uuid={GPU};procs={pid}:1000000")
    ((lease, row),) = session.status()["leases"].items()
    assert row["devices"] == [GPU]

    await asyncio.to_thread(session.release, lease)

    await eventually(lambda: lease not in session.status()["leases"], "it has ended")
    assert not alive(pid), "nobody is granted the GPU before the kernel has left it"
    gpus.write(f"gpu uuid={GPU}")
    await eventually(lambda: manager.provisioner.pid != pid, "Jupyter starts it again")
    assert await cells.run(look) == "\n"
    assert session.status()["leases"] == {}

    (kernel,) = app.kernel_manager.list_kernel_ids()
    await jp_fetch("api", "kernels", kernel, "restart", method="POST", body="{}")
    assert await cells.run(look) == f"{GPU}\n"
    assert len(session.status()["leases"]) == 1
    cells.close()
