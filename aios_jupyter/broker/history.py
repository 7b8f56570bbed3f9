"""How long leases have lasted, and what that says of the next one."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..schema import Lease, Request
from .events import Lasted

# Lengths and errors kept of each kind of lease, and kinds of leases.
KEPT = 300
ERRORS = 50
KINDS = 2000
# Fewer say little; then what the user asked for under other names is taken as well.
ENOUGH = 3


def kinds_of(what: Request | Lease) -> tuple[str, ...]:
    """What leases of that kind are kept under, the most alike first."""
    count = what.count if isinstance(what, Request) else len(what.slots)
    anything = f"{what.user}\x1f\x1f{count}"
    return (f"{what.user}\x1f{what.label}\x1f{count}", anything) if what.label else (anything,)


def predict(history: dict[str, Lasted], request: Request) -> float | None:
    """How long a lease for this request would last; None: unknown."""
    found = _most_alike(history, request)
    if found is None:
        return None
    # Records of an earlier version have it not.
    return _usual(found.lengths) if found.usual is None else found.usual


class Longer(NamedTuple):
    """Of leases that lasted longer than so long: how many there are, their sum and the least."""

    number: int
    total: float
    least: float


def longer(history: dict[str, Lasted], lease: Lease, elapsed: float) -> Longer:
    """Those like a lease that lasted longer than it has, which is so until it reaches the least."""
    lengths = [length for length in lengths_like(history, lease) if length > elapsed]
    return Longer(len(lengths), sum(lengths), min(lengths, default=math.inf))


def outlasting(longer: Longer, predicted: float, elapsed: float) -> float:
    """How long a lease that has lasted so long will have lasted in the end.

    It is the mean of those that lasted longer, and not the usual length, as most of the waiting
    behind leases is behind long ones. With it counts, as if `ENOUGH` had lasted so, what is predicted
    or twice what it has lasted: all there is where none has lasted longer. So its end only rises.
    """
    guess = max(predicted, 2 * elapsed)
    return (ENOUGH * guess + longer.total) / (ENOUGH + longer.number)


def lengths_like(history: dict[str, Lasted], what: Request | Lease) -> tuple[float, ...]:
    """How long leases lasted by which such a one is predicted."""
    found = _most_alike(history, what)
    return found.lengths if found else ()


def _most_alike(history: dict[str, Lasted], what: Request | Lease) -> Lasted | None:
    found = None
    for kind in kinds_of(what):
        record = history.get(kind)
        if record:
            found = record
            if len(record.lengths) >= ENOUGH:
                break
    return found


def errors_of(history: dict[str, Lasted], request: Request) -> tuple[float, ...]:
    """By what factor leases of that kind have lasted longer than was predicted."""
    records = (history.get(kind) for kind in kinds_of(request))
    return next((record.errors for record in records if record and record.errors), ())


def lasted(record: Lasted | None, length: float, predicted: float | None) -> Lasted:
    """Take in one more lease that has ended."""
    record = record or Lasted(lengths=(), errors=())
    errors = record.errors
    if predicted:
        errors = (*errors, length / predicted)[-ERRORS:]
    lengths = (*record.lengths, length)[-KEPT:]
    return Lasted(lengths=lengths, errors=errors, usual=_usual(lengths))


def _usual(lengths: tuple[float, ...]) -> float:
    """The geometric mean (each a second longer, as there are some of none).

    Lengths spread over orders of magnitude.
    """
    return math.expm1(sum(map(math.log1p, lengths)) / len(lengths))


def quantile(values: tuple[float, ...], share: float) -> float:
    """The value below which that share of the values is; there is at least one."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)
