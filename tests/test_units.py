from __future__ import annotations

import time

import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.units import format_duration, format_size, parse_duration, parse_size, parse_when


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("5 min", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("90", 90),
        (90, 90),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1:30:00", 5400),
        ("5:00", 300),
        ("2-01:00:00", 2 * 86400 + 3600),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "3x", "-5s", "0", "1h x", "nan", "inf", "1:2:3:4", -1])
def test_what_is_not_a_duration_is_refused_by_name(text: str | float) -> None:
    with pytest.raises(UsageError, match="is not a length of time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8GiB", 8 * 2**30), ("512MiB", 2**29), ("1.5 gb", 1_500_000_000),
     ("100", 100), (100, 100), ("8G", 8 * 10**9)],
)  # fmt: skip
def test_sizes_are_read(text: str | float, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "0"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_size(text)


def test_a_24_gb_card_satisfies_24gb() -> None:
    rtx_4090 = 24564 * 2**20
    assert parse_size("24GB") <= rtx_4090 < parse_size("24GiB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.2 s"), (3.25, "3.2 s"), (45, "45 s"), (90, "1 min 30 s"), (3600, "1 h"),
     (5430, "1 h 30 min"), (90000, "1 d 1 h"), (86400 + 60, "1 d"), (-90, "-1 min 30 s")],
)  # fmt: skip
def test_durations_are_said_in_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (16 * 2**30, "16 GiB"), (2**31, "2 GiB")],
)
def test_sizes_are_said_in_binary_units(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("seconds", [1, 59, 60, 61, 3599, 3600, 86399, 86400])
def test_what_is_said_can_be_read_again(seconds: int) -> None:
    said = format_duration(seconds)
    assert parse_duration(said.replace(" ", "")) == pytest.approx(seconds, rel=0.02)


def wall(*parts: int) -> float:
    """A point in time by this machine's own clock: year, month, day, hour, minute, second."""
    return time.mktime((*parts, *[0] * (8 - len(parts)), -1))


NOON = wall(2026, 3, 1, 12, 0, 30)


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("22:00", wall(2026, 3, 1, 22, 0)),
        ("9:30", wall(2026, 3, 2, 9, 30)),
        ("12:00:30", wall(2026, 3, 2, 12, 0, 30)),
        ("2026-03-05T08:30", wall(2026, 3, 5, 8, 30)),
        ("2026-03-05 08:30", wall(2026, 3, 5, 8, 30)),
        ("+1h30m", wall(2026, 3, 1, 13, 30, 30)),
        (" +30s ", wall(2026, 3, 1, 12, 1)),
    ],
)
def test_points_in_time_are_read_by_the_clock_on_the_wall(text: str, then: float) -> None:
    assert parse_when(text, NOON) == then


def test_a_zone_is_heeded_and_a_number_taken_as_it_is() -> None:
    assert parse_when("1970-01-01T01:00:05+01:00", NOON) == 5.0
    assert parse_when(17, NOON) == 17.0


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "12:60", "+", "+0s", "-5m", "2026-13-01", "7"]
)
def test_what_is_no_point_in_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a point in time"):
        parse_when(text, NOON)
