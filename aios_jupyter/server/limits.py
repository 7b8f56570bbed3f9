"""How often one user may ask: a bucket of tokens for each, refilled as time goes by. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# What nobody used for so long is full again, and forgotten.
FORGET_AFTER = 60.0


@dataclass
class _Bucket:
    tokens: float
    time: float


class Limits:
    """Requests a second that each user may make, with a burst of `burst` seconds' worth.

    Parameters
    ----------
    reads, writes
        A second, on average; 0 for no limit.
    """

    def __init__(self, reads: float, writes: float, burst: float = 5.0) -> None:
        self._rates = {False: reads, True: writes}
        self._burst = burst
        self._buckets: dict[tuple[str, bool], _Bucket] = {}
        self._tidied = 0.0

    def wait(self, user: str, *, write: bool, now: float) -> float:
        """Take a token; 0 when there was one, else the seconds until there is.

        Parameters
        ----------
        now
            Seconds on a clock that never goes back.
        """
        rate = self._rates[write]
        if rate <= 0:
            return 0.0
        most = max(1.0, rate * self._burst)
        bucket = self._buckets.setdefault((user, write), _Bucket(most, now))
        bucket.tokens = min(most, bucket.tokens + (now - bucket.time) * rate)
        bucket.time = now
        self._tidy(now)
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / rate
        bucket.tokens -= 1.0
        return 0.0

    def _tidy(self, now: float) -> None:
        if now - self._tidied > FORGET_AFTER:
            self._tidied = now
            old = [key for key, one in self._buckets.items() if now - one.time > FORGET_AFTER]
            for key in old:
                del self._buckets[key]
