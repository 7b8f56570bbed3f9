"""The language of augmentation policies: `rotate(15), shift(0.1), hflip, blur(1, p=0.3)`.

A policy is a list of operations, each with numbers in brackets and, if it shall not always happen,
a probability `p`. `OPERATIONS` has them all. Geometric operations act in the order written; then
come color, and then what cannot be fused, in the order of `AFTER`, wherever they are written. Each
image draws its own values, uniformly from the ranges. For sounds and texts there are a few in the
same language (`MEDIA`), which act in the order written.
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
        None: numbers are used as they are.
    numbers
        How many it takes at most.
    default
        The numbers where none are given; None where one must be given.
    whole
        Only whole numbers make sense.
    """

    usage: str
    meaning: str
    least: float = 0
    most: float = 1
    neutral: float | None = None
    numbers: int = 1
    default: tuple[float, ...] | None = None
    whole: bool = False


_HALF = (0.5,)


def _range(usage: str, meaning: str, least: float, most: float, neutral: float) -> Kind:
    return Kind(usage, meaning, least, most, neutral, numbers=2)


def _chance(usage: str, meaning: str) -> Kind:
    return Kind(usage, f"{meaning}, with this probability", default=_HALF)


OPERATIONS: dict[str, Kind] = {
    "rotate": _range("rotate(15)", "turn by up to so many degrees", -180, 180, 0),
    "shift": _range("shift(0.1)", "move by up to this part of width and height", -1, 1, 0),
    "scale": _range("scale(0.9, 1.1)", "enlarge or shrink", 0.05, 20, 1),
    "shear": _range("shear(5)", "slant by up to so many degrees", -60, 60, 0),
    "perspective": Kind("perspective(0.2)", "move corners in by up to this part", 0, 0.9),
    "hflip": _chance("hflip", "mirror left and right"),
    "vflip": _chance("vflip", "mirror top and bottom"),
    "crop": Kind("crop(0.8)", "a random window of at least this part of each side", 0.05, 1),
    "resize": Kind(
        "resize(224)",
        "size of the result: side, or height and width",
        *(1, 16384),
        numbers=2,
        whole=True,
    ),
    "brightness": _range("brightness(0.2)", "add up to this part of white", -1, 1, 0),
    "contrast": _range("contrast(0.2)", "multiply the distance to mid-gray", 0, 4, 1),
    "saturation": _range("saturation(0.2)", "multiply the distance to gray", 0, 4, 1),
    "hue": _range("hue(0.05)", "turn the color circle by up to this part", -0.5, 0.5, 0),
    "solarize": Kind("solarize(0.7)", "invert what is brighter than this part of white"),
    "posterize": Kind("posterize(4)", "keep so many bits of each color", 1, 8, whole=True),
    "autocontrast": _chance("autocontrast", "stretch each color to black and white"),
    "equalize": _chance("equalize", "make all levels of each color as frequent"),
    "sharpness": _range("sharpness(0.5)", "multiply the distance to the smoothed", 0, 4, 1),
    "blur": Kind("blur(1)", "Gaussian blur with a sigma of up to so many pixels", 0, 50),
    "noise": Kind("noise(0.05)", "Gaussian noise with this part of white as its sigma"),
    "cutout": Kind("cutout(0.2)", "blacken a square of this part of the shorter side"),
    "mixup": Kind("mixup(0.2)", "blend with another image of the batch; Beta(a, a)", 0.01, 100),
    "cutmix": Kind("cutmix(1)", "paste a window of another image; Beta(a, a)", 0.01, 100),
    "randaugment": Kind(
        "randaugment(2, 9)",
        "so many of 14 operations, of this magnitude of 30",
        *(0, 30),
        numbers=2,
        default=(2, 9),
        whole=True,
    ),
    "trivialaugment": Kind(
        "trivialaugment", "one of 14 operations, of any magnitude", numbers=0, default=()
    ),
}

SOUND_OPERATIONS: dict[str, Kind] = {
    "shift": _range("shift(0.1)", "move in time by up to this part of the length", -1, 1, 0),
    "speed": _range("speed(0.9, 1.1)", "play slower and lower, or faster and higher", 0.25, 4, 1),
    "volume": _range("volume(0.2)", "make louder or softer by up to this part", 0, 4, 1),
    "noise": Kind("noise(0.01)", "Gaussian noise with this part of the loudest as its sigma"),
    "cutout": Kind("cutout(0.1)", "silence a stretch of this part of the length"),
}

TEXT_OPERATIONS: dict[str, Kind] = {
    "drop": Kind("drop(0.1)", "leave each word out with this probability"),
    "swap": Kind("swap(0.1)", "exchange each word and the next with this probability"),
    "repeat": Kind("repeat(0.05)", "write each word twice with this probability"),
    "typo": Kind("typo(0.02)", "misspell each letter with this probability"),
}

MEDIA = {"image": OPERATIONS, "sound": SOUND_OPERATIONS, "text": TEXT_OPERATIONS}
# How many numbers an operation is written with; one name takes as many in every medium.
_NUMBERS = {name: kind.numbers for kinds in MEDIA.values() for name, kind in kinds.items()}

COLOR = frozenset({"brightness", "contrast", "saturation", "hue"})
AFTER = (
    *("solarize", "posterize", "autocontrast", "equalize"),
    *("sharpness", "blur", "noise", "cutout"),
)
MIX = frozenset({"mixup", "cutmix"})
# Of all the operations of RandAugment, so many are as many as anybody asked for.
_MOST_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation with the range that its values are drawn from (`low == high`: no range).

    It happens to an image with the probability `p`.
    """

    name: str
    low: float
    high: float
    p: float = 1.0

    def __str__(self) -> str:
        numbers = [f"{x:.12g}" for x in (self.low, self.high)[: _NUMBERS[self.name]]]
        if self.p != 1:
            numbers.append(f"p={self.p:.12g}")
        return f"{self.name}({', '.join(numbers)})"


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed policy. `str(policy)` is the same for every way to write the same policy."""

    operations: tuple[Operation, ...]
    medium: str = "image"

    def __str__(self) -> str:
        return ", ".join(map(str, self.operations))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return any(operation.name in MIX for operation in self.operations)


def parse(text: str | Policy, medium: str = "image") -> Policy:
    """Parse a policy.

    Parameters
    ----------
    medium
        Of what: `MEDIA` has the operations of each.

    Raises
    ------
    UsageError
        It does not parse; the sentence names the column, and a line below points at it.
    """
    return text if isinstance(text, Policy) else _Parser(text, medium).policy()


_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?(?=[\s,)]|$)")
_PROBABILITY = re.compile(r"p\s*=\s*", re.IGNORECASE)
_P = Kind("blur(1, p=0.3)", "probability")
_WORD = re.compile(r"[^\s,()]+")


class _Parser:
    """Recursive descent over one line of text; `at` is the position of the next character."""

    def __init__(self, text: str, medium: str) -> None:
        self.text = re.sub(r"\s", " ", text)
        self.medium = medium
        self.kinds = MEDIA[medium]
        self.at = 0

    def policy(self) -> Policy:
        operations = []
        self._skip_space()
        if not self._rest():
            some = ", ".join(kind.usage for kind in list(self.kinds.values())[:2])
            self._fail(f"the policy is empty; write one like '{some}'")
        while True:
            operations.append(self._operation())
            if not self._rest():
                return Policy(tuple(operations), self.medium)
            if not self._take(","):
                self._fail(f"expected a comma before {self._found()}")

    def _operation(self) -> Operation:
        start = self.at
        match = _NAME.match(self.text, start)
        if match is None:
            some = next(iter(self.kinds.values())).usage
            self._fail(f"expected an operation such as '{some}' instead of {self._found()}")
        name = match[0]
        kind = self.kinds.get(name.lower())
        if kind is None:
            self._fail(f"there is no operation '{name}'; {self._hint(name.lower())}")
        name = name.lower()
        self.at = match.end()
        self._skip_space()
        numbers, p = self._brackets(name, kind) if self._take("(") else ([], None)
        if name == "resize" and p is not None:
            self._fail("resize gives all images one size, so that it takes no probability", start)
        if not numbers:
            if kind.default is None:
                self._fail(f"{name} needs a number, as in '{kind.usage}'", start)
            numbers = [(value, start) for value in kind.default]
            if kind.default == _HALF and p is not None:
                numbers, p = [(p, start)], None
        return self._build(name, kind, numbers, 1.0 if p is None else p)

    def _hint(self, name: str) -> str:
        other = next((medium for medium, kinds in MEDIA.items() if name in kinds), None)
        if other is not None:
            return f"it is for {other}s, and this is for {self.medium}s."
        near = difflib.get_close_matches(name, self.kinds, n=1, cutoff=0.5)
        return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(self.kinds)}."

    def _brackets(self, name: str, kind: Kind) -> tuple[list[tuple[float, int]], float | None]:
        """The numbers, each with its place, and the probability where it is given."""
        numbers: list[tuple[float, int]] = []
        if self._take(")"):
            return numbers, None
        while True:
            if (match := _PROBABILITY.match(self.text, self.at)) is not None:
                self.at = match.end()
                p, _ = self._number("p", _P)
                if not self._take(")"):
                    self._fail(f"expected ')' after the probability, not {self._found()}")
                return numbers, p
            if len(numbers) == kind.numbers:
                count = ("no numbers", "one number", "two numbers at most")[kind.numbers]
                self._fail(f"{name} takes {count}, as in '{kind.usage}'")
            numbers.append(self._number(name, kind))
            if self._take(")"):
                return numbers, None
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

    def _build(
        self, name: str, kind: Kind, numbers: list[tuple[float, int]], p: float
    ) -> Operation:
        if kind.numbers == 0:
            return Operation(name, 0, 0, p)
        first, place = numbers[0]
        if name == "randaugment" and not 1 <= first <= _MOST_ROUNDS:
            self._fail(f"randaugment takes 1 to {_MOST_ROUNDS} operations, not {first:g}", place)
        if len(numbers) == 2:
            second, second_place = numbers[1]
            if second < first and not kind.whole:
                self._fail(
                    f"the range of {name} must rise, but {second:g} is less than {first:g}",
                    second_place,
                )
            return Operation(name, first, second, p)
        if kind.neutral is None:
            second = kind.default[1] if kind.default and kind.numbers == 2 else first
            return Operation(name, first, second, p)
        low, high = kind.neutral - abs(first), kind.neutral + abs(first)
        if low < kind.least or high > kind.most:
            limit = math.floor(100 * min(kind.neutral - kind.least, kind.most - kind.neutral)) / 100
            self._fail(
                f"{name} with one number takes up to {limit:g}; "
                f"write a range as in '{name}({kind.neutral:g}, {first:g})'",
                place,
            )
        return Operation(name, low, high, p)

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
