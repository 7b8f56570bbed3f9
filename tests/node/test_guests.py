"""What a node says of a kernel that it starts for a server elsewhere, and how long it waits for one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_jupyter.broker.messages import ById
from aios_jupyter.node import guests
from aios_jupyter.node.hosted import Hosted
from aios_jupyter.runs.messages import StartRun
from aios_jupyter.runs.spec import Entry, RankSpec, Rendezvous, RunSpec
from aios_jupyter.schema import DeviceKind, Run, RunKind

CONNECTION = {
    "key": "k3y",
    "signature_scheme": "hmac-sha256",
    "transport": "tcp",
    "ip": "127.0.0.1",
}


def order(*command: str, kind: DeviceKind = DeviceKind.GPU, cwd: str = "/") -> StartRun:
    spec = RunSpec(
        id="r-1",
        lease="L7",
        kind=RunKind.KERNEL,
        name="a.ipynb",
        entry=Entry.KERNEL,
        source=json.dumps(CONNECTION),
        argv=command or (sys.executable, "-f", guests.PLACEHOLDER),
        cwd=cwd,
        env={"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "the server's"},
    )
    rank = RankSpec(
        rank=0,
        local_rank=0,
        local_world_size=1,
        node_rank=0,
        nnodes=1,
        device="GPU-b",
        kind=kind,
        index=1,
        devices=("GPU-b", "GPU-a"),
    )
    return StartRun(spec=spec, ranks=(rank,), rendezvous=Rendezvous(address="", port=0), token="t")


def test_a_kernel_has_its_gpus_by_uuid_and_sockets_that_are_this_accounts_alone(
    tmp_path: Path,
) -> None:
    placed = guests.place(order(), tmp_path).spec
    assert placed.env["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert (placed.env["AIOS_DEVICE"], placed.env["AIOS_LEASE"]) == ("cuda:0", "L7")
    file = Path(placed.argv[2])
    sockets = file.parent
    assert sockets != tmp_path
    assert "k3y" not in "".join(path.read_text() for path in tmp_path.iterdir())
    assert (sockets.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    written = json.loads(file.read_text())
    assert (written["key"], written["transport"]) == ("k3y", "ipc")
    assert (
        len({written[f"{name}_port"] for name in ("shell", "iopub", "stdin", "hb", "control")}) == 5
    )
    assert written["ip"].startswith(str(sockets))
    # The next agent removes what one that was killed has left.
    guests.sweep(tmp_path.parent)
    assert not sockets.exists()
    guests.sweep(tmp_path.parent)


def test_what_another_machine_has_not_is_replaced_or_refused(tmp_path: Path) -> None:
    placed = guests.place(order("/opt/other/bin/python3.11", "-V", cwd="/no/such"), tmp_path).spec
    assert placed.argv == (sys.executable, "-V")
    assert placed.cwd == str(Path.home())
    guests.forget(tmp_path)
    broken = order()
    broken = broken.__replace__(spec=broken.spec.__replace__(source="[1]"))
    with pytest.raises(OSError, match="connection file does not read"):
        guests.place(broken, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such program on this node"):
        guests.place(order("/opt/other/bin/ir"), tmp_path)
    guests.forget(tmp_path)
    placed = guests.place(order(kind=DeviceKind.SIMULATED), tmp_path).spec
    assert (placed.env["CUDA_VISIBLE_DEVICES"], placed.env["AIOS_DEVICE"]) == ("", "cpu")
    guests.forget(tmp_path)


class Runs:
    """A node with one kernel."""

    def __init__(self, directory: Path) -> None:
        run = Run(
            id="r-1", lease="L7", session="s", user="ana", kind=RunKind.KERNEL, name="k",
            world_size=1, nodes=("far",),
        )  # fmt: skip
        self.hosted = Hosted(run, (0,), directory)
        self.hosted.order = order()
        self.stopped: list[str] = []

    async def expect(self, run: str) -> Hosted:
        return self.hosted

    async def stop(self, run: str, reason: str) -> None:
        self.stopped.append(reason)
        self.hosted.ended.set()


class Server:
    """The connection of a Jupyter server."""

    def __init__(self) -> None:
        self.name = "ana"
        self.closed = asyncio.Event()
        self.told: list[Any] = []

    def tell(self, topic: str, body: Any) -> None:
        self.told.append((topic, msgspec.to_builtins(body)))


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_kernel_whose_server_is_gone_waits_for_it_and_then_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    monkeypatch.setattr(guests, "ALONE_GRACE", 0.05)
    runs = Runs(tmp_path)

    async def story() -> None:
        found = guests.Guests(runs, lambda name, serial: None, lambda refused: None)  # type: ignore[arg-type]
        first, second = Server(), Server()
        seen = await found.attend(first, ById(id="r-1"))  # type: ignore[arg-type]
        assert seen.code is None
        first.closed.set()
        if comes_back:
            await found.attend(second, ById(id="r-1"))  # type: ignore[arg-type]
        waiting = [task for task in found._tasks if not second.closed.is_set()]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert runs.stopped == ([] if comes_back else ["its Jupyter server is gone"])
        second.closed.set()
        found.close()

    asyncio.run(story())
