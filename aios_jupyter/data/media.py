"""What the files of a folder hold that is augmented: images, sounds or texts.

A leaf module: it imports numpy and OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..errors import UsageError
from . import formats, sounds, texts
from .pipeline import Pipeline
from .policy import MEDIA, Policy
from .sequences import SoundPipeline, TextPipeline

# Of the formats of datasets; all others are of images.
_OF_FORMAT = {"sounds": "sound", "text": "text"}


class Medium(Protocol):
    """What a worker does with each file."""

    def read(self, blob: bytes, what: str) -> Any:
        """What is in a file; `what` names it where it is damaged."""

    def original(self, blob: bytes, thing: Any, suffix: str) -> bytes:
        """The file that lies beside the copies of it."""

    def vary(self, thing: Any, index: int, copy: int, suffix: str) -> bytes:
        """A copy as a file."""


def medium_of(form: str) -> str:
    """What a dataset of a format is of: `image`, `sound` or `text`."""
    return _OF_FORMAT.get(form, "image")


def pipeline(
    policy: str | Policy, seed: int, medium: str
) -> Pipeline | SoundPipeline | TextPipeline:
    """What carries out a policy.

    Raises
    ------
    UsageError
        There is no such medium, or the policy is not one of it.
    """
    if medium not in MEDIA:
        raise UsageError(f"A policy is of {', '.join(MEDIA)}, not of '{medium}'.")
    kinds: dict[str, Callable[[str | Policy, int], Any]] = {
        "image": Pipeline,
        "sound": SoundPipeline,
        "text": TextPipeline,
    }
    made: Pipeline | SoundPipeline | TextPipeline = kinds[medium](policy, seed)
    return made


def of(medium: str, policy: str | Policy, seed: int) -> Medium:
    """What a worker does with each file of a medium."""
    kinds: dict[str, Callable[[str | Policy, int], Medium]] = {
        "image": _Images,
        "sound": _Sounds,
        "text": _Texts,
    }
    return kinds[medium](policy, seed)


class _Images:
    def __init__(self, policy: str | Policy, seed: int) -> None:
        self._pipeline = Pipeline(policy, seed)
        self._resize = self._pipeline.resize_only()

    def read(self, blob: bytes, what: str) -> Any:
        return formats.decode_image(blob, what)[None]

    def original(self, blob: bytes, thing: Any, suffix: str) -> bytes:
        if self._resize is None:
            return blob
        return formats.encode_image(self._resize.apply(thing)[0], suffix)

    def vary(self, thing: Any, index: int, copy: int, suffix: str) -> bytes:
        return formats.encode_image(self._pipeline.apply(thing, index, copy)[0], suffix)


class _Sounds:
    def __init__(self, policy: str | Policy, seed: int) -> None:
        self._pipeline = SoundPipeline(policy, seed)

    def read(self, blob: bytes, what: str) -> Any:
        return sounds.decode(blob, what)

    def original(self, blob: bytes, thing: Any, suffix: str) -> bytes:
        return blob

    def vary(self, thing: Any, index: int, copy: int, suffix: str) -> bytes:
        made = self._pipeline.apply(thing.samples[None], index, copy)[0]
        return sounds.encode(sounds.Sound(np.asarray(made), thing.rate))


class _Texts:
    def __init__(self, policy: str | Policy, seed: int) -> None:
        self._pipeline = TextPipeline(policy, seed)

    def read(self, blob: bytes, what: str) -> Any:
        return texts.decode(blob, what)

    def original(self, blob: bytes, thing: Any, suffix: str) -> bytes:
        return blob

    def vary(self, thing: Any, index: int, copy: int, suffix: str) -> bytes:
        return self._pipeline.apply([thing], index, copy)[0].encode()
