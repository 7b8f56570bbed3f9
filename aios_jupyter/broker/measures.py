"""What has been asked of the devices lately, hour by hour, and how well forecasts came true.

`Measuring` is the ledger's last layer: it looks at records as they change, and decides nothing.
"""

from __future__ import annotations

from typing import Any

from ..schema import Lease, Request, RequestState
from . import events as ev
from .history import quantile
from .leasing import Leasing
from .policy import Pool

HOUR = 3600.0
# Hours that are kept.
WINDOW = 7 * 24
# Forecasts kept of each kind of request, and kinds of requests.
SCORED = 100
KINDS = 500
# Fewer say little; then those of all requests for the pool are taken.
ENOUGH = 5
# Ends of leases are acted on once a second and times are told in whole ones: no miss is so small.
EXACT = 2.0
FIELDS = ev.Hour.__struct_fields__


class _Tally:
    """An hour that is being counted: the fields of `ev.Hour`, and whether any has changed."""

    def __init__(self, hour: int, record: ev.Hour) -> None:
        self.hour = hour
        self.changed = False
        self.counts: dict[str, Any] = {name: getattr(record, name) for name in FIELDS}

    def record(self) -> ev.Hour:
        return ev.Hour(**self.counts)


class Measuring(Leasing):
    """The rules, with what is noted of their use.

    It stands before every other base of `State`, whose parameters it hands on.
    """

    def __init__(self, *parameters: Any, **more: Any) -> None:
        super().__init__(*parameters, **more)
        # Counted here at every event, and put among the records once a second: a crash costs the
        # counts of the last second, and a grant no record more.
        self._tallies: dict[Pool, _Tally] = {}
        self._hours: dict[str, ev.Hour] = {}
        self._foretold: dict[str, ev.Foretold] = {}
        self._hits: dict[str, ev.Hits] = {}
        self._tables |= {"hour": self._hours, "foretold": self._foretold, "hits": self._hits}

    # --- read side

    def foretold(self, request: str) -> ev.Foretold | None:
        """What a request that waits was first told of its start; None: nothing yet."""
        return self._foretold.get(request)

    def hits(self, pool: Pool, request: Request | None = None) -> ev.Hits:
        """How forecasts came true: for requests like this one where there were enough, or for all
        of the pool.
        """
        like = self._hits.get(_kind(pool, request.user, request.count)) if request else None
        if like and len(like.hits) >= ENOUGH:
            return like
        return self._hits.get(pool.value, ev.Hits())

    def hours(self, pool: Pool) -> list[ev.Hour]:
        """The hours of the last week in which something was asked of a pool, the oldest first."""
        found = {id: record for id, record in self._hours.items() if record.pool == pool.value}
        tally = self._tallies.get(pool)
        if tally:
            found[_id(pool, tally.hour)] = tally.record()
        last = self._now // HOUR
        records = (r for r in found.values() if last - WINDOW < r.first // HOUR <= last)
        return sorted(records, key=lambda record: record.first)

    # --- what is noted

    def _put(self, kind: str, id: str, record: ev.Record) -> None:
        if isinstance(record, Lease) and id not in self.leases:
            counts = self._counts(self.fleet.pool_of_slot(record.slots[0]))
            counts["started"] += 1
            counts["waited"] += max(0.0, self._now - self.requests[record.request].submitted)
        elif isinstance(record, Request) and record.state is not RequestState.QUEUED:
            self._score(record)
        super()._put(kind, id, record)

    def _drop(self, kind: str, id: str) -> None:
        if kind == "lease":
            self._note_end_of(self.leases[id])
        super()._drop(kind, id)

    def _note_arrival(self, request: Request, pool: Pool) -> None:
        """Somebody has asked."""
        counts = self._counts(pool)
        counts["requests"] += 1
        counts["devices"] += request.count

    def _note_end_of(self, lease: Lease) -> None:
        counts = self._counts(self.fleet.pool_of_slot(lease.slots[0]))
        number, length = len(lease.slots), max(0.0, self._now - lease.granted)
        request = self.requests.get(lease.request)
        if request is None or request.state is RequestState.ENDED:
            # One that goes on later is the same demand: its request arrived once.
            counts["leases"] += 1
        counts["seconds"] += length
        counts["device_seconds"] += number * length
        counts["gang_seconds"] += number * number * length

    def _counts(self, pool: Pool) -> dict[str, Any]:
        """What is counted of this hour, to be added to."""
        hour = int(self._now // HOUR)
        tally = self._tallies.get(pool)
        if tally is None or tally.hour != hour:
            self._keep_counts()
            known = self._hours.get(_id(pool, hour))
            tally = _Tally(hour, known or ev.Hour(pool=pool.value, first=self._now))
            self._tallies[pool] = tally
        tally.changed = True
        return tally.counts

    def _keep_counts(self) -> None:
        """Put what was counted since the last time among the records."""
        for pool, tally in self._tallies.items():
            if not tally.changed:
                continue
            tally.changed = False
            id = _id(pool, tally.hour)
            if id not in self._hours:
                oldest = tally.hour - WINDOW
                for old in [o for o, r in self._hours.items() if r.first // HOUR <= oldest]:
                    self._drop("hour", old)
            self._put("hour", id, tally.record())

    # --- forecasts and what became of them

    def _forecast_told(self, event: ev.ForecastTold) -> None:
        """The first forecast that a request is told counts; later ones know more."""
        if event.request in self._queue and event.request not in self._foretold:
            told = ev.Foretold(
                pool=self._queue.pool(event.request).value,
                made=self._now,
                eta=event.eta,
                earliest=event.earliest,
                latest=event.latest,
            )
            self._put("foretold", event.request, told)

    def _score(self, request: Request) -> None:
        """A request no longer waits: hold what it was told against what happened."""
        told = self._foretold.get(request.id)
        if told is None:
            return
        self._drop("foretold", request.id)
        if request.state is not RequestState.GRANTED:
            return
        after = self._now - told.earliest >= -EXACT
        before = told.latest is None or self._now - told.latest <= EXACT
        hit = ev.Hit(
            ahead=max(0.0, told.eta - told.made),
            error=self._now - told.eta,
            inside=after and before,
        )
        pool = Pool(told.pool)
        for kind in (pool.value, _kind(pool, request.user, request.count)):
            known = self._hits.pop(kind, ev.Hits())
            self._put("hits", kind, ev.Hits(hits=(*known.hits, hit)[-SCORED:]))
        while len(self._hits) > KINDS:
            self._drop("hits", next(iter(self._hits)))

    def _clock_back(self) -> None:
        super()._clock_back()
        for request, told in list(self._foretold.items()):
            if told.made > self._now:
                self._drop("foretold", request)


def accuracy(hits: ev.Hits) -> dict[str, float | int] | None:
    """How far off forecasts were; None when none has been held against what happened.

    Returns
    -------
    dict
        `count`; medians over them, in seconds: `off` (either way), `late` (positive: requests
        started later than told) and `ahead` (how long before); `inside`: the share of starts that
        were in the range told.
    """
    found = hits.hits
    if not found:
        return None
    return {
        "count": len(found),
        "off": quantile(tuple(abs(hit.error) for hit in found), 0.5),
        "late": quantile(tuple(hit.error for hit in found), 0.5),
        "ahead": quantile(tuple(hit.ahead for hit in found), 0.5),
        "inside": sum(hit.inside for hit in found) / len(found),
    }


def _id(pool: Pool, hour: int) -> str:
    return f"{pool.value}@{hour}"


def _kind(pool: Pool, user: str, count: int) -> str:
    return f"{pool.value}\x1f{user}\x1f{count}"
