"""Arrays in files: npz and npy, described and read with care for their size, and written.

A leaf module: it imports numpy.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .description import MOST_CLASSES, Description, Tally
from .storage import locate, reading

Array = NDArray[Any]

_BLOCK_BYTES = 8 * 2**20


def describe_arrays(x: Array, y: Array | None) -> Description:
    """The description of arrays that are in memory."""
    schema = {"x": type_of(x.dtype, x.shape[1:])}
    tally = Tally()
    fields = []
    if x.dtype.kind in "biuf":
        step = max(1, _BLOCK_BYTES // max(1, x[:1].nbytes))
        for start in range(0, len(x), step):
            tally.add(x[start : start + step])
        fields.append(tally.field("x", schema["x"]))
    if y is not None:
        schema["y"] = type_of(y.dtype, y.shape[1:])
        fields.append(label_field("y", y, schema["y"]))
    return Description(len(x), schema, classes_of(y), tuple(fields))


def label_field(name: str, y: Array, kind: str) -> Any:
    """What is known of the labels."""
    tally = Tally()
    if y.dtype.kind in "biuf":
        tally.add(y)
    return tally.field(name, kind, ", ".join(str(value) for value in y[:3].tolist()))


def describe_npz(url: str) -> Description:
    fs, path = locate(url)
    with reading(url), fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        x_name, y_name = pair(names, url)
        y = None
        if y_name:
            with archive.open(f"{y_name}.npy") as member:
                y = _read_array(member, url)
        with archive.open(f"{x_name}.npy") as member:
            shape, dtype, x_field = _tally_array(member, x_name, url)
        fields = [x_field] if x_field else []
    schema = {x_name: type_of(dtype, shape[1:])}
    if y is not None and y_name:
        schema[y_name] = type_of(y.dtype, y.shape[1:])
        _check_lengths(shape[0], y, url)
        fields.append(label_field(y_name, y, schema[y_name]))
    return Description(shape[0], schema, classes_of(y), tuple(fields))


def describe_npy(url: str) -> Description:
    fs, path = locate(url)
    with reading(url), fs.open(path, "rb") as file:
        shape, dtype, field = _tally_array(file, "x", url)
    return Description(
        shape[0], {"x": type_of(dtype, shape[1:])}, {}, (field,) if field is not None else ()
    )


def _tally_array(file: Any, name: str, url: str) -> tuple[tuple[int, ...], np.dtype[Any], Any]:
    """Shape, type and statistics of an npy file, which is read in blocks."""
    shape, dtype = _read_header(file)
    if not shape:
        raise UsageError(f"{url} holds a single number as '{name}', not a dataset.")
    if dtype.hasobject:
        raise UsageError(
            f"{url} holds Python objects as '{name}', which only a program that runs "
            "their code can read; save numbers."
        )
    if dtype.kind not in "biuf":
        return shape, dtype, None
    tally, left = Tally(), int(np.prod(shape)) * dtype.itemsize
    while left > 0:
        data = file.read(min(left, _BLOCK_BYTES // dtype.itemsize * dtype.itemsize))
        if not data or len(data) % dtype.itemsize:
            raise UsageError(
                f"{url} is damaged or not what its name says (it is cut off); get it again."
            )
        tally.add(np.frombuffer(data, dtype))
        left -= len(data)
    return shape, dtype, tally.field(name, type_of(dtype, shape[1:]))


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def _read_array(file: Any, url: str) -> Array:
    """An array of an npy file, if it fits in memory."""
    # The header is read twice: a small file may say that it unpacks to more than there is memory.
    check_memory(*_read_header(file), url)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def check_memory(shape: Sequence[int], dtype: np.dtype[Any], url: str) -> None:
    """Raise `UsageError` for an array that does not fit in memory."""
    import psutil

    need, free = (
        int(np.prod(shape, dtype=object)) * dtype.itemsize,
        psutil.virtual_memory().available,
    )
    if need > free:
        raise UsageError(
            f"{url} unpacks to {need / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of memory are "
            "free; use a machine with more, or a part of it."
        )


def type_of(dtype: np.dtype[Any], shape: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]" if shape else str(dtype)


def classes_of(y: Array | None) -> dict[str, int]:
    if y is None or y.ndim != 1 or y.dtype.kind == "f":
        return {}
    values, counts = np.unique(y, return_counts=True)
    if len(values) > MOST_CLASSES:
        return {}
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def load_npy(url: str) -> tuple[Array, None]:
    """The array of an npy file."""
    fs, path = locate(url)
    with reading(url), fs.open(path, "rb") as file:
        return _read_array(file, url), None


def load_npz(url: str) -> tuple[Array, Array | None]:
    """The arrays `x` and `y` (or `images` and `labels`) of an npz file."""
    fs, path = locate(url)
    with reading(url), fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        x_name, y_name = pair(names, url)
        with archive.open(f"{x_name}.npy") as member:
            x = _read_array(member, url)
        y = None
        if y_name:
            with archive.open(f"{y_name}.npy") as member:
                y = _read_array(member, url)
    if x.ndim == 0:
        raise UsageError(f"{url} holds a single number as '{x_name}', not a dataset.")
    _check_lengths(len(x), y, url)
    return x, y


def pair(names: Sequence[str], url: str) -> tuple[str, str | None]:
    """Which arrays of a file or group are the rows and the labels."""
    for x_name, y_name in (("x", "y"), ("images", "labels"), ("data", "target")):
        if x_name in names:
            return x_name, y_name if y_name in names else None
    if len(names) == 1:
        return names[0], None
    raise UsageError(
        f"{url} has the arrays {', '.join(sorted(names)) or '(none)'}, but a dataset needs 'x' "
        "(and 'y' for labels); save it with such names, as np.savez(file, x=..., y=...) does."
    )


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


def _check_lengths(rows: int, y: Array | None, url: str) -> None:
    if y is not None and (y.ndim == 0 or len(y) != rows):
        count = 1 if y.ndim == 0 else len(y)
        raise UsageError(f"{url} has {rows} images but {count} labels; each image needs one.")
