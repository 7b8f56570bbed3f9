"""How data looks: npz, Parquet and image folders, read to arrays and written.

A leaf module: it imports numpy, and is imported only where data is read or written; OpenCV and
pyarrow only where a format needs them.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import arrays
from .description import Description, Field, Tally
from .layout import class_counts, file_classes, list_images
from .storage import is_remote, locate, read_file, reading

Array = NDArray[Any]

FORMATS = (
    *("folder", "npz", "npy", "parquet", "csv", "jsonl"),
    *("sounds", "text", "webdataset", "zarr", "database"),
)

IMAGE_COLUMNS = ("image", "img", "x", "pixels")
_ROWS_AT_ONCE = 1024
# An image of more pixels is a bomb, or not for training.
MOST_PIXELS = 2**27
# Of so many images the size is looked at; elsewhere the whole file has to be read for it.
MOST_SIZES, _FEWER_SIZES = 1000, 24
# How every PNG file begins: its header comes first, and has this length.
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def describe(url: str, form: str) -> Description:
    """What is in a dataset of a format."""
    match form:
        case "npz" | "npy":
            return arrays.describe_npz(url) if form == "npz" else arrays.describe_npy(url)
        case "csv" | "jsonl" | "parquet" | "database":
            from . import tables

            return tables.describe(url, form)
        case "sounds":
            from . import sounds

            return sounds.describe(url)
        case "text":
            from . import texts

            return texts.describe(url)
        case "webdataset":
            from . import shards

            return shards.describe(url)
        case "zarr":
            from . import zarrs

            return zarrs.describe(url)
    names = list_images(url)
    classes = class_counts(names)
    schema = {"image": "file"} | ({"label": "subfolder"} if classes else {})
    return Description(len(names), schema, classes, _sizes(url, names))


def _sizes(url: str, names: list[str]) -> tuple[Field, ...]:
    """Width and height of some images at even distances, of which the headers are enough."""
    some = names[:: -(-len(names) // (_FEWER_SIZES if is_remote(url) else MOST_SIZES))]
    return size_fields((_size_in(url, name) for name in some), len(names))


def size_fields(sizes: Iterable[tuple[int, int]], rows: int) -> tuple[Field, ...]:
    """Statistics of widths and heights; one without is a file that is no image.

    Parameters
    ----------
    rows
        How many images there are, of which the sizes may be some.
    """
    known = np.array(list(sizes), np.int64).reshape(-1, 2)
    there = known[known[:, 0] > 0]
    part = f"of {len(known):,} of {rows:,} images" if len(known) < rows else ""
    found = []
    for name, values in zip(("width", "height"), there.T, strict=True):
        tally = Tally()
        tally.add(values)
        found.append(tally.field(name, "pixels", part, len(known) - len(there)))
    return tuple(found)


def _size_in(url: str, name: str) -> tuple[int, int]:
    if is_remote(url):
        return image_size(io.BytesIO(read_file(url, name)))
    with reading(f"{url}/{name}"), (Path(url) / name).open("rb") as file:
        return image_size(file)


def load(url: str, form: str) -> tuple[Array, Array | None]:
    """Rows and labels, as arrays; labels are None where there are none.

    A folder's labels are the positions of its subfolders in alphabetical order.

    Raises
    ------
    UsageError
        The rows do not fit one array, or memory.
    """
    match form:
        case "npz":
            return arrays.load_npz(url)
        case "npy":
            return arrays.load_npy(url)
        case "parquet":
            return load_parquet(url)
        case "csv" | "jsonl" | "database":
            from . import tables

            return tables.load(url, form)
        case "sounds":
            from . import sounds

            return sounds.load(url)
        case "text":
            from . import texts

            return texts.load(url)
        case "webdataset":
            from . import shards

            return shards.load(url)
        case "zarr":
            from . import zarrs

            return zarrs.load(url)
    return load_folder(url)


def load_parquet(url: str) -> tuple[Array, Array | None]:
    """The image and label columns of a Parquet file; images as encoded files or as numbers.

    One without images is a table, as of CSV.
    """
    from pyarrow import parquet

    from . import tables

    fs, path = locate(url)
    if fs.isdir(path):
        return tables.load(url, "parquet")
    with reading(url), fs.open(path, "rb") as file:
        table = parquet.read_table(file)
    names = table.column_names
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        return tables.load(url, "parquet")
    label = next((name for name in tables.LABELS if name in names and name != image), None)
    x = stack(_images_of(table.column(image), url), url)
    y = None if label is None else _labels(table.column(label), url)
    return x, y


def _images_of(column: Any, url: str) -> Iterator[Array]:
    import pyarrow as pa

    kind = column.type
    encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_struct(kind) or encoded:
        for row, value in enumerate(column.to_pylist()):
            # The convention of other libraries: a structure with the file's bytes and its path.
            blob = value.get("bytes") if isinstance(value, dict) else value
            yield decode_image(blob or b"", f"row {row} of {url}")
        return
    while pa.types.is_nested(kind) and hasattr(kind, "value_type"):
        kind = kind.value_type
    dtype = kind.to_pandas_dtype()
    for value in column.to_pylist():
        yield np.asarray(value, dtype)


def load_folder(url: str) -> tuple[Array, Array | None]:
    """Every image of a folder and the number of its class; all must have one size."""
    names = list_images(url)
    classes = {name: number for number, name in enumerate(file_classes(names))}
    x = stack((read_image(url, name) for name in names), url)
    if not classes:
        return x, None
    return x, np.array([classes[name.split("/")[0]] for name in names], np.int64)


def read_image(url: str, name: str) -> Array:
    """One image of a folder, uint8, gray `(h, w)` or RGB `(h, w, 3)`."""
    return decode_image(read_file(url, name), f"{name} in {url}")


def decode_image(blob: bytes, what: str) -> Array:
    """An encoded image as uint8, gray or RGB, turned as its EXIF orientation says."""
    import cv2

    check_pixels(blob, what)
    data = np.frombuffer(blob, np.uint8)
    image = None
    if data.size:
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise UsageError(f"{what} is not an image that can be read; repair or remove it.")
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.asarray(image)


def check_pixels(blob: bytes, what: str) -> None:
    """Raise `UsageError` for a file that unpacks to more pixels than any picture has."""
    if blob[:16] == _PNG:
        # What PIL would find, in a fifth of the time that a small image takes to be decoded.
        width, height = struct.unpack(">II", blob[16:24].ljust(8, b"\0"))
    else:
        width, height = image_size(io.BytesIO(blob))
    if width * height > MOST_PIXELS:
        raise UsageError(
            f"{what} unpacks to more than {MOST_PIXELS // 10**6} million pixels; if it is no "
            "decompression bomb, make it smaller first."
        )


def image_size(file: IO[bytes]) -> tuple[int, int]:
    """Width and height of an encoded image; none where it is not known."""
    from PIL import Image, UnidentifiedImageError

    try:
        # It reads no more than the header; what it does not know is left to what decodes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file).size
    except Image.DecompressionBombError:
        return MOST_PIXELS, MOST_PIXELS
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return 0, 0


def encode_image(image: Array, suffix: str = ".png") -> bytes:
    """An image, gray or RGB, as the bytes of a file of the format that the suffix names."""
    import cv2

    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, blob = cv2.imencode(suffix, image)
    if not done:
        raise UsageError(f"An image of shape {image.shape} cannot be written as {suffix}.")
    return bytes(blob)


def write_parquet(file: IO[bytes], blocks: Iterable[Array], y: Any) -> None:
    """Write a Parquet file with the columns `image` (PNG files) and `label`."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = [pa.field("image", pa.binary())]
    if y is not None:
        y = np.asarray(y)
        fields.append(pa.field("label", pa.array(y[:1]).type))
    schema, row = pa.schema(fields), 0
    with parquet.ParquetWriter(file, schema) as writer:
        for block in blocks:
            for start in range(0, len(block), _ROWS_AT_ONCE):
                images = [encode_image(image) for image in block[start : start + _ROWS_AT_ONCE]]
                columns = [pa.array(images, pa.binary())]
                if y is not None:
                    columns.append(pa.array(y[row : row + len(images)]))
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                row += len(images)


def stack(images: Iterable[Array], url: str) -> Array:
    """Images of one shape as an array."""
    found = list(images)
    if not found:
        raise UsageError(f"{url} is empty; there is nothing to load.")
    odd = next((image for image in found if image.shape != found[0].shape), None)
    if odd is not None:
        raise UsageError(
            f"The images of {url} differ in shape ({found[0].shape} and {odd.shape}), so they do "
            "not fit one array; augment them to a folder with resize(…) in the policy first."
        )
    return np.stack(found)


def _labels(column: Any, url: str) -> Array:
    if column.null_count:
        first = column.is_null().index(True)
        raise UsageError(
            f"{column.null_count:,} of {len(column):,} rows of {url} have no label, the first of them "
            f"row {first}; remove them first."
        )
    values: Array = column.to_numpy()
    return values.astype(str) if values.dtype == object else values
