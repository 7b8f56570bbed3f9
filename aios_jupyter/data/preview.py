"""Pictures of what a policy does. A leaf module: it imports numpy and OpenCV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import formats, layout
from .catalog import Catalog, Entry
from .pipeline import Image, Pipeline, check_images
from .policy import Policy

# Sides of a tile in pixels: smaller images are enlarged, larger ones made smaller.
_LEAST_TILE, _MOST_TILE = 56, 160
_GAP = 4
_GAP_AFTER_ORIGINAL = 12
_PAPER = 255
WITHOUT_IMAGES = ("sounds", "text", "csv", "jsonl", "database")


def preview(
    data: str | Path | Entry | NDArray[Any],
    policy: str | Policy,
    n: int = 16,
    seed: int = 0,
    catalog: Catalog | None = None,
) -> Image:
    """A grid of `n` pictures: in each row an original on the left, then augmented copies of it.

    Parameters
    ----------
    data
        A dataset, or images `(n, height, width[, channels])`, from which evenly spaced ones are
        taken.
    policy, seed
        As for `augment`: what is shown is what will be made.
    n
        Pictures in all, from 2 to 400.

    Returns
    -------
    array
        uint8, `(height, width)` or `(height, width, 3)`.
    """
    if not 2 <= n <= 400:
        raise UsageError(f"A preview has 2 to 400 pictures, not {n}.")
    pipeline = Pipeline(policy, seed)
    columns = max(2, math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    picked = _pick(data, rows, catalog or Catalog())
    lines = []
    for index, image in picked:
        copies = [pipeline.apply(image[None], index, copy)[0] for copy in range(1, columns)]
        lines.append([image, *copies])
    color = any(image.ndim == 3 and image.shape[2] == 3 for _, image in picked)
    side = max(max(image.shape[:2]) for _, image in picked)
    times = _LEAST_TILE / side if side < _LEAST_TILE else min(1.0, _MOST_TILE / side)
    if times > 1:
        times = math.ceil(times)
    return _draw([[_tile(image, times, color) for image in line] for line in lines])


def png(
    data: str | Path | Entry | NDArray[Any], policy: str | Policy, n: int = 16, seed: int = 0
) -> bytes:
    """The picture of `preview` as a PNG file.

    Raises
    ------
    UsageError
        There are no images in it, or the policy makes no sense.
    """
    catalog = Catalog()
    if not isinstance(data, np.ndarray):
        data = catalog.get(data)
        if data.format in WITHOUT_IMAGES:
            raise UsageError(
                f"{data.ref or data.url} holds {data.format}; only images can be previewed."
            )
    return to_png(preview(data, policy, n, seed, catalog))


def to_png(image: NDArray[Any]) -> bytes:
    """An image, gray or RGB uint8, as a PNG file."""
    return formats.encode_image(np.asarray(image))


def _pick(
    data: str | Path | Entry | NDArray[Any], count: int, catalog: Catalog
) -> list[tuple[int, Image]]:
    """Evenly spaced images with their indices: of data ordered by class, one of each."""
    if not isinstance(data, np.ndarray):
        entry = catalog.get(data)
        if entry.format == "folder":
            names = layout.list_images(entry.url)
            places = _spaced(len(names), count)
            return [(place, formats.read_image(entry.url, names[place])) for place in places]
        data, _ = formats.load(entry.url, entry.format)
    check_images(data)
    return [(place, np.asarray(data[place])) for place in _spaced(len(data), count)]


def _spaced(total: int, count: int) -> list[int]:
    if total == 0:
        raise UsageError("There are no images to preview.")
    return sorted({int((i + 0.5) * total / count) for i in range(count)})


def _tile(image: Image, times: float, color: bool) -> Image:
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if color and image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if times == 1:
        return image
    size = (max(1, round(image.shape[1] * times)), max(1, round(image.shape[0] * times)))
    how = cv2.INTER_NEAREST if times > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


def _draw(lines: list[list[Image]]) -> Image:
    """Paste tiles, each centered in its cell, on white paper."""
    height = max(tile.shape[0] for line in lines for tile in line)
    width = max(tile.shape[1] for line in lines for tile in line)
    columns = len(lines[0])
    shape = (
        _GAP + len(lines) * (height + _GAP),
        columns * (width + _GAP) + _GAP_AFTER_ORIGINAL,
        *lines[0][0].shape[2:],
    )
    paper = np.full(shape, _PAPER, np.uint8)
    for row, line in enumerate(lines):
        for column, tile in enumerate(line):
            top = _GAP + row * (height + _GAP) + (height - tile.shape[0]) // 2
            left = _GAP + column * (width + _GAP) + (width - tile.shape[1]) // 2
            left += (_GAP_AFTER_ORIGINAL - _GAP) if column else 0
            paper[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return paper
