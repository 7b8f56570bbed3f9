"""The cluster in the text format of Prometheus: counts and measurements, and nobody's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..schema import DEFAULT_QUEUE

MEASURED = {
    "utilization": ("aios_device_utilization_percent", "How busy a device is."),
    "memory_used": ("aios_device_memory_used_bytes", "Memory of a device that is in use."),
    "memory": ("aios_device_memory_bytes", "Memory of a device."),
    "temperature": ("aios_device_temperature_celsius", "Temperature of a device."),
    "power": ("aios_device_power_watts", "Power that a device draws."),
}
COUNTED = {
    "aios_devices": ("Devices by what they are and who has them.", ("kind", "state")),
    "aios_nodes": ("Machines by state.", ("state",)),
    "aios_queue_requests": ("Requests that wait, by queue.", ("queue",)),
    "aios_leases": ("Leases by state.", ("state",)),
    "aios_runs": ("Runs by kind and state.", ("kind", "state")),
}


def exposition(current: Mapping[str, Any], now: float) -> bytes:
    """Metrics of the mirror's state (`Mirror.current`)."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, about: str, labels: Iterable[str] = ()) -> Any:
        return Gauge(name, about, tuple(labels), registry=registry)

    view = current.get("snapshot")
    gauge("aios_up", "Whether there is a cluster in view.").set(view is not None)
    gauge("aios_changes", "Changes of the cluster that were seen.").set(current["seq"])
    if view is not None:
        counts = _counts(view)
        for name, (about, labels) in COUNTED.items():
            family = gauge(name, about, labels)
            for values, count in counts[name].items():
                family.labels(*values).set(count)
        oldest = min((row["submitted"] for row in view["queue"].values()), default=now)
        gauge("aios_queue_oldest_seconds", "How long the oldest request has waited.").set(
            max(0.0, now - oldest)
        )
        for key, (name, about) in MEASURED.items():
            family = gauge(name, about, ("device", "node", "kind"))
            for row in view["devices"].values():
                if row[key] is not None:
                    family.labels(row["id"], row["node"], row["kind"]).set(row[key])
    return bytes(generate_latest(registry))


def _counts(view: Mapping[str, Any]) -> dict[str, Counter[tuple[str, ...]]]:
    # The broker may be older than this server, and its rows have less in them.
    devices = ((row["kind"], _state(row)) for row in view["devices"].values())
    runs = ((row["kind"], row["state"]) for row in view["runs"].values())
    return {
        "aios_devices": Counter(devices),
        "aios_nodes": Counter((row["state"],) for row in view["nodes"].values()),
        "aios_queue_requests": Counter(
            (row.get("queue", DEFAULT_QUEUE),) for row in view["queue"].values()
        ),
        "aios_leases": Counter((row["state"],) for row in view["leases"].values()),
        "aios_runs": Counter(runs),
    }


def _state(device: Mapping[str, Any]) -> str:
    if device["holder"] or device.get("shares"):
        return "held"
    return "outside" if device["outside"] else "free"
