"""What is kept of a failure is bounded and never fails itself."""
# ruff: noqa: F841  # the variables are what is looked at

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from aios_jupyter.runs import postmortem


def described(action: Any) -> str:
    try:
        action()
    except Exception as error:  # noqa: BLE001  # any
        # From the function's own frame on, as a rank's is from the user's first.
        return postmortem.describe(error, error.__traceback__.tb_next)  # type: ignore[union-attr]
    raise AssertionError("it did not raise")


def test_values_are_cut_and_hidden() -> None:
    def fails(password: str, options: dict[str, Any]) -> None:
        text = "y" * 10_000
        many = list(range(10_000))
        nested = {"weights": np.zeros((1000, 1000))}
        raise KeyError(text[:3])

    own_secret = ("hunter2", {"api_key": "hunter3", "lr": 0.1})
    text = described(lambda: fails(*own_secret))
    assert "hunter" not in text
    assert "'lr': 0.1" in text
    assert "nested = {'weights': ndarray (1000, 1000) float64}" in text
    assert "many = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]" in text
    assert "yyyyy" * 80 not in text
    assert text.endswith("KeyError: 'yyy'\n")
    assert len(text) < 4000


def test_what_led_to_it_is_shown_first() -> None:
    def outer() -> None:
        try:
            one = 1
            one / 0
        except ZeroDivisionError as error:
            cause = "asked"
            raise ValueError("no") from error

    text = described(outer)
    first, joint, last = text.partition("It was the direct cause of:")
    assert joint
    assert "one = 1" in first and "ZeroDivisionError" in first
    assert "cause = 'asked'" in last and last.endswith("ValueError: no\n")


def test_a_recursion_without_end_is_short() -> None:
    def again(depth: int) -> None:
        again(depth + 1)

    text = described(lambda: again(0))
    assert "frames are left out" in text
    assert text.count("in test_a_recursion") <= postmortem.FRAMES
    assert "depth = 0" in text


def test_a_repr_that_takes_long_ends_the_looking() -> None:
    class Slow:
        def __repr__(self) -> str:
            time.sleep(postmortem.TIME)
            return "slow"

    def fails() -> None:
        first, second, third = Slow(), Slow(), Slow()
        raise ValueError

    text = described(fails)
    assert "first = slow" in text
    assert "third = (Slow; there was no time to show it)" in text


def test_a_broken_exception_is_told_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fails() -> None:
        raise Broken

    assert "Broken" in described(fails).splitlines()[-1]


def test_it_is_kept_privately_and_a_missing_folder_is_no_failure(tmp_path: Path) -> None:
    try:
        raise ValueError("x")
    except ValueError as error:
        postmortem.write(error, error.__traceback__, 3, tmp_path, __file__)
        postmortem.write(error, error.__traceback__, 3, tmp_path / "gone", "")
    (path,) = tmp_path.iterdir()
    assert path.name == "failure-3.txt"
    assert path.stat().st_mode & 0o077 == 0
    assert 'File "test_postmortem.py"' in path.read_text()
