"""What a queue of 100,000 requests for 10,000 devices costs the broker's core.

One submission, and one release with the grant that follows, are timed under each policy with 100,000
requests queued and all of 10,000 devices leased, and with 100 queued and 10 devices, in turns;
figures are ratios of medians. Journal and wire are not in it: only `State.handle`. Then come the
time in which the core takes 100,000 submissions, and the memory of each one that is queued.

Through the real broker with journal and TLS: the seconds in which its process is ready with 10,000
queued and 1,000 leases (`restart_seconds`), and how much longer the hand-over of a device takes
with 100,000 queued than with none (`handover_ratio`).
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import tracemalloc

from live_broker import handover, restart_seconds
from report import report

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.state import State
from aios_jupyter.schema import Device, DeviceKind, Node, Owner, Request, Want

SMALL, LARGE = (100, 10), (100_000, 10_000)
GPUS_PER_NODE = 10
USERS = 50
ROUNDS = 2_000
POLICIES = ("fifo", "sjf", "priority", "fair", "las", "gittins")
# Beside the policies: fifo with ten queues, each with a tenth of the devices and eight to borrow, so
# that many of those who wait are held back by their queue's quota.
QUOTAS, QUEUES, BORROW = "quotas", 10, 8


class Load:
    """A core with every device leased and so many requests that wait for one device or more."""

    def __init__(self, policy: str, queued: int, devices: int, now: float = 1e9) -> None:
        self.state = State(policy="fifo" if policy == QUOTAS else policy)
        self.chance = random.Random(1)
        self.now = now
        self.number = 0
        self.leases: list[tuple[str, str]] = []
        for number in range(devices // GPUS_PER_NODE):
            name = f"n{number}"
            gpus = tuple(
                Device(id=f"{name}-{i}", kind=DeviceKind.GPU, name="", index=i, memory=16)
                for i in range(GPUS_PER_NODE)
            )
            node = Node(id=name, host=name, address=f"{name}:1", pid=1, devices=gpus)
            self.do(ev.NodeJoined(node=node))
        for user in range(USERS):
            self.do(ev.SessionOpened(owner=Owner(id=f"u{user}", user=f"u{user}")))
        for queue in range(QUEUES if policy == QUOTAS else 0):
            quota = ev.Quota(
                nominal={"accelerator": devices // QUEUES},
                borrow=BORROW,
                members=tuple(f"u{user}" for user in range(queue, USERS, QUEUES)),
            )
            self.do(ev.QuotaSet(queue=f"t{queue}", quota=quota, by="root", admin=True))
        for _ in range(devices):
            self.submit(count=1)
        start = time.perf_counter()
        for _ in range(queued):
            self.submit(count=self.chance.choice((1, 1, 1, 2, 4, 8)))
        self.filled = time.perf_counter() - start

    def do(self, event: ev.Event) -> float:
        """Tell the core; returns the seconds that it took."""
        self.now += 0.001
        start = time.perf_counter()
        actions = self.state.handle(event, self.now)
        took = time.perf_counter() - start
        for action in actions:
            if isinstance(action, ev.Granted):
                self.leases.append((action.lease.id, action.lease.user))
        return took

    def submit(self, count: int) -> float:
        """One request more."""
        self.number += 1
        user = f"u{self.chance.randrange(USERS)}"
        length = self.chance.choice((None, 600.0, 3600.0, 7200.0, 86400.0))
        return self.do(
            ev.Submitted(
                request=Request(
                    id=f"q{self.number}",
                    session=user,
                    user=user,
                    want=Want.GPU,
                    count=count,
                    time=length,
                )
            )
        )

    def release(self) -> float:
        """One lease is given back, and whoever is next is granted."""
        at = self.chance.randrange(len(self.leases))
        self.leases[at], self.leases[-1] = self.leases[-1], self.leases[at]
        lease, user = self.leases.pop()
        return self.do(ev.Released(lease=lease, by=user))


def memory_of_each(policy: str, queued: int) -> float:
    """Bytes for each request that waits."""
    gc.collect()
    tracemalloc.start()
    load = Load(policy, 0, SMALL[1])
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(queued):
        load.submit(count=1)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(load.state.queue()) == queued
    return (after - before) / queued


def main() -> None:
    figures: dict[str, float] = {}
    for policy in (*POLICIES, QUOTAS):
        small, large = Load(policy, *SMALL), Load(policy, *LARGE)
        gc.collect()
        gc.freeze()
        times: dict[str, list[float]] = {"ss": [], "sl": [], "rs": [], "rl": []}
        for _ in range(ROUNDS):
            for name, load in (("s", small), ("l", large)):
                times["r" + name].append(load.release())
                times["s" + name].append(load.submit(load.chance.choice((1, 1, 1, 2, 4, 8))))
        gc.unfreeze()
        median = {name: statistics.median(values) * 1e6 for name, values in times.items()}
        submit, release = median["sl"] / median["ss"], median["rl"] / median["rs"]
        print(
            f"{policy:9} submit {median['ss']:6.1f} -> {median['sl']:6.1f} us ({submit:.2f}),"
            f" release {median['rs']:6.1f} -> {median['rl']:6.1f} us ({release:.2f}),"
            f" 100,000 submissions {large.filled:.2f} s"
        )
        figures |= {
            f"{policy}_submit_ratio": submit,
            f"{policy}_release_ratio": release,
            f"{policy}_fill_seconds": large.filled,
        }
    bytes_each = memory_of_each("fifo", 20_000)
    print(f"{bytes_each:.0f} bytes for each request that waits")
    restart = restart_seconds()
    alone, behind = handover()
    print(f"restart {restart:.2f} s, hand-over {alone * 1e3:.2f} -> {behind * 1e3:.2f} ms")
    worst = max(value for name, value in figures.items() if name.endswith("_ratio"))
    slowest = max(value for name, value in figures.items() if name.endswith("_seconds"))
    figures = {
        "worst_ratio": worst,
        "fill_seconds": slowest,
        "queued_bytes": bytes_each,
        "restart_seconds": restart,
        "handover_ratio": behind / alone,
        **figures,
    }
    report("broker_scale", figures, {"100 queued, 10 devices": "same run"})


if __name__ == "__main__":
    main()
