"""Which leases compute nothing: what nodes report of devices and runs, held against the limits.

Pure, and without a journal: after a restart of the broker every lease begins anew. What is not
known (a node that is down, a device that cannot be measured) does not count as idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..schema import LeaseState, Usage
from . import events as ev
from .ledger import nodes_of
from .state import State

# Percent of a device, or of a core under a simulated one, up to which nothing is computed: a
# process that waits still wakes now and then.
BUSY = 3.0


class Activity:
    """When something was computed last, by lease.

    Parameters
    ----------
    began
        When this broker began to look, seconds since the epoch.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._seen: dict[str, float] = {}

    def note(self, lease: str, now: float) -> None:
        """A run of the lease has come, or said how far it is."""
        self._seen[lease] = now

    def sampled(self, state: State, usage: Iterable[Usage], now: float) -> None:
        """A node has sampled its devices."""
        for sample in usage:
            if sample.utilization is None or sample.utilization > BUSY:
                self._seen |= dict.fromkeys(state.fleet.shares(sample.device), now)

    def findings(self, state: State, now: float) -> Iterator[ev.FoundIdle | ev.FoundBusy]:
        """Leases that were idle for as long as their limit says, and those that no longer are.

        Of the queue's limit and the lease's own the shorter one counts; without limits nothing is
        looked at.
        """
        limits = state.idle_limits
        if not limits and not any(lease.idle for lease in state.leases.values()):
            return
        self._seen = {id: min(at, now) for id, at in self._seen.items() if id in state.leases}
        for lease in list(state.leases.values()):
            both = (limits.get(lease.queue, limits.get("")), lease.idle)
            limit = min((one for one in both if one is not None), default=None)
            if limit is None or lease.state is not LeaseState.ACTIVE:
                continue
            since = self._seen.get(lease.id, max(lease.granted, self._began))
            if lease.idle_since is not None:
                if since > lease.idle_since and lease.id in self._seen:
                    yield ev.FoundBusy(lease=lease.id)
            elif now - since < limit:
                continue
            elif all(map(state.node_up, nodes_of(lease))):
                yield ev.FoundIdle(lease=lease.id, since=since)
            else:
                self._seen[lease.id] = now
