"""What runs and the registry of the made-up cluster say: a session for the Jupyter server."""

from __future__ import annotations

import math
import queue
import time
from types import SimpleNamespace
from typing import Any

import msgspec

from aios_jupyter.errors import NotFoundError

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"


class FakeHandle:
    """A run of two ranks that has printed 200 lines each, and goes on when `live`."""

    def __init__(self, live: bool = False, lines: int = 200) -> None:
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        started = time.time() - lines / 10
        self.say(0, f"{HOSTILE}\n")
        for step in range(lines):
            at = started + step / 10
            for rank in (0, 1):
                self.say(rank, f"[{rank}] step {step}: loss {2.3 / (1 + step):.4f}\n", at)
            values = {"loss": 2.3 * math.exp(-step / 60), "accuracy": 1 - math.exp(-step / 40)}
            self._events.put(
                {"type": "metrics", "rank": 0, "time": at, "step": step, "values": values}
            )
        if not live:
            self._events.put(None)

    def say(self, rank: int, text: str, at: float | None = None) -> None:
        """Have a rank print something."""
        event = {"type": "log", "rank": rank, "time": at or time.time(), "text": text}
        self._events.put(event)

    def next_event(self, timeout: float) -> dict[str, Any] | None:
        """As `RunHandle.next_event`."""
        return self._events.get(timeout=timeout)


class FakeSession:
    """What the server's books use of a session."""

    def __init__(self) -> None:
        self.attached: list[str] = []
        self.closed = False

    def attach(self, run: str) -> FakeHandle:
        """Follow a run."""
        self.attached.append(run)
        return FakeHandle()

    def close(self) -> None:
        """End it."""
        self.closed = True


SIGNED: dict[int, list[dict[str, str]]] = {
    2: [
        {
            "name": "mallory",
            "role": "user",
            "standing": "unknown",
            "problem": "whose authority is not known here (key 00ff)",
        }
    ],
    3: [{"name": "ada", "role": "user", "standing": "known", "problem": ""}],
}


class FakeRegistry:
    """Two models, one of which was promoted."""

    def __init__(self) -> None:
        self.aliases = {"digits": {"champion": 3, "staging": 2}, HOSTILE: {}}
        self.before = {"champion": 1}

    def versions(self) -> list[dict[str, Any]]:
        """As `Session.models`."""
        return [self._row(name, version) for name in self.aliases for version in range(3, 0, -1)]

    def promote(self, ref: str, alias: str) -> dict[str, Any]:
        """As `acting._promote`."""
        name, _, version = ref.rpartition("/")
        self.aliases[name][alias] = int(version)
        return {"name": name, "version": int(version), "aliases": [alias]}

    def rollback(self, name: str, alias: str) -> dict[str, Any]:
        """As `acting._rollback`."""
        return self.promote(f"{name}/{self.before.pop(alias)}", alias)

    def _row(self, name: str, version: int) -> dict[str, Any]:
        return {
            "ref": f"{name}/{version}",
            "name": name,
            "version": version,
            "aliases": (own := [a for a, of in self.aliases[name].items() if of == version]),
            "before": {alias: self.before[alias] for alias in own if alias in self.before},
            "metrics": {"accuracy": 0.9 + version / 50, "loss": 0.3 / version},
            "params": {"world_size": "2", "framework": "torch"},
            "created": time.time() - 86400 * (4 - version),
            "framework": "torch",
            "lineage": {"run": f"r-{version}", "notebook": "quickstart.ipynb", "user": "ada"},
            "signed": SIGNED.get(version, []),
            "signature": {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
            },
        }


class FakeCatalog:
    """The digits that every catalogue has, and a table that was made of them."""

    def datasets(self) -> list[dict[str, Any]]:
        """As `datasets._datasets`."""
        return [self.versions(name)[0] for name in ("mnist", "zoo")]

    def versions(self, name: str) -> list[dict[str, Any]]:
        """As `datasets._versions`."""
        from aios_jupyter.data.catalog import Catalog

        digits: dict[str, Any] = msgspec.to_builtins(Catalog().get("mnist"))
        made = {"name": "zoo", "how": HOSTILE, "made_from": [f"mnist@{digits['version']}"]}
        found = {
            "mnist": [digits],
            "zoo": [
                {**digits, **made, "version": "b2", "rows": 60_000, "tags": [HOSTILE]},
                {**digits, **made, "version": "a1", "rows": 30_000},
            ],
        }
        if name not in found:
            raise NotFoundError(f"There is no dataset {name!r}; 'aios data ls' lists them.")
        return found[name]


def stacks(run: str, rank: int | None) -> list[dict[str, Any]]:
    """As `watching._stacks`."""
    call = SimpleNamespace(function="step", file="train.py", line=12)
    frames = [
        {"function": "all_reduce", "file": "torch/distributed.py", "line": 7, "users": False,
         "source": ""},
        {**vars(call), "users": True, "source": f"loss.backward()  # {HOSTILE}"},
    ]  # fmt: skip
    threads = [{"name": "MainThread", "active": True, "frames": frames}]
    return [
        {"rank": number, "pid": 4000 + number, "device": f"d{number}", "threads": threads,
         "note": "", "failure": ""}
        for number in (0, 1)
        if rank in (None, number)
    ]  # fmt: skip
