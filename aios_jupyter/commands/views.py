"""What a verb shows, apart from how: tables and cards that a shell prints and a notebook draws.

Pure: no IO. `notebook/html.py` gives the same objects their HTML form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# From where on the digits of a number stand in groups, and where its exponent says more.
GROUPED, LARGEST = 9999.5, 1e7
# Control characters but for the end of a line, and those that turn the direction of what follows.
_OBEYED = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    key
        Where its text is in a row.
    title
        What stands above it.
    right
        Numbers are set to the right.
    meter
        Key of a percentage (0 to 100, or None) that a notebook draws as a bar behind the text.
    """

    key: str
    title: str
    right: bool = False
    meter: str = ""


@dataclass(frozen=True)
class Table:
    """Rows for a person to read. `empty` is the sentence shown when there are none."""

    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    empty: str
    title: str = ""

    def text(self) -> str:
        """The table as aligned lines."""
        if not self.rows:
            return self.empty
        cells = [[column.title.upper() for column in self.columns]]
        cells += [[cell(row, column) for column in self.columns] for row in self.rows]
        widths = [max(len(line[index]) for line in cells) for index in range(len(self.columns))]
        lines = [self.title] if self.title else []
        for line in cells:
            padded = [
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(line, widths, self.columns, strict=True)
            ]
            lines.append("  ".join(padded).rstrip())
        return printable("\n".join(lines))


def cell(row: Mapping[str, Any], column: Column) -> str:
    """The text of one cell: `-` where there is nothing, and never more than one line."""
    value = row.get(column.key)
    if value is None or value == "":
        return "-"
    return " ".join(str(value).split())


@dataclass(frozen=True)
class Card:
    """One thing and what is known about it.

    Attributes
    ----------
    title, badge
        Its name, and its state in a word or two.
    fields
        Label and text.
    note
        What to do next, as a sentence.
    image
        A PNG, shown by front ends that can.
    """

    title: str
    fields: tuple[tuple[str, str], ...] = ()
    badge: str = ""
    note: str = ""
    image: bytes | None = field(default=None, repr=False)

    def text(self) -> str:
        """The card as lines, labels aligned."""
        width = max((len(label) for label, _ in self.fields), default=0)
        lines = [f"{self.title}  [{self.badge}]" if self.badge else self.title]
        lines += [f"  {label.ljust(width)}  {value}" for label, value in self.fields if value]
        if self.note:
            lines.append(f"  {self.note}")
        return printable("\n".join(lines))


def printable(text: str) -> str:
    """Text without what a terminal would obey: names are given by others, who may be anybody."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 device`, `2 devices`; `several` is for nouns that take no s."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or noun + 's'}"


def number(value: float, digits: int = 4) -> str:
    """A metric: `0.9712`, `12`, `3.1e-05`, and large ones without an exponent: `10,020`.

    `digits` are how many significant ones it has at most, below the comma.
    """
    size = abs(value)
    if 10**digits - 0.5 <= size < LARGEST:
        # A year is no 2,026.
        return f"{value:,.0f}" if size >= GROUPED else f"{value:.0f}"
    return f"{value:.{digits}g}"
