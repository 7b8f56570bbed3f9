from __future__ import annotations

import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.units import format_duration, format_size, parse_duration, parse_size


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
