"""What is refused in the same words wherever it is asked for."""

from __future__ import annotations

import math

from ..errors import AccessError, ConflictError, UsageError
from ..schema import Lease, LeaseState
from . import events as ev

ByUser = ev.Cancelled | ev.Released | ev.Extended | ev.StopRequested


def check_owner(what: str, user: str, event: ByUser) -> None:
    """Refuse what is for its owner or an admin to do.

    Raises
    ------
    AccessError
        It is neither.
    """
    if event.by != user and not event.admin:
        raise AccessError(f"{what} belongs to {user}; ask them or an admin.")


def check_active(lease: Lease) -> None:
    """Refuse what a lease that ends is no good for.

    Raises
    ------
    ConflictError
        It ends.
    """
    if lease.state is not LeaseState.ACTIVE:
        raise ConflictError(f"Lease {lease.id} is ending ({lease.reason}); take a new one.")


def check_time(time: float | None) -> None:
    """Refuse what is no length of time; None is, for no limit.

    Raises
    ------
    UsageError
        It is not.
    """
    if time is not None and not (math.isfinite(time) and time > 0):
        raise UsageError(f"{time} seconds is not a length of time; give a number above zero.")
