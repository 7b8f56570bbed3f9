"""Events get from a rank to its agent and to followers, whole, in order, and without waiting."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aios_jupyter.runs import events
from aios_jupyter.runs.events import Channel, EventLog, EventReader, Frames


class Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.channel = Channel(self.writing)
        self.frames = Frames()

    def read(self) -> list[events.Said]:
        found: list[events.Said] = []
        while True:
            try:
                data = os.read(self.reading, 65536)
            except BlockingIOError:
                return found
            if not data:
                return found
            found += self.frames.feed(data)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.channel._open = False
    os.close(made.reading)
    os.close(made.writing)


def metrics(found: list[events.Said]) -> list[events.MetricsMade]:
    return [said for said in found if isinstance(said, events.MetricsMade)]


def test_the_first_event_goes_at_once(pipe: Pipe) -> None:
    pipe.channel.metrics({"loss": 0.5}, 3)
    (said,) = metrics(pipe.read())
    assert (said.values, said.step) == ({"loss": 0.5}, 3)
    assert abs(said.time - time.time()) < 5


def test_many_metrics_become_few_events_and_the_last_values_arrive(pipe: Pipe) -> None:
    for step in range(5000):
        pipe.channel.metrics({"loss": float(step), f"only{step % 2}": 1.0}, step)
    assert pipe.channel.flush()
    found = metrics(pipe.read())
    assert len(found) < 1000
    assert found[-1].step == 4999
    assert found[-1].values["loss"] == 4999.0
    assert {"only0", "only1"} <= {name for said in found for name in said.values}


def test_held_back_values_arrive_without_another_call(pipe: Pipe) -> None:
    pipe.channel.metrics({"a": 1.0})
    pipe.channel.metrics({"a": 2.0})
    deadline = time.monotonic() + 30
    values: list[float] = []
    while 2.0 not in values and time.monotonic() < deadline:
        values += [said.values["a"] for said in metrics(pipe.read())]
        time.sleep(0.005)
    assert values[-1] == 2.0


def test_a_rank_never_waits_for_an_agent_that_does_not_read(pipe: Pipe) -> None:
    started = time.monotonic()
    for step in range(2000):
        pipe.channel.send(events.ErrorRaised(time=0.0, etype="E", message=f"{step}" * 100))
    assert time.monotonic() - started < 30
    assert not pipe.channel.flush(timeout=0.05)
    found: list[events.Said] = []
    deadline = time.monotonic() + 30
    while len(found) < 2000 and time.monotonic() < deadline:
        found += pipe.read()
        time.sleep(0.01)
    assert [said.message for said in found] == [f"{step}" * 100 for step in range(2000)]  # type: ignore[union-attr]


def test_threads_do_not_mix_their_frames(pipe: Pipe) -> None:
    def talk(name: str) -> None:
        for number in range(200):
            pipe.channel.send(
                events.ErrorRaised(time=0.0, etype=name, message=f"{number}:" + "x" * 997)
            )

    threads = [threading.Thread(target=talk, args=(f"t{n}",)) for n in range(4)]
    found: list[events.Said] = []
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(found) < 800 and time.monotonic() < deadline:
        found += pipe.read()
    for thread in threads:
        thread.join()
    assert len(found) == 800
    assert not pipe.frames.broken


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_says_nothing(pipe: Pipe) -> None:
    child = os.fork()
    if child == 0:
        pipe.channel.metrics({"from": 1.0})
        pipe.channel.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert pipe.read() == []


def test_a_lost_agent_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.reading)
    pipe.reading = os.open(os.devnull, os.O_RDONLY)
    pipe.channel.metrics({"a": 1.0})
    assert pipe.channel.flush(timeout=1)


def test_there_is_no_channel_outside_a_run() -> None:
    assert events.channel() is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        (5).to_bytes(4, "big") + b"hello",
        (1).to_bytes(4, "big") + b"\xc0",
        events._LENGTH.pack(len(body := msgspec.msgpack.encode({"type": "exit", "time": 1.0}))) + body,
        events._LENGTH.pack(len(body := msgspec.msgpack.encode({"type": "metrics", "time": 1.0, "values": {"a": "b"}}))) + body,
    ],
)  # fmt: skip
def test_what_is_no_event_ends_the_parsing(data: bytes) -> None:
    frames = Frames()
    good = events._frame(events.MetricsMade(time=1.0, values={"a": 1.0}))
    assert len(frames.feed(good + data)) == 1
    assert frames.broken
    assert frames.feed(good) == []


def test_frames_may_come_in_any_pieces() -> None:
    frames = Frames()
    data = b"".join(
        events._frame(events.MetricsMade(time=1.0, values={"a": float(n)})) for n in range(5)
    )
    found = [said for n in range(len(data)) for said in frames.feed(data[n : n + 1])]
    assert [said.values["a"] for said in metrics(found)] == [0.0, 1.0, 2.0, 3.0, 4.0]


# --- on disk


def batch(*seqs: int) -> list[dict[str, object]]:
    return [{"seq": seq, "type": "log", "text": f"line {seq}"} for seq in seqs]


def test_followers_read_from_where_they_were(tmp_path: Path) -> None:
    early = EventReader(tmp_path)
    assert early.read() == []
    assert not early.more()
    log = EventLog(tmp_path)
    log.append(batch(1, 2, 3))
    log.append(batch(4))
    assert early.more()
    assert [event["seq"] for event in early.read()] == [1, 2, 3, 4]
    assert not early.more()
    assert [event["seq"] for event in EventReader(tmp_path, after=2).read()] == [3, 4]
    assert EventReader(tmp_path, after=4).read() == []
    log.append(batch(5))
    assert early.read() == batch(5)
    log.close()


def test_a_reader_takes_about_as_much_as_it_asks_for(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for seq in range(1, 101):
        log.append([{"seq": seq, "text": "x" * 1000}])
    log.close()
    reader = EventReader(tmp_path)
    sizes = []
    while events_read := reader.read(limit=10_000):
        sizes.append(len(events_read))
    assert sum(sizes) == 100
    assert max(sizes) <= 10


def test_half_a_batch_is_not_read(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(batch(1))
    log.close()
    file = tmp_path / events.EVENTS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-1])
    reader = EventReader(tmp_path)
    assert reader.read() == batch(1)
    assert not reader.more()


def test_a_full_disk_loses_a_batch_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append(batch(1))
    real = os.write

    def full(fd: int, data: bytes) -> int:
        real(fd, bytes(data)[:7])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(events.os, "write", full)
        log.append(batch(2))
    assert log.failed == "No space left on device"
    log.append(batch(3))
    log.close()
    assert EventReader(tmp_path).read() == batch(1, 3)
