"""The requests that wait, in the order of a policy.

For each pool of devices: groups (one, or one for each user), and in each group the requests sorted
by the policy's key. Beside that they are kept by shape, what they need and for how long, as of many
of one shape only the first can be the next to start: nothing here looks at the whole queue but
`ordered`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..schema import Request
from .demand import Demand, demand_of
from .policy import Policy, Pool
from .sortedlist import SortedList

# Group of those that have waited so long that they go first.
AGED = ""
EVERYBODY = "*"

Entry = tuple[float, int, str]
# Gives what tells, for now, which share each user has had of all there is.
Scoring = Callable[[], Callable[[str], float]]


class Shape(NamedTuple):
    """What requests have in common that start under the same conditions.

    `length` is for how long they want the devices at most, None for no limit.
    """

    demand: Demand
    length: float | None

    @property
    def devices(self) -> int:
        """How many devices have to be free as a whole."""
        return 0 if self.demand.each.share else self.demand.least


class _Place(NamedTuple):
    pool: Pool
    group: str
    shape: Shape
    entry: Entry


class _Group:
    def __init__(self) -> None:
        self.order: SortedList[Entry] = SortedList()
        self.shapes: dict[int, dict[Shape, SortedList[Entry]]] = {}

    def add(self, shape: Shape, entry: Entry) -> None:
        self.order.add(entry)
        same = self.shapes.setdefault(shape.devices, {})
        same.setdefault(shape, SortedList()).add(entry)

    def remove(self, shape: Shape, entry: Entry) -> None:
        self.order.remove(entry)
        same = self.shapes[shape.devices]
        same[shape].remove(entry)
        if not same[shape]:
            del same[shape]
            if not same:
                del self.shapes[shape.devices]

    def first_of_each_shape(self, most: int) -> list[Entry]:
        return sorted(
            entry
            for count, same in self.shapes.items()
            if count <= most
            for entries in same.values()
            if (entry := entries.first())
        )


class Queue:
    """Requests that wait, in one line for each pool.

    Parameters
    ----------
    policy
        What orders them.
    scoring
        What users have had, for policies by user.
    step
        By how much one more device of a pool raises a user's share.
    """

    def __init__(
        self, policy: Policy, scoring: Scoring, step: Callable[[str, Pool], float]
    ) -> None:
        self.policy = policy
        self._scoring = scoring
        self._step = step
        self._lines: dict[Pool, dict[str, _Group]] = {pool: {} for pool in Pool}
        self._waiting: dict[str, _Place] = {}
        self._came: dict[Pool, list[str]] = {pool: [] for pool in Pool}
        self._special = dict.fromkeys(Pool, 0)
        # Rises with every request that comes or changes its place, by pool.
        self.version = dict.fromkeys(Pool, 0)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __contains__(self, request: str) -> bool:
        return request in self._waiting

    def add(self, request: Request, pool: Pool, arrival: int) -> None:
        """Put a request in a line."""
        group = request.user if self.policy.by_user else EVERYBODY
        entry = (self.policy.key(request), arrival, request.id)
        shape = Shape(demand_of(request), request.time)
        self._place(_Place(pool, group, shape, entry))

    def move(self, request: str, pool: Pool) -> None:
        """Put a request that waits in another line, where it is as old as it was."""
        place = self._waiting[request]
        if place.pool is not pool:
            self.remove(request)
            self._place(place._replace(pool=pool))

    def promote(self, request: str) -> None:
        """A request has waited for so long that it goes before all that have not."""
        place = self._waiting[request]
        self.remove(request)
        _, arrival, _ = place.entry
        self._place(place._replace(group=AGED, entry=(0.0, arrival, request)))

    def remove(self, request: str) -> None:
        """Take a request out."""
        place = self._waiting.pop(request, None)
        if place is None:
            return
        groups = self._lines[place.pool]
        group = groups[place.group]
        group.remove(place.shape, place.entry)
        if not group.order:
            del groups[place.group]
        self._special[place.pool] -= not place.shape.demand.each.counts(place.pool)
        self.version[place.pool] += 1

    def pool(self, request: str) -> Pool:
        """The line in which a request waits."""
        return self._waiting[request].pool

    def came(self, pool: Pool) -> list[str]:
        """Who has come to a line since this was last asked, and still waits there."""
        came, self._came[pool] = self._came[pool], []
        return [id for id in came if id in self._waiting and self._waiting[id].pool is pool]

    def arrival(self, request: str) -> int:
        """The number of a request in order of arrival."""
        return self._waiting[request].entry[1]

    def aged(self, request: str) -> bool:
        """Whether a request has been promoted."""
        return self._waiting[request].group == AGED

    def shape(self, request: str) -> Shape:
        """What a request needs, and for how long."""
        return self._waiting[request].shape

    def special(self, pool: Pool) -> bool:
        """Whether anybody in a line asks for other things than whole devices."""
        return self._special[pool] > 0

    def head(self, pool: Pool) -> str | None:
        """The request that is next in a pool's line."""
        groups = self._lines[pool]
        if not groups:
            return None
        name = next(iter(groups)) if len(groups) == 1 else min(groups, key=self._rank())
        first = groups[name].order.first()
        return first[2] if first else None

    def candidates(self, pool: Pool, most: int) -> Iterator[str]:
        """Who could start with that many devices, in order: of each shape the first."""
        groups = self._lines[pool]
        for name in sorted(groups, key=self._rank()) if len(groups) > 1 else groups:
            for _, _, request in groups[name].first_of_each_shape(most):
                yield request

    def ordered(self, pool: Pool) -> list[str]:
        """All that wait for devices of a pool, as they would start were none to come."""
        groups = dict(self._lines[pool])
        aged = groups.pop(AGED, None)
        found = [id for _, _, id in aged.order] if aged else []
        if not self.policy.by_user:
            return found + [id for group in groups.values() for _, _, id in group.order]
        score = self._scoring()
        turns = [
            (score(user), user, self._step(user, pool), iter(group.order))
            for user, group in groups.items()
        ]
        heapq.heapify(turns)
        while turns:
            had, user, step, entries = turns[0]
            entry = next(entries, None)
            if entry is None:
                heapq.heappop(turns)
                continue
            found.append(entry[2])
            count = self._waiting[entry[2]].shape.demand.most
            heapq.heapreplace(turns, (had + step * count, user, step, entries))
        return found

    def _rank(self) -> Callable[[str], tuple[float, str]]:
        if not self.policy.by_user:
            return lambda group: (0.0, group)  # of two groups the aged, whose name is the less
        score = self._scoring()
        return lambda group: (-1.0 if group == AGED else score(group), group)

    def _place(self, place: _Place) -> None:
        self._waiting[place.entry[2]] = place
        groups = self._lines[place.pool]
        groups.setdefault(place.group, _Group()).add(place.shape, place.entry)
        self._came[place.pool].append(place.entry[2])
        self._special[place.pool] += not place.shape.demand.each.counts(place.pool)
        self.version[place.pool] += 1
