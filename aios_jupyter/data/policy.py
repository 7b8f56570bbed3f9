"""The language of augmentation policies: `rotate(15), shift(0.1), hflip`.

A policy is a list of operations, each with numbers in brackets. `OPERATIONS` has them all.
Geometric operations act in the order written; then come color, blur, noise and cutout, in this
order, wherever they are written. Each image draws its own values, uniformly from the ranges.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import NoReturn

from ..errors import UsageError


@dataclass(frozen=True, slots=True)
class Kind:
    """What an operation takes.

    Attributes
    ----------
    usage
        How it is written, for error messages.
    meaning
        One line of help.
    least, most
        Each number must be within these.
    neutral
        With one number `a` the range is `neutral - a … neutral + a`; with two it is as written.
        None: the number is used as it is and there is only one.
    default
        The number when there are no brackets; None where one must be given.
    whole
        Only whole numbers make sense, and two are two values rather than a range.
    """

    usage: str
    meaning: str
    least: float
    most: float
    neutral: float | None = None
    default: float | None = None
    whole: bool = False

    @property
    def most_numbers(self) -> int:
        return 2 if self.neutral is not None or self.whole else 1


OPERATIONS: dict[str, Kind] = {
    "rotate": Kind("rotate(15)", "turn by up to so many degrees", -180, 180, neutral=0),
    "shift": Kind("shift(0.1)", "move by up to this part of width and height", -1, 1, neutral=0),
    "scale": Kind("scale(0.9, 1.1)", "enlarge or shrink", 0.05, 20, neutral=1),
    "shear": Kind("shear(5)", "slant by up to so many degrees", -60, 60, neutral=0),
    "hflip": Kind("hflip", "mirror left and right, with this probability", 0, 1, default=0.5),
    "vflip": Kind("vflip", "mirror top and bottom, with this probability", 0, 1, default=0.5),
    "crop": Kind("crop(0.8)", "a random window of at least this part of each side", 0.05, 1),
    "resize": Kind(
        "resize(224)", "size of the result: side, or height and width", 1, 16384, whole=True
    ),
    "brightness": Kind("brightness(0.2)", "add up to this part of white", -1, 1, neutral=0),
    "contrast": Kind("contrast(0.2)", "multiply the distance to mid-gray", 0, 4, neutral=1),
    "saturation": Kind("saturation(0.2)", "multiply the distance to gray", 0, 4, neutral=1),
    "hue": Kind("hue(0.05)", "turn the color circle by up to this part", -0.5, 0.5, neutral=0),
    "blur": Kind("blur(1)", "Gaussian blur with a sigma of up to so many pixels", 0, 50),
    "noise": Kind("noise(0.05)", "Gaussian noise with this part of white as its sigma", 0, 1),
    "cutout": Kind("cutout(0.2)", "blacken a square of this part of the shorter side", 0, 1),
}

GEOMETRIC = frozenset({"rotate", "shift", "scale", "shear", "hflip", "vflip", "crop", "resize"})
COLOR = frozenset({"brightness", "contrast", "saturation", "hue"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation with the range that its values are drawn from (`low == high`: no range)."""

    name: str
    low: float
    high: float

    def __str__(self) -> str:
        two = OPERATIONS[self.name].most_numbers == 2
        return f"{self.name}({self.low:.12g}{f', {self.high:.12g}' if two else ''})"


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed policy. `str(policy)` is the same for every way to write the same policy."""

    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.operations))


def parse(text: str | Policy) -> Policy:
    """Parse a policy.

    Raises
    ------
    UsageError
        It does not parse; the sentence names the column, and a line below points at it.
    """
    return text if isinstance(text, Policy) else _Parser(text).policy()


_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?(?=[\s,)]|$)")
_WORD = re.compile(r"[^\s,()]+")


class _Parser:
    """Recursive descent over one line of text; `at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\s", " ", text)
        self.at = 0

    def policy(self) -> Policy:
        operations = []
        self._skip_space()
        if not self._rest():
            self._fail("the policy is empty; write one like 'rotate(15), shift(0.1), hflip'")
        while True:
            operations.append(self._operation())
            if not self._rest():
                return Policy(tuple(operations))
            if not self._take(","):
                self._fail(f"expected a comma before {self._found()}")

    def _operation(self) -> Operation:
        start = self.at
        match = _NAME.match(self.text, start)
        if match is None:
            self._fail(f"expected an operation such as 'rotate(15)' instead of {self._found()}")
        name = match[0]
        kind = OPERATIONS.get(name.lower())
        if kind is None:
            near = difflib.get_close_matches(name.lower(), OPERATIONS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(OPERATIONS)}."
            self._fail(f"there is no operation '{name}'; {hint}")
        name = name.lower()
        self.at = match.end()
        self._skip_space()
        numbers = self._numbers(name, kind) if self._take("(") else []
        if not numbers:
            if kind.default is None:
                self._fail(f"{name} needs a number, as in '{kind.usage}'", start)
            numbers = [(kind.default, start)]
        return self._build(name, kind, numbers)

    def _numbers(self, name: str, kind: Kind) -> list[tuple[float, int]]:
        numbers: list[tuple[float, int]] = []
        if self._take(")"):
            return numbers
        while True:
            if len(numbers) == kind.most_numbers:
                count = "one number" if kind.most_numbers == 1 else "two numbers at most"
                self._fail(f"{name} takes {count}, as in '{kind.usage}'")
            numbers.append(self._number(name, kind))
            if self._take(")"):
                return numbers
            if not self._take(","):
                self._fail(f"expected ',' or ')' to go on with {name}, not {self._found()}")

    def _number(self, name: str, kind: Kind) -> tuple[float, int]:
        start = self.at
        match = _NUMBER.match(self.text, start)
        if match is None:
            self._fail(f"{name} takes numbers, as in '{kind.usage}', not {self._found()}")
        value = float(match[0])
        if not kind.least <= value <= kind.most:
            self._fail(f"{name} takes {kind.least:g} to {kind.most:g}, not {match[0]}")
        if kind.whole and not value.is_integer():
            self._fail(f"{name} takes whole numbers, not {match[0]}")
        self.at = match.end()
        self._skip_space()
        return value, start

    def _build(self, name: str, kind: Kind, numbers: list[tuple[float, int]]) -> Operation:
        first, place = numbers[0]
        if len(numbers) == 2:
            second, second_place = numbers[1]
            if second < first and not kind.whole:
                self._fail(
                    f"the range of {name} must rise, but {second:g} is less than {first:g}",
                    second_place,
                )
            return Operation(name, first, second)
        if kind.neutral is None:
            return Operation(name, first, first)
        low, high = kind.neutral - abs(first), kind.neutral + abs(first)
        if low < kind.least or high > kind.most:
            limit = math.floor(100 * min(kind.neutral - kind.least, kind.most - kind.neutral)) / 100
            self._fail(
                f"{name} with one number takes up to {limit:g}; "
                f"write a range as in '{name}({kind.neutral:g}, {first:g})'",
                place,
            )
        return Operation(name, low, high)

    def _take(self, character: str) -> bool:
        if self.text[self.at : self.at + 1] != character:
            return False
        self.at += 1
        self._skip_space()
        return True

    def _skip_space(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def _rest(self) -> str:
        return self.text[self.at :]

    def _found(self) -> str:
        match = _WORD.match(self.text, self.at)
        if match is not None:
            return f"'{match[0]}'"
        return f"'{self.text[self.at]}'" if self._rest() else "the end"

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        place = self.at if at is None else at
        end = "" if what.endswith((".", "?")) else "."
        raise UsageError(
            f"In the policy at column {place + 1}: {what}{end}\n    {self.text}\n    {' ' * place}^"
        )
