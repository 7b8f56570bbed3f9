"""What a policy does to each image, in numbers: what it draws, one warp, one color matrix.

A leaf module: it imports numpy alone. `pipeline` (OpenCV) and `ondevice` (torch) carry it out.

What an image draws depends on (seed, its index, the number of the copy) and nothing else: each
copy has a key of its own, and a number is a hash of that key and of its place. So any division
into batches and workers gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .policy import AFTER, COLOR, MIX, Operation, Policy

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

# Numbers that an operation may draw in one slot; the last one decides whether it happens.
_DRAWS = 4
_SLOTS = {"perspective": 3}
_GOLDEN, _MIX_1, _MIX_2 = (
    np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_OUT_OF_YIQ = np.linalg.inv(_YIQ)
# What a rotation of its color plane keeps, and what of it comes with the cosine and the sine.
_GRAYS = _OUT_OF_YIQ @ np.diag([1.0, 0, 0]) @ _YIQ
_COLORS = _OUT_OF_YIQ @ np.diag([0.0, 1, 1]) @ _YIQ
_TURNED = _OUT_OF_YIQ @ np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ

# What changes nothing, for images to which an operation does not happen.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "rotate": (0,),
    "shift": (0, 0),
    "scale": (1,),
    "shear_x": (0,),
    "shear_y": (0,),
    "mirror_x": (1,),
    "mirror_y": (1,),
    "crop": (1, 0.5, 0.5),
    "perspective": (0,) * 8,
    "brightness": (0,),
    "exposure": (1,),
    "contrast": (1,),
    "saturation": (1,),
    "hue": (0,),
    "solarize": (2,),
    "posterize": (8,),
    "autocontrast": (0,),
    "equalize": (0,),
    "sharpness": (1,),
    "blur": (0,),
    "noise": (0,),
    "cutout": (0, 0, 0),
}
_COLOR_STEPS = COLOR | {"exposure"}


@dataclass(frozen=True)
class Step:
    """One operation with the values that each image has drawn, `(images, values)`."""

    name: str
    values: Floats


@dataclass(frozen=True)
class Plan:
    """What happens to each image of a batch: geometry and color in order, then `after`."""

    geometry: tuple[Step, ...]
    color: tuple[Step, ...]
    after: tuple[Step, ...]


def key(*words: int) -> Words:
    """Two random words that depend on all of these."""
    return np.random.SeedSequence(words).generate_state(2, np.uint64).astype(np.uint64)


def draw(key_: Words, slots: int, indices: Words) -> Floats:
    """Uniform numbers in [0, 1), `(indices, slots, 4)`: SplitMix64 at the places of each index."""
    each = slots * _DRAWS
    places = indices[:, None] * np.uint64(each) + np.arange(each, dtype=np.uint64)
    z = places * _GOLDEN + key_[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z ^= z >> np.uint64(31)
    uniform: Floats = (z >> np.uint64(11)) * 2.0**-53
    return uniform.reshape(len(indices), slots, _DRAWS)


def slots(policy: Policy) -> int:
    """How many slots of numbers an image draws."""
    return sum(map(_slots, policy.operations))


def plan(policy: Policy, draws: Floats) -> Plan:
    """What each image has drawn."""
    steps: list[Step] = []
    at = 0
    for operation in policy.operations:
        mine = draws[:, at : at + _slots(operation)]
        at += _slots(operation)
        if operation.name in MIX or operation.name == "resize":
            continue
        for step in _steps(operation, mine):
            happens = mine[:, :1, -1] < operation.p
            neutral = _NEUTRAL[step.name]
            values = step.values if operation.p >= 1 else np.where(happens, step.values, neutral)
            steps.append(Step(step.name, values))
    geometry = [s for s in steps if s.name not in _COLOR_STEPS and s.name not in AFTER]
    return Plan(
        tuple(geometry),
        tuple(step for step in steps if step.name in _COLOR_STEPS),
        tuple(step for name in AFTER for step in steps if step.name == name),
    )


def _slots(operation: Operation) -> int:
    if operation.name == "randaugment":
        return int(operation.low)
    return _SLOTS.get(operation.name, 1)


def _steps(operation: Operation, draws: Floats) -> list[Step]:
    low, high = operation.low, operation.high
    first = draws[:, 0]
    between = low + (high - low) * first[:, :1]
    match operation.name:
        case "shift":
            return [Step("shift", low + (high - low) * first[:, :2])]
        case "shear":
            return [Step("shear_x", np.tan(np.deg2rad(between)))]
        case "hflip" | "vflip":
            name = "mirror_x" if operation.name == "hflip" else "mirror_y"
            return [Step(name, np.where(first[:, :1] < high, -1.0, 1.0))]
        case "crop":
            return [Step("crop", np.hstack([low + (1 - low) * first[:, :1], first[:, 1:3]]))]
        case "perspective":
            return [Step("perspective", high * draws.reshape(len(draws), -1)[:, 4:])]
        case "autocontrast" | "equalize":
            return [Step(operation.name, (first[:, :1] < high).astype(float))]
        case "blur":
            return [Step("blur", high * first[:, :1])]
        case "cutout":
            side = np.full_like(first[:, :1], high)
            return [Step("cutout", np.hstack([side, first[:, :2]]))]
        case "randaugment":
            rounds = [draws[:, k] for k in range(int(low))]
            magnitudes = [np.full(len(draws), high / _MOST_MAGNITUDE)] * len(rounds)
            return _automatic(_RANDAUGMENT, rounds, magnitudes)
        case "trivialaugment":
            return _automatic(_TRIVIALAUGMENT, [first], [np.floor(31 * first[:, 2]) / 30])
    return [Step(operation.name, between)]


# What RandAugment (and TrivialAugment, "wide") chooses from: the values at full magnitude, to
# either side. `posterize` takes off so many bits, `solarize` inverts above a falling threshold.
_MOST_MAGNITUDE = 30
_RANDAUGMENT: dict[str, float] = {
    "identity": 0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "shift_x": 0.45,
    "shift_y": 0.45,
    "rotate": 30,
    "exposure": 0.9,
    "saturation": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "posterize": 4,
    "solarize": 1,
    "autocontrast": 1,
    "equalize": 1,
}
_TRIVIALAUGMENT = (
    _RANDAUGMENT
    | dict.fromkeys(("shear_x", "shear_y", "exposure", "saturation", "contrast", "sharpness"), 0.99)
    | {"rotate": 135, "posterize": 6}
)


def _automatic(
    most: dict[str, float], rounds: Sequence[Floats], magnitudes: Sequence[Floats]
) -> list[Step]:
    """For each round the steps of the operations that some image has chosen."""
    steps = []
    names = list(most)
    for draws, magnitude in zip(rounds, magnitudes, strict=True):
        chosen = (draws[:, 0] * len(names)).astype(int)
        signed = magnitude * np.where(draws[:, 1] < 0.5, -1, 1)
        for number in np.unique(chosen):
            name = names[number]
            if name == "identity":
                continue
            step = _automatic_step(name, most[name], magnitude[:, None], signed[:, None])
            here = (chosen == number)[:, None]
            steps.append(Step(step.name, np.where(here, step.values, _NEUTRAL[step.name])))
    return steps


def _automatic_step(name: str, most: float, magnitude: Floats, signed: Floats) -> Step:
    match name:
        case "shift_x":
            return Step("shift", np.hstack([most * signed, 0 * signed]))
        case "shift_y":
            return Step("shift", np.hstack([0 * signed, most * signed]))
        case "posterize":
            return Step(name, 8 - np.round(most * magnitude))
        case "solarize":
            return Step(name, 1 - most * magnitude)
        case "autocontrast" | "equalize":
            return Step(name, np.ones_like(signed))
    return Step(name, _NEUTRAL[name][0] + most * signed)


# --- geometry


def warps(
    steps: Sequence[Step], count: int, height: int, width: int, out: tuple[int, int]
) -> Floats:
    """For each image the matrix `(3, 3)` from pixels of the result, of size `out`, to the source's.

    Coordinates are (x, y, 1) with the centers of pixels at whole numbers.
    """
    # The operations act about the center of the image.
    matrix = np.tile(np.diag([width / out[1], height / out[0], 1.0]), (count, 1, 1))
    # From the result back to the source: the last operation is undone first.
    for step in reversed(steps):
        matrix = _undo(step, height, width) @ matrix
    matrix[:, :, 2] -= matrix[:, :, :2] @ [(out[1] - 1) / 2, (out[0] - 1) / 2]
    matrix[:, :2] += np.array([[(width - 1) / 2], [(height - 1) / 2]]) * matrix[:, 2:]
    return matrix


def _undo(step: Step, height: int, width: int) -> Floats:
    """The inverse of one operation for each image: x to the right, y down, from the center."""
    values = step.values
    value = values[:, 0]
    if step.name == "perspective":
        return _from_corners(values, height, width)
    undo = np.tile(np.eye(3), (len(values), 1, 1))
    match step.name:
        case "rotate":
            angle = np.deg2rad(value)
            undo[:, 0, 0] = undo[:, 1, 1] = np.cos(angle)
            undo[:, 1, 0] = np.sin(angle)
            undo[:, 0, 1] = -undo[:, 1, 0]
        case "shift":
            undo[:, :2, 2] = -values * [width, height]
        case "scale":
            undo[:, 0, 0] = undo[:, 1, 1] = 1 / value
        case "shear_x":
            undo[:, 0, 1] = -value
        case "shear_y":
            undo[:, 1, 0] = -value
        case "mirror_x":
            undo[:, 0, 0] = value
        case "mirror_y":
            undo[:, 1, 1] = value
        case "crop":
            undo[:, 0, 0] = undo[:, 1, 1] = value
            undo[:, :2, 2] = (1 - values[:, :1]) * (values[:, 1:3] - 0.5) * [width, height]
    return undo


def _from_corners(values: Floats, height: int, width: int) -> Floats:
    """The homographies that take the corners to ones moved in by these parts of half the sides."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    moved = corners * (1 - values.reshape(-1, 4, 2))
    system = np.zeros((len(values), 8, 8))
    for row, (x, y) in enumerate(corners):
        for axis in (0, 1):
            to = moved[:, row, axis]
            system[:, 2 * row + axis, 3 * axis : 3 * axis + 3] = x, y, 1
            system[:, 2 * row + axis, 6] = -x * to
            system[:, 2 * row + axis, 7] = -y * to
    found = np.linalg.solve(system, moved.reshape(-1, 8, 1))[:, :, 0]
    return np.concatenate([found, np.ones((len(values), 1))], axis=1).reshape(-1, 3, 3)


def shrinks(warps_: Floats, height: int, width: int) -> Floats:
    """How many times x and y of the source shrink at the middle of it, `(n, 2)`."""
    linear = warps_[:, :2, :2]
    if warps_[:, 2, :2].any():
        # The derivative of the homography at the point of the result that shows the middle.
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        point = np.linalg.solve(warps_, np.array([[*middle, 1.0]]).T)
        scale = warps_[:, 2:] @ (point / point[:, 2:])
        linear = (linear - middle[:, None] * warps_[:, 2:, :2]) / scale
    times: Floats = np.linalg.norm(linear, axis=2)
    return times


# --- color


def matrices(steps: Sequence[Step]) -> Floats:
    """All color operations of each image as matrices `(n, 3, 4)` on RGB."""
    count = len(steps[0].values)
    linear = np.tile(np.eye(3), (count, 1, 1))
    offset = np.zeros((count, 3, 1))
    for step in steps:
        value = step.values[:, :, None]
        match step.name:
            case "brightness":
                offset += 255 * value
            case "exposure":
                linear *= value
                offset *= value
            case "contrast":
                linear *= value
                offset = value * offset + 127.5 * (1 - value)
            case "saturation":
                mixed = value * np.eye(3) + (1 - value) * _LUMINANCE
                linear, offset = mixed @ linear, mixed @ offset
            case "hue":
                turned = _hue(2 * math.pi * value)
                linear, offset = turned @ linear, turned @ offset
    return np.concatenate([linear, offset], axis=2)


def tables(steps: Sequence[Step]) -> NDArray[np.uint8]:
    """The color operations of each image as look-up tables `(n, 256)`, for gray images."""
    values = np.tile(np.arange(256, dtype=np.float64), (len(steps[0].values), 1))
    for step in steps:
        match step.name:
            case "brightness":
                values += 255 * step.values
            case "exposure":
                values *= step.values
            case "contrast":
                values = 127.5 + step.values * (values - 127.5)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _hue(angles: Floats) -> Floats:
    """Rotations of the color plane of YIQ by `(n, 1, 1)`, as matrices `(n, 3, 3)` on RGB."""
    turned: Floats = _GRAYS + np.cos(angles) * _COLORS + np.sin(angles) * _TURNED
    return turned
