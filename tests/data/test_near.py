"""Which worker a task goes to, by the blocks of what it reads. Against real servers: tests/systems."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from aios_jupyter.data import Catalog, blocks, near, pieces
from aios_jupyter.data.blocks import Block
from aios_jupyter.data.near import Span

A, B, C = "tls://10.0.0.1:1", "tls://10.0.0.2:1", "tls://10.0.0.3:1"
HOMES = {A: frozenset({"10.0.0.1", "one"}), B: frozenset({"10.0.0.2"}), C: frozenset({"three"})}
FILE = "hdfs://name/table.parquet"


def on(start: int, stop: int, *hosts: str) -> Block:
    return Block(start, stop, frozenset(hosts))


@pytest.mark.parametrize(
    ("span", "held", "expected"),
    [
        (Span(FILE), [on(0, 10, "one"), on(10, 15, "10.0.0.2")], (A,)),
        (Span(FILE, 8, 15), [on(0, 10, "one"), on(10, 15, "10.0.0.2")], (B,)),
        (Span(FILE, 8, 12), [on(0, 10, "one"), on(10, 15, "10.0.0.2")], (A, B)),
        (Span(FILE, 20, 30), [on(0, 10, "one")], ()),
        (Span(FILE), [on(0, 10, "one", "10.0.0.1", "three")], (A, C)),
        (Span(FILE), [on(0, 10, "one", "10.0.0.2", "three")], ()),
        (Span(FILE), [on(0, 10, "elsewhere")], ()),
        (Span(FILE), [], ()),
        (Span("hdfs://name/other"), [on(0, 10, "one")], ()),
    ],
)
def test_a_task_goes_where_most_of_what_it_reads_lies(span, held, expected):
    assert near.nearest([span], {FILE: held}, HOMES) == expected


def test_what_a_task_reads_of_several_files_counts_together():
    known = {"a": [on(0, 10, "one")], "b": [on(0, 6, "three")], "c": [on(0, 6, "three")]}
    assert near.nearest([Span("a"), Span("b"), Span("c")], known, HOMES) == (C,)


def test_both_forms_of_a_name_nodes_answer_are_read():
    # As the documentation of WebHDFS has it, and as Hadoop's own client is answered.
    one = {
        "cachedHosts": [],
        "corrupt": False,
        "hosts": ["dn1", "dn2"],
        "length": 100,
        "names": ["10.0.0.5:9866", "127.0.0.1:9866"],
        "offset": 200,
        "topologyPaths": ["/default-rack/10.0.0.5:9866", "/default-rack/127.0.0.1:9866"],
    }
    expected = [on(200, 300, "dn1", "dn2", "10.0.0.5")]
    assert blocks.read_answer({"BlockLocations": {"BlockLocation": [one]}}) == expected
    places = [{"hostName": "dn1", "ipAddr": "10.0.0.5"}, {"hostName": "dn2", "ipAddr": "127.0.0.1"}]
    other = {"startOffset": 200, "block": {"numBytes": 100}, "locations": places}
    assert blocks.read_answer({"LocatedBlocks": {"locatedBlocks": [other]}}) == expected
    assert blocks.read_answer({"LocatedBlocks": None}) == []
    assert blocks.read_answer({"FileStatus": {}}) is None


def test_hadoops_configuration_says_where_to_ask():
    key = "dfs.namenode.http-address"
    assert blocks.web_addresses("name", {}) == ["name:9870"]
    assert blocks.web_addresses("name", {key: "0.0.0.0:50070"}) == ["name:50070"]
    assert blocks.web_addresses("name", {key: "web:50070"}) == ["web:50070"]
    both = {f"{key}.bank.nn1": "one:9870", f"{key}.bank.nn2": "two:9870", key: "web:1"}
    assert blocks.web_addresses("bank", both) == ["one:9870", "two:9870"]
    assert blocks.web_addresses("", {}) == []


@pytest.fixture(params=[(404, b"<html>"), (200, b"<html>"), (200, b"[1]"), (200, b"{}")])
def stranger(request) -> Iterator[int]:
    """A server that is no NameNode."""
    status, body = request.param

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_who_cannot_tell_is_no_error(stranger):
    assert blocks.of_files([f"webhdfs://127.0.0.1:{stranger}/a"]) == {}


def test_a_name_node_that_is_away_and_other_storage_are_no_error(monkeypatch, tmp_path):
    pytest.importorskip("hdfs_native", reason="it is a part of make test-systems")
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    (tmp_path / "hdfs-site.xml").write_text(
        "<configuration><property><name>dfs.namenode.http-address</name>"
        "<value>127.0.0.1:9</value></property></configuration>"
    )
    assert blocks.of_files(["hdfs://127.0.0.1:8/a", "s3://bucket/b", "/tmp/c"]) == {}


def test_parts_of_a_table_know_their_bytes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pieces, "PART_ROWS", 100)
    table = pa.table({"a": np.random.default_rng(0).random(300), "b": np.arange(300)})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path, row_group_size=100)
    spans = [part.span for part in pieces.parts(Catalog().add("t", path), tmp_path)]
    assert len(spans) == 3
    # After the mark at the beginning come the groups one after the other, and then the footer.
    assert spans[0][0] == 4
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    footer = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert 0 <= footer - spans[-1][1] < 100
