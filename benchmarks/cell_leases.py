"""Leases for a cell against leases for a session, with simulated users on the broker's own core.

Users run cells of 60 s and think for 300 s in between (both exponential) on 8 GPUs, 3 to 5 of them
to a device. With cell leases a GPU is theirs for the cell alone. With session leases each waits for
one, keeps it for a session of 12 cells, thinking included, and then stands in line for the next.
The core is `State.handle` with its clock simulated.

`wait_N_over_formula` is the mean wait of N users with cell leases over that of the machine-repair
model M/M/c//N, worked out in the same run (`broker/capacity.py` has the formula and its source).
`utilization_gain_N` is the share of the time in which a GPU runs a cell, over that with session
leases: how many times as many cells the same GPUs run. `fixed_wait_s_N` is with cells of exactly
60 s, for which the formula is an upper bound.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from report import report

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.capacity import machine_repair
from aios_jupyter.broker.state import State
from aios_jupyter.schema import Device, DeviceKind, Node, Owner, Request, Scope, Want

GPUS = 8
CELL, THINKING = 60.0, 300.0
CELLS_PER_SESSION = 12
POPULATIONS = (24, 32, 40)
CELLS = 60_000
# The first part is left out: it begins with an empty queue and every user thinking.
WARM_UP = 0.1


@dataclass(frozen=True)
class Seen:
    """Waits for devices (s), and the share of the time in which a GPU runs a cell."""

    waits: tuple[float, ...]
    busy: float


class Users:
    """Users, one lease at a time each, on a core with a simulated clock."""

    def __init__(self, count: int, length: Callable[[random.Random], float], *, cells: int) -> None:
        self.state = State()
        self.chance = random.Random(count)
        self.length = length
        self.cells_per_lease = cells
        self.now = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0
        self.asked: dict[str, float] = {}
        self.waits: list[tuple[float, float]] = []
        self.cells: list[tuple[float, float]] = []
        devices = tuple(
            Device(id=f"gpu{i}", kind=DeviceKind.GPU, name="GPU", index=i) for i in range(GPUS)
        )
        node = Node(id="n", host="n", address="n:1", pid=1, devices=devices)
        self.tell(ev.NodeJoined(node=node))
        for user in (f"user{i}" for i in range(count)):
            self.tell(ev.SessionOpened(owner=Owner(id=user, user=user)))
            self.after(self.pause(), self.ask(user))

    def tell(self, event: ev.Event) -> None:
        """What has happened; who is granted a lease runs the first cell on it."""
        for action in self.state.handle(event, self.now):
            if isinstance(action, ev.Granted):
                lease = action.lease
                self.waits.append((self.now, self.now - self.asked.pop(action.request.id)))
                self.run(lease.id, lease.user, self.cells_per_lease)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Something happens later."""
        self.number += 1
        heapq.heappush(self.agenda, (self.now + seconds, self.number, act))

    def pause(self) -> float:
        """How long a user thinks."""
        return self.chance.expovariate(1 / THINKING)

    def ask(self, user: str) -> Callable[[], None]:
        """A user asks for a device."""

        def act() -> None:
            self.number += 1
            id = f"q{self.number}"
            self.asked[id] = self.now
            scope = Scope.CELL if self.cells_per_lease == 1 else Scope.SESSION
            request = Request(id=id, session=user, user=user, want=Want.GPU, count=1, scope=scope)
            self.tell(ev.Submitted(request=request))

        return act

    def run(self, lease: str, user: str, left: int) -> None:
        """A cell runs; after it the user thinks, and gives the lease back before the last pause."""
        length = self.length(self.chance)
        self.cells.append((self.now, length))

        def ended() -> None:
            if left > 1:
                self.after(self.pause(), lambda: self.run(lease, user, left - 1))
            else:
                self.after(self.pause(), self.ask(user))
                self.tell(ev.Released(lease=lease, by=user))

        self.after(length, ended)

    def until(self, cells: int) -> Seen:
        """So many cells have begun."""
        while len(self.cells) < cells:
            self.now, _, act = heapq.heappop(self.agenda)
            act()
        begin, end = self.now * WARM_UP, self.now
        used = sum(max(0.0, min(at + s, end) - max(at, begin)) for at, s in self.cells)
        waits = tuple(wait for at, wait in self.waits if at >= begin)
        return Seen(waits, used / GPUS / (end - begin))


def exponential(chance: random.Random) -> float:
    return chance.expovariate(1 / CELL)


def fixed(_: random.Random) -> float:
    return CELL


def compare(users: int, cells: int) -> dict[str, float]:
    """One population's figures; prints its line of the table."""
    one = Users(users, exponential, cells=1).until(cells)
    same = Users(users, fixed, cells=1).until(cells)
    session = Users(users, exponential, cells=CELLS_PER_SESSION).until(cells // 2)
    formula = machine_repair(users, GPUS, CELL, THINKING)
    wait, longer = statistics.fmean(one.waits), statistics.fmean(w > 1 for w in one.waits)
    session_wait = statistics.fmean(session.waits)
    print(
        f"{users:5} {wait:10.2f} {formula.wait:8.2f} {longer:8.1%} {formula.longer:8.1%} "
        f"{one.busy:7.1%} {session_wait:12.0f} {session.busy:7.1%}"
    )
    return {
        f"wait_{users}_over_formula": wait / formula.wait,
        f"utilization_gain_{users}": one.busy / session.busy,
        f"wait_s_{users}": wait,
        f"formula_s_{users}": formula.wait,
        f"fixed_wait_s_{users}": statistics.fmean(same.waits),
        f"over_1s_share_{users}": longer,
        f"formula_over_1s_share_{users}": formula.longer,
        f"utilization_{users}": one.busy,
        f"session_wait_s_{users}": session_wait,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=CELLS, help="simulate so many")
    chosen = parser.parse_args()
    print(f"{GPUS} GPUs, cells of {CELL:.0f} s, {THINKING:.0f} s of thinking; s")
    print("users  cell wait  formula over 1 s  formula    busy session wait    busy")
    figures: dict[str, float] = {}
    for users in POPULATIONS:
        figures |= compare(users, chosen.cells)
    report("cell_leases", figures, {"machine-repair formula": "M/M/8//N"})


if __name__ == "__main__":
    main()
