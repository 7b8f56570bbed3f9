"""Clusters of several nodes: who may join, gangs over them, and what becomes of a node's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from clusters import agent_of, free, holder, pid_of, until, up

from aios_jupyter.broker import messages as msg
from aios_jupyter.broker.messages import VERSION
from aios_jupyter.broker.protocol import connect as dial
from aios_jupyter.cluster import embedded
from aios_jupyter.config import IS_LINUX
from aios_jupyter.errors import AccessError, AiosError, ClusterError, ConflictError, RunError
from aios_jupyter.process import alive
from aios_jupyter.schema import Node
from aios_jupyter.session import Session, connect, join_node, leave_node
from aios_jupyter.tls import Bundle

# A rank says where it is; with torch they add up their numbers.
ADDS = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
print(*(os.environ[name] for name in names), int(total), flush=True)
result = (given, float(total))
dist.destroy_process_group()
"""
WAITS = """
import os, pathlib, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
pathlib.Path(folder, os.environ["RANK"]).write_text(str(os.getpid()))
while True:
    dist.all_reduce(torch.ones(1))
    time.sleep(0.02)
"""


def test_a_gang_over_two_nodes_trains_and_brings_values_back(second_node: Path) -> None:
    pytest.importorskip("torch")
    with connect() as session:
        lease = session.alloc(gpus=4)
        assert {slot.node for slot in lease.slots} == {"far", *_others(session)}
        handle = session.start(ADDS, cell=True, push={"given": "sent"}, pull=["result"])
        list(handle.events())
        assert handle.wait().pulled == {"result": ("sent", 10.0)}
        # The log, of both nodes, can be read later too.
        logs = ["".join(session.logs(handle.id, rank=rank)) for rank in range(4)]
        assert logs == ["0 0 0 2 4 10\n", "1 1 0 2 4 10\n", "2 0 1 2 4 10\n", "3 1 1 2 4 10\n"]


def test_a_node_that_is_killed_is_the_reason_and_its_part_is_confirmed_gone(
    second_node: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    with connect() as session:
        handle = session.start(WAITS, cell=True, gpus=4, push={"folder": str(tmp_path)})
        pids = _pids(tmp_path, 4)
        os.kill(agent_of("far"), signal.SIGKILL)
        with pytest.raises(RunError, match="failed: node far was lost") as caught:
            handle.wait()
        assert caught.value.traceback == ""
        until(lambda: not any(map(alive, pids)), "no rank is left")
        # Nobody has said that far's processes are gone: its devices are granted to nobody.
        devices = session.status()["devices"].values()
        far = [row["id"] for row in devices if row["node"] == "far" and row["kind"] == "simulated"]
        assert all(holder(session, device) for device in far)
        join_node(second_node, simulate_gpus=2)
        until(lambda: len(free(session)) == 4, "all devices are free once far has confirmed")
        assert session.train("print('again')", cell=True, gpus=4).world_size == 4


def test_of_two_nodes_failures_the_one_that_made_the_other_is_told(second_node: Path) -> None:
    pytest.importorskip("torch")
    code = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if os.environ["RANK"] == "3":
    os.kill(os.getpid(), 9)
dist.all_reduce(torch.ones(1))
"""
    with connect() as session:
        handle = session.start(code, cell=True, gpus=4)
        with pytest.raises(RunError, match="failed: rank 3 was killed by SIGKILL") as caught:
            handle.wait()
        assert caught.value.rank == 3
        until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_node_that_leaves_is_named(second_node: Path) -> None:
    code = "import time\nprint('up', flush=True)\ntime.sleep(600)"
    with connect() as session:
        handle = session.start(code, cell=True, gpus=4)
        next(event for event in handle.events() if event["type"] == "log")
        leave_node("far")
        with pytest.raises(RunError, match="node far was stopped"):
            handle.wait()


def test_a_revoked_node_ends_and_may_not_come_back(own_second_node: Path) -> None:
    with connect() as session:
        pid = agent_of("far")
        session.node_revoke("far")
        until(lambda: not alive(pid), "the agent has ended")
        with pytest.raises(ClusterError, match="access of far to this cluster was revoked"):
            join_node(own_second_node)
        rows = {row["id"]: row["state"] for row in session.node_list()}
        assert rows["far"] == "lost"
        whats = [(record["what"], record["detail"].get("node")) for record in session.audit(50)]
        assert ("node revoked", "far") in whats


def test_a_nodes_certificate_is_for_its_own_name(second_node: Path) -> None:
    with connect() as session:
        (here,) = _others(session)

        async def pass_for_others() -> None:
            address = json.loads(embedded.Paths.current().broker.read_text())["address"]
            context = Bundle.of(second_node, "node").client_context()
            connection = await dial(address, context)
            try:
                node = Node(id=here, host="h", address="127.0.0.1:1", pid=1, devices=())
                hello = msg.NodeHello(version=VERSION, node=node)
                with pytest.raises(AccessError, match="certificate of node far"):
                    await connection.call("node.hello", hello, timeout=10)
                with pytest.raises(AccessError, match="said hello"):
                    await connection.call("node.gone", msg.ById(id="L1"), timeout=10)
            finally:
                connection.close()
                await connection.wait_closed()

        asyncio.run(pass_for_others())
        assert {row["state"] for row in session.node_list()} == {"up"}


def test_what_is_revoked_is_refused_by_every_node(second_node: Path, tmp_path: Path) -> None:
    from clusters import session_of

    with connect() as owner:
        owner.user_add("bob", "user", tmp_path / "bob")
        with session_of(tmp_path / "bob") as bob:
            run = bob.start("import time\ntime.sleep(600)", cell=True, gpus=4, detach=True)
            owner.user_revoke("bob")
            listed = embedded.Paths.current().runtime.parent / "nodes" / "far" / "tls"
            until((listed / "revoked.json").exists, "far has the list")
            until(lambda: len(free(owner)) == 4, "what bob had is free")
            with pytest.raises(AiosError):
                bob.attach(run.id)


def test_nodes_that_must_not_join_are_refused_with_a_sentence(
    second_node: Path, tmp_path: Path
) -> None:
    with connect() as session:
        session.user_add("eve", "user", tmp_path / "eve")
        with pytest.raises(AccessError, match="a person's bundle"):
            join_node(tmp_path / "eve")
        with pytest.raises(ConflictError, match="runs on this machine already"):
            join_node(second_node)
        with pytest.raises(ConflictError, match="There is a node far already"):
            session.node_add("far", tmp_path / "again")
        with pytest.raises(ClusterError, match=r"has no ca\.pem"):
            join_node(tmp_path)
        leave_node("far")
        (second_node / "node.key").chmod(0o644)
        with pytest.raises(ClusterError, match="chmod 600"):
            join_node(second_node)
        (second_node / "node.key").chmod(0o600)


def test_the_cluster_ends_with_all_its_nodes(own_second_node: Path) -> None:
    pid = agent_of("far")
    broker = pid_of("broker")
    os.kill(broker, signal.SIGKILL)
    until(lambda: not alive(broker), "the broker is gone")
    # The broker's death alone is no reason to leave.
    with connect() as session:
        until(lambda: up(session) == 2, "both nodes are back")
    assert alive(pid)
    embedded.down()
    until(lambda: not alive(pid), "the node has ended with its cluster")


@pytest.mark.skipif(not IS_LINUX, reason="elsewhere loopback has one address")
def test_a_cluster_listens_where_it_is_told_to(no_cluster: Path) -> None:
    embedded.ensure(simulate_gpus=1, host="127.0.0.2")
    with connect() as session:
        (row,) = session.node_list()
        assert row["address"].startswith("127.0.0.2:")
        code = "import os\nresult = os.environ['MASTER_ADDR']"
        assert session.train(code, cell=True, pull=["result"]).pulled["result"] == "127.0.0.2"
    with pytest.raises(ClusterError, match=r"listens at 127\.0\.0\.2 is running already"):
        embedded.ensure(host="127.0.0.1")


def test_a_node_takes_data_tasks_where_it_may(second_node: Path, tmp_path: Path) -> None:
    with connect() as session:
        session.node_add("data", tmp_path / "data-node", data=True)
        assert not (second_node / "dask").exists()
        join_node(tmp_path / "data-node")
        try:
            names = {"data", *_others(session)} - {"far"}
            workers = session.dask().scheduler_info
            until(lambda: {w["name"] for w in workers()["workers"].values()} == names, "both", 60)
        finally:
            leave_node("data")


def _others(session: Session) -> set[str]:
    return {row["id"] for row in session.node_list()} - {"far"}


def _pids(folder: Path, count: int) -> list[int]:
    def written() -> list[int]:
        texts = [path.read_text() for path in folder.iterdir()]
        found = [int(text) for text in texts if text]
        return found if len(found) == count else []

    pids: list[int] = until(written, "all ranks are there", 40)
    return pids
