"""Kernels on another node: what their front ends notice of that, and every end that they may have."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import pytest
from clusters import _nodes, agent_of, free, holder, second_node, session_of, until
from front_end import Notebook
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from serving import DIRECTORIES, Fetch, ask, eventually, served

from aios_jupyter.broker.messages import ById
from aios_jupyter.cluster import embedded, joined
from aios_jupyter.errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError
from aios_jupyter.kernel import specs
from aios_jupyter.process import alive
from aios_jupyter.runs import messages as msg
from aios_jupyter.runs import tunnel
from aios_jupyter.session import Session, connect, join_node, kernels, link

__all__ = ["_nodes", "second_node"]

Open = Callable[[KernelManager], Notebook]
# A front end that starts a kernel, says where it is, and is then killed.
STARTER = """
import json, time
from jupyter_client import KernelManager
kernel = KernelManager(kernel_name="two")
kernel.start_kernel()
print(kernel.provisioner.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def session(second_node: Path) -> Iterator[Session]:
    """A session that holds all devices but those of `far`."""
    if "two" not in [row["name"] for row in specs.ls()]:
        specs.add(devices=2, name="two")
        broken = Path(specs.add(devices=2, name="broken")["path"], "kernel.json")
        spec = json.loads(broken.read_text())
        broken.write_text(json.dumps({**spec, "argv": ["/no/such/program", "{connection_file}"]}))
    with connect(label="test") as opened:
        leases = [opened.alloc(gpus=1) for _ in range(4)]
        for lease in leases:
            if lease.slots[0].node == "far":
                opened.release(lease.id)
        until(lambda: len(free(opened)) == 2, "those of far are free")
        yield opened


@pytest.fixture
def manager(session: Session) -> Iterator[Callable[[str], KernelManager]]:
    made: list[KernelManager] = []

    def make(name: str = "two") -> KernelManager:
        made.append(KernelManager(kernel_name=name, kernel_spec_manager=KernelSpecManager()))
        return made[-1]

    yield make
    for one in made:
        if one.has_kernel:
            one.shutdown_kernel(now=True)


def kernel_runs(session: Session) -> list[dict[str, Any]]:
    """Kernels that run on nodes, the newest first."""
    return [row for row in session.runs() if row["kind"] == "kernel" and row["ended"] is None]


def kernel_lease(session: Session) -> dict[str, Any]:
    (row,) = [row for row in session.status()["leases"].values() if row["label"] != "test"]
    return row


def nothing_left(session: Session, pid: int) -> None:
    until(lambda: len(free(session)) == 2, "the devices are free", 60)
    assert not kernel_runs(session)
    assert not alive(pid), "it was freed with the kernel, and not before"
    until(lambda: not sockets(), "its sockets are gone")


def sockets() -> list[str]:
    """Unix sockets of kernels on nodes."""
    listening = psutil.net_connections(kind="unix")
    return [one.laddr for one in listening if str(one.laddr).endswith(f"/{tunnel.LENT}")]


def test_a_kernel_elsewhere_is_like_one_here(
    manager: Callable[[], KernelManager], session: Session, opened: Open, tmp_path: Path
) -> None:
    kernel = manager()
    kernel.start_kernel(cwd=str(tmp_path))
    lease = kernel_lease(session)
    assert all(holder(session, device) == lease["id"] for device in lease["devices"])
    (run,) = kernel_runs(session)
    assert run["lease"] == lease["id"]
    pid = kernel.provisioner.pid  # type: ignore[union-attr]
    assert psutil.Process(pid).ppid() == agent_of("far"), "its node has started it"

    notebook = opened(kernel)
    look = "import os; print(os.getpid(), os.getcwd(), os.environ['AIOS_LEASE'])"
    assert notebook.run(look).split() == [str(pid), str(tmp_path), lease["id"]]
    assert notebook.run("print('x' * 3_000_000)").count("x") == 3_000_000
    assert notebook.run("%load_ext aios_jupyter\n%aios leases").count(lease["id"]) == 1
    notebook.run("%%aios train --pull world\nimport os\nworld = os.environ['WORLD_SIZE']")
    assert notebook.run("print(world)").strip() == "2", "its ranks are where its devices are"
    assert kernel_lease(session)["id"] == lease["id"]

    waiting = notebook.send("import time\nprint('asleep', flush=True)\ntime.sleep(600)")
    until(lambda: notebook.prints("asleep"), "it is at work")
    kernel.interrupt_kernel()
    assert notebook.reply(waiting)["content"]["ename"] == "KeyboardInterrupt"
    assert notebook.run("print(world)").strip() == "2"

    before = kernel.get_connection_info()
    kernel.restart_kernel()
    notebook.ready()
    assert kernel.get_connection_info() == before
    assert notebook.run("print('world' in globals())").strip() == "False"
    assert kernel_lease(session)["id"] == lease["id"], "it has kept its devices"
    assert not alive(pid)
    assert len(kernel_runs(session)) == 1
    pid = kernel.provisioner.pid  # type: ignore[union-attr]

    kernel.shutdown_kernel()
    nothing_left(session, pid)


def test_a_kernel_elsewhere_that_dies_is_seen_to_and_keeps_its_devices_for_a_restart(
    manager: Callable[[], KernelManager], session: Session, opened: Open
) -> None:
    kernel = manager()
    kernel.start_kernel()
    lease = kernel_lease(session)
    opened(kernel).close()  # its heartbeat makes sockets while there is no kernel
    pid = kernel.provisioner.pid  # type: ignore[union-attr]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not kernel.is_alive(), "its end is seen")
    assert kernel.provisioner.process.poll() == -signal.SIGKILL  # type: ignore[union-attr]
    kernel.restart_kernel(now=True)
    assert kernel_lease(session)["id"] == lease["id"]
    notebook = opened(kernel)
    assert notebook.run("print(6 * 7)").strip() == "42"
    notebook.close()
    session.release(lease["id"])
    until(lambda: not kernel.is_alive(), "without its lease it has no place there")
    nothing_left(session, kernel.provisioner.pid)  # type: ignore[union-attr]


def test_the_end_of_its_node_is_the_end_of_a_kernel(
    manager: Callable[[], KernelManager], session: Session, opened: Open
) -> None:
    kernel = manager()
    kernel.start_kernel()
    opened(kernel).close()  # its heartbeat makes sockets while there is no kernel
    pid = kernel.provisioner.pid  # type: ignore[union-attr]
    os.kill(agent_of("far"), signal.SIGKILL)
    until(lambda: not alive(pid), "no kernel without an agent")
    until(lambda: not kernel.is_alive(), "its end is seen", 40)


def test_the_end_of_its_server_is_the_end_of_a_kernel(session: Session) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert alive(pid)
        starter.kill()
    nothing_left(session, pid)


def test_a_program_that_is_not_there_is_refused_and_nothing_is_left(
    manager: Callable[[str], KernelManager], session: Session
) -> None:
    with pytest.raises(AiosError, match="no such program on this node"):
        manager("broken").start_kernel()
    nothing_left(session, 0)


def test_nobody_else_has_a_kernel_elsewhere(
    manager: Callable[[], KernelManager], session: Session, tmp_path: Path
) -> None:
    kernel = manager()
    kernel.start_kernel()
    (run,) = kernel_runs(session)
    lease = kernel_lease(session)["id"]
    other = session.start("import time\ntime.sleep(600)", cell=True, lease=lease)
    _, (address,) = session._located(run["id"])
    session.user_add("mallory", "user", tmp_path / "mallory")

    def stream(who: Session, run: str, channel: str) -> None:
        launcher = who._launcher
        assert launcher is not None
        head = tunnel.Head(run=run, channel=channel)
        who._loop.run(tunnel.dial(address, launcher._bundle, head))

    with session_of(tmp_path / "mallory") as mallory:
        launcher = mallory._launcher
        assert launcher is not None
        for op, body in {
            "kernel.attend": ById(id=run["id"]),
            "kernel.signal": msg.KernelSignal(run=run["id"], number=signal.SIGKILL),
        }.items():
            with pytest.raises(AccessError, match="belongs to"):
                mallory._loop.run(launcher.ask([address], op, body, Any, 10))
        for channel in (*tunnel.CHANNELS, tunnel.LENT):
            with pytest.raises(AccessError, match="belongs to"):
                stream(mallory, run["id"], channel)

    def refused() -> set[str]:
        rows = [row for row in session.audit(50) if row["what"] == "refused"]
        return {row["detail"]["op"] for row in rows if row["who"] == "mallory"}

    until(
        lambda: refused() >= {"kernel.attend", "kernel.signal", "kernel.stream"},
        "the refusals are on record",
    )
    with pytest.raises(UsageError, match="'cellar' is not a channel"):
        stream(session, run["id"], "cellar")
    with pytest.raises(ConflictError, match="not a kernel"):
        stream(session, other.id, "shell")
    assert kernel.is_alive()
    # Its key is in no file that the run has for its owner, and admins, to read.
    with contextlib.suppress(NotFoundError):
        text = bytes(session._loop.run(session._launcher.read(address, run["id"], "run.json")))  # type: ignore[union-attr]
        assert kernel.session.key not in text


TASK = "print(aios_jupyter.connect().dask().submit(sum, [3, 4]).result())"


def test_a_kernel_elsewhere_has_dasks_workers_where_its_node_does_data_tasks(
    manager: Callable[[], KernelManager], session: Session, opened: Open, tmp_path: Path
) -> None:
    kernel = manager()
    kernel.start_kernel(cwd=str(tmp_path))
    notebook = opened(kernel)
    notebook.run("import aios_jupyter\n%load_ext aios_jupyter")
    refused = notebook.reply(notebook.send(TASK))["content"]
    assert refused["ename"] == "AccessError"
    assert "add such nodes with 'aios node add --data'" in refused["evalue"]
    # What needs no worker is done without one.
    notebook.run("%aios augment mnist -o more --policy hflip")
    assert "20,000" in notebook.run("%aios data show more")

    keys = joined._places("far")[0] / "tls"
    shutil.copytree(embedded.Paths.current().tls / "dask", keys / "dask")
    try:
        kernel.restart_kernel()
        notebook.ready()
        notebook.run("import aios_jupyter")
        assert notebook.run(TASK).strip() == "7"
    finally:
        shutil.rmtree(keys / "dask")


LOOPS = "import threading; print([one.name for one in threading.enumerate()].count('IO loop'))"


def test_a_kernel_elsewhere_that_does_not_reach_dasks_scheduler_says_so_and_leaves_nothing(
    manager: Callable[[], KernelManager],
    session: Session,
    opened: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody listens there, as on the loopback of another machine; or something that never answers."""
    keys = joined._places("far")[0] / "tls"
    shutil.copytree(embedded.Paths.current().tls / "dask", keys / "dask")
    kernel = manager()
    try:
        kernel.start_kernel(cwd=str(tmp_path))
        notebook = opened(kernel)
        notebook.run("%load_ext aios_jupyter\nimport aios_jupyter")
        notebook.run("from aios_jupyter.session import assets\nassets.REACH_TIMEOUT = 1")
        assert notebook.run(TASK).strip() == "7"
        loops = notebook.run(LOOPS)
        with socket.socket() as silent, socket.socket() as closed:
            for one in (silent, closed):
                one.bind(("127.0.0.1", 0))
            silent.listen()
            for one in (closed, silent):
                address = f"tls://127.0.0.1:{one.getsockname()[1]}"
                monkeypatch.setattr(kernels, "locate_tasks", lambda _, at=address: at)
                refused = notebook.reply(notebook.send("%aios augment mnist -o x --policy hflip"))
                assert refused["content"]["ename"] == "ClusterError"
                said = f"The cluster's Dask scheduler at {address} is not reached from here"
                assert said in refused["content"]["evalue"]
                assert "in a notebook of your own machine" in refused["content"]["evalue"]
                assert notebook.run(LOOPS) == loops, "no thread of it is left"
        monkeypatch.undo()
        assert notebook.run(TASK).strip() == "7", "it is reached again"
        pid = kernel.provisioner.pid  # type: ignore[union-attr]
        kernel.shutdown_kernel()
        nothing_left(session, pid)
    finally:
        shutil.rmtree(keys / "dask")


def test_where_dasks_workers_are_is_for_the_clusters_owner(
    session: Session, tmp_path: Path
) -> None:
    assert link.locate_tasks(None).startswith("tls://")
    with pytest.raises(AccessError, match="does not admit there"):
        link.locate_tasks(tmp_path)


@pytest.fixture
def directories(session: Session) -> dict[str, str]:
    """Where the cluster and the kernelspecs are; the server has directories of its own besides."""
    return {name: os.environ[name] for name in DIRECTORIES}


@pytest.fixture
def server(
    directories: dict[str, str],
    jp_environ: None,
    request: pytest.FixtureRequest,
    jp_asyncio_loop: asyncio.AbstractEventLoop,
) -> Iterator[Any]:
    """A Jupyter server on the cluster of two nodes."""
    with served(request, directories, jp_asyncio_loop) as app:
        yield app


async def test_a_server_starts_a_kernel_elsewhere_again_also_when_its_node_was_lost(
    server: Any, jp_fetch: Fetch, session: Session, second_node: Path, directories: dict[str, str]
) -> None:
    await ask(jp_fetch, "two")
    (kernel,) = server.kernel_manager.list_kernel_ids()
    manager = server.kernel_manager.get_kernel(kernel)
    provisioner = manager.provisioner
    lease, pid = kernel_lease(session)["id"], provisioner.pid
    told = json.loads((await jp_fetch("aios/kernels")).body)["kernels"][kernel]
    assert told == {"host": "far", "pid": pid, "lease": lease}

    def again() -> bool:
        started = provisioner.pid not in (None, pid) and alive(provisioner.pid)
        # Until then the server answers a request to end it with an error.
        return started and manager.ready.done()

    os.kill(pid, signal.SIGKILL)
    await eventually(again, "Jupyter starts it again")
    assert kernel_lease(session)["id"] == lease

    pid = provisioner.pid
    os.kill(agent_of("far"), signal.SIGKILL)
    await eventually(lambda: not alive(pid), "it ends with its node")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in directories.items():
            patch.setenv(name, value)
        await asyncio.to_thread(join_node, second_node, simulate_gpus=2)
    await eventually(again, "it starts again when the node is back")
    assert provisioner.node == "far"
    assert len(kernel_runs(session)) == 1
    await jp_fetch("api", "kernels", kernel, method="DELETE")
    await eventually(lambda: len(free(session)) == 2, "its devices are free")


def test_papermill_runs_a_notebook_where_its_devices_are(session: Session, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import os; print(os.getppid(), os.getcwd())")],
        metadata={"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"),
        None,
        engine_name="aios",
        gpus=2,
        cwd=str(tmp_path),
        progress_bar=False,
    )
    (output,) = done.cells[0].outputs
    assert output.text.split() == [str(agent_of("far")), str(tmp_path)]
    nothing_left(session, 0)
