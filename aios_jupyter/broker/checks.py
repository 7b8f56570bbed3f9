"""What is refused in the same words wherever it is asked for."""

from __future__ import annotations

import math

from ..errors import AccessError, ConflictError, UsageError
from ..schema import Lease, LeaseState
from . import events as ev

# An hour of waiting makes up for one: more than any wait says nothing.
HIGHEST_PRIORITY = 1_000_000

ByUser = ev.Cancelled | ev.Reprioritized | ev.Released | ev.Extended | ev.StopRequested


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


def check_priority(priority: int, by: str, admin: bool, now: int = 0) -> None:
    """Refuse a priority that its owner may not give; `now` is the one that a request has.

    Raises
    ------
    AccessError
        It is above 0 and above that one, and they are no admin.
    UsageError
        It is not a priority.
    """
    if abs(priority) > HIGHEST_PRIORITY:
        raise UsageError(
            f"{priority} is not a priority; give a number from -{HIGHEST_PRIORITY} to "
            f"{HIGHEST_PRIORITY}."
        )
    if priority > max(0, now) and not admin:
        raise AccessError(
            f"{by} may not ask with priority {priority}; leave --priority out, give a number below "
            "0, or ask an admin."
        )


def check_time(time: float | None) -> None:
    """Refuse what is no length of time; None is, for no limit.

    Raises
    ------
    UsageError
        It is not.
    """
    if time is not None and not (math.isfinite(time) and time > 0):
        raise UsageError(f"{time} seconds is not a length of time; give a number above zero.")
