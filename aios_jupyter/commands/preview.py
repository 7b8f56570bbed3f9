"""A few images of a dataset as one PNG. A leaf module: it imports numpy and Pillow."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..data.catalog import Entry

COUNT = 24
TILE = 56
COLUMNS = 12
# Of text below an image.
LINE = 14
# A preview is not worth reading more than this for.
MOST_BYTES = 256 * 1024 * 1024


def grid(entry: Entry) -> bytes | None:
    """Images at even distances through the dataset; None where it has no images or is too large.

    Returns
    -------
    bytes or None
        A PNG of at most 24 images, 56 pixels each.
    """
    images = _images(entry)
    if not images:
        return None
    rows = math.ceil(len(images) / COLUMNS)
    columns = min(COLUMNS, len(images))
    sheet = Image.new("RGB", (columns * TILE, rows * TILE), "white")
    for index, image in enumerate(images):
        tile = Image.fromarray(image).convert("RGB")
        tile = tile.resize((TILE - 2, TILE - 2), Image.Resampling.BILINEAR)
        sheet.paste(tile, (index % COLUMNS * TILE + 1, index // COLUMNS * TILE + 1))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def captioned(images: Sequence[NDArray[Any]], words: Sequence[str]) -> bytes | None:
    """Images with a word or two below each; None where there are none, or they are no images.

    Returns
    -------
    bytes or None
        A PNG, six images in a row.
    """
    if not len(images) or images[0].dtype != np.uint8 or not _is_image(images[0].shape):
        return None
    across, wide, high = 6, 2 * TILE, TILE + 2 + LINE
    sheet = Image.new("RGB", (across * wide, math.ceil(len(images) / across) * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, word) in enumerate(zip(images, words, strict=False)):
        left, top = index % across * wide, index // across * high
        tile = Image.fromarray(_shown(image)).convert("RGB")
        tile = tile.resize((TILE, TILE), Image.Resampling.BILINEAR)
        sheet.paste(tile, (left + TILE // 2, top))
        while pen.textlength(word, font) > wide - 4 and len(word) > 1:
            word = word[:-2] + "…"  # noqa: PLW2901
        pen.text((left + wide / 2, top + TILE), word, "#404040", font, anchor="ma")
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _images(entry: Entry) -> list[NDArray[np.uint8]]:
    if entry.format == "folder":
        from ..data.formats import read_image
        from ..data.layout import list_images

        names = list_images(entry.url)
        return [_shown(read_image(entry.url, names[i])) for i in _spread(len(names))]
    if entry.format == "webdataset":
        return _in_shards(entry.url)
    if entry.format == "zarr":
        return _in_blocks(entry.url)
    if entry.size > MOST_BYTES or not _may_be_images(entry):
        return []
    from ..data.formats import load

    x, _ = load(entry.url, entry.format)
    if x.dtype != np.uint8 or not _is_image(x.shape[1:]):
        return []
    return [_shown(x[i]) for i in _spread(len(x))]


def _may_be_images(entry: Entry) -> bool:
    if entry.format == "parquet":
        from ..data.formats import IMAGE_COLUMNS

        return any(name in entry.schema for name in IMAGE_COLUMNS)
    return entry.format in {"npz", "npy"}


def _in_blocks(url: str) -> list[NDArray[np.uint8]]:
    from ..data.zarrs import Zarr

    found = Zarr(url)
    if found.dtype != np.uint8 or not _is_image(found.shape[1:]):
        return []
    return [_shown(found.read(i, i + 1)[0]) for i in _spread(found.rows)]


def _in_shards(url: str) -> list[NDArray[np.uint8]]:
    """The first ones: to reach others, all before them have to be read."""
    from ..data.formats import decode_image
    from ..data.layout import IMAGE_SUFFIXES
    from ..data.shards import samples

    found = []
    for key, sample in itertools.islice(samples(url), COUNT):
        ending = next((name for name in sample if f".{name}" in IMAGE_SUFFIXES), None)
        if ending is not None:
            found.append(_shown(decode_image(sample[ending], f"{key}.{ending} in {url}")))
    return found


def _spread(count: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(COUNT, count))})


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in {1, 3})


def _shown(image: NDArray[Any]) -> NDArray[np.uint8]:
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
