"""Where Horovod's ranks meet, without Horovod; `tests/session` has it with Horovod."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
from importlib.util import find_spec
from typing import Any

import psutil
import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.runs import cells, horovod


def numbers(nodes: list[str], rank: int) -> tuple[int, ...]:
    env = horovod.environment(nodes, rank)
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    return tuple(int(env[f"HOROVOD_{name}"]) for name in names)


def test_ranks_of_one_node_are_local_to_each_other() -> None:
    assert [numbers(["0", "0"], rank) for rank in range(2)] == [
        (0, 2, 0, 2, 0, 1),
        (1, 2, 1, 2, 0, 1),
    ]


def test_ranks_of_several_nodes_meet_those_with_their_local_rank() -> None:
    nodes = ["a", "a", "a", "b", "c", "c"]
    assert [numbers(nodes, rank) for rank in range(6)] == [
        (0, 6, 0, 3, 0, 3),
        (1, 6, 1, 3, 0, 2),
        (2, 6, 2, 3, 0, 1),
        (3, 6, 0, 1, 1, 3),
        (4, 6, 0, 2, 2, 3),
        (5, 6, 1, 2, 1, 2),
    ]
    assert len({horovod.environment(nodes, rank)["HOROVOD_HOSTNAME"] for rank in range(6)}) == 3


def test_the_interface_of_an_address_is_found() -> None:
    loopback = horovod.interface_of("127.0.0.1")
    assert loopback in psutil.net_if_addrs()
    assert horovod.interface_of("192.0.2.1") == ""


@pytest.fixture(scope="module")
def store() -> Any:
    made = horovod.Store("127.0.0.1")
    yield made
    made.shutdown()
    made.server_close()


def ask(store: horovod.Store, method: str, path: str, body: bytes | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=10)
    connection.request(method, path, body)
    answer = connection.getresponse()
    result = answer.status, answer.read()
    connection.close()
    return result


def test_what_one_rank_leaves_another_gets_until_it_is_taken_away(store: horovod.Store) -> None:
    assert ask(store, "GET", "/global/0") == (404, b"")
    for key, value in (("0", b"\0\xff"), ("rank_0", b"host"), ("1", b"x")):
        assert ask(store, "PUT", f"/global/{key}", value)[0] == 200
    assert ask(store, "GET", "/global/0") == (200, b"\0\xff")
    assert ask(store, "GET", "/local_a/0")[0] == 404
    assert ask(store, "DELETE", "/global/0")[0] == 200
    found = [ask(store, "GET", f"/global/{key}")[0] for key in ("0", "rank_0", "1")]
    assert found == [404, 404, 200]


def test_who_says_nothing_or_too_much_keeps_nobody_waiting(store: horovod.Store) -> None:
    with socket.create_connection(("127.0.0.1", store.port)) as silent:
        silent.sendall(b"PUT /x/y HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert silent.recv(100).startswith(b"HTTP/1.0 413")
    with socket.create_connection(("127.0.0.1", store.port)):
        assert ask(store, "PUT", "/global/2", b"y")[0] == 200


def test_many_ranks_ask_at_once(store: horovod.Store) -> None:
    answers: list[Any] = []

    def work(rank: int) -> None:
        answers.append(ask(store, "PUT", f"/many/{rank}", b"%d" % rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [status for status, _ in answers] == [200] * 64
    assert [ask(store, "GET", f"/many/{rank}")[1] for rank in (0, 63)] == [b"0", b"63"]


# --- when it is Horovod


@pytest.mark.parametrize("source", ["import horovod.torch as hvd", "from horovod import torch"])
def test_code_that_imports_horovod_is_horovods(source: str) -> None:
    assert cells.detect_framework(f"{source}\nimport torch, tensorflow", {}) == "horovod"


def test_code_that_tries_to_import_it_is_horovods_where_it_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = (
        "import torch\ntry:\n    import horovod.torch as hvd\nexcept ImportError:\n    hvd = None"
    )
    monkeypatch.setattr(cells, "_has_horovod", lambda: False)
    assert cells.detect_framework(source, {}) == "torch"
    assert cells.detect_framework(f"{source}\nimport horovod", {}) == "horovod"
    monkeypatch.setattr(cells, "_has_horovod", lambda: True)
    assert cells.detect_framework(source, {}) == "horovod"


def test_a_function_that_imports_it_within_is_horovods() -> None:
    def train() -> None:
        import horovod.torch as hvd

        hvd.init()

    def other() -> None:
        import torch

        torch.ones(1)

    assert cells.detect_framework("", {"function": train}) == "horovod"
    assert cells.detect_framework("", {"function": other}) == "torch"


@pytest.mark.skipif(find_spec("horovod") is not None, reason="Horovod is here")
def test_where_it_is_missing_the_error_says_what_brings_it() -> None:
    with pytest.raises(UsageError, match=r"not installed for .*'make horovod'") as raised:
        horovod.check()
    assert sys.executable in str(raised.value)
