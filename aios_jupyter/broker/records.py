"""What the broker keeps in its journal beside the nouns of `schema.py`."""

from __future__ import annotations

from ..schema import Struct


class Unconfirmed(Struct):
    """Devices of a lease that ended while its node was out of reach with processes on them.

    Kept in the journal, so that they are not granted when the node comes back with the processes.
    """

    node: str
    lease: str
    devices: tuple[str, ...]


class Lasted(Struct):
    """How long the last leases of one kind lasted (seconds), and by what factor longer than was
    predicted. `usual` is what the next one is predicted to last.
    """

    lengths: tuple[float, ...]
    errors: tuple[float, ...]
    usual: float | None = None


class Used(Struct):
    """What a user has had of each pool, in device-seconds decayed up to `time`, and their weight."""

    time: float
    weight: float = 1.0
    seconds: dict[str, float] = {}


class Quota(Struct):
    """What a queue may use; None, or a pool left out: no limit.

    `nominal` devices of each pool are guaranteed to it, and `borrow` more may be what others leave
    unused. One user may hold `user_devices` of each pool in it, and `user_leases`.
    Under `fair` its part is in proportion to its `weight`.
    """

    nominal: dict[str, int] = {}
    borrow: int | None = None
    user_devices: int | None = None
    user_leases: int | None = None
    weight: float = 1.0
    members: tuple[str, ...] = ()


class Choice(Struct):
    """Something that an admin has chosen."""

    value: str
    number: float | None = None


class Hour(Struct):
    """One hour of a pool: what was asked for, what started and how long it had waited, what ended.

    `first` is when something was first noted in it. Of leases that ended: `seconds` that they
    lasted, `device_seconds` the same times their devices, `gang_seconds` times their squares.
    """

    pool: str
    first: float
    requests: int = 0
    devices: int = 0
    started: int = 0
    waited: float = 0.0
    leases: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    gang_seconds: float = 0.0


class Foretold(Struct):
    """What a request that waits was first told of its start, and when (`made`)."""

    pool: str
    made: float
    eta: float
    earliest: float
    latest: float | None = None


class Hit(Struct):
    """A forecast that was held against what happened: made `ahead` seconds before its time, and
    `error` seconds too early (below 0: too late); whether the start was `inside` the range told.
    """

    ahead: float
    error: float
    inside: bool


class Hits(Struct):
    """The last forecasts of one kind of request."""

    hits: tuple[Hit, ...] = ()
