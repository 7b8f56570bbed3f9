"""What an endpoint measures: Prometheus text, and the few numbers that its run reports.

A leaf module: it imports prometheus_client.
"""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .numbers import told

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WINDOW = 1000


@dataclass(frozen=True)
class Counted:
    """The metrics of one version, found once."""

    requests: Callable[[int], Counter]
    seconds: Histogram
    rows: Histogram
    model_seconds: Counter
    shadow: Callable[[str], Counter]

    def batch(self, rows: int, seconds: float) -> None:
        """The model ran `rows` samples in `seconds`."""
        self.rows.observe(rows)
        self.model_seconds.inc(seconds)


class Telemetry:
    """Counts requests and batches of an endpoint's versions.

    With several replicas (`PROMETHEUS_MULTIPROC_DIR` is set, as prometheus_client wants it) each
    keeps its numbers in a file, and any of them tells the sum; see `numbers.py` for those on several
    machines.
    """

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._together = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        names = ["model", "version"]
        registry = self._registry
        self._requests = Counter(
            "aios_endpoint_requests", "Requests by status.", [*names, "code"], registry=registry
        )
        self._seconds = Histogram(
            "aios_endpoint_request_seconds",
            "From a request's first byte handled to its reply.",
            names,
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "aios_endpoint_batch_rows",
            "Samples that ran together.",
            names,
            buckets=_ROWS,
            registry=registry,
        )
        self._model_seconds = Counter(
            "aios_endpoint_model_seconds", "Time spent in the model.", names, registry=registry
        )
        self._shadow = Counter(
            "aios_endpoint_shadow",
            "Copies of requests by how the shadow's answer was: same, different, failed, dropped.",
            [*names, "answer"],
            registry=registry,
        )
        self._started = Gauge(
            "aios_endpoint_started_seconds",
            "When this version became ready here, since the epoch.",
            names,
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self.requests = 0
        self.errors = 0
        self._seconds_in_hand = 0.0
        self._reported = 0
        self._reported_at = time.monotonic()
        self._rate = 0.0

    def version(self, version: str) -> Counted:
        """The numbers of one version, which is ready now."""
        labels = {"model": self._model, "version": version}
        self._started.labels(**labels).set_to_current_time()
        return Counted(
            functools.cache(lambda code: self._requests.labels(**labels, code=str(code))),
            self._seconds.labels(**labels),
            self._rows.labels(**labels),
            self._model_seconds.labels(**labels),
            functools.cache(lambda answer: self._shadow.labels(**labels, answer=answer)),
        )

    def request(self, counted: Counted, code: int, seconds: float) -> None:
        """A request was answered with `code` after `seconds`."""
        counted.requests(code).inc()
        counted.seconds.observe(seconds)
        self._recent.append(seconds)
        self._seconds_in_hand += seconds
        self.requests += 1
        self.errors += code >= 400

    def text(self) -> tuple[bytes, bytes]:
        """Prometheus's text format, and its content type."""
        registry = self._registry
        if self._together:
            if (sum_of_all := told()) is not None:
                return sum_of_all, CONTENT_TYPE_LATEST.encode()
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST.encode()

    def changes(self) -> dict[str, float] | None:
        """Numbers for the run's metrics since the last call; None where there is nothing new.

        The call after the last request reports a rate of 0 once.
        """
        now = time.monotonic()
        new = self.requests - self._reported
        if new == 0 and self._rate == 0:
            return None
        past = max(now - self._reported_at, 1e-9)
        self._rate = new / past
        in_hand, self._seconds_in_hand = self._seconds_in_hand / past, 0.0
        self._reported, self._reported_at = self.requests, now
        ordered = sorted(self._recent)
        p95 = ordered[int(len(ordered) * 0.95)] if ordered else 0.0
        return {
            "requests": float(self.requests),
            "errors": float(self.errors),
            "p95_ms": round(p95 * 1000, 3),
            "requests_per_second": round(self._rate, 2),
            "in_hand": round(in_hand, 3),
        }
