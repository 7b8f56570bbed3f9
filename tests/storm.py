"""A storm over a live cluster, seeded: kernels, ranks, agent and broker are killed while people work.

Kernels are stopped for longer than the broker waits for them, and all that clients and the agent
say to the broker goes through a relay that treats connections badly (`relay.py`).

`python tests/storm.py --minutes 30 --seed 1` (`make faults`), and a short one in `test_storm.py`.
Afterwards the journal, what the clients were told and what the ranks saw are held against the
broker's promises: no device twice, gangs whole, fences rise, no request lost, no process left; and nobody
waits for what is free.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clusters import private_directories
from relay import Relay

from aios_jupyter.broker.journal import AUDIT_KEPT, Journal
from aios_jupyter.cluster import embedded, processes
from aios_jupyter.config import settings
from aios_jupyter.errors import ClusterError, NoClusterError, NotFoundError
from aios_jupyter.node.reaper import MARK
from aios_jupyter.process import alive, process_start
from aios_jupyter.schema import Lease, Request, RequestState, Want
from aios_jupyter.session import Session, connect

GPUS = 4
TIMES = {
    "AIOS_HEARTBEAT": "1",
    "AIOS_SUSPECT_AFTER": "4",
    "AIOS_REAP_AFTER": "8",
    "AIOS_OWNER_GRACE": "6",
    "AIOS_STOP_GRACE": "2",
}
# A kernel that is stopped for so long, seconds, has lost its leases when it goes on.
STOPPED = (9.0, 16.0)
PROMISES = {
    "1": "no device had two leases",
    "2": "gangs were whole",
    "3": "fences rose",
    "4": "no accepted request was lost",
    "5": "no process of a lease that ended is left",
    "7": "nobody waited for what was free",
}
# Each rank holds a lock on its device for as long as it or a child of it lives: two leases on one
# device, or a device granted before its processes are gone, is seen by whoever comes second.
CELL = """
import fcntl, os, signal, subprocess, sys, time
from aios_jupyter import train
device = devices[train.rank()]
file = open(os.path.join(root, "device-" + device), "a")
with open(os.path.join(root, "marks"), "a") as marks:
    marks.write(os.environ["AIOS_RANK_MARK"] + "\\n")
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    with open(os.path.join(root, "violations"), "a") as told:
        told.write(device + " was in use when " + lease + " began\\n")
if stubborn:
    # Such a rank lives through the grace of a lease that ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if child:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                     pass_fds=[file.fileno()], start_new_session=True)
for step in range(10):
    train.progress(step + 1, 10)
    time.sleep(seconds / 10)
"""


# --- a kernel


def work(root: Path, seed: int) -> None:
    """One client process: lease, train, release, until told to stop or killed."""
    chance = random.Random(seed)
    said = (root / f"client-{os.getpid()}").open("a")

    def tell(*words: str) -> None:
        print(*words, file=said, flush=True)

    session = None
    while not (root / "stop").exists():
        try:
            if session is None:
                session = connect(simulate_gpus=None, label="storm")
                submit = session.client.submit

                async def accepted(request: Request, submit: Any = submit) -> Any:
                    pending = await submit(request)
                    tell("accepted", request.id, str(request.count))
                    return pending

                session.client.submit = accepted  # type: ignore[method-assign]
            gpus = chance.randint(1, GPUS)
            lease = session.alloc(gpus=gpus, wait=15, time=60)
            if len(lease.slots) != gpus:
                tell("violation", f"{lease.id} has {len(lease.slots)} of {gpus} devices")
            push = {
                "root": str(root),
                "lease": lease.id,
                "devices": [slot.device for slot in lease.slots],
                "seconds": chance.choice([0.05, 0.5, 3.0]),
                "child": chance.random() < 0.3,
                "stubborn": chance.random() < 0.5,
            }
            try:
                handle = session.start(CELL, cell=True, lease=lease.id, push=push, pull=["step"])
                if chance.random() < 0.3:
                    # The lease ends under the run, which has its device by now.
                    next((e for e in handle.events() if e["type"] == "progress"), None)
                    continue
                result = handle.wait()
                tell("trained", lease.id, result.id)
            finally:
                # It may have ended in the meantime, with its node.
                with contextlib.suppress(NotFoundError):
                    session.release(lease.id)
        except ClusterError as error:
            tell("error", type(error).__name__, str(error))
            time.sleep(chance.uniform(0.1, 0.5))
            if session is not None:
                session.close()
                session = None
        except Exception as error:  # noqa: BLE001  # the storm goes on; it is counted
            tell("error", type(error).__name__, str(error))
            time.sleep(0.1)
    if session is not None:
        session.close()


# --- the storm


@dataclass
class Storm:
    """What is done to the cluster, and what became of it."""

    root: Path
    seed: int
    seconds: float
    clients: int = 3
    deeds: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._processes: list[subprocess.Popen[bytes]] = []
        # Kernels that are stopped, and until when (monotonic).
        self._stopped: dict[int, float] = {}
        self._relay = Relay(self.seed)
        self.wrong: list[str] = []

    def run(self) -> dict[str, Any]:
        """Let it rage, let it calm down, stop the cluster; returns what happened in numbers."""
        embedded.ensure(simulate_gpus=GPUS)
        self._lead_through_relay()
        for _ in range(self.clients):
            self._start_client()
        end = time.monotonic() + self.seconds
        try:
            while time.monotonic() < end:
                time.sleep(self._chance.uniform(0.1, 2.0))
                self._wake(time.monotonic())
                self._strike()
        finally:
            (self.root / "stop").touch()
            self._relay.calm = True
            self._wake(math.inf)
            self._mend()
            self._end_clients()
        self._calm()
        self._share_out()
        with contextlib.suppress(NoClusterError):
            embedded.down()
        self._relay.close()
        return {**self.deeds, **self._relay.happened}

    def _lead_through_relay(self) -> None:
        """Have everybody find the relay where the broker has written its own address."""
        paths = embedded.Paths.current()
        with embedded.lock(paths.runtime / "lock"):
            facts = embedded.running(paths.broker)
            if facts and facts["address"] != self._relay.address:
                self._relay.target = facts["address"]
                processes.write(paths.broker, {**facts, "address": self._relay.address})

    def _lead_directly(self) -> None:
        """Have the next broker found where this one is: it listens at its predecessor's address."""
        paths = embedded.Paths.current()
        with embedded.lock(paths.runtime / "lock"):
            facts = embedded.running(paths.broker)
            if facts:
                processes.write(paths.broker, {**facts, "address": self._relay.target})

    def _start_client(self) -> None:
        command = [sys.executable, __file__, "--work", str(self.root)]
        seed = str(self._chance.randrange(2**31))
        with (self.root / "clients.log").open("ab") as output:
            process = subprocess.Popen(
                [*command, "--seed", seed], stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self._processes.append(process)

    def _strike(self) -> None:
        strikes = {
            self._kill_client: 4,
            self._kill_rank: 4,
            self._kill_agent: 1,
            self._kill_broker: 2,
            self._pause: 1,
            self._stop_client: 1,
        }
        self._chance.choices(list(strikes), list(strikes.values()))[0]()

    def _kill_client(self) -> None:
        process = self._chance.choice(self._processes)
        process.kill()
        process.wait()
        self._processes.remove(process)
        self._stopped.pop(process.pid, None)
        self.deeds["kernels killed"] += 1
        self._start_client()

    def _stop_client(self) -> None:
        """A laptop that is closed: for the broker its kernel is as good as dead."""
        process = self._chance.choice(self._processes)
        if process.pid not in self._stopped:
            os.kill(process.pid, signal.SIGSTOP)
            self._stopped[process.pid] = time.monotonic() + self._chance.uniform(*STOPPED)
            self.deeds["kernels stopped"] += 1

    def _wake(self, now: float) -> None:
        for pid in [pid for pid, until in self._stopped.items() if until <= now]:
            del self._stopped[pid]
            os.kill(pid, signal.SIGCONT)

    def _kill_rank(self) -> None:
        ranks = self._ranks()
        if ranks:
            chosen = self._chance.choice(ranks)
            if process_start(chosen["pid"]) == chosen["start"]:
                os.kill(chosen["pid"], signal.SIGKILL)
                self.deeds["ranks killed"] += 1

    def _ranks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in sorted((settings().cluster_dir / "runs").glob("*/ranks.json")):
            with contextlib.suppress(FileNotFoundError):
                found += json.loads(path.read_text())
        return [rank for rank in found if alive(rank["pid"], rank["start"])]

    def _kill_agent(self) -> None:
        self._kill("node", "agents killed")

    def _kill_broker(self) -> None:
        self._kill("broker", "brokers killed")

    def _kill(self, which: str, deed: str) -> None:
        if which == "broker":
            self._lead_directly()
        facts = embedded.running(getattr(embedded.Paths.current(), which))
        if facts:
            os.kill(facts["pid"], signal.SIGKILL)
            self.deeds[deed] += 1
        time.sleep(self._chance.uniform(0, 1.5))
        self._mend()

    def _pause(self) -> None:
        """A machine that stalls for a moment."""
        which = self._chance.choice(["broker", "node"])
        facts = embedded.running(getattr(embedded.Paths.current(), which))
        if facts:
            os.kill(facts["pid"], signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.2, 1.5))
            os.kill(facts["pid"], signal.SIGCONT)
            self.deeds["stalls"] += 1

    def _mend(self) -> None:
        embedded.ensure()
        self._lead_through_relay()

    def _end_clients(self) -> None:
        deadline = time.monotonic() + 30
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            if process.poll() is None:
                self.deeds["kernels that did not end by themselves"] += 1
                process.kill()
                process.wait()

    def _calm(self) -> None:
        """Wait until nobody holds or waits for anything: owners that died have a grace."""
        deadline = time.monotonic() + 60
        with connect(label="checker") as session:
            while time.monotonic() < deadline:
                view = session.status()
                if not view["leases"] and not view["queue"]:
                    return
                time.sleep(0.2)

    def _share_out(self) -> None:
        """More requests than fit, leases given back one by one: nobody waits for what is free."""
        with connect(label="checker") as session:
            for count in self._chance.choices(range(1, GPUS + 1), k=12):
                wanted = Request(
                    id=f"q-share-{self._chance.getrandbits(32):x}",
                    session="",
                    user="",
                    want=Want.GPU,
                    count=count,
                )
                session._loop.run(session.client.submit(wanted))
                self._look(session)
            left, deadline = 0, 0.0
            while (view := self._look(session))["leases"]:
                if (now_left := len(view["queue"]) + len(view["leases"])) != left:
                    left, deadline = now_left, time.monotonic() + 30
                if time.monotonic() > deadline:
                    break
                active = [id for id, row in view["leases"].items() if row["state"] == "active"]
                if active:
                    session.release(self._chance.choice(active))
            self.wrong += [f"request {id} waits for nothing" for id in view["queue"]]

    def _look(self, session: Session) -> dict[str, Any]:
        view = session.status()
        self.wrong += idle(view)
        self.deeds["looks at the queue"] += 1
        return view


# --- the checker


def check(root: Path) -> tuple[list[str], dict[str, int]]:
    """What was promised and not kept, one sentence each; and what there was, in numbers."""
    journal = Journal(settings().cluster_dir / "journal.sqlite")
    try:
        records = journal.load()
        audit = list(reversed(journal.audit(AUDIT_KEPT)))
    finally:
        journal.close()
    told = [
        line.split(" ", 2)
        for path in root.glob("client-*")
        for line in path.read_text().splitlines()
    ]
    wrong = [" ".join(line[1:]) for line in told if line[0] == "violation"]
    if (root / "violations").exists():
        wrong += (root / "violations").read_text().splitlines()
    requests = {id: record for kind, id, record in records if kind == "request"}
    counts = {line[1]: int(line[2]) for line in told if line[0] == "accepted"}
    wrong += _leases(audit, counts, requests)
    wrong += _fences(audit, records)
    wrong += _requests(audit, counts, requests)
    wrong += [f"lease {r.id} is still there" for _, _, r in records if isinstance(r, Lease)]
    wrong += _orphans(root)
    kinds = Counter(line[0] for line in told)
    numbers = {
        "requests accepted": len(counts),
        "leases granted": sum(note["what"] == "granted" for note in audit),
        "runs": sum(note["what"] == "run ended" for note in audit),
        "runs that succeeded": kinds["trained"],
        "errors that clients saw": kinds["error"],
    }
    return wrong, numbers


def idle(view: dict[str, Any]) -> list[str]:
    """Promise 7: whoever waits for what is free is told for whom it is kept."""
    free = sum(
        row["kind"] == "simulated" and row["holder"] is None and not row["outside"]
        for row in view["devices"].values()
    )
    return [
        f"request {id} waits for {row['count']} of {free} free devices, {row['reason']!r}"
        for id, row in view["queue"].items()
        if row["count"] <= free and row["reason"] in ("", "Resources", "Priority")
    ]


def _leases(
    audit: list[dict[str, Any]], counts: dict[str, int], requests: dict[str, Request]
) -> list[str]:
    """Promises 1 and 2, and that each lease has an end with a reason."""
    wrong, holder, devices = [], {}, {}
    for note in audit:
        detail = note["detail"]
        if note["what"] == "granted":
            devices[detail["lease"]] = detail["devices"]
            for device in detail["devices"]:
                if device in holder:
                    wrong.append(f"{device} went to {detail['lease']} while {holder[device]} held")
                holder[device] = detail["lease"]
            known = requests.get(detail["request"])
            count = counts.get(detail["request"], known.count if known else None)
            if count is not None and len(set(detail["devices"])) != count:
                wrong.append(f"{detail['lease']} has {detail['devices']}, not {count} devices")
        elif note["what"] == "lease ended":
            if not detail["reason"]:
                wrong.append(f"{detail['lease']} ended without a reason")
            for device in devices.pop(detail["lease"], ()):
                del holder[device]
    return wrong + [f"{lease} has never ended" for lease in devices]


def _fences(audit: list[dict[str, Any]], records: list[tuple[str, str, Any]]) -> list[str]:
    """Promise 3."""
    fences = [int(n["detail"]["lease"][1:]) for n in audit if n["what"] == "granted"]
    wrong = [
        f"fence {after} follows {before}"
        for before, after in itertools.pairwise(fences)
        if after <= before
    ]
    counter = next((record for kind, _, record in records if kind == "counter"), 0)
    if fences and counter < max(fences):
        wrong.append(f"the journal's fence is {counter}, and {max(fences)} was granted")
    return wrong


def _requests(
    audit: list[dict[str, Any]], counts: dict[str, int], requests: dict[str, Request]
) -> list[str]:
    """Promise 4: what a client was told is accepted was granted, or ended for a reason."""
    outcomes = {
        note["detail"]["request"]
        for note in audit
        if note["what"] == "granted"
        or (note["what"] == "request ended" and note["detail"]["reason"])
    }
    wrong = [f"request {id} was lost" for id in counts if id not in outcomes]
    return wrong + [
        f"request {id} is {record.state.value}, {record.reason!r}"
        for id, record in requests.items()
        if record.state is not RequestState.ENDED or not record.reason
    ]


def _orphans(root: Path) -> list[str]:
    """Promise 5: nothing is left of any rank, by the mark that its children carry too."""
    path = root / "marks"
    marks = set(path.read_text().split()) if path.exists() else set()
    pattern = re.compile(rb"(?:^|\0)" + MARK.encode() + rb"=([0-9a-f]+)")
    wrong = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            found = pattern.search((entry / "environ").read_bytes())
            if found and found[1].decode() in marks and alive(int(entry.name)):
                wrong.append(f"process {entry.name} of a rank is left")
    for path in (settings().cluster_dir / "runs").glob("*/ranks.json"):
        wrong += [
            f"rank {rank['rank']} of {rank['run']} is left, pid {rank['pid']}"
            for rank in json.loads(path.read_text())
            if alive(rank["pid"], rank["start"])
        ]
    return wrong


# --- from outside


def storm(root: Path, seed: int, seconds: float) -> tuple[list[str], dict[str, int]]:
    """One storm in directories of its own; what was not kept, and what there was in numbers."""
    work_dir = root / "work"
    work_dir.mkdir()
    with private_directories(root), pytest.MonkeyPatch.context() as patch:
        for variable, value in TIMES.items():
            patch.setenv(variable, value)
        settings.cache_clear()
        raging = Storm(work_dir, seed, seconds)
        deeds = raging.run()
        wrong, numbers = check(work_dir)
    return raging.wrong + wrong, {**deeds, **numbers}


def main() -> None:
    """`make faults`."""
    parser = argparse.ArgumentParser(description="A seeded storm over a live cluster.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.seed)
        return
    root = Path(tempfile.mkdtemp(prefix="aios-storm-"))
    wrong, numbers = storm(root, arguments.seed, arguments.minutes * 60)
    print(json.dumps({"seed": arguments.seed, "minutes": arguments.minutes, **numbers}, indent=2))
    print("promises looked at:")
    print("\n".join(f"  {number}. {promise}" for number, promise in PROMISES.items()))
    if wrong:
        print(f"{len(wrong)} promises not kept; the logs are in {root}:", file=sys.stderr)
        print("\n".join(wrong[:50]), file=sys.stderr)
        sys.exit(1)
    print("every promise was kept")


if __name__ == "__main__":
    main()
