"""`quota`, `again`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..broker.messages import ById, QuotaChange
from .leases import LeaseVerbs


class QueueVerbs(LeaseVerbs):
    """A session that says who may have how much, and waits for what was taken from it."""

    def quota(
        self,
        name: str | None = None,
        *,
        gpus: int | None = None,
        cpus: int | None = None,
        borrow: int | None = None,
        user_devices: int | None = None,
        user_leases: int | None = None,
        weight: float | None = None,
        members: Sequence[str] | None = None,
        remove: bool = False,
    ) -> list[dict[str, Any]]:
        """Who may use how much; with a queue's name, change that or remove it (for admins).

        Parameters
        ----------
        name
            The queue; one that is not there yet is made.
        gpus, cpus
            Its nominal quota: accelerators and CPU slots that it can count on. Here and below -1
            takes the limit away, and None leaves it as it is.
        borrow
            How many more it may use of what other queues leave unused.
        user_devices, user_leases
            What one user may hold in it at once, of each kind of device.
        weight
            Its part under `fair`: a queue of weight 2 may use twice as much as one of 1.
        members
            Who may ask in it; whoever is in none asks in `default`.

        Returns
        -------
        list of dict
            One for each queue and pool: `nominal`, `borrow` (None: no limit), `used`, `borrowed`
            and `waiting`, and the limits above.

        Raises
        ------
        AccessError
            You are no admin.
        UsageError
            That is not a quota.
        """
        if name is None:
            return list(self._call("quota.get"))
        if remove:
            return list(self._call("quota.remove", ById(id=name)))
        change = QuotaChange(
            name=name,
            gpus=gpus,
            cpus=cpus,
            borrow=borrow,
            user_devices=user_devices,
            user_leases=user_leases,
            weight=weight,
            members=None if members is None else tuple(members),
        )
        return list(self._call("quota.set", change))
