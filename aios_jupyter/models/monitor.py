"""How an endpoint does: requests, errors, times, and how far its traffic is from the training data.

Drift is told by the population stability index (PSI) over the profile's bins and by the two-sample
Kolmogorov-Smirnov test. A leaf module: it imports numpy and scipy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import AiosError, UsageError
from ..schema import Struct
from .profile import FILE, LEAST_ROWS, Feature, Profile, shares

PSI_SOME, PSI_MUCH = 0.1, 0.25
"""By convention: below the first is no drift, above the second much."""

SURE = 1e-3
"""A p value below which the two samples are not from one distribution."""

MOST_ERRORS = 0.05
_NOTHING = 1e-4


class Drift(Struct, frozen=True):
    """One feature now against the training data; `level` is "none", "some" or "much"."""

    feature: str
    psi: float
    ks: float
    p: float
    level: str


class Traffic(Struct, frozen=True):
    """What an endpoint's metrics say, of all its versions together.

    Attributes
    ----------
    errors
        Requests that were answered with 400 or more, by code.
    p50_ms, p95_ms, p99_ms
        From the histogram: interpolated within its buckets.
    buckets
        Upper border in seconds and requests up to it.
    shadow
        Copies of requests by how the shadow's answers were: same, different, failed, dropped.
    """

    requests: int
    errors: dict[str, int]
    versions: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    buckets: tuple[tuple[float, float], ...]
    shadow: dict[str, int] = {}


def traffic(metrics: str) -> Traffic:
    """Read an endpoint's Prometheus text."""
    from prometheus_client.parser import text_string_to_metric_families

    codes: dict[str, int] = {}
    versions: dict[str, int] = {}
    buckets: dict[float, float] = {}
    shadow: dict[str, int] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "aios_endpoint_requests_total":
                code, version = sample.labels["code"], sample.labels["version"]
                codes[code] = codes.get(code, 0) + int(sample.value)
                versions[version] = versions.get(version, 0) + int(sample.value)
            elif sample.name == "aios_endpoint_request_seconds_bucket":
                border = float(sample.labels["le"])
                buckets[border] = buckets.get(border, 0.0) + sample.value
            elif sample.name == "aios_endpoint_shadow_total":
                how = sample.labels["answer"]
                shadow[how] = shadow.get(how, 0) + int(sample.value)
    steps = tuple(sorted(buckets.items()))
    return Traffic(
        requests=sum(codes.values()),
        errors={code: count for code, count in sorted(codes.items()) if int(code) >= 400},
        versions=versions,
        p50_ms=1000 * quantile(steps, 0.5),
        p95_ms=1000 * quantile(steps, 0.95),
        p99_ms=1000 * quantile(steps, 0.99),
        buckets=steps,
        shadow=shadow,
    )


def since(before: Traffic | None, now: Traffic) -> Traffic:
    """What has come between two looks at the same endpoint. Pure."""
    if before is None or before.requests > now.requests:
        return now
    earlier = dict(before.buckets)
    steps = tuple((border, count - earlier.get(border, 0.0)) for border, count in now.buckets)

    def less(new: Mapping[str, int], old: Mapping[str, int]) -> dict[str, int]:
        return {key: left for key, count in new.items() if (left := count - old.get(key, 0))}

    return Traffic(
        requests=now.requests - before.requests,
        errors=less(now.errors, before.errors),
        versions=less(now.versions, before.versions),
        p50_ms=1000 * quantile(steps, 0.5),
        p95_ms=1000 * quantile(steps, 0.95),
        p99_ms=1000 * quantile(steps, 0.99),
        buckets=steps,
        shadow=less(now.shadow, before.shadow),
    )


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """A quantile of a cumulative histogram; its last finite border where it lies beyond. Pure."""
    total = buckets[-1][1] if buckets else 0.0
    below, count = 0.0, 0.0
    for border, cumulative in buckets:
        if total and cumulative >= share * total:
            if math.isinf(border):
                return below
            part = (share * total - count) / max(cumulative - count, 1e-12)
            return below + (border - below) * part
        below, count = border, cumulative
    return 0.0


def drift(profile: Profile, window: Mapping[str, Sequence[float]]) -> list[Drift]:
    """Each feature that both have, the one that drifted most first; none from too few rows."""
    rows = max((len(values) for values in window.values()), default=0)
    if rows < LEAST_ROWS:
        return []
    found = [
        _drift(name, feature, np.array(window[name], float))
        for name, feature in profile.features.items()
        if name in window and feature.values
    ]
    return sorted(found, key=lambda row: -row.psi)


def _drift(name: str, feature: Feature, values: np.ndarray) -> Drift:
    from scipy.stats import ks_2samp

    finite = values[np.isfinite(values)]
    now = shares(finite, np.array(feature.edges))
    before = np.array(feature.shares)
    index = psi(before, now)
    test = ks_2samp(np.array(feature.values), finite) if len(finite) else None
    ks, p = (float(test.statistic), float(test.pvalue)) if test else (1.0, 0.0)
    return Drift(feature=name, psi=index, ks=ks, p=p, level=_level(index, p))


def psi(before: np.ndarray, now: np.ndarray) -> float:
    """The population stability index of two histograms with the same bins."""
    a, b = np.maximum(before, _NOTHING), np.maximum(now, _NOTHING)
    return float(((b - a) * np.log(b / a)).sum())


def _level(index: float, p: float) -> str:
    if index > PSI_MUCH and p < SURE:
        return "much"
    return "some" if index > PSI_SOME and p < SURE else "none"


def crossed(
    seen: Traffic, drifts: Sequence[Drift], max_seconds: float | None = None
) -> dict[str, str]:
    """What a person should look at: a sentence for each subject (errors, time, a feature). Pure.

    `max_seconds` is what a request may take.
    """
    said = {}
    wrong = sum(seen.errors.values())
    if seen.requests and wrong / seen.requests > MOST_ERRORS:
        codes = ", ".join(f"{count} with {code}" for code, count in seen.errors.items())
        said["errors"] = f"{wrong / seen.requests:.0%} of the requests failed ({codes})."
    if max_seconds is not None and seen.requests and seen.p95_ms > max_seconds * 1000:
        said["time"] = (
            f"Of 100 requests 5 took more than {seen.p95_ms:.3g} ms; the limit is "
            f"{max_seconds * 1000:g} ms."
        )
    for row in drifts:
        if row.level == "much":
            said[row.feature] = (
                f"{row.feature} is far from the training data (PSI {row.psi:.2f}, KS {row.ks:.2f})."
            )
    return said


def profile_of(ref: str) -> Profile | None:
    """The profile that a version was published with; None where it has none."""
    from .registry import fetch

    package = fetch(ref, use=False)
    return profile_in(Path(package.path)) if FILE in package.files else None


def profile_in(folder: Path) -> Profile | None:
    """The profile in a version's folder; None where it has none."""
    try:
        content = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(content, type=Profile)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"The profile in {folder} cannot be read ({error}); publish the model anew."
        ) from None


def observe(url: str, token: str, ref: str, authority: Path | None = None) -> dict[str, Any]:
    """All that is known of an endpoint now: `traffic`, `drift`, `samples`, `alerts`, `profiled`."""
    from .client import EndpointClient

    with EndpointClient(url, token, authority=authority) as client:
        seen = traffic(client.metrics())
        window = client.window()
    try:
        known = profile_of(ref)
    except AiosError:
        known = None
    drifts = drift(known, window) if known is not None else []
    return {
        "traffic": seen,
        "samples": max((len(values) for values in window.values()), default=0),
        "profiled": known is not None,
        "drift": drifts,
        "alerts": list(crossed(seen, drifts).values()),
    }


def dashboard(name: str) -> str:
    """A Grafana dashboard of an endpoint's Prometheus metrics, as JSON to import. Pure."""
    of = f'{{model="{name}"}}'
    rate = f"sum by (version) (rate(aios_endpoint_requests_total{of}[1m]))"
    failed = (
        f'sum by (code) (rate(aios_endpoint_requests_total{{model="{name}",code=~"[45].."}}[1m]))'
    )
    bucket = f"sum by (le) (rate(aios_endpoint_request_seconds_bucket{of}[1m]))"
    rows = (
        f"rate(aios_endpoint_batch_rows_sum{of}[1m]) / rate(aios_endpoint_batch_rows_count{of}[1m])"
    )
    panels = [
        ("Requests a second by version", "reqps", [(rate, "version {{version}}")]),
        ("Refused and failed by status", "reqps", [(failed, "{{code}}")]),
        (
            "Time of a request",
            "s",
            [(f"histogram_quantile({q}, {bucket})", f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)],
        ),
        ("Samples in a batch", "short", [(rows, "version {{version}}")]),
    ]
    document = {
        "title": f"Endpoint {name}",
        "tags": ["aios"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": [
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "datasource": {"type": "prometheus", "uid": "${source}"},
                "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + at), "expr": expression, "legendFormat": legend}
                    for at, (expression, legend) in enumerate(targets)
                ],
            }
            for number, (title, unit, targets) in enumerate(panels)
        ],
    }
    return json.dumps(document, indent=2) + "\n"
