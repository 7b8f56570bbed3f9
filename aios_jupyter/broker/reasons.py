"""Why a request waits, in a sentence: the same in every view."""

from __future__ import annotations

from ..schema import Request
from .demand import demand_of
from .state import State


def why(state: State, request: Request, reason: str, place: int) -> str:
    """A sentence for a request's `reason`, the one in a word, and its place in its line."""
    reason, _, about = reason.rstrip(")").partition("(")
    match reason:
        case "Priority":
            before = "One request is" if place == 2 else f"{place - 1} requests are"
            return f"{before} before it by the policy '{state.policy.name}'."
        case "Reservation":
            head = about.removeprefix("for ")
            if booking := state.bookings.get(head):
                return (
                    f"It would fit, but {booking.user} has reserved devices that it would still "
                    f"hold then ({head}); ask with a shorter --time to go first."
                )
            return (
                f"It would fit, but the free devices are kept for {head}, which is before it; ask "
                "with a shorter --time to go first."
            )
        case "DeviceHeldOutsideAnyLease":
            return f"Process {about}, which holds no lease, is on a device that it needs."
        case "Quota" if about == "user":
            return (
                f"{request.user} has as much as one user may have in queue {request.queue}; it goes "
                "on when a lease of theirs ends."
            )
        case "Quota":
            return (
                f"The quota of queue {request.queue} is used; it goes on when a lease there ends. "
                "'aios quota' shows who may use how much."
            )
        case "NodeEnds":
            return (
                f"It would fit, but node {about} is lent for less time than it asks for; ask with a "
                "shorter --time to go first."
            )
        case "NodeExpected":
            return f"It waits for node {about}, which is yet to come; 'aios node ls' says why."
        case "NodeDown":
            return "A node with devices that it needs is down; 'aios status' shows which."
    demand = demand_of(request)
    free = state.fleet.free(state.pool(request.id), demand.each)
    if free >= demand.least:
        return f"It is next; {free} are free, but no node has the {demand.least} that it needs."
    return f"It is next; {free} of the {demand.least} it needs are free."
