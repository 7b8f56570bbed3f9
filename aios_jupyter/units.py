"""Times and sizes as people write and read them.

Pure functions. Durations are seconds, sizes bytes, points in time seconds since the epoch.
"""

from __future__ import annotations

import contextlib
import math
import re
from datetime import datetime, timedelta

from .errors import ClusterError, UsageError

# More devices than any cluster has, and more memory than a record can say.
MOST_DEVICES = 1_000_000
MOST_BYTES = 2**63

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(sec|min|[smhd])\s*", re.IGNORECASE)
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d{1,2})(?::(\d{1,2}))?")
_COUNT = re.compile(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?")
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_duration(text: str | float) -> float:
    """Read a length of time.

    Parameters
    ----------
    text
        `30s`, `5m`, `2h`, `1d`, `1h30m`, `1:30:00` (hours first; `2-00:00:00` with days, as Slurm
        writes them), `5:00` (minutes and seconds), or a number of seconds.

    Returns
    -------
    float
        Seconds, above zero.

    Raises
    ------
    UsageError
        It is none of these, or not above zero.
    """
    seconds = float(text) if isinstance(text, int | float) else _seconds(text.strip())
    if seconds is None or not math.isfinite(seconds) or seconds <= 0:
        raise UsageError(f"'{text}' is not a length of time; write it like 30s, 5m, 2h or 1:30:00.")
    return seconds


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    clock = _CLOCK.fullmatch(text)
    if clock:
        days, first, second, third = clock.groups()
        if third is None and days is None:
            return int(first) * 60.0 + int(second)
        return int(days or 0) * 86400.0 + int(first) * 3600.0 + int(second) * 60.0 + int(third or 0)
    total, end = 0.0, 0
    while part := _PART.match(text, end):
        total += float(part[1]) * _SECONDS[part[2].lower()]
        end = part.end()
    return total if text and end == len(text) else None


def parse_count(text: str | int) -> tuple[int, int]:
    """Read a number of devices: `4`, or `2:4` for as many as are free of 2 to 4.

    Returns
    -------
    (int, int)
        The least and the most, equal where one number was given.

    Raises
    ------
    UsageError
        It is not a number, the least is more than the most, or no cluster has as many.
    """
    match = _COUNT.fullmatch(str(text))
    if not match:
        raise UsageError(
            f"'{text}' is not a number of devices; write 2, or 2:4 for at least 2 and at most 4."
        )
    least, most = int(match[1]), int(match[2] or match[1])
    if not 0 < least <= most:
        raise UsageError(
            f"'{text}' is not a number of devices: ask for at least one, the least first, like 2:4."
        )
    if most > MOST_DEVICES:
        raise UsageError(f"No cluster has '{text}' devices; ask for at most {MOST_DEVICES}.")
    return least, most


def parse_when(text: str | float, now: float) -> float:
    """Read a point in time, by the clock of this machine where no zone is given.

    Parameters
    ----------
    text
        `22:00` (today, or tomorrow where that is past), `2026-03-01T08:30` (ISO 8601), `+30m` (from
        now), or seconds since the epoch.
    now
        Seconds since the epoch.

    Returns
    -------
    float
        Seconds since the epoch; later than `now` except where a date says otherwise.

    Raises
    ------
    UsageError
        It is none of these.
    """
    if isinstance(text, int | float):
        return float(text)
    text = text.strip()
    try:
        if text.startswith("+"):
            return now + parse_duration(text[1:])
        if match := _TIME_OF_DAY.fullmatch(text):
            hour, minute, second = (int(part or 0) for part in match.groups())
            today = datetime.fromtimestamp(now)  # noqa: DTZ006  # as on the wall
            then = today.replace(hour=hour, minute=minute, second=second, microsecond=0)
            if then.timestamp() <= now:
                then += timedelta(days=1)
            return then.timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, UsageError):
        raise UsageError(
            f"'{text}' is not a point in time; write it like 22:00, 2026-03-01T08:30 or +30m."
        ) from None


def parse_size(text: str | float) -> int:
    """Read an amount of memory.

    `8GB` is 8·10⁹ bytes and `8GiB` is 8·2³⁰: makers print the first on a card that has a little
    less than the second, so that "24GB" must not refuse a card sold as 24 GB.

    Returns
    -------
    int
        Bytes, above zero.

    Raises
    ------
    UsageError
        It is not a size.
    """
    size = 0.0
    if isinstance(text, int | float):
        size = float(text)
    elif match := _SIZE.fullmatch(text.strip()):
        base = 1024 if match[3] else 1000
        size = float(match[1]) * base ** _POWERS[match[2].lower()]
    if not 1 <= size < MOST_BYTES:
        raise UsageError(f"'{text}' is not an amount of memory; write it like 8GB or 512MiB.")
    return int(size)


def format_duration(seconds: float) -> str:
    """Say a length of time in at most two units: `3.2 s`, `1 min 30 s`, `2 h`, `1 d 4 h`."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + " s"
    left = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def format_size(size: float) -> str:
    """Say an amount of memory in binary units: `512 B`, `1.5 MiB`, `16 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    digits = 0 if unit == "B" or abs(size) >= 100 else 1
    return f"{size:.{digits}f}".removesuffix(".0") + f" {unit}"


def split_address(address: str) -> tuple[str, int]:
    """`host:port` as a pair; the host may be an IPv6 address in brackets.

    Raises
    ------
    ClusterError
        It is not one.
    """
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        return host.strip("[]"), int(port)
    raise ClusterError(f"{address!r} is not an address; give host:port.")
