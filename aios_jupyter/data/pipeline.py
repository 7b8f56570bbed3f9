"""A policy, compiled: for each image one warp, one color step, then what cannot be fused.

A leaf module: it imports numpy and OpenCV, and is imported only where images are augmented.

What an image draws depends on (seed, its index, the number of the copy) and nothing else: each
copy has its own key of the counter-based generator Philox, and image `i` reads the counters from
`i * operations` on. So any division into chunks and workers gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .policy import COLOR, GEOMETRIC, Operation, Policy, parse

Image = NDArray[np.uint8]
_Floats = NDArray[np.float64]

# One step of Philox's counter makes four numbers: as many as an operation may draw.
_DRAWS = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
# warpAffine counts pixels in 16 bits with a sign.
_MOST_PIXELS = 32766


class Pipeline:
    """Augments uint8 images, gray `(h, w)` or `(h, w, 1)`, or RGB `(h, w, 3)`.

    What a warp uncovers is filled with the image's mirror image. Resampling is bilinear; an image
    that shrinks to less than half is first halved by averaging.

    Parameters
    ----------
    policy
        A policy or its text.
    seed
        Not negative.
    """

    def __init__(self, policy: Policy | str, seed: int = 0) -> None:
        if seed < 0:
            raise UsageError(f"The seed must not be negative, but is {seed}.")
        self.policy = parse(policy)
        self.seed = seed
        numbered = list(enumerate(self.policy.operations))
        self._geometric = [(i, op) for i, op in numbered if op.name in GEOMETRIC]
        self._color = [(i, op) for i, op in numbered if op.name in COLOR]
        self._after = [
            (i, op) for name in ("blur", "noise", "cutout") for i, op in numbered if op.name == name
        ]
        self._noise_key = _key(seed, 1)

    def resize_only(self) -> Pipeline | None:
        """What gives an original the size of its copies; None where that does not change."""
        last = [op for _, op in self._geometric if op.name == "resize"][-1:]
        return Pipeline(Policy(tuple(last))) if last else None

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result for an image of this shape."""
        for _, operation in reversed(self._geometric):
            if operation.name == "resize":
                return (int(operation.low), int(operation.high), *shape[2:])
        return tuple(shape)

    def apply(self, images: NDArray[Any], first: int = 0, copy: int = 1) -> Image:
        """Augment images of one size.

        Parameters
        ----------
        images
            uint8, `(n, h, w)` or `(n, h, w, channels)` with 1 or 3 channels.
        first
            Index of the first image in its dataset; the others follow it.
        copy
            Number of the copy; each gives other results.
        """
        check_images(images)
        images = np.asarray(images)
        count, height, width = images.shape[:3]
        shape = self.output_shape(images.shape[1:])
        # OpenCV takes a single channel without an axis of its own.
        planes = images[..., 0] if images.shape[3:] == (1,) else images
        out = np.empty((count, *shape[:2], *planes.shape[3:]), np.uint8)
        draws = self._draws(first, count, copy)
        warps = self._warps(draws, height, width, shape) if self._geometric else None
        paint = self._paint(draws, gray=planes.ndim == 3)
        for i in range(count):
            target = out[i]
            if warps is None:
                target[...] = planes[i]
            else:
                _warp(planes[i], warps[i], target)
            if paint is not None:
                paint(i, target)
            if self._after:
                self._finish(target, draws[i], first + i, copy)
        return out.reshape(count, *shape)

    def _draws(self, first: int, count: int, copy: int) -> _Floats:
        """Uniform numbers in [0, 1), `(count, operations, 4)`."""
        operations = len(self.policy.operations)
        bits = np.random.Philox(key=_key(self.seed, 0, copy))
        bits.advance(first * operations)
        return np.random.Generator(bits).random((count, operations, _DRAWS))

    def _warps(self, draws: _Floats, height: int, width: int, shape: Sequence[int]) -> _Floats:
        """For each image the matrix `(2, 3)` from pixels of the result to those of the source."""
        count = len(draws)
        out_height, out_width = shape[:2]
        linear = np.zeros((count, 2, 2))
        linear[:, 0, 0] = width / out_width
        linear[:, 1, 1] = height / out_height
        move = np.zeros((count, 2, 1))
        # From the result back to the source: the last operation is undone first.
        for position, operation in reversed(self._geometric):
            undo, offset = _undo(operation, draws[:, position], height, width)
            linear = undo @ linear
            move = undo @ move + offset[:, :, None]
        # The operations act about the center of the image, and centers of pixels are whole.
        center_in = np.array([[(width - 1) / 2], [(height - 1) / 2]])
        center_out = np.array([[(out_width - 1) / 2], [(out_height - 1) / 2]])
        return np.concatenate([linear, center_in + move - linear @ center_out], axis=2)

    def _paint(self, draws: _Floats, gray: bool) -> Callable[[int, Image], None] | None:
        """What changes the colors of image `i` in place, or None."""
        if not self._color:
            return None
        if gray or all(op.name in {"brightness", "contrast"} for _, op in self._color):
            tables = self._tables(draws)

            def look_up(i: int, image: Image) -> None:
                cv2.LUT(image, tables[i], dst=image)

            return look_up
        matrices = self._matrices(draws)

        def transform(i: int, image: Image) -> None:
            cv2.transform(image, matrices[i], dst=image)

        return transform

    def _tables(self, draws: _Floats) -> Image:
        """Brightness and contrast as look-up tables `(n, 256)`."""
        values = np.tile(np.arange(256, dtype=np.float64), (len(draws), 1))
        for position, operation in self._color:
            drawn = _between(operation, draws[:, position, 0])[:, None]
            if operation.name == "brightness":
                values += 255 * drawn
            elif operation.name == "contrast":
                values = 127.5 + drawn * (values - 127.5)
        return np.rint(values).clip(0, 255).astype(np.uint8)

    def _matrices(self, draws: _Floats) -> _Floats:
        """All color operations as matrices `(n, 3, 4)` on RGB."""
        count = len(draws)
        linear = np.tile(np.eye(3), (count, 1, 1))
        offset = np.zeros((count, 3, 1))
        for position, operation in self._color:
            drawn = _between(operation, draws[:, position, 0])[:, None, None]
            step, plus = np.eye(3)[None], np.zeros((1, 1, 1))
            match operation.name:
                case "brightness":
                    plus = 255 * drawn
                case "contrast":
                    step, plus = drawn * np.eye(3), 127.5 * (1 - drawn)
                case "saturation":
                    step = drawn * np.eye(3) + (1 - drawn) * _LUMINANCE
                case "hue":
                    step = _hue(2 * math.pi * drawn[:, 0, 0])
            linear, offset = step @ linear, step @ offset + plus
        return np.concatenate([linear, offset], axis=2)

    def _finish(self, image: Image, draws: _Floats, index: int, copy: int) -> None:
        random: np.random.Generator | None = None
        for position, operation in self._after:
            if operation.name == "blur":
                sigma = operation.high * draws[position, 0]
                if sigma > 0.05:
                    image[...] = cv2.GaussianBlur(image, (0, 0), sigma)
            elif operation.name == "noise":
                if random is None:
                    bits = np.random.Philox(key=self._noise_key, counter=[0, 0, index, copy])
                    random = np.random.Generator(bits)
                grain = random.standard_normal(image.shape, dtype=np.float32)
                grain *= np.float32(255 * operation.high)
                cv2.add(image, np.rint(grain).astype(np.int16), dst=image, dtype=cv2.CV_8U)
            else:
                _cut_out(image, operation.high, draws[position])


def check_images(images: NDArray[Any]) -> None:
    """Raise `UsageError` for what `Pipeline` does not take."""
    if images.dtype != np.uint8:
        raise UsageError(
            f"Augmentation works on uint8 images, but these are {images.dtype}; "
            "convert them, for example with (255 * x).astype('uint8')."
        )
    if images.ndim not in {3, 4} or (images.ndim == 4 and images.shape[3] not in {1, 3}):
        raise UsageError(
            "Augmentation takes images of shape (n, height, width) or (n, height, width, 1 or 3), "
            f"but these are {images.shape}."
        )
    if not 0 < min(images.shape[1:3]) <= max(images.shape[1:3]) <= _MOST_PIXELS:
        raise UsageError(
            f"An image side must be 1 to {_MOST_PIXELS} pixels, but these are {images.shape[1:3]}."
        )


def _key(*words: int) -> NDArray[np.uint64]:
    return np.random.SeedSequence(words).generate_state(2, np.uint64).astype(np.uint64)


def _between(operation: Operation, draws: _Floats) -> _Floats:
    return operation.low + (operation.high - operation.low) * draws


def _undo(operation: Operation, draws: _Floats, height: int, width: int) -> tuple[_Floats, _Floats]:
    """The inverse of one operation for each image: `(n, 2, 2)` and an offset `(n, 2)` in pixels.

    Coordinates are (x to the right, y down) from the center of the image.
    """
    count = len(draws)
    linear = np.tile(np.eye(2), (count, 1, 1))
    offset = np.zeros((count, 2))
    value = _between(operation, draws[:, 0])
    size = np.array([width, height])
    match operation.name:
        case "rotate":
            angle = np.deg2rad(value)
            linear[:, 0, 0] = linear[:, 1, 1] = np.cos(angle)
            linear[:, 1, 0] = np.sin(angle)
            linear[:, 0, 1] = -linear[:, 1, 0]
        case "shift":
            offset = -_between(operation, draws[:, :2]) * size
        case "scale":
            linear /= value[:, None, None]
        case "shear":
            linear[:, 0, 1] = -np.tan(np.deg2rad(value))
        case "hflip":
            linear[:, 0, 0] = np.where(draws[:, 0] < operation.high, -1, 1)
        case "vflip":
            linear[:, 1, 1] = np.where(draws[:, 0] < operation.high, -1, 1)
        case "crop":
            side = operation.low + (1 - operation.low) * draws[:, 0]
            linear *= side[:, None, None]
            offset = (1 - side)[:, None] * (draws[:, 1:3] - 0.5) * size
    return linear, offset


def _warp(source: Image, matrix: _Floats, target: Image) -> None:
    # The root of the determinant is how many times the image shrinks.
    shrinks = math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    if shrinks >= 2:
        source, matrix = _reduce(source, matrix, 2 ** int(math.log2(shrinks)))
    cv2.warpAffine(
        source,
        matrix,
        (target.shape[1], target.shape[0]),
        dst=target,
        flags=_WARP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _reduce(source: Image, matrix: _Floats, times: int) -> tuple[Image, _Floats]:
    height, width = source.shape[:2]
    small = (max(1, round(width / times)), max(1, round(height / times)))
    ratio = np.array([[small[0] / width], [small[1] / height]])
    moved = matrix * ratio
    moved[:, 2:] += (ratio - 1) / 2
    return cv2.resize(source, small, interpolation=cv2.INTER_AREA), moved


def _hue(angles: _Floats) -> _Floats:
    """Rotations of the color plane of YIQ, as matrices `(n, 3, 3)` on RGB."""
    turn = np.tile(np.eye(3), (len(angles), 1, 1))
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angles)
    turn[:, 2, 1] = np.sin(angles)
    turn[:, 1, 2] = -turn[:, 2, 1]
    turned: _Floats = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return turned


def _cut_out(image: Image, part: float, draws: _Floats) -> None:
    height, width = image.shape[:2]
    side = round(part * min(height, width))
    top = int(draws[0] * (height - side + 1))
    left = int(draws[1] * (width - side + 1))
    image[top : top + side, left : left + side] = 0
