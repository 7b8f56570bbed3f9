"""Every error that this package raises on purpose.

AiosError                 base: one sentence that says what is wrong and what to do next
├── UsageError            what was asked for makes no sense (bad flag, count, policy string)
├── NotFoundError         a lease, run, dataset, model or endpoint by that name does not exist
├── ConflictError         it exists already, or is in a state that does not allow this
├── AccessError           it belongs to somebody else, or the token is not valid
├── AllocationError       the request was refused, cancelled, or not granted in the time given
├── ClusterError          the cluster could not be reached or started
│   ├── NoClusterError    there is none: never started, or stopped
│   └── ProtocolError     the other side spoke in a way that this version does not understand
├── RunError              a run failed; carries the first failure of its ranks
└── MissingExtraError     an optional part is not installed; names the extra that brings it

`str(error)` is the sentence that a user sees; magics and the command line print it without a
traceback. `kind` travels over the wire (`broker/protocol.py`) and gives the class back on the
other side.
"""

from __future__ import annotations


class AiosError(Exception):
    """Base of all errors raised on purpose."""

    kind = "error"


class UsageError(AiosError):
    """What was asked for makes no sense."""

    kind = "usage"


class NotFoundError(AiosError):
    """The named thing does not exist."""

    kind = "not-found"


class ConflictError(AiosError):
    """The named thing exists already, or its state does not allow this."""

    kind = "conflict"


class AccessError(AiosError):
    """The named thing belongs to somebody else."""

    kind = "access"


class AllocationError(AiosError):
    """A request for devices was refused, cancelled or not granted in time."""

    kind = "allocation"


class ClusterError(AiosError):
    """The cluster cannot be reached or started."""

    kind = "cluster"


class NoClusterError(ClusterError):
    """There is no cluster: it was never started, or has been stopped."""

    kind = "no-cluster"


class ProtocolError(ClusterError):
    """The other side spoke in a way that this version does not understand."""

    kind = "protocol"


class RunError(AiosError):
    """A run failed.

    Attributes
    ----------
    traceback
        The failing rank's own traceback as text, or "" where there is none (a signal).
    rank
        The rank that failed first, or None where no rank was started.
    run
        The run's id.
    preempted
        The lease that was taken for others, where that ended it; "" else.
    """

    kind = "run"

    def __init__(
        self,
        message: str,
        *,
        traceback: str = "",
        rank: int | None = None,
        run: str = "",
        preempted: str = "",
    ) -> None:
        super().__init__(message)
        self.traceback = traceback
        self.rank = rank
        self.run = run
        self.preempted = preempted


class MissingExtraError(AiosError):
    """An optional part is not installed."""

    kind = "missing-extra"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} is not installed; add it with: pip install 'aios-jupyter[{extra}]'"
        )


_KINDS: dict[str, type[AiosError]] = {
    cls.kind: cls
    for cls in (
        AiosError,
        UsageError,
        NotFoundError,
        ConflictError,
        AccessError,
        AllocationError,
        ClusterError,
        NoClusterError,
        ProtocolError,
        RunError,
    )
}


def from_kind(kind: str, message: str) -> AiosError:
    """Give back the error that the other side of a connection raised.

    An unknown `kind` (a newer peer) becomes a plain `AiosError`.
    """
    return _KINDS.get(kind, AiosError)(message)
