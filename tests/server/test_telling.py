"""Metrics, missed events, who asks, how often, and from where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import HTTPClientError

from aios_jupyter.cluster import bundle
from aios_jupyter.config import settings
from aios_jupyter.errors import ClusterError, NoClusterError
from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.limits import Limits
from aios_jupyter.server.metrics import exposition
from aios_jupyter.server.stream import PAST, PAST_ROWS, SECTIONS, Mirror

WHOLE: dict[str, Any] = {"cluster": {}, **{section: {} for section in SECTIONS}}


def answer(response: Any) -> Any:
    return json.loads(response.body)


# --- metrics


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels, which are in the order of their names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_prometheus_reads_the_cluster_with_a_token(jp_fetch: Any, server: AiosApp) -> None:
    response = await jp_fetch("aios/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(response.body)
    assert found["aios_up",] == 1.0
    view = server.stream.mirror.current()["snapshot"]
    devices = [value for key, value in found.items() if key[0] == "aios_devices"]
    assert sum(devices) == len(view["devices"])
    waiting = sum(value for key, value in found.items() if key[0] == "aios_queue_requests")
    assert waiting == len(view["queue"])
    name = "aios_device_utilization_percent"
    row = view["devices"]["GPU-ada-01-0"]
    assert found[name, row["id"], row["kind"], row["node"]] == row["utilization"]
    assert b"bob" not in response.body, "metrics have nobody's name"


def test_without_a_cluster_the_metrics_say_so() -> None:
    assert samples(exposition(Mirror().current(), 0.0)) == {
        ("aios_up",): 0.0,
        ("aios_changes",): 0.0,
    }


def test_names_that_mean_harm_stay_within_their_quotes() -> None:
    mirror = Mirror()
    device = {
        "id": 'x"} 9\naios_up 0\n#', "node": "n\\", "kind": "gpu", "holder": None, "shares": [],
        "outside": [], "utilization": 5.0, "memory_used": None, "memory": 1, "temperature": None,
        "power": None,
    }  # fmt: skip
    mirror.take({**WHOLE, "devices": {"d": device}})
    found = samples(exposition(mirror.current(), 0.0))
    assert found["aios_up",] == 1.0
    assert found["aios_device_utilization_percent", device["id"], "gpu", "n\\"] == 5.0


# --- what was missed


def change(mirror: Mirror, count: int) -> None:
    for number in range(count):
        mirror.take({"runs": {"r": {"number": number}}})


def test_who_comes_back_is_told_what_was_missed_in_order() -> None:
    mirror = Mirror()
    mirror.take(WHOLE)
    change(mirror, 3)
    mirror.lose(NoClusterError("gone"))
    missed = mirror.since(mirror.id, 2)
    assert missed is not None
    assert [event["seq"] for event in missed] == [3, 4, 5]
    assert [next(iter(set(event) & {"delta", "offline"})) for event in missed] == [
        "delta",
        "delta",
        "offline",
    ]
    assert mirror.since(mirror.id, 5) == []


@pytest.mark.parametrize(("stream", "seq"), [("other", 2), ("", 6), ("", 999), ("", -1)])
def test_who_missed_what_is_not_known_any_more_starts_anew(stream: str, seq: int) -> None:
    mirror = Mirror()
    mirror.take(WHOLE)
    change(mirror, PAST + 10)
    known = mirror.since(stream or mirror.id, seq)
    assert known is None


def test_large_events_are_kept_for_a_shorter_time() -> None:
    """A cluster of a thousand devices tells all of them every second."""
    mirror = Mirror()
    mirror.take(WHOLE)
    rows = {f"GPU-{n}": {"id": f"GPU-{n}"} for n in range(PAST_ROWS // 10)}
    for _ in range(20):
        mirror.take({"devices": rows})
    assert len(mirror.since(mirror.id, mirror.seq - 10) or []) == 10
    assert mirror.since(mirror.id, mirror.seq - 11) is None
    mirror.take({"devices": {f"GPU-{n}": None for n in range(2 * PAST_ROWS)}})
    assert len(mirror.since(mirror.id, mirror.seq - 1) or []) == 1


async def test_events_are_resumed_over_http(jp_fetch: Any, server: AiosApp, cluster: Any) -> None:
    (whole,) = answer(await jp_fetch("aios/events"))["events"]
    assert "snapshot" in whole
    cluster.upstream.change("nodes", {"new": {"id": "new"}})
    cluster.upstream.change("nodes", {"new": None})
    known = {"stream": whole["stream"], "seq": str(whole["seq"])}
    events = answer(await jp_fetch("aios/events", params=known))["events"]
    assert [event["delta"]["nodes"] for event in events] == [{"new": {"id": "new"}}, {"new": None}]
    assert [event["seq"] for event in events] == [whole["seq"] + 1, whole["seq"] + 2]


# --- who asks


async def test_who_asks_is_jupyters_user_and_the_clusters_for_jupyter(
    jp_fetch: Any, server: AiosApp, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jupyter_server.auth import User

    async def hub(handler: Any) -> User:
        return User(username="grace", display_name="Grace Hopper")

    monkeypatch.setattr(jp_serverapp.identity_provider, "get_user", hub)
    got = answer(await jp_fetch("aios/me"))
    cluster = server.stream.mirror.current()["snapshot"]["cluster"]
    assert got == {
        "user": "grace",
        "name": "Grace Hopper",
        "cluster_user": cluster["user"],
        "cluster_role": cluster["role"],
    }


def test_each_user_of_a_hub_has_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_BUNDLE", "/srv/aios/{username}")
    monkeypatch.setenv("JUPYTERHUB_USER", "grace.hopper@navy")
    settings.cache_clear()
    assert bundle.current() == Path("/srv/aios/grace.hopper@navy")


@pytest.mark.parametrize("user", ["", "..", "../root", "a/b", ".hidden"])
def test_a_hubs_user_whose_name_leads_elsewhere_has_none(
    monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setenv("AIOS_BUNDLE", "/srv/aios/{username}")
    monkeypatch.setenv("JUPYTERHUB_USER", user)
    settings.cache_clear()
    with pytest.raises(ClusterError, match="JUPYTERHUB_USER"):
        bundle.current()


# --- how often, and from where


def test_a_user_may_ask_in_bursts_and_then_as_often_as_the_rate() -> None:
    limits = Limits(reads=2.0, writes=1.0, burst=3.0)
    assert [limits.wait("ada", write=False, now=0.0) for _ in range(6)] == [0.0] * 6
    assert limits.wait("ada", write=False, now=0.0) == pytest.approx(0.5)
    assert limits.wait("bob", write=False, now=0.0) == 0.0, "each user has their own"
    assert limits.wait("ada", write=True, now=0.0) == 0.0, "so has each kind"
    assert limits.wait("ada", write=False, now=0.5) == 0.0
    assert limits.wait("ada", write=False, now=0.5) > 0.0


def test_a_rate_of_nothing_is_no_limit() -> None:
    limits = Limits(reads=0.0, writes=0.0)
    assert not any(limits.wait("ada", write=True, now=0.0) for _ in range(10_000))


def test_who_was_away_for_long_is_forgotten() -> None:
    limits = Limits(reads=1.0, writes=1.0)
    for number in range(1000):
        limits.wait(f"user-{number}", write=False, now=0.0)
    limits.wait("ada", write=False, now=1000.0)
    assert len(limits._buckets) == 1


async def test_who_asks_too_often_is_told_when_to_come_back(
    jp_fetch: Any, server: AiosApp, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(reads=0.0, writes=0.2)
    monkeypatch.setitem(server.serverapp.web_app.settings, "aios_limits", limits)  # type: ignore[union-attr]
    await jp_fetch("aios/leases/l-7c1", method="DELETE")
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("aios/queue/q-a1", method="DELETE")
    response = refused.value.response
    assert response is not None
    assert refused.value.code == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 5
    assert "too often" in answer(response)["message"]
    assert [op for op, _ in cluster.upstream.calls] == ["release"]
    assert (await jp_fetch("aios/snapshot")).code == 200


async def test_a_page_of_another_origin_gets_nothing_even_with_the_token(
    jp_fetch: Any, server: AiosApp, cluster: Any
) -> None:
    for method, path in (("GET", "aios/snapshot"), ("DELETE", "aios/leases/l-7c1")):
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch(path, method=method, headers={"Origin": "https://evil.example"})
        assert refused.value.code == 404
    assert cluster.upstream.calls == []
