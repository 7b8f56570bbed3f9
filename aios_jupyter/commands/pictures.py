"""Pictures for a data card: how each column of a table is spread, and how sounds look.

A leaf module: it imports numpy, pyarrow, Pillow and OpenCV, whose font has the letters of most scripts.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .views import number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..data.catalog import Entry

# A picture shows the first rows of a table: enough to see how it is spread, and soon read.
ROWS = 20_000
SOUNDS = 8
MOST = 12
COLUMNS = 4
WIDTH, HEIGHT, GAP, WORDS = 168, 64, 8, 14
BINS = 24
BARS = 6
INK, PAPER, TEXT, AXIS = "#4c78a8", "white", (64, 64, 64), "#c8c8c8"
# The height of letters in pixels, and their weight.
LETTER, BOLD = 11, 400


def spread(entry: Entry) -> bytes | None:
    """A histogram for each column of a table, and the most frequent values of its words.

    Returns
    -------
    bytes or None
        A PNG of at most 12 columns; None where there is none to draw.
    """
    from ..data.tables import head

    table = head(entry.url, entry.format, ROWS)
    drawn = []
    for name in table.column_names:
        values = table.column(name).drop_null().to_pylist()
        parts = _parts(values)
        if parts is not None:
            drawn.append((name, *parts))
    return _sheet(drawn[:MOST], _bars)


def waves(entry: Entry) -> bytes | None:
    """The first sounds of a dataset, as their loudness over time."""
    from ..data import layout, sounds

    root, names = layout.named_files(entry.url, "sounds")
    step = max(1, len(names) // SOUNDS)
    drawn = []
    for name in names[::step][:SOUNDS]:
        sound = sounds.read(root, name)
        heard = np.abs(sounds.as_floats(sound.samples)).max(axis=1)
        edges = np.linspace(0, len(heard), WIDTH + 1).astype(int)
        peaks = [
            float(heard[a : max(a + 1, b)].max(initial=0)) for a, b in itertools.pairwise(edges)
        ]
        drawn.append((name, peaks, f"{sound.seconds:.3g} s"))
    return _sheet(drawn, _wave)


def _parts(values: list[Any]) -> tuple[list[float], str] | None:
    """Heights of a column's bars, and what they are of."""
    if not values:
        return None
    if isinstance(values[0], bool):
        values = list(map(str, values))
    if all(isinstance(value, int | float) for value in values[:100]):
        numbers: NDArray[np.float64] = np.array(values, float)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return None
        least, most = float(numbers.min()), float(numbers.max())
        # Halves, since the difference of the largest numbers is none.
        half = most / 2 - least / 2
        parts = (numbers / 2 - least / 2) / half if half else np.zeros(len(numbers))
        counts = np.bincount(np.minimum((parts * BINS).astype(int), BINS - 1), minlength=BINS)
        return counts.astype(float).tolist(), f"{number(least)} … {number(most)}"
    if not all(isinstance(value, str) for value in values[:100]):
        return None
    common = Counter(values).most_common(BARS)
    if common[0][1] == 1:
        # Names, or free text: each is there once.
        return None
    return [float(count) for _, count in common], ", ".join(word for word, _ in common)


def _sheet(drawn: list[tuple[str, list[float], str]], draw_one: Any) -> bytes | None:
    if not drawn:
        return None
    across = min(COLUMNS, len(drawn))
    down = math.ceil(len(drawn) / across)
    cell = (WIDTH + GAP, HEIGHT + 2 * WORDS + GAP)
    sheet = Image.new("RGB", (across * cell[0] + GAP, down * cell[1] + GAP), PAPER)
    pen, written = ImageDraw.Draw(sheet), list[tuple[str, int, int]]()
    for place, (title, heights, words) in enumerate(drawn):
        left = GAP + place % across * cell[0]
        top = GAP + place // across * cell[1]
        draw_one(pen, heights, left, top + WORDS)
        written += [(title, left, top), (words, left, top + WORDS + HEIGHT + 1)]
    file = io.BytesIO()
    _with_text(sheet, written).save(file, "PNG", optimize=True)
    return file.getvalue()


def _with_text(sheet: Image.Image, written: list[tuple[str, int, int]]) -> Image.Image:
    """The sheet with lines of text, each at its left upper corner."""
    pixels, font = np.array(sheet), cv2.FontFace("sans")

    def width(text: str) -> int:
        return int(cv2.getTextSize((0, 0), text, (0, 0), font, LETTER, BOLD)[2])

    for text, left, top in written:
        # No more than could be drawn at all: a value may be a whole document.
        line = " ".join(text[:WIDTH].split())
        while width(line) > WIDTH and len(line) > 1:
            line = line[:-2] + "…"
        cv2.putText(pixels, line, (left, top + LETTER), TEXT, font, LETTER, BOLD)
    return Image.fromarray(pixels)


def _bars(pen: Any, heights: list[float], left: int, top: int) -> None:
    most = max(heights) or 1
    wide = WIDTH / len(heights)
    for place, height in enumerate(heights):
        tall = round(height / most * (HEIGHT - 2))
        if height and not tall:
            tall = 1
        box = (left + round(place * wide), top + HEIGHT - tall - 1,
               left + round((place + 1) * wide) - 2, top + HEIGHT - 1)  # fmt: skip
        if tall:
            pen.rectangle(box, INK)
    pen.line((left, top + HEIGHT, left + WIDTH, top + HEIGHT), AXIS)


def _wave(pen: Any, peaks: list[float], left: int, top: int) -> None:
    middle = top + HEIGHT // 2
    pen.line((left, middle, left + WIDTH, middle), AXIS)
    for x, peak in enumerate(peaks):
        tall = round(peak * HEIGHT / 2)
        pen.line((left + x, middle - tall, left + x, middle + tall), INK)
