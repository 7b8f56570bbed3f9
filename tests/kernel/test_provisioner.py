"""A kernel's devices from before its first moment to after its last, however that comes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from clusters import free, session_of, until
from front_end import Notebook
from jupyter_client import KernelManager

from aios_jupyter.config import settings
from aios_jupyter.errors import AllocationError
from aios_jupyter.kernel import provisioner
from aios_jupyter.process import alive
from aios_jupyter.schema import DeviceKind, Lease, Slot
from aios_jupyter.session import Session
from aios_jupyter.session import kernels as tenancies

Make = Callable[[str], KernelManager]


def held(session: Session) -> list[dict[str, Any]]:
    """The leases that there are, oldest first."""
    return sorted(session.status()["leases"].values(), key=lambda row: int(row["id"][1:]))


def none_held(session: Session) -> None:
    until(lambda: not held(session), "the devices are free again", 60)


# --- its whole life


def test_a_kernel_has_its_devices_from_before_its_start_to_its_end(
    manager: Make, session: Session, opened: Callable[[KernelManager], Notebook]
) -> None:
    kernel = manager("two")
    kernel.start_kernel(env={**os.environ, "JPY_SESSION_NAME": "work/digits.ipynb"})
    (lease,) = held(session)
    assert (lease["label"], len(lease["devices"])) == ("digits.ipynb", 2)

    notebook = opened(kernel)
    assert lease["id"] in notebook.run("%aios leases")
    assert lease["id"] in notebook.run("import os; print(os.environ['AIOS_LEASE'])")
    notebook.run("%%aios train --pull world\nimport os\nworld = os.environ['WORLD_SIZE']")
    assert notebook.run("print(world)").strip() == "2"
    assert [row["id"] for row in held(session)] == [lease["id"]], "the run used what was there"

    kernel.shutdown_kernel()
    assert held(session) == []
    kernel.cleanup_resources()  # a second time, as some front ends do


def test_a_restart_keeps_the_devices_and_ends_what_the_kernel_had_besides(
    manager: Make,
    session: Session,
    opened: Callable[[KernelManager], Notebook],
    tmp_path: Path,
) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(600)")
    kernel = manager("two")
    kernel.start_kernel()
    notebook = opened(kernel)
    notebook.run("%aios alloc --devices 1")
    run = notebook.run(
        "import aios_jupyter\n"
        "with aios_jupyter.connect() as mine:\n"
        f"    print(mine.start({str(script)!r}, lease={held(session)[0]['id']!r}).id)"
    ).strip()
    until(lambda: session.status()["runs"][run]["state"] == "running", "the run is at work")
    first, besides = held(session)
    assert first["session"] == besides["session"]

    kernel.restart_kernel()

    notebook.ready()
    until(lambda: [row["id"] for row in held(session)] == [first["id"]], "the first is left alone")
    until(lambda: session.status()["runs"][run]["ended"], "the run of its last life has ended")
    assert first["id"] in notebook.run("%aios leases")
    kernel.shutdown_kernel(now=True)
    none_held(session)


def test_a_kernel_whose_lease_was_released_asks_again_when_it_is_restarted(
    manager: Make, session: Session
) -> None:
    kernel = manager("sleeper")
    kernel.start_kernel()
    (lease,) = held(session)
    session.release(lease["id"])
    none_held(session)
    kernel.restart_kernel()  # as people do it: the process may have ended with its lease
    (again,) = held(session)
    assert again["id"] != lease["id"]
    kernel.shutdown_kernel(now=True)
    none_held(session)


def test_a_shell_in_a_cell_works_on_the_kernels_devices(
    manager: Make,
    session: Session,
    opened: Callable[[KernelManager], Notebook],
    tmp_path: Path,
) -> None:
    script = tmp_path / "ranks.py"
    script.write_text("import os; print('of', os.environ['WORLD_SIZE'])")
    train = f"!{Path(sys.executable).with_name('aios')} train"

    def lease_of_last_run() -> str:
        return str(session.runs()[0]["lease"])

    kernel = manager("four")
    kernel.start_kernel()
    (lease,) = held(session)
    notebook = opened(kernel)
    assert "of 4" in notebook.run(f"{train} -v {script}")
    assert "of 2" in notebook.run(f"{train} -v --devices 2 {script}"), "as in a cell"
    assert lease_of_last_run() == lease["id"]
    assert [row["id"] for row in held(session)] == [lease["id"]]
    kernel.shutdown_kernel(now=True)
    none_held(session)

    kernel = manager("aios")
    kernel.start_kernel()
    notebook = opened(kernel)
    notebook.run("%aios alloc --devices 4")
    (lease,) = held(session)
    assert "of 4" in notebook.run(f"{train} -v {script}")
    assert lease_of_last_run() == lease["id"]
    notebook.run("%aios release")
    assert "of 1" in notebook.run(f"{train} -v {script}")
    assert lease_of_last_run() != lease["id"]
    kernel.shutdown_kernel(now=True)
    none_held(session)


# --- deaths that nobody tells of


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process, which is gone afterwards."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


STARTER = """
import sys, time
from jupyter_client import KernelManager
kernel = KernelManager(kernel_name=sys.argv[1])
kernel.start_kernel()
print(kernel.provisioner.pid, flush=True)
time.sleep(600)
"""


def pid_said(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_the_lease_is_the_kernels_and_not_of_who_started_it(
    kernels: None, session: Session
) -> None:
    with started("-c", STARTER, "sleeper") as starter:
        pid = pid_said(starter)
        (lease,) = held(session)
    # The starter is gone. Another that waits is gone too, and by then the broker has noticed.
    with started("-c", STARTER, "four") as another:
        until(session.queue, "it waits for the device of the first")
        another.kill()
        until(lambda: not session.queue(), "the broker knows that it is gone")
    assert [row["id"] for row in held(session)] == [lease["id"]]
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    none_held(session)


def test_a_kernel_that_dies_with_its_server_gives_its_devices_back(
    kernels: None, session: Session
) -> None:
    with started("-c", STARTER, "two") as starter:
        pid = pid_said(starter)
        assert len(held(session)) == 1
    none_held(session)
    assert not alive(pid), "it was freed with the kernel, and not before it"


def test_papermill_that_is_told_to_end_leaves_nothing(
    kernels: None, session: Session, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(f"open({str(begun)!r}, 'w')\nwhile True: pass")],
        metadata={"kernelspec": {"name": "two", "display_name": "two", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "in.ipynb")
    paths = [str(tmp_path / name) for name in ("in.ipynb", "out.ipynb")]
    with started("-m", "papermill", *paths) as process:
        until(begun.exists, "its cell is at work", 60)
        assert len(held(session)) == 1
        process.terminate()
        process.wait()
        none_held(session)


def test_a_kernel_that_is_left_dead_gives_its_devices_back(
    manager: Make, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenancies, "RESTART_GRACE", 0.5)
    kernel = manager("sleeper")
    kernel.start_kernel()
    (lease,) = held(session)
    os.kill(kernel.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
    none_held(session)
    kernel.restart_kernel(now=True)
    (again,) = held(session)
    assert again["id"] != lease["id"]
    kernel.shutdown_kernel(now=True)
    none_held(session)


def test_a_kernel_that_cannot_be_started_leaves_no_lease(manager: Make, session: Session) -> None:
    kernel = manager("sleeper")
    assert kernel.kernel_spec is not None
    kernel.kernel_spec.argv[0] = "/no/such/program"
    with pytest.raises(FileNotFoundError):
        kernel.start_kernel()
    none_held(session)


# --- the queue


def test_what_can_never_be_had_is_refused_at_once(manager: Make, session: Session) -> None:
    with pytest.raises(AllocationError, match="99"):
        manager("many").start_kernel()
    assert session.queue() == []


def test_a_wait_that_takes_too_long_is_given_up(manager: Make, session: Session) -> None:
    session.alloc(devices=4)
    kernel = manager("two")
    stanza = kernel.kernel_spec.metadata["kernel_provisioner"]  # type: ignore[union-attr]
    stanza["config"]["max_wait"] = "1s"
    with pytest.raises(AllocationError, match="within 1 s"):
        kernel.start_kernel()
    assert session.queue() == []
    assert len(free(session)) == 0


def test_a_second_user_has_kernels_of_their_own(
    manager: Make, session: Session, tmp_path: Path, opened: Callable[[KernelManager], Notebook]
) -> None:
    session.user_add("bob", "user", tmp_path / "bob")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_BUNDLE", str(tmp_path / "bob"))
        settings.cache_clear()
        kernel = manager("two")
        kernel.start_kernel()
    settings.cache_clear()
    (lease,) = held(session)
    assert lease["user"] == "bob"
    assert lease["id"] in opened(kernel).run("%aios leases")
    with session_of(tmp_path / "bob") as bob:
        assert [row.id for row in bob.leases()] == [lease["id"]]
    os.kill(kernel.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
    kernel.shutdown_kernel(now=True)
    none_held(session)


# --- what it sees


def slot(device: str, kind: DeviceKind, node: str = "") -> Slot:
    return Slot(node=node or socket.gethostname(), device=device, kind=kind, index=0, address="a:1")


@pytest.mark.parametrize(
    ("slots", "seen", "first"),
    [
        ([slot("GPU-b", DeviceKind.GPU), slot("GPU-a", DeviceKind.GPU)], "GPU-b,GPU-a", "cuda:0"),
        ([slot("MIG-1", DeviceKind.MIG)], "MIG-1", "cuda:0"),
        ([slot("sim-0", DeviceKind.SIMULATED)], "", "cpu"),
        ([slot("GPU-far", DeviceKind.GPU, "elsewhere"), slot("GPU-a", DeviceKind.GPU)], "GPU-a", "cuda:0"),
    ],
)  # fmt: skip
def test_a_kernel_sees_its_own_gpus_of_this_machine_by_uuid(
    slots: list[Slot], seen: str, first: str
) -> None:
    lease = Lease(
        id="L7", request="q", session="s", user="u", slots=tuple(slots), fence=7, granted=0.0
    )
    assert provisioner.visible(lease) == {
        "CUDA_VISIBLE_DEVICES": seen,
        "AIOS_LEASE": "L7",
        "AIOS_DEVICE": first,
    }
