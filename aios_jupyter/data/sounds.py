"""Sounds: a WAV file, or a folder of them with one subfolder per class.

A leaf module: it imports numpy.
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .description import Description, Tally
from .layout import class_counts, file_classes, named_files
from .storage import read_file

_KINDS: dict[int, str] = {1: "u1", 2: "<i2", 4: "<i4"}


@dataclass(frozen=True)
class Sound:
    """Samples `(frames, channels)` at a rate in Hz."""

    samples: NDArray[Any]
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def describe(url: str) -> Description:
    """How many sounds, of what kind, how long."""
    root, names = named_files(url, "sounds")
    tally, kinds = Tally(), set()
    for name in names:
        sound = read(root, name)
        tally.add(np.array([sound.seconds]))
        kinds.add(_kind(sound))
    classes = class_counts(names)
    schema = {"sound": " or ".join(sorted(kinds))} | ({"label": "subfolder"} if classes else {})
    return Description(len(names), schema, classes, (tally.field("seconds", "float"),))


def _kind(sound: Sound) -> str:
    channels = sound.samples.shape[1]
    return f"{sound.samples.dtype}, {sound.rate} Hz, {channels} channel{'s'[: channels != 1]}"


def load(url: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """All sounds as one array `(n, frames[, channels])`; they must be of one length and rate."""
    root, names = named_files(url, "sounds")
    found = [read(root, name) for name in names]
    first = found[0]
    for name, sound in zip(names, found, strict=True):
        if (sound.samples.shape, sound.rate) != (first.samples.shape, first.rate):
            raise UsageError(
                f"The sounds of {url} differ ({names[0]}: {_kind(first)}, {first.seconds:.3g} s; "
                f"{name}: {_kind(sound)}, {sound.seconds:.3g} s), so they do not fit one array; "
                "read them one by one with data.sounds.read(url, name)."
            )
    x = np.stack([sound.samples for sound in found])
    classes = file_classes(names)
    y = np.array([classes.index(name.split("/")[0]) for name in names]) if classes else None
    return (x[..., 0] if x.shape[2] == 1 else x), y


def as_floats(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Samples from -1 to 1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    middle, full = scale(samples.dtype)
    return ((samples.astype(np.float32) - np.float32(middle)) / np.float32(full)).astype(np.float32)


def scale(kind: np.dtype[Any]) -> tuple[float, float]:
    """Silence, and how far from it the loudest sample is; bytes of a WAV file have no sign."""
    full = float(2 ** (8 * kind.itemsize - 1))
    return (full if kind.kind == "u" else 0.0), full


def read(url: str, name: str) -> Sound:
    """One sound of a folder.

    Raises
    ------
    UsageError
        It is cut off, or not a WAV file of whole numbers.
    """
    return decode(read_file(url, name), f"{name} in {url}")


def decode(blob: bytes, what: str) -> Sound:
    """A WAV file's sound; `what` names it where it is damaged."""
    try:
        with wave.open(io.BytesIO(blob)) as file:
            frames, width = file.getnframes(), file.getsampwidth()
            channels, rate = file.getnchannels(), file.getframerate()
            data = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        raise UsageError(
            f"{what} is not a WAV file of whole numbers ({str(error) or 'it is cut off'}); "
            "convert it to PCM, or get it again."
        ) from None
    if len(data) < frames * width * channels or rate == 0:
        raise UsageError(f"{what} is cut off; get it again.")
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4")
    else:
        samples = np.frombuffer(data, np.dtype(_KINDS[width]))
    return Sound(samples.reshape(-1, channels), rate)


def encode(sound: Sound) -> bytes:
    """A sound as a WAV file."""
    kind = sound.samples.dtype
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(sound.samples.shape[1])
        writer.setsampwidth(kind.itemsize)
        writer.setframerate(sound.rate)
        writer.writeframes(sound.samples.astype(_KINDS[kind.itemsize]).tobytes())
    return file.getvalue()
