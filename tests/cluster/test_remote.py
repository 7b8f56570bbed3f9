"""Nodes by ssh, with a stand-in for ssh that runs everything here; `tests/systems/test_ssh.py` has one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import aios_jupyter
from aios_jupyter.cluster import embedded, nodes, remote
from aios_jupyter.commands import Host, invoke
from aios_jupyter.config import settings
from aios_jupyter.errors import AccessError, ClusterError, UsageError
from aios_jupyter.process import alive
from aios_jupyter.session import connect

# It has directories of its own, as another machine has, and notes what it was asked to run.
STAND_IN = """#!/bin/sh
if [ "$1" = -G ]; then echo hostname 127.0.0.1; exit; fi
for last; do :; done
echo "$*" >>{root}/asked
export JUPYTER_RUNTIME_DIR={root}/there/runtime JUPYTER_DATA_DIR={root}/there/data
unset AIOS_STATE_DIR
exec sh -c "$last"
"""


@pytest.fixture
def stand_in(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which `asked` has what ssh was to run."""
    ssh = no_cluster / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(STAND_IN.format(root=no_cluster))
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    return no_cluster


def test_the_bundle_goes_over_as_input_and_nothing_is_left_of_it(stand_in: Path) -> None:
    aios_jupyter.up("ssh:ana@gpu1", simulate_gpus=1)
    runtime = stand_in / "there" / "runtime" / "aios" / "nodes"
    with connect() as session:
        (row,) = (row for row in session.node_list() if row["id"] == "gpu1")
        assert (row["state"], remote.rows()[0]["host"]) == ("up", "ana@gpu1")
        pid = json.loads((runtime / "gpu1" / "node.json").read_text())["pid"]
        secret = (runtime / "gpu1" / "tls" / "node.key").read_text().splitlines()[1]
        assert secret not in (stand_in / "asked").read_text()
        assert "BatchMode=yes" in (stand_in / "asked").read_text()
    aios_jupyter.down()
    assert not alive(pid)
    assert list(runtime.rglob("*.key")) == []
    assert list(runtime.glob(".bundle-*")) == []


def test_hosts_are_names_and_never_options() -> None:
    assert remote.hosts_of("ssh:gpu1, ana@gpu2,gpu1") == ("gpu1", "ana@gpu2")
    assert remote.name_of("ana@gpu2") == "gpu2"
    for place in (
        "ssh:",
        "ssh:-oProxyCommand=x",
        "ssh:gpu1,,gpu2",
        "ssh:a@-b",
        "ssh:a b",
        "ssh:a;b",
    ):
        with pytest.raises(UsageError, match="no machine that ssh reaches"):
            remote.hosts_of(place)


def test_the_first_python_that_has_aios_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = tmp_path / "it's here"
    lines = '[ "$1" = -c ] && echo "${HAS:-' + aios_jupyter.__version__ + '}" || echo "$@"'
    has.write_text(f"#!/bin/sh\n{lines}\n")
    has.chmod(0o700)

    def run(python: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", remote.script(python, ["leave", "gpu 1"])]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(str(has)).stdout == "-m aios_jupyter node leave gpu 1\n"
    assert run("/nowhere/python").returncode == 127
    monkeypatch.setenv("HAS", "0.0.9")
    other = run(str(has))
    assert (other.returncode, other.stderr, other.stdout) == (126, "0.0.9\n", "")


def test_a_bundle_is_the_same_after_its_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for file in nodes.FILES:
        (tmp_path / "a" / file).write_text(file)
    nodes.unpack(nodes.pack(tmp_path / "a"), tmp_path / "b")
    for file in nodes.FILES:
        assert (tmp_path / "b" / file).read_text() == file
        assert (tmp_path / "b" / file).stat().st_mode & 0o077 == 0
    for text in ("", "{}", "[1]", '{"ca.pem": "x"}'):
        with pytest.raises(ClusterError, match="no bundle of a node"):
            nodes.unpack(text, tmp_path / "c")


def test_only_the_clusters_owner_starts_and_stops_nodes(stand_in: Path) -> None:
    with connect(simulate_gpus=1) as session:
        session.user_add("bob", "admin", stand_in / "bob")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_BUNDLE", str(stand_in / "bob"))
        settings.cache_clear()
        with connect() as bob:
            for place in ("ssh:gpu1", "slurm"):
                with pytest.raises(AccessError, match="has another owner"):
                    bob.node_start(place)
            with pytest.raises(AccessError, match="has another owner"):
                bob.node_stop("gpu1")
        with pytest.raises(AccessError, match="has another owner"):
            aios_jupyter.up("ssh:gpu1")
    settings.cache_clear()
    assert not (stand_in / "asked").exists()


def test_nobodys_code_comes_to_run_as_root_by_it(stand_in: Path) -> None:
    embedded.ensure()
    connection = embedded.Paths.current().connection
    connection.write_text(json.dumps({**json.loads(connection.read_text()), "accounts": "names"}))
    with connect() as session:
        for place in ("ssh:gpu1", "slurm"):
            with pytest.raises(ClusterError, match="in their own accounts"):
                session.node_start(place)
    with pytest.raises(UsageError, match="once the cluster is up"):
        invoke(["up", "--foreground", "--on", "slurm"], Host())


def test_without_ssh_it_is_said(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.ensure()
    monkeypatch.setenv("PATH", "/nowhere")
    with connect() as session, pytest.raises(ClusterError, match="There is no ssh here"):
        session.node_start("ssh:gpu1")
