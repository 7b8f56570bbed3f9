"""The requests that wait, in the order of a policy.

For each pool of devices: groups (by queue, and by user where users take turns or have limits), and
in each group the requests sorted by the policy's key. Beside that they are kept by shape, what they
need and for how long, as of many of one shape only the first can be the next to start: nothing here
looks at the whole queue but `ordered`. Requests beyond a quota stay in their groups and are passed
over there, so that they too cost nothing as long as they are held.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..schema import Request
from .demand import Demand, demand_of
from .policy import Policy, Pool
from .quotas import Quotas, Room
from .sortedlist import SortedList
from .turns import Score

Entry = tuple[float, int, str]
# Aged first, then who is within the nominal quota, then the shares of those who take turns.
Rank = tuple[bool, bool, float, float, str, Entry]
# Gives what tells, for now, which shares a queue and its user have had of all there is.
Scoring = Callable[[], Score]


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

    @property
    def least(self) -> int:
        """How many devices, or parts of them, a quota must allow."""
        return self.demand.least


class Group(NamedTuple):
    """What requests have in common that the same quota holds back.

    `user` is "" where users of a queue neither take turns nor have limits of their own. `aged` are
    those that have waited so long that they go first.
    """

    aged: bool
    queue: str
    user: str


class _Place(NamedTuple):
    pool: Pool
    group: Group
    shape: Shape
    entry: Entry


class _Members:
    def __init__(self) -> None:
        self.order: SortedList[Entry] = SortedList()
        self.shapes: dict[int, dict[Shape, SortedList[Entry]]] = {}
        # The first of those who need no more than so many devices.
        self._firsts: dict[float, Entry | None] = {}

    def first(self, most: float) -> Entry | None:
        if most >= max(self.shapes):
            return self.order.first()
        if most not in self._firsts:
            self._firsts[most] = min(self.first_of_each_shape(most), default=None)
        return self._firsts[most]

    def add(self, shape: Shape, entry: Entry) -> None:
        self._firsts.clear()
        self.order.add(entry)
        same = self.shapes.setdefault(shape.least, {})
        same.setdefault(shape, SortedList()).add(entry)

    def remove(self, shape: Shape, entry: Entry) -> None:
        self._firsts.clear()
        self.order.remove(entry)
        same = self.shapes[shape.least]
        same[shape].remove(entry)
        if not same[shape]:
            del same[shape]
            if not same:
                del self.shapes[shape.least]

    def first_of_each_shape(self, most: float, free: float = math.inf) -> list[Entry]:
        return sorted(
            entry
            for count, same in self.shapes.items()
            if count <= most
            for shape, entries in same.items()
            if shape.devices <= free and (entry := entries.first())
        )


class Queue:
    """Requests that wait, in one line for each pool.

    Parameters
    ----------
    policy
        What orders them.
    key
        A request's place by the policy; less is earlier.
    quotas
        What holds them back.
    scoring
        What queues and users have had, for policies by user.
    step
        By how much one more device of a pool raises a queue's and a user's share.
    """

    def __init__(
        self,
        policy: Policy,
        key: Callable[[Request], float],
        quotas: Quotas,
        scoring: Scoring,
        step: Callable[[str, str, Pool], tuple[float, float]],
    ) -> None:
        self.policy = policy
        self._key = key
        self._quotas = quotas
        self._scoring = scoring
        self._step = step
        self._lines: dict[Pool, dict[Group, _Members]] = {pool: {} for pool in Pool}
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
        alone = self.policy.by_user or self._quotas.per_user(request.queue)
        group = Group(False, request.queue, request.user if alone else "")
        entry = (self._key(request), arrival, request.id)
        shape = Shape(demand_of(request), request.time)
        self._place(_Place(pool, group, shape, entry))

    def move(self, request: str, pool: Pool) -> None:
        """Put a request that waits in another line, where it is as old as it was."""
        place = self._waiting[request]
        if place.pool is not pool:
            self.remove(request)
            self._place(place._replace(pool=pool))

    def rekey(self, request: Request) -> None:
        """Put a request that has changed where the policy wants it now, as old as it was."""
        place = self._waiting[request.id]
        if place.group.aged:
            return
        self.remove(request.id)
        _, arrival, _ = place.entry
        self._place(place._replace(entry=(self._key(request), arrival, request.id)))

    def promote(self, request: str) -> None:
        """A request has waited for so long that it goes before all that have not."""
        place = self._waiting[request]
        self.remove(request)
        _, arrival, _ = place.entry
        group = place.group._replace(aged=True)
        self._place(place._replace(group=group, entry=(0.0, arrival, request)))

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

    def key(self, request: str) -> float:
        """The place that the policy gave a request."""
        return self._waiting[request].entry[0]

    def aged(self, request: str) -> bool:
        """Whether a request has been promoted."""
        return self._waiting[request].group.aged

    def shape(self, request: str) -> Shape:
        """What a request needs, and for how long."""
        return self._waiting[request].shape

    def held(self, request: str) -> str | None:
        """Whose quota keeps a request from being next, "queue NAME" or "user"; None: no one's."""
        place = self._waiting[request]
        room = self._room(place.pool, place.group)
        return room.whose if place.shape.least > room.allowed else None

    def allowed(self, request: str) -> float:
        """How many devices quotas leave to a request, should it be granted now."""
        place = self._waiting[request]
        return self._room(place.pool, place.group).allowed

    def within(self, request: str) -> bool:
        """Whether a request takes no more than what is guaranteed to its queue."""
        place = self._waiting[request]
        return place.shape.least <= self._room(place.pool, place.group).within

    def special(self, pool: Pool) -> bool:
        """Whether anybody in a line asks for other things than whole devices."""
        return self._special[pool] > 0

    def head(self, pool: Pool) -> str | None:
        """The request that is next in a pool's line; None where nobody waits, or all are held."""
        groups = self._lines[pool]
        if not groups:
            return None
        if not self._quotas.records:
            first = groups[min(groups, key=self._turn()) if len(groups) > 1 else next(iter(groups))]
            entry = first.order.first()
            return entry[2] if entry else None
        rank = self._ranking(pool)
        ranks = [r for group in groups if (r := rank(group)) is not None]
        return min(ranks)[-1][2] if ranks else None

    def candidates(self, pool: Pool, most: int) -> Iterator[str]:
        """Who could start with that many devices, in order: of each shape the first."""
        groups = self._lines[pool]
        if not self._quotas.records:
            for group in sorted(groups, key=self._turn()) if len(groups) > 1 else groups:
                for _, _, request in groups[group].first_of_each_shape(math.inf, most):
                    yield request
            return
        score = self._score()
        found = []
        for group, members in groups.items():
            room = self._room(pool, group)
            for entry in members.first_of_each_shape(room.allowed, most):
                borrows = self._waiting[entry[2]].shape.least > room.within
                found.append((not group.aged, borrows, *score(group), entry))
        for *_, entry in sorted(found):
            yield entry[2]

    def ordered(self, pool: Pool) -> list[str]:
        """All that wait for devices of a pool, as they would start were none to come.

        Those that a quota holds back now come after all others.
        """
        # By whether they are held, young and borrow; and where users take turns, by queue and user.
        classes: dict[tuple[bool, bool, bool], dict[tuple[str, str], list[Entry]]] = {}
        for group, members in self._lines[pool].items():
            room = self._room(pool, group)
            turns = self.policy.by_user and not group.aged
            who = (group.queue, group.user) if turns else ("", "")
            for entry in members.order:
                count = self._waiting[entry[2]].shape.least
                kind = (count > room.allowed, not group.aged, count > room.within)
                classes.setdefault(kind, {}).setdefault(who, []).append(entry)
        found: list[str] = []
        for kind in sorted(classes):
            users = classes[kind]
            if ("", "") in users:
                found += [id for _, _, id in sorted(users["", ""])]
            else:
                found += self._in_turns(pool, users)
        return found

    def _in_turns(self, pool: Pool, users: dict[tuple[str, str], list[Entry]]) -> list[str]:
        """In the order in which they would be granted, each grant raising two shares."""
        score = self._scoring()
        shares: dict[str, float] = {}
        lines: dict[str, list[tuple[float, str, deque[Entry]]]] = {}
        for (queue, user), entries in users.items():
            shares[queue], share = score(queue, user)
            lines.setdefault(queue, []).append((share, user, deque(sorted(entries))))
        for line in lines.values():
            heapq.heapify(line)

        def turn(queue: str, of_queue: float) -> tuple[float, float, str, Entry, str]:
            share, user, entries = lines[queue][0]
            return of_queue, share, user, entries[0], queue

        turns = [turn(queue, shares[queue]) for queue in lines]
        heapq.heapify(turns)
        found = []
        while turns:
            of_queue, share, user, (*_, request), queue = heapq.heappop(turns)
            found.append(request)
            count = self._waiting[request].shape.demand.most
            more, own = self._step(queue, user, pool)
            line = lines[queue]
            rest = line[0][2]
            rest.popleft()
            if rest:
                heapq.heapreplace(line, (share + own * count, user, rest))
            else:
                heapq.heappop(line)
            if line:
                heapq.heappush(turns, turn(queue, of_queue + more * count))
        return found

    def _room(self, pool: Pool, group: Group) -> Room:
        return self._quotas.room(group.queue, group.user, pool)

    def _ranking(self, pool: Pool) -> Callable[[Group], Rank | None]:
        """What tells a group's place among the others, and who is first in it; None: all are held."""
        groups, score = self._lines[pool], self._score()

        def rank(group: Group) -> Rank | None:
            members, room = groups[group], self._room(pool, group)
            borrows = False
            entry = members.first(room.within)
            if entry is None:
                borrows = True
                entry = members.first(room.allowed)
            return None if entry is None else (not group.aged, borrows, *score(group), entry)

        return rank

    def _turn(self) -> Callable[[Group], tuple[bool, float, float, str]]:
        """What tells a group's place where there are no quotas."""
        score = self._score()
        return lambda group: (not group.aged, *score(group))

    def _score(self) -> Callable[[Group], tuple[float, float, str]]:
        if not self.policy.by_user:
            return lambda group: (0.0, 0.0, "")
        score = self._scoring()
        return lambda group: (
            (0.0, 0.0, "") if group.aged else (*score(group.queue, group.user), group.user)
        )

    def _place(self, place: _Place) -> None:
        self._waiting[place.entry[2]] = place
        groups = self._lines[place.pool]
        groups.setdefault(place.group, _Members()).add(place.shape, place.entry)
        self._came[place.pool].append(place.entry[2])
        self._special[place.pool] += not place.shape.demand.each.counts(place.pool)
        self.version[place.pool] += 1
