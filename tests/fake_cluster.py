"""A broker that is not there: realistic rows that move, for tests of the server and the sidebar.

It answers as `broker.client.AsyncClient` does for the Jupyter server: `subscribe`, `call`,
`close`, `closed`. Scenarios: `busy` (every state a row can be in), `ended`, `news`, `quiet` (a cluster that
nobody uses), `large` (200 devices on 25 nodes), `huge` (1,000 devices and 500 runs).
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from aios_jupyter.errors import AccessError, NotFoundError

GB = 2**30
STARTED = time.time() - 7200
View = dict[str, Any]


class FakeUpstream:
    """A session with a made-up cluster of user `ada`.

    Parameters
    ----------
    scenario
        Name of the first state.
    interval
        Seconds between two deltas; 0 for none but those that calls make.
    recorded
        So many deltas are worked out before and told again and again, as the wire's bytes: to
        read them is what a broker's messages cost, and no more.
    """

    def __init__(self, scenario: str = "busy", interval: float = 0.0, *, recorded: int = 0) -> None:
        self.closed = asyncio.Event()
        self.calls: list[tuple[str, Any]] = []
        self.view = SCENARIOS[scenario]()
        self._interval = interval
        self._recorded = [
            msgspec.msgpack.encode(self.advance(interval * (1 + n))) for n in range(recorded)
        ]
        self._watcher: Callable[[View], None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def subscribe(self, watcher: Callable[[View], None]) -> None:
        self._watcher = watcher
        watcher(copy.deepcopy(self.view))
        if self._interval:
            self._task = asyncio.create_task(self._move())

    async def call(self, op: str, body: Any = None) -> Any:
        self.calls.append((op, body))
        if op == "extend":
            return self._extend(body["id"], body["time"])
        if op == "reprioritize":
            return self._reprioritize(body["id"], body["priority"])
        calls = {
            "release": self._release,
            "cancel": self._cancel,
            "run.stop": self._stop,
            "batch.stop": self._stop_batch,
        }
        return calls[op](body["id"])

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
        self.closed.set()

    def switch(self, scenario: str) -> None:
        """Be another cluster from now on."""
        self.view = SCENARIOS[scenario]()
        self.tell(copy.deepcopy(self.view))

    def change(self, section: str, rows: dict[str, Any]) -> None:
        """Change rows and tell; None takes one away."""
        for key, row in rows.items():
            if row is None:
                self.view[section].pop(key, None)
            else:
                self.view[section][key] = row
        self.tell({section: copy.deepcopy(rows)})

    def tell(self, view: View) -> None:
        """Push a view as it is."""
        if self._watcher:
            self._watcher(view)

    def _release(self, lease: str) -> None:
        row = self._row("leases", lease, "lease")
        if row["user"] != "ada":
            raise AccessError(f"Lease {lease} belongs to {row['user']}, not to you.")
        for run in self.view["runs"].values():
            if run["lease"] == lease and run["ended"] is None:
                self._stop(run["id"])
        freed = {
            key: {**device, "holder": None, "utilization": 0.0, "memory_used": 0}
            for key, device in self.view["devices"].items()
            if device["holder"] and device["holder"]["lease"] == lease
        }
        self.change("devices", freed)
        self.change("leases", {lease: None})

    def _extend(self, lease: str, length: float) -> None:
        row = self._row("leases", lease, "lease")
        self.change("leases", {lease: {**row, "expires": time.time() + length}})

    def _reprioritize(self, request: str, priority: int) -> None:
        row = self._row("queue", request, "request")
        self.change("queue", {request: {**row, "priority": priority}})

    def _cancel(self, request: str) -> None:
        self._row("queue", request, "request")
        self.change("queue", {request: None})

    def _stop(self, run: str) -> None:
        row = self._row("runs", run, "run")
        ended = {"state": "stopped", "ended": time.time(), "reason": "stopped by ada"}
        self.change("runs", {run: {**row, **ended}})

    def _stop_batch(self, batch: str) -> None:
        row = self._row("batches", batch, "batch")
        if row["user"] != "ada":
            raise AccessError(f"Batch {batch} belongs to {row['user']}; ask them or an admin.")
        over = {"state": "stopped", "running": 0, "ended": time.time()}
        self.change("batches", {batch: {**row, **over}})

    def _row(self, section: str, key: str, what: str) -> Any:
        if key not in self.view[section]:
            raise NotFoundError(f"There is no {what} {key!r}; 'aios {section}' lists them.")
        return self.view[section][key]

    async def _move(self) -> None:
        started = time.monotonic()
        for frame in itertools.cycle(self._recorded or [b""]):
            await asyncio.sleep(self._interval)
            if frame:
                self.tell(msgspec.msgpack.decode(frame))
            elif moved := self.advance(time.monotonic() - started):
                self.tell(copy.deepcopy(moved))

    def advance(self, age: float) -> View:
        """Move what moves: utilization of held devices, progress and metrics of live runs."""
        devices = {}
        for key, device in self.view["devices"].items():
            if device["holder"] and device["utilization"] is not None:
                wave = math.sin(age / 2 + device["index"])
                devices[key] = {
                    **device,
                    "utilization": round(78 + 18 * wave, 1),
                    "power": device["power"] and round(300 + 60 * wave, 1),
                }
        runs = {}
        for key, run in self.view["runs"].items():
            if run["state"] == "running" and run["kind"] == "train":
                progress = run["progress"]
                done = min(progress["total"], progress["done"] + 3)
                runs[key] = {
                    **run,
                    "progress": {**progress, "done": done},
                    "metrics": {
                        "loss": 2.3 * math.exp(-done / 180) + 0.04,
                        "accuracy": 1 - 0.9 * math.exp(-done / 120),
                        "steps_per_second": 27.5 + math.sin(age),
                    },
                }
        self.view["devices"].update(devices)
        self.view["runs"].update(runs)
        moved = {"devices": devices, "runs": runs}
        return {section: rows for section, rows in moved.items() if rows}


def cluster(simulated: bool = True) -> View:
    return {
        "name": "default",
        "version": "0.1.0",
        "started": STARTED,
        "broker_pid": 4242,
        "user": "ada",
        "role": "user",
        "simulated": simulated,
    }


def node(
    name: str,
    state: str = "up",
    cpus: int = 64,
    memory: int = 512 * GB,
    warm: View | None = None,
    note: str = "",
) -> View:
    there = state in ("up", "lost")
    return {
        "id": name,
        "host": name if there else "",
        "address": f"{name}:8786" if there else "",
        "state": state,
        "note": note,
        "until": None,
        "cpus": cpus,
        "memory": memory,
        "warm": warm or {"frameworks": [], "processes": 0, "memory": 0},
    }


def device(where: str, index: int, kind: str = "gpu", **changes: Any) -> View:
    name = {
        "gpu": "NVIDIA A100-SXM4-80GB",
        "mig": "NVIDIA H100 MIG 1g.10gb",
        "simulated": "Simulated GPU",
        "cpu": "CPU slot",
    }[kind]
    memory = {"gpu": 80 * GB, "mig": 10 * GB, "simulated": 16 * GB, "cpu": 0}[kind]
    row = {
        "id": f"{kind.upper()}-{where}-{index}",
        "node": where,
        "host": where,
        "kind": kind,
        "name": name,
        "index": index,
        "memory": memory,
        "utilization": None if kind == "cpu" else 0.0,
        "memory_used": None if kind == "cpu" else 0,
        "temperature": 34.0 + index if kind == "gpu" else None,
        "power": 61.0 if kind == "gpu" else None,
        "power_limit": 400.0 if kind == "gpu" else None,
        "holder": None,
        "outside": [],
    }
    return {**row, **changes}


def holder(lease: View, run: str = "") -> View:
    return {"lease": lease["id"], "user": lease["user"], "label": lease["label"], "run": run}


def lease(name: str, user: str, label: str, left: float | None, **changes: Any) -> View:
    now = time.time()
    return {
        "id": f"l-{name}",
        "user": user,
        "label": label,
        "devices": [],
        "granted": now - 1200,
        "expires": None if left is None else now + left,
        "state": "active",
        "used": True,
        "scope": "session",
        "batch": "",
        **changes,
    }


def run(name: str, of: View, state: str, ago: float, took: float | None, **changes: Any) -> View:
    started = time.time() - ago
    return {
        "id": f"r-{name}",
        "lease": of["id"],
        "user": of["user"],
        "kind": "train",
        "name": name,
        "label": of["label"],
        "framework": "torch",
        "world_size": max(1, len(of["devices"])),
        "state": state,
        "started": started,
        "ended": None if took is None else started + took,
        "progress": {"done": 0, "total": 0, "unit": "", "label": ""},
        "metrics": {},
        "reason": "",
        "detail": {},
        "batch": "",
        **changes,
    }


def request(name: str, user: str, label: str, position: int, **changes: Any) -> View:
    return {
        "id": f"q-{name}",
        "user": user,
        "label": label,
        "want": "gpu",
        "count": 2,
        "submitted": time.time() - 95,
        "position": position,
        "reason": "",
        "batch": "",
        **changes,
    }


def batch(name: str, of: View, total: int, **changes: Any) -> View:
    return {
        "id": f"batch-{name}",
        "user": of["user"],
        "label": of["label"],
        "host": "ada-01",
        "pid": 1234,
        "directory": "",
        "state": "running",
        "total": total,
        "done": 0,
        "failed": 0,
        "running": 0,
        "started": time.time() - 600,
        "ended": None,
        **changes,
    }


def busy() -> View:
    """Every state that a row can be in."""
    mine = lease("7c1", "ada", "quickstart.ipynb", 3130)
    serving = lease("9e2", "ada", "digits", None, scope="detached")
    bobs = lease("b44", "bob", "sweep.ipynb", 140, batch="batch-5e")
    ending = lease("d05", "carol", "segmentation.ipynb", 900, state="ending")
    outside = [{"pid": 31337, "memory": 11 * GB, "name": "python", "user": "dave"}]
    used = {"utilization": 82.0, "memory_used": 31 * GB, "temperature": 67.0, "power": 311.0}
    full = {"utilization": 97.0, "memory_used": 76 * GB, "temperature": 78.0, "power": 388.0}
    simulated = {"utilization": 64.0, "memory_used": 6 * GB}
    devices = [
        device("ada-01", 0, **used, holder=holder(mine, "r-digits-cnn")),
        device("ada-01", 1, **used, holder=holder(mine, "r-digits-cnn")),
        device("ada-01", 2, **full, holder=holder(bobs, "r-sweep-3")),
        device("ada-01", 3, utilization=41.0, memory_used=11 * GB, outside=outside),
        device("grace-02", 0, "mig", utilization=12.0, memory_used=GB, holder=holder(serving)),
        device("grace-02", 1, "mig"),
        device("grace-02", 2, "simulated", **simulated, holder=holder(ending)),
        device("grace-02", 3, "simulated"),
        device("hopper-03", 0, "cpu"),
        device("hopper-03", 1, "cpu"),
    ]
    for held in (mine, serving, bobs, ending):
        held["devices"] = [
            row["id"] for row in devices if row["holder"] and row["holder"]["lease"] == held["id"]
        ]
    epoch = {"done": 310, "total": 500, "unit": "steps", "label": "epoch 3 of 5"}
    runs = [
        run(
            "digits-cnn",
            mine,
            "running",
            83,
            None,
            progress=epoch,
            metrics={"loss": 0.4127},
            detail={"data": ["mnist@94e2480bb2d3"]},
        ),
        run("sweep-3", bobs, "starting", 4, None, framework="tensorflow", batch="batch-5e"),
        run(
            "digits",
            serving,
            "running",
            4000,
            None,
            kind="endpoint",
            framework="none",
            metrics={"requests_per_second": 12.4, "p95_ms": 3.08},
            detail={"url": "http://127.0.0.1:40123/v2", "model": "digits", "version": "3"},
        ),
        run(
            "baseline",
            mine,
            "succeeded",
            900,
            312,
            progress={"done": 500, "total": 500, "unit": "steps", "label": ""},
            metrics={"loss": 0.0619, "accuracy": 0.9783},
        ),
        run(
            "wide-net",
            mine,
            "failed",
            2000,
            41,
            reason="rank 1 was killed by SIGKILL: it ran out of memory",
        ),
        run("first-try", mine, "stopped", 3000, 12, reason="stopped by ada"),
    ]
    queue = [
        request(
            "a1", "ada", "ablation.ipynb", 1, reason="2 GPUs wanted, 1 free; bob's end in 2 min"
        ),
        request("a2", "erin", "terminal", 2, count=1, want="device", reason="behind 1 other"),
    ]
    kept = {"frameworks": ["torch"], "processes": 3, "memory": 410_000_000}
    nodes = [node("ada-01", warm=kept), node("grace-02", cpus=16, memory=128 * GB)]
    nodes.append(node("hopper-03", "lost", 8, 32 * GB))
    why = "Slurm job 4711 waits (Priority); Slurm expects it to start at 16:40."
    nodes.append(node("slurm-4711-0", "waiting", 0, 0, note=why))
    sweep = batch("5e", bobs, 12, done=5, failed=1, running=1)
    # Where the browser tests have notebooks of theirs.
    results = os.environ.get("FAKE_RESULTS", "/nowhere/grid-batch")
    grid = {"label": "grid.ipynb", "directory": results, "done": 3, "running": 1}
    own = batch("9c", mine, 8, **grid)
    return view(nodes, devices, queue, [mine, serving, bobs, ending], runs, [sweep, own])


def ended() -> View:
    """The same cluster after its training has come to its end."""
    after = busy()
    row = after["runs"]["r-digits-cnn"]
    after["runs"]["r-digits-cnn"] = {**row, "state": "succeeded", "ended": time.time()}
    return after


def news() -> View:
    """The same cluster when a wait is over, a lease ends soon, and the training has failed."""
    after = busy()
    granted = lease("a1", "ada", "ablation.ipynb", 3600, request="q-a1", granted=time.time())
    del after["queue"]["q-a1"]
    after["leases"] |= {
        granted["id"]: {**granted, "devices": ["MIG-grace-02-1"]},
        "l-7c1": {**after["leases"]["l-7c1"], "warned": True, "expires": time.time() + 299},
    }
    row = after["runs"]["r-digits-cnn"]
    failed = {"state": "failed", "ended": time.time(), "reason": "rank 1 raised ValueError"}
    after["runs"]["r-digits-cnn"] = {**row, **failed}
    return after


def quiet() -> View:
    """A cluster that nobody uses: one machine without a GPU, two simulated ones."""
    devices = [device("laptop", i, "simulated") for i in range(2)]
    devices += [device("laptop", i, "cpu") for i in range(2)]
    return view([node("laptop", cpus=2, memory=24 * GB)], devices, [], [], [])


def large() -> View:
    """200 devices on 25 nodes, three quarters of them held."""
    return crowd(nodes=25, held=50, per_lease=4)


def huge() -> View:
    """1,000 devices on 125 nodes, and 500 runs on all of them."""
    made = crowd(nodes=125, held=500, per_lease=2)
    progress = {"done": 0, "total": 10_000, "unit": "steps", "label": ""}
    for n, held in enumerate(made["leases"].values()):
        row = run(f"{n:03}", held, "running", 60 + n, None, progress=progress)
        made["runs"][row["id"]] = {**row, "metrics": {"loss": 2.3}}
        for key in held["devices"]:
            made["devices"][key]["holder"]["run"] = row["id"]
    return made


def crowd(nodes: int, held: int, per_lease: int) -> View:
    """Nodes of 8 devices each; so many leases of so many devices, one in four of large ones free."""
    leases = [lease(f"{i:03}", f"user{i % 7}", f"notebook-{i}.ipynb", 3600) for i in range(held)]
    rows, devices = [], []
    for n in range(nodes):
        rows.append(node(f"node-{n:02}"))
        for i in range(8):
            number = 8 * n + i
            taken = number % 4 if per_lease == 4 else True
            owner = leases[number // per_lease] if taken else None
            usage = {"utilization": 90.0, "memory_used": 60 * GB} if owner else {}
            row = device(f"node-{n:02}", i, **usage, holder=owner and holder(owner))
            devices.append(row)
            if owner:
                owner["devices"].append(row["id"])
    return view(rows, devices, [], leases, [])


def view(
    nodes: list[View],
    devices: list[View],
    queue: list[View],
    leases: list[View],
    runs: list[View],
    batches: Sequence[View] = (),
) -> View:
    sections = {
        "nodes": nodes,
        "devices": devices,
        "queue": queue,
        "leases": leases,
        "reservations": [],
        "runs": runs,
        "batches": batches,
    }
    simulated = any(row["kind"] == "simulated" for row in devices)
    return {
        "cluster": cluster(simulated),
        **{name: {row["id"]: row for row in rows} for name, rows in sections.items()},
    }


SCENARIOS: dict[str, Callable[[], View]] = {
    "busy": busy,
    "ended": ended,
    "news": news,
    "quiet": quiet,
    "large": large,
    "huge": huge,
}
