from __future__ import annotations

import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.models.scaling import IN_HAND, Scale, Scaler
from aios_jupyter.models.serve import parse_scale


def test_load_brings_replicas_at_once_and_takes_them_away_late() -> None:
    scaler = Scaler(Scale(least=1, most=4, idle=30), 0.0)
    assert scaler.wanted(1, 1, [0.9], waits=False) == 1, "one client alone is no load"
    assert scaler.wanted(2, 1, [16.0], waits=False) == 4
    assert scaler.wanted(10, 4, [0.1] * 4, waits=False) == 4
    assert scaler.wanted(20, 4, [IN_HAND, 0.1], waits=False) == 4
    assert scaler.wanted(33, 4, [0.1], waits=False) == 2, "what it was 13 s ago"
    assert scaler.wanted(51, 2, [], waits=False) == 1
    assert scaler.wanted(500, 1, [], waits=False) == 1, "never fewer than the least"


def test_nobody_is_left_once_nobody_has_asked_and_the_first_to_come_brings_one_back() -> None:
    scaler = Scaler(Scale(least=0, most=2, idle=30), 0.0)
    assert scaler.wanted(1, 1, [0.2], waits=False) == 1
    assert scaler.wanted(30.9, 1, [], waits=False) == 1
    assert scaler.wanted(31, 1, [], waits=False) == 0
    assert scaler.wanted(90, 0, [], waits=False) == 0
    assert scaler.wanted(91, 0, [], waits=True) == 1
    assert scaler.wanted(92, 1, [], waits=False) == 1
    assert scaler.wanted(93, 1, [9.0], waits=False) == 2


def test_a_moment_without_load_ends_nobody() -> None:
    scaler = Scaler(Scale(least=1, most=8, idle=60), 0.0)
    running = 1
    for second in range(300):
        load = 12.0 if second % 20 == 0 else 0.0
        running = scaler.wanted(second, running, [load / running] * running, waits=False)
        assert running == 6


@pytest.mark.parametrize(
    ("text", "least", "most"), [("2", 2, 2), ("1:4", 1, 4), ("0:2", 0, 2), ("1:1", 1, 1)]
)
def test_numbers_of_replicas_are_read(text: str, least: int, most: int) -> None:
    scale = parse_scale(text, 60)
    assert (scale.least, scale.most, scale.first) == (least, most, max(1, least))


@pytest.mark.parametrize("text", ["0", "0:0", "4:1", "-1", "", ":", "2:", "a:b", "1:9999", "1.5"])
def test_what_is_no_number_of_replicas_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="replicas"):
        parse_scale(text, 60)
