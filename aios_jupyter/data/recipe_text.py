"""How a recipe is written: `drop_missing(age), clip(income, 1%, 99%), scale(income, age), onehot(city)`.

A step is a name and, in brackets, columns, numbers (`3`, `1%`), words and text in quotes; a column
whose name is no plain word is quoted, and `*` is every column that the step can take. Pure.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import NoReturn

from ..errors import UsageError


@dataclass(frozen=True, slots=True)
class Percent:
    """`1%` of the values."""

    of_100: float

    def __str__(self) -> str:
        return f"{self.of_100:g}%"


Value = float | str | Percent


@dataclass(frozen=True, slots=True)
class Form:
    """What a step takes.

    Attributes
    ----------
    usage
        How it is written, for error messages.
    meaning
        One line of help.
    columns
        How many columns at least, and at most (None: any number).
    values
        How many values at least, and at most, behind the columns.
    words
        The words that may stand for a value; None: any text.
    """

    usage: str
    meaning: str
    columns: tuple[int, int | None] = (1, None)
    values: tuple[int, int | None] = (0, 0)
    words: tuple[str, ...] | None = ()

    @property
    def one_column(self) -> bool:
        return self.columns[1] == 1


FORMS: dict[str, Form] = {
    "number": Form("number(age)", "read text as numbers; what is none is missing"),
    "text": Form("text(zip)", "numbers and dates as text"),
    "date": Form("date(born)", "read text as dates; what is none is missing"),
    "strip": Form("strip(name)", "without spaces at both ends; empty text is missing"),
    "lower": Form("lower(city)", "in small letters"),
    "rename": Form('rename(inc, "income")', "another name", (1, 1), (1, 1), None),
    "drop": Form("drop(note)", "without these columns"),
    "keep": Form("keep(age, city)", "these columns alone"),
    "drop_missing": Form("drop_missing(age)", "drop rows where one of these is missing"),
    "flag_missing": Form("flag_missing(age)", "a column age_missing with 1 where it is missing"),
    "fill": Form("fill(age, median)", "fill missing values", (1, 1), (1, 1), None),
    "drop_duplicates": Form(
        "drop_duplicates(id)", "keep the first row of those with the same values", (0, None)
    ),
    "clip": Form("clip(income, 1%, 99%)", "pull outliers in", (1, 1), (1, 2), ("iqr",)),
    "drop_outside": Form("drop_outside(age, 0, 120)", "drop outliers", (1, 1), (1, 2), ("iqr",)),
    "log": Form("log(income)", "the logarithm of 1 + x"),
    "scale": Form("scale(income, age)", "mean 0 and standard deviation 1"),
    "minmax": Form("minmax(age)", "from 0 to 1"),
    "robust": Form("robust(income)", "median 0 and interquartile range 1"),
    "bins": Form("bins(age, 5)", "numbers of so many bins with as many rows each", (1, 1), (1, 1)),
    "cut": Form("cut(age, 18, 65)", "numbers of the bins between these edges", (1, 1), (1, None)),
    "onehot": Form("onehot(city)", "a column of 0 and 1 per value; the commonest 20 with a number",
                   (1, 1), (0, 1)),
    "ordinal": Form("ordinal(size, s, m, l)", "the value's place in this order, or by name",
                    (1, 1), (0, None), None),
    "frequency": Form("frequency(city)", "the part of the rows that have the value"),
    "date_parts": Form("date_parts(born)", "year, month, day, weekday and hour"),
    "hash_text": Form("hash_text(note, 64)", "so many columns that count words by their hash",
                      (1, 1), (1, 1)),
    "embed": Form("embed(note, minilm)", "columns with the embedding of that name",
                  (1, 1), (1, 1), None),
    "check_present": Form("check_present(id)", "refuse data where it is missing"),
    "check_unique": Form("check_unique(id)", "refuse data where a value comes twice"),
    "check_range": Form("check_range(age, 0, 120)", "refuse other numbers", (1, 1), (2, 2)),
    "check_values": Form("check_values(sex, f, m)", "refuse other values", (1, 1), (1, None), None),
    "check_matches": Form("check_matches(zip, '[0-9]{5}')", "refuse text of another form",
                          (1, 1), (1, 1), None),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its columns (`*` for every one that it can take) and values."""

    name: str
    columns: tuple[str, ...]
    values: tuple[Value, ...] = ()

    def __str__(self) -> str:
        shown = [*map(_as_column, self.columns), *map(_as_value, self.values)]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


def parse(text: str) -> tuple[Step, ...]:
    """Read a recipe.

    Raises
    ------
    UsageError
        It does not parse; the sentence names the column, and a line below points at it.
    """
    return _Parser(text).steps()


_PLAIN = re.compile(r"[^\W\d][\w.-]*")


def _as_column(name: str) -> str:
    return name if name == "*" or _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _as_value(value: Value) -> str:
    return (
        _as_column(value)
        if isinstance(value, str)
        else str(value)
        if isinstance(value, Percent)
        else f"{value:.12g}"
    )


_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<percent>%)?(?=[\s,)]|$)
    |(?P<quoted>"(?:[^"\\]|\\.)*"|'[^']*')
    |(?P<word>[^\W\d][\w.-]*)
    |(?P<mark>[(),*])
    |(?P<end>$)
    |(?P<other>\S[^\s,()]*))""",
    re.VERBOSE,
)


class _Parser:
    """Recursive descent over tokens; `token` is the next one."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\s", " ", text)
        self.at = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self.text, self.at)
        assert match is not None
        self.token = match
        self.start = (
            match.start(match.lastgroup or 0)
            if match.lastgroup != "percent"
            else match.start("number")
        )
        self.at = match.end()

    def steps(self) -> tuple[Step, ...]:
        found = []
        if self._kind() == "end":
            self._fail("the recipe is empty; write one like 'fill(age, median), scale(age)'")
        while True:
            found.append(self._step())
            if self._kind() == "end":
                return tuple(found)
            if not self._take(","):
                self._fail(f"expected a comma before {self._found()}")

    def _step(self) -> Step:
        start = self.start
        if self._kind() != "word":
            self._fail(f"expected a step such as 'scale(age)' instead of {self._found()}")
        name = self.token["word"].lower()
        form = FORMS.get(name)
        if form is None:
            near = difflib.get_close_matches(name, FORMS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(FORMS)}."
            self._fail(f"there is no step '{self.token['word']}'; {hint}")
        self._advance()
        given: list[tuple[Value, int]] = []
        if self._take("("):
            given = self._arguments(name, form)
        return self._built(name, form, given, start)

    def _arguments(self, name: str, form: Form) -> list[tuple[Value, int]]:
        given: list[tuple[Value, int]] = []
        if self._take(")"):
            return given
        while True:
            given.append((self._argument(name, form), self.start))
            self._advance()
            if self._take(")"):
                return given
            if not self._take(","):
                self._fail(f"expected ',' or ')' to go on with {name}, not {self._found()}")

    def _argument(self, name: str, form: Form) -> Value:
        kind = self._kind()
        if kind == "number":
            value = float(self.token["number"])
            return Percent(value) if self.token["percent"] else value
        if kind == "quoted":
            quoted = self.token["quoted"]
            if quoted[0] == "'":
                return quoted[1:-1]
            try:
                return str(json.loads(quoted))
            except ValueError:
                self._fail(f"{quoted} is not text that can be read")
        if kind == "word":
            return self.token["word"]
        if kind != "mark" or self.token["mark"] != "*":
            self._fail(
                f"{name} takes columns and values, as in '{form.usage}', not {self._found()}"
            )
        return "*"

    def _built(self, name: str, form: Form, given: list[tuple[Value, int]], start: int) -> Step:
        """Columns come first; values are what is no name, or stands behind the one column."""
        most = form.columns[1]
        count = next((n for n, (v, _) in enumerate(given) if not isinstance(v, str)), len(given))
        count = count if most is None else min(count, most)
        columns, values = given[:count], given[count:]
        if len(columns) < form.columns[0]:
            self._fail(f"{name} needs a column, as in '{form.usage}'", start)
        least, limit = form.values
        if len(values) < least or (limit is not None and len(values) > limit):
            self._fail(f"{name} is written like '{form.usage}'", start)
        for value, place in values:
            wrong_word = (
                isinstance(value, str) and form.words is not None and value not in form.words
            )
            if wrong_word or (isinstance(value, Percent) and not 0 <= value.of_100 <= 100):
                self._fail(f"{name} is written like '{form.usage}', without '{value}'", place)
        self._check(name, [value for value, _ in values], start)
        return Step(name, tuple(str(c) for c, _ in columns), tuple(v for v, _ in values))

    def _check(self, name: str, values: list[Value], start: int) -> None:
        """What the numbers of a step must be."""
        numbers = [v.of_100 if isinstance(v, Percent) else v for v in values]
        floats = [number for number in numbers if isinstance(number, float)]
        if name in {"clip", "drop_outside"}:
            if "iqr" not in values and len(values) != 2:
                self._fail(f"{name} takes two bounds, or 'iqr', as in '{FORMS[name].usage}'", start)
            if len({type(value) for value in values}) > 1:
                self._fail(f"{name} takes two numbers or two percentages", start)
        if name in {"clip", "drop_outside", "cut", "check_range"} and floats != sorted(set(floats)):
            self._fail(f"the bounds of {name} must rise", start)
        if name in {"bins", "hash_text", "onehot"} and floats:
            most = {"bins": 1000, "hash_text": 4096, "onehot": 1000}[name]
            if isinstance(values[0], Percent) or not (
                floats[0].is_integer() and 2 <= floats[0] <= most
            ):
                self._fail(f"{name} takes a whole number from 2 to {most}", start)
        if name == "check_matches":
            try:
                re.compile(str(values[0]))
            except re.error as error:
                self._fail(f"the pattern of {name} is not a regular expression: {error}", start)

    def _kind(self) -> str:
        group = self.token.lastgroup or "end"
        return "number" if group == "percent" else group

    def _take(self, mark: str) -> bool:
        if self._kind() != "mark" or self.token["mark"] != mark:
            return False
        self._advance()
        return True

    def _found(self) -> str:
        text = self.token[0].strip()
        return f"'{text}'" if text else "the end"

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        place = self.start if at is None else at
        end = "" if what.endswith((".", "?")) else "."
        raise UsageError(
            f"In the recipe at column {place + 1}: {what}{end}\n    {self.text}\n    {' ' * place}^"
        )
