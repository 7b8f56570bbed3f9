"""Which rank failed first, and how that is said. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from ..runs.events import ErrorRaised
from ..runs.lifeline import STOPPED

_LOST_PEER = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken ?pipe|\bpeer\b|gloo|nccl|"
    r"timed ?out|Dist(Backend|Network)Error|remote process exited|"
    r"collective ops is aborted|socket closed|failed to connect|UnavailableError|"
    r"coordination service|horovod has been shut down",
    re.IGNORECASE,
)

_CRASHES = {
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a crash in native code",
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGFPE: "a crash in native code",
    signal.SIGABRT: "native code gave up",
    signal.SIGKILL: "out of memory?",
}


@dataclass(frozen=True)
class Sign:
    """A rank's failure: its exit `code` (negative signal number), or the exception it reported."""

    rank: int
    time: float
    code: int
    error: ErrorRaised | None = None

    @property
    def lost_peer(self) -> bool:
        """Whether it looks as if another rank's end had caused it."""
        error = self.error
        return error is not None and bool(_LOST_PEER.search(f"{error.etype}: {error.message}"))

    def own(self, cause: Sign) -> bool:
        """Whether this rank failed of itself and not because of `cause`."""
        return cause.lost_peer or not self.lost_peer


def first_cause(signs: Sequence[Sign]) -> Sign:
    """The failure that made the others: the earliest that is not a lost connection."""
    return min(signs, key=lambda sign: (sign.lost_peer, sign.time))


def reason_of(sign: Sign) -> str:
    """One sentence about a failure."""
    who = f"rank {sign.rank}"
    if sign.error is not None:
        if sign.error.ours:
            return sign.error.message
        first = sign.error.message.partition("\n")[0]
        return f"{who} raised {sign.error.etype}" + (f": {first}" if first else "")
    if sign.code < 0:
        try:
            number = signal.Signals(-sign.code)
        except ValueError:
            return f"{who} was killed by signal {-sign.code}"
        hint = f" ({_CRASHES[number]})" if number in _CRASHES else ""
        return f"{who} was killed by {number.name}{hint}"
    if sign.code == STOPPED:
        return f"{who} was ended by SIGTERM from outside"
    return f"{who} exited with code {sign.code}"
