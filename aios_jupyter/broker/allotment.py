"""What admins say of queues and their quotas, and what follows for those who wait and hold."""

from __future__ import annotations

from typing import Any

from ..errors import AccessError, NotFoundError, UsageError
from ..schema import DEFAULT_QUEUE, RequestState
from . import events as ev
from . import quotas
from .events import replace
from .planning import Planning
from .policy import Pool


class Allotting(Planning):
    """The planner with its queues."""

    def quota_rows(self) -> list[dict[str, Any]]:
        """What each queue may use, uses and waits for, one row for each pool that it has or limits.

        `nominal` and `borrow` are None where there is no limit.
        """
        waiting: dict[tuple[str, Pool], int] = {}
        for request in self.queue():
            kind = request.queue, self.pool(request.id)
            waiting[kind] = waiting.get(kind, 0) + 1
        used: dict[tuple[str, Pool], int] = {}
        for lease in self.leases.values():
            kind = lease.queue, self.fleet.pool_of_slot(lease.slots[0])
            used[kind] = used.get(kind, 0) + len(lease.slots)
        rows = []
        for name in self._quotas.names():
            quota = self._quotas.quota(name)
            for pool in Pool:
                nominal = self._quotas.nominal(name, pool)
                rows.append(
                    {
                        "queue": name,
                        "pool": pool.value,
                        "nominal": None if nominal == float("inf") else int(nominal),
                        "borrow": quota.borrow,
                        "weight": quota.weight,
                        "used": used.get((name, pool), 0),
                        "borrowed": self._quotas.borrowed(name, pool),
                        "waiting": waiting.get((name, pool), 0),
                        "user_devices": quota.user_devices,
                        "user_leases": quota.user_leases,
                        "members": list(quota.members),
                    }
                )
        return rows

    def quota(self, queue: str) -> ev.Quota:
        """What an admin has said of a queue; without any limit where there is none."""
        return self._quotas.quota(queue)

    def _quota_set(self, event: ev.QuotaSet) -> None:
        if not event.admin:
            raise AccessError(f"{event.by} may not change quotas; ask an admin.")
        quotas.check(event.queue, event.quota)
        if self._quotas.records.get(event.queue) == event.quota:
            return
        self._put("quota", event.queue, event.quota)
        shown = {
            key: value for key, value in _plain(event.quota).items() if value not in (None, [])
        }
        self._audit("quota set", event.by, queue=event.queue, **shown)
        self._allot()

    def _quota_removed(self, event: ev.QuotaRemoved) -> None:
        if not event.admin:
            raise AccessError(f"{event.by} may not change quotas; ask an admin.")
        if event.queue not in self._quotas.records:
            if event.queue == DEFAULT_QUEUE:
                raise UsageError(
                    "The queue 'default' is there always, and has no limits to remove."
                )
            raise NotFoundError(f"There is no queue {event.queue[:64]!r}; 'aios quota' lists them.")
        self._drop("quota", event.queue)
        if event.queue in self._turns.queues.used:
            self._drop("queue-usage", event.queue)
        self._audit("quota removed", event.by, queue=event.queue)
        if event.queue != DEFAULT_QUEUE:
            self._move_out(event.queue)
        self._allot()

    def _move_out(self, queue: str) -> None:
        """What is in a queue that is no more goes to its users' own."""
        for lease in [lease for lease in self.leases.values() if lease.queue == queue]:
            moved = replace(lease, queue=self._quotas.queues_of(lease.user)[0])
            self._put("lease", lease.id, moved)
        for request in list(self.requests.values()):
            if request.queue == queue and request.state is not RequestState.ENDED:
                moved_to = self._quotas.queues_of(request.user)[0]
                self._put("request", request.id, replace(request, queue=moved_to))

    def _allot(self) -> None:
        """Quotas have changed: requests are held back by others, and perhaps in other groups."""
        self._count_held()
        self._reorder(self.policy)


def _plain(quota: ev.Quota) -> dict[str, Any]:
    return {
        **quota.nominal,
        "borrow": quota.borrow,
        "weight": None if quota.weight == 1.0 else quota.weight,
        "user_devices": quota.user_devices,
        "user_leases": quota.user_leases,
        "members": list(quota.members),
    }
