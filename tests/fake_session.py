"""A session that answers from memory, so that faces are tested without a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aios_jupyter.errors import NotFoundError
from aios_jupyter.runs.handle import RunResult
from aios_jupyter.schema import DeviceKind, Lease, Slot


def make_lease(identity: str = "lease-1", count: int = 2, length: float | None = 3600) -> Lease:
    now = time.time()
    slots = tuple(
        Slot(node="box", device=f"d{i}", kind=DeviceKind.SIMULATED, index=i, address="box:1")
        for i in range(count)
    )
    return Lease(
        id=identity,
        request="q-1",
        session="s-1",
        user="me",
        slots=slots,
        fence=1,
        granted=now,
        expires=None if length is None else now + length,
        label="test",
    )


class FakeHandle:
    """A run that sends the events it was given."""

    id = "r-1"
    world_size = 2

    def __init__(self, events: list[Any], result: RunResult | Exception) -> None:
        self._events = events
        self._result = result
        self.stopped = ""
        self.run = {"name": "cell 1", "started": time.time(), "lease": "lease-1"}

    def events(self) -> Iterator[dict[str, Any]]:
        for event in self._events:
            if isinstance(event, BaseException):
                raise event
            if callable(event):
                event(self)
                continue
            yield {"rank": 0, "time": time.time(), **event}

    ours = True

    def stop(self, reason: str = "") -> None:
        self.stopped = reason or "stopped"

    def wait(self) -> RunResult:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


# What is said of a request that waits.
EXPLAINED: dict[str, Any] = {
    "id": "q-1", "count": 2, "want": "gpu", "state": "queued", "reason": "Priority",
    "why": "One request is before it.", "position": 2, "waiting": 3, "eta": 1600.0,
    "earliest": 1300.0, "latest": None, "first_at": None, "time": 60.0, "predicted": 90.0,
    "queue": "team", "ran": 0.0, "error": 1.5, "policy": "sjf", "priority": 0,
}  # fmt: skip


class FakeSession:
    """What the verbs call; `calls` has the name and arguments of each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.held: list[Lease] = []
        self.rows: list[dict[str, Any]] = []
        self.waits: list[dict[str, Any]] = []
        self.booked: list[dict[str, Any]] = [RESERVATION]
        self.granted: Lease | Exception | None = None
        self.handle = FakeHandle([], RunResult("r-1", "succeeded", 2, 1.5, {"loss": 0.5}, {}))
        self.run_state = "succeeded"
        self.cancelled: list[str] = []
        self.looked: list[Any] = []
        self.seen = SNAPSHOT

    def alloc(self, *, on_wait: Callable[[dict[str, Any]], None], **options: Any) -> Lease:
        self.calls.append(("alloc", options))
        for row in self.waits:
            if isinstance(row, BaseException):
                raise row
            on_wait(row)
        if isinstance(self.granted, Exception):
            raise self.granted
        lease = self.granted or make_lease(count=options["devices"] or options["gpus"] or 1)
        self.held.append(lease)
        return lease

    def leases(self) -> list[Lease]:
        return list(self.held)

    def release(self, lease: str | None = None, *, everything: bool = False) -> list[str]:
        ended = [held.id for held in self.held if lease in {None, held.id}]
        if not ended:
            raise NotFoundError("This session holds no lease.")
        self.held = [held for held in self.held if held.id not in ended]
        return ended

    def cancel(self, request: str) -> None:
        self.cancelled.append(request)

    def reprioritize(self, request: str, priority: int) -> dict[str, Any]:
        self.calls.append(("reprioritize", {"request": request, "priority": priority}))
        return EXPLAINED | {"id": request, "priority": priority}

    def reservations(self) -> list[dict[str, Any]]:
        return self.booked

    def reserve(self, **wish: Any) -> dict[str, Any]:
        self.calls.append(("reserve", wish))
        return self.booked[0]

    def queue(self) -> list[dict[str, Any]]:
        return self.waits

    def batches(self) -> list[dict[str, Any]]:
        return list(self.status()["batches"].values())

    def runs(self) -> list[dict[str, Any]]:
        return [*self.rows, {"id": "r-1", "state": self.run_state}] if not self.rows else self.rows

    def start(self, target: Any, **options: Any) -> FakeHandle:
        self.calls.append(("start", {"target": target, **options}))
        return self.handle

    def status(self) -> dict[str, Any]:
        leases = {
            held.id: {"id": held.id, "state": held.state.value, "expires": held.expires}
            for held in self.held
        }
        return {**self.seen, "leases": leases}

    def logs(self, run: str, rank: int | None, follow: bool) -> Iterator[str]:
        self.calls.append(("logs", {"run": run, "rank": rank, "follow": follow}))
        yield "one\ntwo\n"

    def stacks(self, run: str, rank: int | None) -> list[Any]:
        self.calls.append(("stacks", {"run": run, "rank": rank}))
        return self.looked

    def profile(self, run: str, to: str, rank: int) -> Path:
        self.calls.append(("profile", {"run": run, "to": to, "rank": rank}))
        path = Path(to)
        path.write_text("{}")
        return path

    def user_list(self) -> list[dict[str, Any]]:
        return [{"name": "bob", "role": "viewer", "state": "revoked", "added": 0.0,
                 "expires": 1e9, "serial": "1"}]  # fmt: skip

    def user_add(self, name: str, role: str, to: Any, *, days: float) -> dict[str, Any]:
        self.calls.append(("user_add", {"name": name, "role": role, "to": to, "days": days}))
        return {"name": name, "role": role, "expires": 1e9, "bundle": str(to)}

    def user_revoke(self, name: str) -> dict[str, Any]:
        raise NotFoundError(f"Nobody called '{name}' has access.")

    def audit(self, limit: int) -> list[dict[str, Any]]:
        newest = {"time": 2e9, "who": "eve", "what": "refused", "detail": {"op": "release"}}
        oldest = {"time": 1e9, "who": "bob", "what": "granted", "detail": {"devices": ["d0"]}}
        return [newest, oldest][:limit]

    def close(self) -> None:
        self.calls.append(("close", {}))


DEVICE = {
    "node": "box", "host": "box", "kind": "simulated", "name": "Simulated GPU", "memory": 2**34,
    "utilization": 40.0, "memory_used": 2**33, "temperature": None, "power": None,
    "power_limit": None, "outside": [],
}  # fmt: skip
SNAPSHOT: dict[str, Any] = {
    "cluster": {"name": "default", "version": "1", "started": 0.0, "broker_pid": 1, "user": "me",
                "role": "admin", "simulated": True},
    "nodes": {"box": {"id": "box", "host": "box", "address": "box:1", "state": "up", "cpus": 2,
                      "memory": 0, "note": "", "until": None}},
    "devices": {
        "d0": {**DEVICE, "id": "d0", "index": 0,
               "holder": {"lease": "lease-1", "user": "me", "label": "a.ipynb", "run": "r-1"}},
        "d1": {**DEVICE, "id": "d1", "index": 1, "holder": None},
        "d2": {**DEVICE, "id": "d2", "index": 2, "holder": None, "utilization": None,
               "outside": [{"pid": 7, "memory": 0, "name": "python", "user": "eve"}]},
    },
    "queue": {}, "leases": {}, "reservations": {}, "runs": {}, "batches": {},
}  # fmt: skip
RESERVATION = {
    "id": "b-1", "user": "me", "label": "night", "want": "gpu", "count": 2, "start": 4e9,
    "end": 4e9 + 3600, "devices": ["d0", "d1"], "lease": "",
}  # fmt: skip
