"""A kernel on another node, in an account of its own there."""

from __future__ import annotations

import json
import pwd
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from accounts import PACKAGE, SITE, python, shared
from clusters import agent_of, free, private_directories, until
from front_end import Notebook
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

from aios_jupyter.cluster import embedded
from aios_jupyter.kernel import specs
from aios_jupyter.runs import tunnel
from aios_jupyter.session import Session, connect, join_node, leave_node

__all__ = ["python", "shared"]

Open = Callable[[KernelManager], Notebook]


@pytest.fixture
def session(python: str, shared: Path, tmp_path: Path) -> Iterator[Session]:
    """A session on a cluster whose other node, `far`, has its people run in their own accounts."""
    rule = shared / "far.json"
    # Whoever started the cluster is nobody special there.
    rule.write_text(json.dumps({"root": {"account": "games", "home": str(shared / "ana")}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        patch.setenv("PYTHONPATH", f"{PACKAGE}:{SITE}")
        with private_directories(tmp_path / "cluster"):
            embedded.ensure(simulate_gpus=0)
            with connect() as opened:
                opened.node_add("far", tmp_path / "far")
                join_node(tmp_path / "far", simulate_gpus=1, accounts=str(rule))
                specs.add(gpus=1, name="one")
                yield opened
            leave_node("far")


def test_a_kernel_elsewhere_is_its_persons(session: Session, opened: Open, shared: Path) -> None:
    account = pwd.getpwnam("games")
    kernel = KernelManager(kernel_name="one", kernel_spec_manager=KernelSpecManager())
    kernel.start_kernel(cwd=str(shared / "ana"))
    try:
        pid = kernel.provisioner.pid  # type: ignore[union-attr]
        assert psutil.Process(pid).ppid() == agent_of("far")
        assert psutil.Process(pid).uids() == (account.pw_uid,) * 3
        notebook = opened(kernel)
        look = "import os; print(os.getuid(), os.path.expanduser('~'), os.getcwd())"
        home = str(shared / "ana")
        assert notebook.run(look).split() == [str(account.pw_uid), home, home]
        # Its calls to the cluster go through what was lent to it, and its ranks are the person's too.
        # (Jupyter's folders are the test's here, which are root's.)
        notebook.run("for name in ('DATA', 'RUNTIME'): os.environ.pop(f'JUPYTER_{name}_DIR')")
        notebook.run("%load_ext aios_jupyter")
        notebook.run("%%aios train --pull uid\nimport os\nuid = os.getuid()")
        assert notebook.run("print(uid)").strip() == str(account.pw_uid)
        place = Path(psutil.Process(pid).environ()[tunnel.VARIABLE]).parent
        assert place.stat().st_uid == 0, "who can replace a socket of the agent's could listen in"
        assert (place / "k").owner() == "games"
        assert (place / "kernel.json").stat().st_mode & 0o777 == 0o600
        notebook.close()
    finally:
        kernel.shutdown_kernel()
    until(lambda: not place.exists(), "its sockets are gone")
    until(lambda: free(session), "its device is free")


def test_a_kernel_starts_at_home_where_it_may_not_enter(
    session: Session, opened: Open, shared: Path
) -> None:
    (shared / "roots").mkdir(mode=0o700, exist_ok=True)
    kernel = KernelManager(kernel_name="one", kernel_spec_manager=KernelSpecManager())
    kernel.start_kernel(cwd=str(shared / "roots"))
    try:
        notebook = opened(kernel)
        assert notebook.run("import os; print(os.getcwd())").strip() == str(shared / "ana")
        notebook.close()
    finally:
        kernel.shutdown_kernel()
