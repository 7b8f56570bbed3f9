from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter.commands.monitor import monitor_panel
from aios_jupyter.errors import UsageError
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.monitor import (
    Drift,
    Traffic,
    crossed,
    dashboard,
    drift,
    observe,
    profile_of,
    psi,
    quantile,
    traffic,
)
from aios_jupyter.models.profile import Window, features, profile

from .conftest import TOKEN, Served
from .test_serve import ask


def table(seed: int, shift: float = 0.0, rows: int = 1000) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    x[:, 1] += shift
    return {"x": x}


def test_the_same_distribution_is_no_drift_and_a_shifted_one_is() -> None:
    known = profile(table(0), {})
    same = drift(known, {k: list(v) for k, v in features(table(1), {}).items()})
    assert {row.level for row in same} == {"none"}
    moved = drift(known, {k: list(v) for k, v in features(table(2, 1.0), {}).items()})
    assert [(row.feature, row.level) for row in moved] == [("x[1]", "much"), ("x[0]", "none")]
    assert moved[0].psi > 0.25 > moved[1].psi
    assert moved[0].p < 1e-3 < moved[1].p


def test_few_samples_say_nothing() -> None:
    known = profile(table(0), {})
    assert drift(known, {"x[0]": [9.0] * 49}) == []
    assert drift(known, {}) == []
    with pytest.raises(UsageError, match="20 samples says too little"):
        profile(table(0, rows=20), {})


def test_images_and_classes_are_summed_up() -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    scores = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    found = features({"image": images}, {"output": scores})
    assert set(found) == {
        "image: mean", "image: spread", "image: least", "image: largest",
        "output: class", "output: score",
    }  # fmt: skip
    known = profile({"image": images}, {"output": scores})
    assert known.features["output: class"].shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    always = {"output: class": [2.0] * 100}
    assert drift(known, always)[0].level == "much"


def test_values_that_are_no_numbers_are_left_out() -> None:
    values = np.full((60, 1), np.nan, np.float32)
    assert profile({"x": values}, {}).features["x"].values == ()
    known = profile({"x": np.arange(60, dtype=np.float32).reshape(60, 1)}, {})
    assert drift(known, {"x": [math.nan] * 60})[0].level == "much"
    assert features({"text": np.array([["a"]], object)}, {}) == {}


def test_quantiles_and_stability() -> None:
    buckets = [(0.001, 50.0), (0.01, 100.0), (math.inf, 100.0)]
    assert quantile(buckets, 0.5) == pytest.approx(0.001)
    assert quantile(buckets, 0.75) == pytest.approx(0.0055)
    assert quantile([(0.001, 0.0), (math.inf, 4.0)], 0.95) == 0.001
    assert quantile([], 0.5) == 0.0
    half = np.array([0.5, 0.5])
    assert psi(half, half) == 0
    assert psi(half, np.array([1.0, 0.0])) > 3


def test_alerts_are_sentences() -> None:
    def seen(requests: int, errors: dict[str, int]) -> Traffic:
        return Traffic(requests, errors, {}, 1, 1, 1, ())

    assert crossed(seen(0, {}), [], 0.001) == {}
    assert crossed(seen(100, {"400": 5}), []) == {}
    assert crossed(seen(100, {"400": 5, "503": 1}), []) == {
        "errors": "6% of the requests failed (5 with 400, 1 with 503)."
    }
    assert set(crossed(seen(100, {}), [], 0.0005)) == {"time"}
    much = Drift(feature="x", psi=0.5, ks=0.4, p=0.0, level="much")
    assert "x is far from the training data" in crossed(seen(1, {}), [much])["x"]


def test_a_window_takes_some_of_the_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("aios_jupyter.models.profile.time.monotonic", lambda: now[0])
    window = Window()
    window.add({"x": np.ones((100, 1), np.float32)}, {})
    window.add({"x": np.ones((1, 1), np.float32)}, {})  # too soon
    now[0] += 1
    window.add({"x": np.zeros((1, 1), np.float32)}, {})
    assert window.values() == {"x": [1.0] * 64 + [0.0]}


def test_an_endpoint_is_watched_from_its_traffic_to_its_drift(
    serve: Callable[..., Served], line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = line("observed", 2.0, profile=table(0)["x"])
    known = profile_of(version.ref)
    assert known is not None
    assert set(known.features) == {"x[0]", "x[1]", "y: class", "y: score"}
    served = serve("observed")
    shifted = table(3, shift=3.0, rows=64)["x"]
    with EndpointClient(served.url, TOKEN) as client:
        client.infer(shifted)
        while max(map(len, client.window().values())) < 100:  # at most fifty a second are noted
            client.infer(shifted)
    assert ask(served, "POST", "/predict", b"{")[0] == 400
    seen = observe(served.url, TOKEN, version.ref)
    assert seen["profiled"]
    assert seen["traffic"].errors == {"400": 1}
    assert seen["traffic"].requests == sum(seen["traffic"].versions.values()) >= 3
    assert 0 < seen["traffic"].p50_ms <= seen["traffic"].p99_ms
    levels = {row.feature: row.level for row in seen["drift"]}
    assert levels["x[1]"] == "much"
    text = monitor_panel({"name": "observed", "model": version.ref, **seen}).text()
    assert "x[1] is far from the training data" in text
    assert "1 with 400" in text
    assert ask(served, "GET", "/monitor", token="wrong")[0] == 401
    bare = observe(served.url, TOKEN, line("bare").ref)
    assert not bare["profiled"]
    assert "published without --profile" in monitor_panel({"name": "b", "model": "", **bare}).text()
    assert served.stop() == 0


def test_a_dashboard_asks_for_metrics_that_exist(endpoint: Served) -> None:
    document = json.loads(dashboard("digits"))
    assert len(document["panels"]) == 4
    _, content = ask(endpoint, "GET", "/metrics")
    for panel in document["panels"]:
        for target in panel["targets"]:
            for word in target["expr"].replace("(", " ").replace("{", " ").split():
                if word.startswith("aios_"):
                    assert word in content.decode(), word
    assert traffic(content.decode()).buckets


def test_a_bad_profile_is_refused(line: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has shape"):
        line("profiled", profile=np.ones((60, 5), np.float32))
    with pytest.raises(UsageError, match="too little"):
        line("profiled", profile=np.ones((6, 2), np.float32))
