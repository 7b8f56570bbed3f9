"""How data looks: npz, Parquet and image folders, read to arrays and written.

A leaf module: it imports numpy, and is imported only where data is read or written; OpenCV and
pyarrow only where a format needs them.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .storage import folder_classes, list_images, locate, read_file, unreadable

Array = NDArray[Any]

FORMATS = ("npz", "parquet", "folder")

_IMAGE_COLUMNS = ("image", "img", "x", "pixels")
_LABEL_COLUMNS = ("label", "y", "class", "target")
_ROWS_AT_ONCE = 1024
# Labels with more values than this are a quantity rather than classes.
_MOST_CLASSES = 10_000
# What numpy, zipfile and pyarrow raise for files that are cut off, damaged, or something else.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(ValueError, EOFError, OSError, KeyError),
)


@dataclass(frozen=True)
class Description:
    """What is in a dataset, found without reading its images where the format allows."""

    rows: int
    schema: dict[str, str]
    classes: tuple[str, ...]


def describe(url: str, form: str) -> Description:
    """Rows, schema (column or array to type) and classes of a dataset."""
    if form == "npz":
        return _describe_npz(url)
    if form == "parquet":
        return _describe_parquet(url)
    names = list_images(url)
    schema = {"image": "file", "label": "subfolder"}
    return Description(len(names), schema, tuple(folder_classes(names)))


def describe_arrays(x: Array, y: Array | None) -> Description:
    """The description of arrays that are in memory."""
    schema = {"x": _type(x.dtype, x.shape[1:])}
    if y is not None:
        schema["y"] = _type(y.dtype, y.shape[1:])
    return Description(len(x), schema, _classes(y))


def _describe_npz(url: str) -> Description:
    fs, path = locate(url)
    with _reading(url), fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        x_name, y_name = _npz_names(names, url)
        with archive.open(f"{x_name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(member)
        y = None
        if y_name:
            with archive.open(f"{y_name}.npy") as member:
                y = np.lib.format.read_array(member, allow_pickle=False)
    if not shape:
        raise UsageError(f"{url} holds a single number as '{x_name}', not a dataset.")
    schema = {x_name: _type(dtype, shape[1:])}
    if y is not None and y_name:
        schema[y_name] = _type(y.dtype, y.shape[1:])
        _check_lengths(shape[0], y, url)
    return Description(shape[0], schema, _classes(y))


def _describe_parquet(url: str) -> Description:
    from pyarrow import parquet

    fs, path = locate(url)
    with _reading(url), fs.open(path, "rb") as file:
        source = parquet.ParquetFile(file)
        names = source.schema_arrow.names
        schema = {field.name: str(field.type) for field in source.schema_arrow}
        label = _column(names, _LABEL_COLUMNS)
        y = None
        if label is not None:
            y = _labels(source.read(columns=[label]).column(label), url)
        return Description(source.metadata.num_rows, schema, _classes(y))


def _type(dtype: np.dtype[Any], shape: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]" if shape else str(dtype)


def _classes(y: Array | None) -> tuple[str, ...]:
    if y is None or y.ndim != 1 or y.dtype.kind == "f":
        return ()
    values = np.unique(y)
    return tuple(str(value) for value in values) if len(values) <= _MOST_CLASSES else ()


def load(url: str, form: str) -> tuple[Array, Array | None]:
    """Images and labels, as arrays; labels are None where the file has none.

    A folder's labels are the positions of its subfolders in alphabetical order.
    """
    if form == "npz":
        return load_npz(url)
    if form == "parquet":
        return load_parquet(url)
    return load_folder(url)


def load_npz(url: str) -> tuple[Array, Array | None]:
    """The arrays `x` and `y` (or `images` and `labels`) of an npz file."""
    fs, path = locate(url)
    with _reading(url), fs.open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        x_name, y_name = _npz_names(archive.files, url)
        x = archive[x_name]
        y = archive[y_name] if y_name else None
    if x.ndim == 0:
        raise UsageError(f"{url} holds a single number as '{x_name}', not a dataset.")
    _check_lengths(len(x), y, url)
    return x, y


def _npz_names(names: Sequence[str], url: str) -> tuple[str, str | None]:
    """Which arrays of an npz file are the images and the labels."""
    for x_name, y_name in (("x", "y"), ("images", "labels"), ("data", "target")):
        if x_name in names:
            return x_name, y_name if y_name in names else None
    if len(names) == 1:
        return names[0], None
    raise UsageError(
        f"{url} has the arrays {', '.join(sorted(names)) or '(none)'}, but a dataset needs 'x' "
        "(and 'y' for labels); save it with np.savez(file, x=..., y=...)."
    )


def load_parquet(url: str) -> tuple[Array, Array | None]:
    """The image and label columns of a Parquet file; images as encoded files or as numbers."""
    from pyarrow import parquet

    fs, path = locate(url)
    with _reading(url), fs.open(path, "rb") as file:
        table = parquet.read_table(file)
    image = _column(table.column_names, _IMAGE_COLUMNS)
    if image is None:
        raise UsageError(
            f"{url} has the columns {', '.join(table.column_names)}, but a dataset of images needs "
            "one named 'image' (and one named 'label')."
        )
    label = _column(table.column_names, _LABEL_COLUMNS)
    x = _stack(_images_of(table.column(image), url), url)
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


def load_folder(url: str) -> tuple[Array, Array]:
    """Every image of a folder and the number of its class; all must have one size."""
    names = list_images(url)
    classes = {name: number for number, name in enumerate(folder_classes(names))}
    x = _stack((read_image(url, name) for name in names), url)
    return x, np.array([classes[name.split("/")[0]] for name in names], np.int64)


def read_image(url: str, name: str) -> Array:
    """One image of a folder, uint8, gray `(h, w)` or RGB `(h, w, 3)`."""
    return decode_image(read_file(url, name), f"{name} in {url}")


def decode_image(blob: bytes, what: str) -> Array:
    """An encoded image as uint8, gray or RGB, turned as its EXIF orientation says."""
    import cv2

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


def encode_image(image: Array, suffix: str = ".png") -> bytes:
    """An image, gray or RGB, as the bytes of a file of the format that the suffix names."""
    import cv2

    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, blob = cv2.imencode(suffix, image)
    if not done:
        raise UsageError(f"An image of shape {image.shape} cannot be written as {suffix}.")
    return bytes(blob)


def write_npz(file: IO[bytes], shape: Sequence[int], blocks: Iterable[Array], y: Any) -> None:
    """Write an npz file with `x` in uint8 blocks, so that it is never whole in memory, and `y`.

    The same arrays give the same bytes: no time is stored. The members are not compressed.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_member("x.npy"), "w", force_zip64=True) as member:
            _write_blocks(member, shape, blocks)
        if y is not None:
            with archive.open(_member("y.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(y), allow_pickle=False)


def write_npy(file: IO[bytes], shape: Sequence[int], blocks: Iterable[Array]) -> None:
    """Write an npy file block by block."""
    _write_blocks(file, shape, blocks)


def _write_blocks(file: IO[bytes], shape: Sequence[int], blocks: Iterable[Array]) -> None:
    started = False
    for block in blocks:
        if not started:
            header = {
                "descr": np.lib.format.dtype_to_descr(block.dtype),
                "fortran_order": False,
                "shape": tuple(shape),
            }
            np.lib.format.write_array_header_2_0(file, header)
            started = True
        file.write(np.ascontiguousarray(block).data.cast("B"))


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


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


def _stack(images: Iterable[Array], url: str) -> Array:
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


def _column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _labels(column: Any, url: str) -> Array:
    if column.null_count:
        raise UsageError(f"{url} has {column.null_count} rows without a label; remove them first.")
    values: Array = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _check_lengths(rows: int, y: Array | None, url: str) -> None:
    if y is not None and (y.ndim == 0 or len(y) != rows):
        count = 1 if y.ndim == 0 else len(y)
        raise UsageError(f"{url} has {rows} images but {count} labels; each image needs one.")


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turns what a damaged or missing file raises into one sentence that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise unreadable(url, error) from None
