"""What admins may call: who may have how much. Others may look, and are refused the rest."""

from __future__ import annotations

from typing import Any

from . import events as ev
from . import messages as msg
from .events import Quota
from .hub import Hub
from .people import People
from .policy import Pool
from .protocol import Connection, Handler


class Admins:
    """Queues and their quotas."""

    def __init__(self, hub: Hub, people: People) -> None:
        self._hub = hub
        self._people = people

    def handlers(self) -> dict[str, Handler]:
        """The calls, for `Connection`."""
        calls: dict[str, Handler] = {
            "quota.get": (None, self._quotas),
            "quota.set": (msg.QuotaChange, self._set),
            "quota.remove": (msg.ById, self._remove),
        }
        return {op: (body, self._people.guard(op, call)) for op, (body, call) in calls.items()}

    def _quotas(self, connection: Connection, _: None) -> list[dict[str, Any]]:
        return self._hub.state.quota_rows()

    def _set(self, connection: Connection, body: msg.QuotaChange) -> list[dict[str, Any]]:
        quota = changed(self._hub.state.quota(body.name), body)
        by, admin = connection.name, connection.role == "admin"
        self._hub.handle(ev.QuotaSet(queue=body.name, quota=quota, by=by, admin=admin))
        return self._hub.state.quota_rows()

    def _remove(self, connection: Connection, body: msg.ById) -> list[dict[str, Any]]:
        by, admin = connection.name, connection.role == "admin"
        self._hub.handle(ev.QuotaRemoved(queue=body.id, by=by, admin=admin))
        return self._hub.state.quota_rows()


def changed(quota: Quota, change: msg.QuotaChange) -> Quota:
    """A quota with what somebody wants changed of it."""
    nominal = dict(quota.nominal)
    for pool, number in ((Pool.ACCELERATOR, change.gpus), (Pool.CPU, change.cpus)):
        if number == msg.NO_LIMIT:
            nominal.pop(pool.value, None)
        elif number is not None:
            nominal[pool.value] = number
    return Quota(
        nominal=nominal,
        borrow=_changed(quota.borrow, change.borrow),
        user_devices=_changed(quota.user_devices, change.user_devices),
        user_leases=_changed(quota.user_leases, change.user_leases),
        weight=quota.weight if change.weight is None else change.weight,
        members=quota.members if change.members is None else change.members,
    )


def _changed(now: int | None, to: int | None) -> int | None:
    if to is None:
        return now
    return None if to == msg.NO_LIMIT else to
