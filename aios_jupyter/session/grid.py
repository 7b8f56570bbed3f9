"""A grid of parameters: read from `-p lr=0.1,0.01 -p seed=1..5`, and what each point is called.

Pure: no IO.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

MOST_JOBS = 10_000
LONGEST_NAME = 80
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?:\.\.({_NUMBER}))?")
_WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Job:
    """One notebook to run.

    Attributes
    ----------
    key
        Says what it is: the same for the same code and parameters.
    name
        For people, and for its file.
    """

    key: str
    name: str
    parameters: Mapping[str, Any]


def parse_parameters(texts: Iterable[str]) -> dict[str, list[Any]]:
    """`name=values` each: commas between values, `1..5` and `0..1..0.25` for ranges, or JSON.

    Raises
    ------
    UsageError
        One does not parse, or a name is there twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UsageError(f"'{text}' is not a parameter; write name=values, like lr=0.1,0.01.")
        if name in found:
            raise UsageError(f"Parameter {name} is there twice; write its values as {name}=a,b.")
        found[name] = parse_values(values.strip())
    return found


def parse_values(text: str) -> list[Any]:
    """The values of one parameter.

    Raises
    ------
    UsageError
        There is none, or a range has no end.
    """
    values: list[Any]
    if text.startswith("["):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"'{text}' is not a JSON list of values: {error}.") from None
    else:
        values = [value for part in text.split(",") for value in _values(part.strip())]
    if not text or not values:
        raise UsageError("A parameter has at least one value, like seed=1 or seed=1..5.")
    return values


def _values(part: str) -> list[Any]:
    match = _RANGE.fullmatch(part)
    if match is None:
        return [_value(part)]
    first, last = _value(match[1]), _value(match[2])
    step = _value(match[3]) if match[3] else (1 if last >= first else -1)
    count = math.floor((last - first) / step + 1e-9) + 1 if step else 0
    if not 0 < count <= MOST_JOBS:
        raise UsageError(f"'{part}' is not a range of 1 to {MOST_JOBS} values, like 1..5.")
    whole = all(isinstance(number, int) for number in (first, step))
    return [first + i * step if whole else round(first + i * step, 12) for i in range(count)]


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def jobs(
    stem: str, cells: Sequence[str], grid: Mapping[str, Sequence[Any]], kernel: str
) -> list[Job]:
    """One job for each point of the grid, the last parameter changing fastest.

    Parameters
    ----------
    stem
        The notebook's name.
    cells, kernel
        Its code and what runs it, which are part of what a job is.

    Raises
    ------
    UsageError
        There are more than `MOST_JOBS`.
    """
    count = math.prod(len(values) for values in grid.values())
    if not 0 < count <= MOST_JOBS:
        raise UsageError(f"That makes {count} notebooks; a batch has 1 to {MOST_JOBS}.")
    found = {}
    for point in itertools.product(*grid.values()):
        parameters = dict(zip(grid, point, strict=True))
        what = json.dumps([list(cells), parameters, kernel], sort_keys=True, default=str)
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        found[key] = Job(key, _name(stem, parameters, key), parameters)
    return list(found.values())


def _name(stem: str, parameters: Mapping[str, Any], key: str) -> str:
    words = [stem, *(f"{name}={value}" for name, value in parameters.items())]
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join(words))
    return f"{plain[:LONGEST_NAME]}-{key[:6]}"
