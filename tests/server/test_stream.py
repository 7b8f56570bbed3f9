"""The mirror of the cluster, and how the stream follows clusters that come and go."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeUpstream, busy, quiet

from aios_jupyter.errors import AccessError, ClusterError, NoClusterError
from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.stream import EVENT, Mirror, Stream

from .conftest import eventually

NONE = NoClusterError("No cluster is running; start one with: aios up")


def replay(events: list[dict[str, Any]]) -> Any:
    """What a front end makes of the events: the same merge in the plainest form."""
    state: dict[str, Any] | None = None
    for event in events:
        if "delta" not in event:
            state = copy.deepcopy(event.get("snapshot"))
            continue
        assert state is not None
        for section, rows in event["delta"].items():
            if section == "cluster":
                state[section] = rows
                continue
            for key, row in rows.items():
                if row is None:
                    state[section].pop(key, None)
                else:
                    state[section][key] = row
    return state


def test_events_lead_a_front_end_to_the_same_state() -> None:
    mirror, view = Mirror(), busy()
    events = [mirror.take(view)]
    events.append(mirror.take({"leases": {"l-7c1": None}, "runs": {}}))
    events.append(mirror.take({"cluster": {**view["cluster"], "simulated": False}}))
    device = view["devices"]["GPU-ada-01-0"]
    events.append(mirror.take({"devices": {device["id"]: {**device, "holder": None}}}))
    assert replay(events) == mirror.current()["snapshot"]
    assert "l-7c1" not in mirror.current()["snapshot"]["leases"]
    assert [event["seq"] for event in events] == [1, 2, 3, 4]


def test_an_event_that_was_given_away_does_not_change() -> None:
    mirror = Mirror()
    event = mirror.take(busy())
    before = copy.deepcopy(event)
    mirror.take({"queue": {"q-a1": None}})
    assert event == before


def test_a_second_snapshot_replaces_the_first() -> None:
    mirror = Mirror()
    mirror.take(busy())
    event = mirror.take(quiet())
    assert event["snapshot"]["leases"] == {}
    assert set(mirror.current()["snapshot"]["nodes"]) == {"laptop"}


def test_losing_the_cluster_is_told_once() -> None:
    mirror = Mirror()
    mirror.take(busy())
    event = mirror.lose(NONE)
    assert event is not None
    assert event["offline"] == str(NONE)
    assert mirror.lose(NoClusterError(str(NONE))) is None
    assert mirror.current()["seq"] == event["seq"]


def test_two_lives_of_a_server_are_told_apart() -> None:
    assert Mirror().id != Mirror().id


class Setting:
    """A stream whose upstream, directory and events are the test's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.found: FakeUpstream | Exception = NONE
        self.attempts = 0
        self.events: list[dict[str, Any]] = []
        self.stream = Stream(
            self.open,
            self.events.append,
            lambda: directory,
            logging.getLogger("test"),
            look=0.01,
            retry=3600,
        )

    async def open(self) -> FakeUpstream:
        self.attempts += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def appears(self, upstream: FakeUpstream) -> None:
        """A cluster starts and writes its connection file."""
        self.found = upstream
        (self.directory / f"broker-{id(upstream)}.json").write_text("{}")


@pytest.fixture
def setting(tmp_path: Path, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[Setting]:
    made = Setting(tmp_path)
    task = jp_asyncio_loop.create_task(made.stream.run())
    yield made
    task.cancel()
    jp_asyncio_loop.run_until_complete(asyncio.wait([task]))


async def test_a_cluster_that_starts_later_is_noticed_by_its_file(setting: Setting) -> None:
    await eventually(lambda: setting.attempts == 1)
    await asyncio.sleep(0.05)
    assert setting.attempts == 1
    setting.appears(FakeUpstream())
    await eventually(lambda: setting.stream.mirror.online)


async def test_a_cluster_that_goes_away_is_noticed_and_the_next_one_found(
    setting: Setting,
) -> None:
    first = FakeUpstream()
    setting.appears(first)
    await eventually(lambda: setting.stream.mirror.online)
    setting.found = NONE
    first.closed.set()
    await eventually(lambda: not setting.stream.mirror.online)
    assert "offline" in setting.events[-1]
    setting.appears(FakeUpstream("quiet"))
    await eventually(lambda: setting.stream.mirror.online)
    assert set(setting.events[-1]["snapshot"]["nodes"]) == {"laptop"}


async def test_deltas_are_passed_on(setting: Setting) -> None:
    upstream = FakeUpstream()
    setting.appears(upstream)
    await eventually(lambda: setting.stream.mirror.online)
    upstream.change("queue", {"q-a1": None})
    assert setting.events[-1]["delta"] == {"queue": {"q-a1": None}}


async def test_a_call_goes_to_the_cluster_in_view(setting: Setting) -> None:
    with pytest.raises(ClusterError, match="aios up"):
        await setting.stream.call("cancel", {"id": "q-a1"})
    upstream = FakeUpstream()
    setting.appears(upstream)
    await eventually(lambda: setting.stream.mirror.online)
    await setting.stream.call("cancel", {"id": "q-a1"})
    assert upstream.calls == [("cancel", {"id": "q-a1"})]


async def test_a_session_that_is_over_is_closed(setting: Setting) -> None:
    class Refusing(FakeUpstream):
        async def subscribe(self, watcher: Any) -> None:
            raise AccessError("The broker refuses this user.")

    upstream = Refusing()
    setting.appears(upstream)
    await eventually(lambda: upstream.closed.is_set())
    await eventually(lambda: setting.events)
    assert "The broker refuses this user." in setting.events[-1]["offline"]


async def test_a_surprise_is_logged_and_does_not_end_the_stream(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.found = ZeroDivisionError("oops")
    (setting.directory / "broker.json").write_text("{}")
    await eventually(lambda: "oops" in caplog.text)
    setting.appears(FakeUpstream())
    await eventually(lambda: setting.stream.mirror.online)


async def test_waiting_for_a_start_looks_at_once(setting: Setting) -> None:
    await eventually(lambda: setting.attempts == 1)
    setting.found = FakeUpstream()  # without a file: only the wake brings it
    await setting.stream.started(timeout=60)
    assert setting.stream.mirror.online


async def test_waiting_for_a_start_ends_with_a_sentence(setting: Setting) -> None:
    with pytest.raises(ClusterError, match="aios doctor"):
        await setting.stream.started(timeout=0.1)


async def test_changes_reach_the_event_bus(server: AiosApp, cluster: Any) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    async def listen(logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        heard.append((schema_id, data))

    server.event_logger.add_listener(schema_id=EVENT, listener=listen)
    cluster.upstream.change("queue", {"q-a2": None})
    schema, data = await eventually(lambda: heard and heard[0])
    assert schema == EVENT
    assert data["delta"] == {"queue": {"q-a2": None}}
    assert data["seq"] == server.stream.mirror.seq
    (kept,) = server.stream.mirror.since(data["stream"], data["seq"] - 1) or []
    assert data["delta"]["queue"] is kept["delta"]["queue"], "a thousand rows would be copied"
