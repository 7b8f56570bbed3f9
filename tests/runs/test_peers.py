"""How ranks learn each other's addresses, without any framework."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable

import pytest

from aios_jupyter.config import IS_LINUX
from aios_jupyter.errors import ClusterError
from aios_jupyter.node.ranks import bind_port
from aios_jupyter.runs import peers
from aios_jupyter.runs.rank import Orders
from aios_jupyter.runs.spec import Entry, RankSpec, Rendezvous, RunSpec
from aios_jupyter.schema import DeviceKind, RunKind


def orders(rank: int, world: int, port: int, listen_fd: int = -1, run: str = "r1") -> Orders:
    return Orders(
        spec=RunSpec(
            id=run, lease="l1", kind=RunKind.TRAIN, name="n", entry=Entry.CELL, world_size=world
        ),
        rank=RankSpec(
            rank=rank, local_rank=rank, local_world_size=world, node_rank=0, nnodes=1,
            device=f"cpu-{rank}", kind=DeviceKind.CPU, index=rank,
        ),
        rendezvous=Rendezvous(address="127.0.0.1", port=port),
        directory="", file="", parent=1, event_fd=0, lifeline_fd=0, listen_fd=listen_fd,
    )  # fmt: skip


def met(*tasks: Callable[[], tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What each rank has learned; they meet in threads."""
    results: list[tuple[str, ...]] = [()] * len(tasks)

    def work(index: int, task: Callable[[], tuple[str, ...]]) -> None:
        results[index] = task()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_all_ranks_learn_the_same_addresses_in_order() -> None:
    listener, port = bind_port("127.0.0.1")
    with listener:
        found = met(
            *(
                lambda rank=rank: peers.meet(  # type: ignore[misc]
                    orders(rank, 3, port, listener.fileno() if rank == 0 else -1)
                )
                for rank in (2, 0, 1)
            )
        )
        assert found[0] == found[1] == found[2]
        assert len(set(found[0])) == 3
        assert all(address.startswith("127.0.0.1:") for address in found[0])
        # The socket is still there for torch's store, and waits as before.
        assert listener.fileno() >= 0
        assert listener.getblocking()


def test_strangers_and_ranks_of_other_runs_are_no_peers() -> None:
    listener, port = bind_port("127.0.0.1")
    with listener:
        said = [
            b"GET / HTTP/1.1\r\n\n",
            b"",
            b'"hello"\n',
            json.dumps({"run": "r1", "rank": 7, "peer": "evil:1"}).encode() + b"\n",
            json.dumps({"run": "r2", "rank": 1, "peer": "evil:1"}).encode() + b"\n",
            json.dumps({"run": "r1", "rank": "1", "peer": "evil:1"}).encode() + b"\n",
        ]
        strangers = []
        for data in said:
            stranger = socket.create_connection(("127.0.0.1", port))
            stranger.sendall(data)
            if not data:
                stranger.close()
            strangers.append(stranger)
        found = met(
            lambda: peers.meet(orders(0, 2, port, listener.fileno())),
            lambda: peers.meet(orders(1, 2, port)),
        )
        for stranger in strangers:
            stranger.close()
    assert found[0] == found[1]
    assert not any("evil" in address for address in found[0])


def test_a_rank_that_does_not_come_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MEET_TIMEOUT", 0.2)
    listener, port = bind_port("127.0.0.1")
    with listener, pytest.raises(ClusterError, match="Not all of the 2 ranks have come"):
        peers.meet(orders(0, 2, port, listener.fileno()))
    with pytest.raises(ClusterError, match="Rank 0 cannot be reached"):
        peers.meet(orders(1, 2, port))


@pytest.mark.skipif(not IS_LINUX, reason="elsewhere a port in TIME_WAIT does it")
def test_a_reserved_port_goes_to_a_server_of_ours_and_to_nobody_else() -> None:
    port = peers.reserve_port("127.0.0.1")
    with socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen()
            assert server.getsockname()[1] == port
    assert port not in {peers.reserve_port("127.0.0.1") for _ in range(50)}


def test_tf_config_names_all_workers_and_the_own_one() -> None:
    told = json.loads(peers.tf_config(("a:1", "b:2"), 1))
    assert told == {
        "cluster": {"worker": ["a:1", "b:2"]},
        "task": {"type": "worker", "index": 1},
    }
