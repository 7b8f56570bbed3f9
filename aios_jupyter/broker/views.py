"""What people see of the broker: one snapshot of plain rows, and the difference between two.

Sections map ids to rows, so that a watcher merges a delta by id; None takes a row away. The
sidebar, `aios status` and the REST interface show these rows and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from ..schema import LIVE, Device, DeviceKind, Lease, LeaseState, Node, Request, Run, Usage, WarmUse
from .measures import accuracy
from .policy import POLICIES, Pool
from .reasons import why
from .state import State

SECTIONS = ("nodes", "devices", "queue", "leases", "reservations", "runs", "batches")
Snapshot = dict[str, Any]


def snapshot(
    state: State,
    usage: Mapping[str, Usage],
    cluster: dict[str, Any],
    etas: Mapping[str, float],
    warm: Mapping[str, WarmUse] = MappingProxyType({}),
    batches: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    expected: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> Snapshot:
    """Every row.

    Parameters
    ----------
    usage
        The last sample of each device.
    cluster
        The head's own facts.
    etas
        When requests will start, for those of which it is known.
    warm
        What each node keeps ready for the next runs.
    batches
        Rows of batches, to which the rows of queue, leases and runs name theirs.
    expected
        How nodes are that somebody else starts and ends.
    """
    runs_of = {run.lease: run.id for run in state.runs.values() if run.state in LIVE}
    nodes = state.nodes.values()
    simulated = any(d.kind is DeviceKind.SIMULATED for node in nodes for d in node.devices)
    return {
        "cluster": {**cluster, "simulated": simulated},
        "nodes": {
            **{node.id: _node(state, node, warm, expected.get(node.id)) for node in nodes},
            **{id: _past(id, told) for id, told in expected.items() if id not in state.nodes},
        },
        "devices": {
            device.id: {
                **_device(device, usage.get(device.id)),
                "node": node.id,
                "host": node.host,
                "holder": _holder(state, state.holder.get(device.id, ""), runs_of),
                "shares": _shares(state, device.id, runs_of),
                "outside": msgspec.to_builtins(state.outside.get(device.id, ())),
            }
            for node in nodes
            if not state.is_expected(node.id)
            for device in node.devices
        },
        "queue": {
            id: queue_row(state, state.requests[id], position, place, etas.get(id))
            for id, (position, place) in places(state).items()
        },
        "leases": {lease.id: _lease(state, lease) for lease in state.leases.values()},
        "reservations": reservation_rows(state),
        "runs": {run.id: _run(run, state, usage) for run in state.runs.values()},
        "batches": dict(batches),
    }


def places(state: State) -> dict[str, tuple[int, int]]:
    """Of each request that waits its position among all, and its place in its own line."""
    found: dict[str, tuple[int, int]] = {}
    lines = dict.fromkeys(Pool, 0)
    for position, request in enumerate(state.queue(), 1):
        pool = state.pool(request.id)
        lines[pool] += 1
        found[request.id] = (position, lines[pool])
    return found


def queue_row(
    state: State, request: Request, position: int, place: int, eta: float | None
) -> dict[str, Any]:
    """A request that waits, with why it does in a word and in a sentence."""
    reason = state.reason(request.id)
    return {
        **_process(state, request.session),
        "id": request.id,
        "session": request.session,
        "user": request.user,
        "label": request.label,
        "want": request.want.value,
        "count": request.count,
        "queue": request.queue,
        "batch": request.batch,
        "priority": request.priority,
        "preemptible": request.preemptible,
        "preempted": request.requeued is not None,
        "least": request.least or request.count,
        "submitted": request.submitted,
        "position": position,
        "reason": reason,
        "why": why(state, request, reason, place),
        "eta": eta,
    }


def policy_view(state: State) -> dict[str, Any]:
    """The policy in force, those there are, and the weights that are not 1."""
    now = state.policy
    return {
        "name": now.name,
        "aging": now.aging,
        "policies": [
            {
                "name": policy.name,
                "about": policy.about,
                "aging": now.aging if policy.name == now.name else policy.aging,
            }
            for policy in POLICIES.values()
        ],
        "weights": dict(sorted(state.weights().items())),
        "idle": dict(sorted(state.idle_limits.items())),
        "max_time": state.max_time,
        "require_signature": state.signature_required,
    }


def reservation_rows(state: State) -> dict[str, dict[str, Any]]:
    """Reservations that wait for their time, and those that have their lease."""
    rows: dict[str, dict[str, Any]] = {
        booking.id: {
            "id": booking.id,
            "user": booking.user,
            "label": booking.label,
            "want": booking.want.value,
            "count": booking.count,
            "start": booking.start,
            "end": booking.end,
            "devices": list(booking.devices),
            "lease": "",
        }
        for booking in sorted(state.bookings.values(), key=lambda booking: booking.start)
    }
    for lease in state.leases.values():
        if lease.booking and lease.state is LeaseState.ACTIVE:
            request = state.requests[lease.request]
            rows[lease.booking] = {
                "id": lease.booking,
                "user": lease.user,
                "label": lease.label,
                "want": request.want.value,
                "count": request.count,
                "start": lease.granted,
                "end": lease.expires,
                "devices": [slot.device for slot in lease.slots],
                "lease": lease.id,
            }
    return rows


def load_view(state: State) -> dict[str, Any]:
    """Of each pool: its devices, what was asked of it by the hour, and how forecasts came true."""
    return {
        pool.value: {
            "devices": state.fleet.capacity(pool),
            "hours": msgspec.to_builtins(state.hours(pool)),
            "accuracy": accuracy(state.hits(pool)),
        }
        for pool in Pool
    }


def difference(old: Snapshot, new: Snapshot) -> Snapshot:
    """Rows of `new` that differ from `old`, None for those that are gone; {} when equal."""
    delta: Snapshot = {}
    for section in SECTIONS:
        before, after = old[section], new[section]
        rows = {key: row for key, row in after.items() if before.get(key) != row}
        rows.update({key: None for key in before if key not in after})
        if rows:
            delta[section] = rows
    if old["cluster"] != new["cluster"]:
        delta["cluster"] = new["cluster"]
    return delta


def _node(
    state: State,
    node: Node,
    warm: Mapping[str, WarmUse],
    told: dict[str, Any] | None,
) -> dict[str, Any]:
    expected, up = state.is_expected(node.id), state.node_up(node.id)
    note = told["note"] if told else ""
    if not expected:
        note = f"It does not answer. {note}" if note and not up else ""
    return {
        "id": node.id,
        "host": node.host,
        "address": node.address,
        "state": "up" if up else "waiting" if expected else "lost",
        "note": note,
        "until": node.until,
        "cpus": 0 if expected else node.cpus,
        "memory": 0 if expected else node.memory,
        "warm": msgspec.to_builtins(warm.get(node.id, WarmUse())),
    }


def _past(id: str, told: dict[str, Any]) -> dict[str, Any]:
    """A node of which the job is over, or has yet to be taken note of."""
    return {
        "id": id,
        "host": "",
        "address": "",
        "state": "ended" if told["state"] == "over" else "waiting",
        "note": told["note"],
        "until": None,
        "cpus": 0,
        "memory": 0,
        "warm": msgspec.to_builtins(WarmUse()),
    }


def _device(device: Device, usage: Usage | None) -> dict[str, Any]:
    return {
        "id": device.id,
        "kind": device.kind.value,
        "name": device.name,
        "index": device.index,
        "memory": device.memory,
        "utilization": usage.utilization if usage else None,
        "memory_used": usage.memory_used if usage else None,
        "temperature": usage.temperature if usage else None,
        "power": usage.power if usage else None,
        "power_limit": usage.power_limit if usage else None,
    }


def _shares(state: State, device: str, runs_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Who shares a device and how much of its memory each has; nobody where it is held whole."""
    return [
        {**holder, "memory": memory}
        for lease, memory in state.fleet.shares(device).items()
        if memory and (holder := _holder(state, lease, runs_of))
    ]


def _holder(state: State, id: str, runs_of: Mapping[str, str]) -> dict[str, Any] | None:
    lease = state.leases.get(id)
    if lease is None:
        return None
    return {
        "lease": lease.id,
        "user": lease.user,
        "label": lease.label,
        "run": runs_of.get(lease.id, ""),
    }


def _process(state: State, session: str) -> dict[str, Any]:
    """The kernel or shell that a session is, for a front end to find its own."""
    owner = state.sessions.get(session)
    return {"host": owner.host if owner else "", "pid": owner.pid if owner else 0}


def _lease(state: State, lease: Lease) -> dict[str, Any]:
    return {
        **_process(state, lease.session),
        "id": lease.id,
        "session": lease.session,
        "user": lease.user,
        "label": lease.label,
        "devices": [slot.device for slot in lease.slots],
        "granted": lease.granted,
        "expires": lease.expires,
        "state": LeaseState(lease.state).value,
        "used": lease.used,
        "scope": lease.scope.value,
        "request": lease.request,
        "queue": lease.queue,
        "batch": lease.batch,
        "preemptible": lease.preemptible,
        "preempted": lease.preempted,
        "reason": lease.reason,
        "warned": lease.warned,
        "idle_since": lease.idle_since,
        "idle_ends": lease.idle_ends,
        "share": lease.slots[0].share,
    }


def _run(run: Run, state: State, usage: Mapping[str, Usage]) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(run)
    for name in ("session", "nodes", "exits"):
        del row[name]
    lease = state.leases.get(run.lease) if run.state in LIVE else None
    slots = lease.slots[: run.world_size] if lease else ()
    samples = [usage[slot.device] for slot in slots if slot.device in usage]
    busy = [sample.utilization for sample in samples if sample.utilization is not None]
    memory = [sample.memory_used for sample in samples if sample.memory_used is not None]
    row["utilization"] = sum(busy) / len(busy) if busy else None
    row["memory"] = sum(memory) if memory else None
    return row
