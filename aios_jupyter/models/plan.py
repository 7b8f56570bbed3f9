"""What an endpoint is to be, and who hears how it goes. Light."""

from __future__ import annotations

from typing import Any, Protocol

from ..schema import Struct
from .following import PARTS
from .scaling import Scale

MAX_BODY = 64 << 20
"""Bytes of a request at most, unless told otherwise."""


class Plan(Struct, frozen=True, kw_only=True):
    """What to serve and how. `package` is given where the files are known, `ref` elsewhere.

    Attributes
    ----------
    canary
        Another reference, and its share of the requests.
    shadow
        Another reference, which gets copies of the requests; nobody gets its answers.
    follow
        Change versions when an alias moves.
    max_seconds, rate
        See `service.Limits`; the rate is of all replicas together.
    certificate, key
        Files for TLS; "" for none.
    devices
        What replicas see of the lease's GPUs, one each in turn; () to leave that alone.
    watch
        Seconds between two looks for alerts.
    here, gather
        How many replicas this machine has room for, and the folder of certificates that admit other
        machines to run the others; "" where all are here.
    """

    ref: str
    package: Any
    name: str
    token: str
    scale: Scale
    canary: tuple[str, float] | None
    shadow: str | None
    max_body: int
    max_rows: int
    rate: float | None
    max_seconds: float | None
    threads: int | None
    allow_pickle: bool
    grace: float
    follow: bool
    certificate: str
    key: str
    devices: tuple[str, ...]
    watch: float
    here: int = 1
    gather: str = ""

    @property
    def refs(self) -> dict[str, str]:
        """References by part."""
        every = (self.ref, self.canary[0] if self.canary else "", self.shadow or "")
        return {part: ref for part, ref in zip(PARTS, every, strict=True) if ref}


class Told(Protocol):
    """Who hears what an endpoint has to say."""

    def announce(self, model: str, version: str) -> None:
        """It answers with this version: at its beginning, and at each change."""

    def gather(self, address: str) -> None:
        """Other machines can join it there."""

    def report(self, metrics: dict[str, float]) -> None:
        """Its numbers, now and then."""

    def alarm(self, alerts: dict[str, str]) -> None:
        """What a person should look at has changed: all of it, a sentence for each subject."""
