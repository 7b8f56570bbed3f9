"""Policies on sounds and on texts, one after the other operation, each row with its own numbers.

What a row becomes depends on (seed, its index, the number of the copy) and nothing else, as of
images. A leaf module: it imports numpy; SciPy where a sound changes its speed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import plan
from .policy import Operation, Policy, parse
from .sounds import as_floats, scale

# Speeds are fractions with at most this below the line: a hundredth is heard by nobody.
_FINEST = 100
_WORDS = re.compile(r"(\s+)")


class _Rows:
    """What both have in common: a policy, and random numbers for each row."""

    medium = ""

    def __init__(self, policy: Policy | str, seed: int = 0) -> None:
        if seed < 0:
            raise UsageError(f"The seed must not be negative, but is {seed}.")
        self.policy = parse(policy, self.medium)
        if self.policy.medium != self.medium:
            raise UsageError(
                f"The policy '{self.policy}' is for {self.policy.medium}s, not for {self.medium}s."
            )
        self.seed = seed
        self._key = plan.key(seed, 4)

    def _random(self, index: int, copy: int) -> np.random.Generator:
        bits = np.random.Philox(key=self._key, counter=[0, 0, index, copy])
        return np.random.Generator(bits)

    def _drawn(self, random: np.random.Generator) -> list[tuple[str, float]]:
        """The operations that happen, each with its value."""
        found = []
        for operation in self.policy.operations:
            # Two numbers for each, so that one does not change what the next one draws.
            happens, between = random.random(2)
            if happens < operation.p:
                found.append((operation.name, _between(operation, float(between))))
        return found


def _between(operation: Operation, part: float) -> float:
    return operation.low + (operation.high - operation.low) * part


class SoundPipeline(_Rows):
    """Augments sounds: whole numbers as a WAV file has them, or floats from -1 to 1.

    A sound keeps its length: what another speed or a shift uncovers is silent, and what goes beyond
    the end is cut off.
    """

    medium = "sound"

    def apply(
        self,
        sounds: NDArray[Any],
        first: int = 0,
        copy: int = 1,
        *,
        indices: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Augment sounds of one length, `(n, frames)` or `(n, frames, channels)`.

        `Pipeline.apply` has the other parameters.
        """
        sounds = np.asarray(sounds)
        if sounds.ndim not in {2, 3} or sounds.dtype.kind not in "iuf" or not sounds.shape[1]:
            raise UsageError(
                "Augmentation takes sounds of shape (n, frames) or (n, frames, channels), whole "
                f"numbers or floats, but these are {sounds.dtype} {sounds.shape}."
            )
        if indices is None:
            indices = np.arange(first, first + len(sounds))
        out = np.empty_like(sounds)
        for k, index in enumerate(np.asarray(indices).tolist()):
            out[k] = _as_before(self._one(as_floats(sounds[k]), index, copy), sounds.dtype)
        return out

    def _one(self, sound: NDArray[np.float32], index: int, copy: int) -> NDArray[np.float32]:
        random = self._random(index, copy)
        for name, value in self._drawn(random):
            match name:
                case "shift":
                    sound = _moved(sound, round(value * len(sound)))
                case "speed":
                    sound = _faster(sound, value)
                case "volume":
                    sound = sound * np.float32(value)
                case "noise":
                    grain = random.standard_normal(sound.shape, np.float32)
                    sound = sound + grain * np.float32(value)
                case "cutout":
                    length = round(value * len(sound))
                    start = int(random.random() * (len(sound) - length + 1))
                    sound = sound.copy()
                    sound[start : start + length] = 0
        return sound


def _moved(sound: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    moved = np.zeros_like(sound)
    count = len(sound) - abs(frames)
    moved[max(0, frames) :][:count] = sound[max(0, -frames) :][:count]
    return moved


def _faster(sound: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """Resampled, what would alias filtered out, and cut or filled up to its length."""
    from scipy.signal import resample_poly

    ratio = Fraction(speed).limit_denominator(_FINEST)
    if ratio == 1:
        return sound
    found = resample_poly(sound, ratio.denominator, ratio.numerator, axis=0)
    out = np.zeros_like(sound)
    count = min(len(out), len(found))
    out[:count] = found[:count]
    return out


def _as_before(sound: NDArray[np.float32], kind: np.dtype[Any]) -> NDArray[Any]:
    if kind.kind == "f":
        return sound.clip(-1, 1).astype(kind)
    middle, full = scale(kind)
    limits = np.iinfo(kind)
    values = np.rint(sound.astype(np.float64) * full + middle)
    return values.clip(limits.min, limits.max).astype(kind)


class TextPipeline(_Rows):
    """Augments texts by small mistakes and changes of their words, which white space parts."""

    medium = "text"

    def apply(
        self,
        texts: Sequence[str],
        first: int = 0,
        copy: int = 1,
        *,
        indices: NDArray[Any] | None = None,
    ) -> list[str]:
        """Augment texts; `Pipeline.apply` has the other parameters."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("Augmentation takes a list of texts.")
        if indices is None:
            indices = np.arange(first, first + len(texts))
        return [
            self._one(text, index, copy)
            for text, index in zip(texts, np.asarray(indices).tolist(), strict=True)
        ]

    def _one(self, text: str, index: int, copy: int) -> str:
        random = self._random(index, copy)
        # Words at even places, the space between them at odd ones.
        parts = _WORDS.split(text)
        for name, value in self._drawn(random):
            if name == "typo":
                parts = _misspell(parts, random, value)
            else:
                parts = _CHANGES[name](parts, random.random((len(parts) + 1) // 2) < value)
        return "".join(parts)


def _drop(parts: list[str], chosen: Any) -> list[str]:
    kept = [n for n, gone in enumerate(chosen) if not gone]
    if not any(parts[2 * n] for n in kept):
        # A text of no words teaches nothing.
        return parts
    found = [parts[2 * kept[0]]]
    for before, n in itertools.pairwise(kept):
        found += [parts[2 * before + 1], parts[2 * n]]
    return found


def _swap(parts: list[str], chosen: Any) -> list[str]:
    found = list(parts)
    for n, exchanged in enumerate(chosen[:-1]):
        if exchanged:
            found[2 * n], found[2 * n + 2] = found[2 * n + 2], found[2 * n]
    return found


def _repeat(parts: list[str], chosen: Any) -> list[str]:
    found: list[str] = []
    for n, twice in enumerate(chosen):
        word = parts[2 * n]
        found += [word, " ", word] if twice and word else [word]
        found += parts[2 * n + 1 : 2 * n + 2]
    return found


def _misspell(parts: list[str], random: np.random.Generator, value: float) -> list[str]:
    return [
        part if n % 2 else "".join(_mistyped(part, random, value)) or part
        for n, part in enumerate(parts)
    ]


def _mistyped(word: str, random: np.random.Generator, value: float) -> list[str]:
    """Letters, some of them left out, doubled, or behind the next one."""
    letters = list(word)
    wrong = random.random(len(letters)) < value
    kinds = random.integers(0, 3, len(letters))
    for n in np.flatnonzero(wrong).tolist():
        if not letters[n].isalpha():
            continue
        if kinds[n] == 0 and len(word) > 1:
            letters[n] = ""
        elif kinds[n] == 1:
            letters[n] *= 2
        elif n + 1 < len(letters):
            letters[n], letters[n + 1] = letters[n + 1], letters[n]
    return letters


_CHANGES = {"drop": _drop, "swap": _swap, "repeat": _repeat}
