"""What an endpoint measures: Prometheus text, and the few numbers that its run reports.

A leaf module: it imports prometheus_client.
"""

from __future__ import annotations

import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WINDOW = 1000


class Telemetry:
    """Counts requests and batches of one model version."""

    def __init__(self, model: str, version: str) -> None:
        self._registry = CollectorRegistry()
        labels = {"model": model, "version": version}
        names = list(labels)
        self._requests = Counter(
            "aios_endpoint_requests",
            "Requests by status.",
            [*names, "code"],
            registry=self._registry,
        )
        self._by_code: dict[int, Counter] = {}
        self._labels = labels
        self._seconds = Histogram(
            "aios_endpoint_request_seconds",
            "From a request's first byte handled to its reply.",
            names,
            buckets=_SECONDS,
            registry=self._registry,
        ).labels(**labels)
        self._rows = Histogram(
            "aios_endpoint_batch_rows",
            "Samples that ran together.",
            names,
            buckets=_ROWS,
            registry=self._registry,
        ).labels(**labels)
        self._model_seconds = Counter(
            "aios_endpoint_model_seconds",
            "Time spent in the model.",
            names,
            registry=self._registry,
        ).labels(**labels)
        Gauge(
            "aios_endpoint_started_seconds",
            "When this endpoint became ready, since the epoch.",
            names,
            registry=self._registry,
        ).labels(**labels).set_to_current_time()
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self.requests = 0
        self.errors = 0
        self._reported = 0
        self._reported_at = time.monotonic()
        self._rate = 0.0

    def request(self, code: int, seconds: float) -> None:
        """A request was answered with `code` after `seconds`."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._requests.labels(**self._labels, code=str(code))
        counter.inc()
        self._seconds.observe(seconds)
        self._recent.append(seconds)
        self.requests += 1
        self.errors += code >= 400

    def batch(self, rows: int, seconds: float) -> None:
        """The model ran `rows` samples in `seconds`."""
        self._rows.observe(rows)
        self._model_seconds.inc(seconds)

    def text(self) -> tuple[bytes, bytes]:
        """Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST.encode()

    def changes(self) -> dict[str, float] | None:
        """Numbers for the run's metrics since the last call; None where there is nothing new.

        The call after the last request reports a rate of 0 once.
        """
        now = time.monotonic()
        new = self.requests - self._reported
        if new == 0 and self._rate == 0:
            return None
        self._rate = new / max(now - self._reported_at, 1e-9)
        self._reported, self._reported_at = self.requests, now
        ordered = sorted(self._recent)
        p95 = ordered[int(len(ordered) * 0.95)] if ordered else 0.0
        return {
            "requests": float(self.requests),
            "errors": float(self.errors),
            "p95_ms": round(p95 * 1000, 3),
            "requests_per_second": round(self._rate, 2),
        }
