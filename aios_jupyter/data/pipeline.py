"""A policy on images with OpenCV: one warp, one color step, then in place what cannot be fused.

A leaf module: it imports numpy and OpenCV, and is imported only where images are augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import plan
from .plan import Floats, Plan, Step
from .policy import Policy, parse

Image = NDArray[np.uint8]
# Changes an image's colors by a matrix, or a table, into another.
Paint = Callable[[Image, NDArray[Any], Image], object]

BORDER = cv2.BORDER_REFLECT_101
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
# warpAffine counts pixels in 16 bits with a sign.
_MOST_PIXELS = 32766
# Larger sides lose their odd last line when they are halved, which is many times as fast.
_LEAST_CUT = 64
# An axis alone that shrinks more than this is halved, too.
_MOST_ALONE = 3.0
# Halving both axes must not leave one that has to be enlarged by more than the inverse of this.
_LEAST_LEFT = 0.7
# Bytes of an image: smaller ones are in the cache soon, larger ones never.
_LEAST_STAGED, _MOST_STAGED = 2**17, 2**22
_HERE = np.array([0.0, 0.0, 1.0])
# A blur of less would change nothing.
_LEAST_SIGMA = 0.05
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


class _Warp(NamedTuple):
    """How sources get into their targets.

    Attributes
    ----------
    function
        `cv2.warpAffine`, or what takes the same.
    matrices, size
        Of each image, and of every target, width first.
    ready
        Makes image `i` and its matrix ready for it; None where they are.
    """

    function: Callable[..., object]
    matrices: Floats
    size: tuple[int, int]
    ready: Callable[[int, Image, Floats], tuple[Image, Floats]] | None = None

    def prepared(self, planes: Image) -> Iterable[tuple[Image, Floats]]:
        """Each source with its matrix, as the function takes them."""
        if self.ready is None:
            return zip(planes, self.matrices, strict=True)
        return map(self.ready, range(len(planes)), planes, self.matrices)


class Pipeline:
    """Augments uint8 images, gray `(h, w)` or `(h, w, 1)`, or RGB `(h, w, 3)`.

    What a warp uncovers is filled with the image's mirror image. Resampling is bilinear; an image
    that shrinks to less than half is first halved by averaging, and so is one of its axes that
    shrinks to less than a third. Mixing needs labels: `mix` and `aios_jupyter.augment` do it.

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
        self._slots = plan.slots(self.policy)
        self._resize = next(
            (op for op in reversed(self.policy.operations) if op.name == "resize"), None
        )
        self._keys: dict[int, plan.Words] = {}
        self._noise_key = plan.key(seed, 1)

    def resize_only(self) -> Pipeline | None:
        """What gives an original the size of its copies; None where that does not change."""
        return Pipeline(Policy((self._resize,))) if self._resize else None

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result for an image of this shape."""
        if self._resize is None:
            return tuple(shape)
        return (int(self._resize.low), int(self._resize.high), *shape[2:])

    def apply(
        self,
        images: NDArray[Any],
        first: int = 0,
        copy: int = 1,
        *,
        indices: NDArray[Any] | None = None,
        out: Image | None = None,
    ) -> Image:
        """Augment images of one size.

        Parameters
        ----------
        images
            uint8, `(n, h, w)` or `(n, h, w, channels)` with 1 or 3 channels.
        first
            Index of the first image in its dataset; the others follow it.
        copy
            Number of the copy; each gives other results.
        indices
            The index of each image, where they do not follow each other.
        out
            Where the result goes, in place of a new array.
        """
        check_images(images)
        images = np.asarray(images)
        count = len(images)
        if indices is None:
            indices = np.arange(first, first + count)
        shape = self.output_shape(images.shape[1:])
        if out is None:
            out = np.empty((count, *shape), np.uint8)
        # OpenCV takes a single channel without an axis of its own.
        gray = images.shape[3:] != (3,)
        planes = images.reshape(images.shape[:3]) if gray else images
        targets = out.reshape(count, *shape[:2]) if gray else out
        drawn = self.plan(indices, copy)
        warp = self._warper(drawn, planes, targets)
        paint, colors = painter(drawn.color, gray)
        if colors is None:
            colors = warp.matrices  # there is nothing to paint with
        # OpenCV is called from here: a function of ours for each small image would be felt.
        function, size = warp.function, warp.size
        for (source, matrix), color, target in zip(
            warp.prepared(planes), colors, targets, strict=True
        ):
            function(source, matrix, size, target, _WARP, BORDER)
            if paint is not None:
                paint(target, color, target)
        for i, target in enumerate(targets if drawn.after else ()):
            self._finish(target, drawn.after, i, int(indices[i]), copy)
        return out

    def plan(self, indices: NDArray[Any], copy: int) -> Plan:
        """What the images of these indices draw."""
        if copy not in self._keys:
            if len(self._keys) > 1000:
                self._keys.clear()
            self._keys[copy] = plan.key(self.seed, 0, copy)
        words = np.asarray(indices).astype(np.uint64)
        return plan.plan(self.policy, plan.draw(self._keys[copy], self._slots, words))

    def warps(self, drawn: Plan, count: int, height: int, width: int) -> Floats:
        """For each image the matrix `(3, 3)` from pixels of the result to those of the source."""
        out = self.output_shape((height, width))
        return plan.warps(drawn.geometry, count, height, width, (out[0], out[1]))

    def _warper(self, drawn: Plan, planes: Image, targets: Image) -> _Warp:
        count, height, width = planes.shape[:3]
        shape = targets.shape[1:3]
        size = (shape[1], shape[0])
        if not drawn.geometry and shape == (height, width):
            return _Warp(_copy, np.empty((count, 0)), size)
        warps = self.warps(drawn, count, height, width)
        affine = not warps[:, 2, :2].any()
        times = halvings(plan.shrinks(warps, height, width))
        function = cv2.warpAffine if affine else cv2.warpPerspective
        matrices = np.ascontiguousarray(warps[:, :2]) if affine else warps
        # A warp reads across the rows of its source: from memory that costs twice what it costs
        # from the processor's cache, into which copying the source brings it.
        staged = count > 1 and _LEAST_STAGED < planes[0].nbytes < _MOST_STAGED
        stage = np.empty_like(planes[0]) if staged else None

        def ready(i: int, source: Image, matrix: Floats) -> tuple[Image, Floats]:
            if times is not None and times[i].any():
                return _halve(source, matrix, *times[i].tolist())
            if stage is not None:
                np.copyto(stage, source)
                return stage, matrix
            return source, matrix

        large = times is not None or stage is not None
        return _Warp(function, matrices, size, ready if large else None)

    def _finish(self, image: Image, steps: Sequence[Step], i: int, index: int, copy: int) -> None:
        random: np.random.Generator | None = None
        for step in steps:
            value = float(step.values[i, 0])
            if step.name == "noise":
                if value == 0:
                    continue
                if random is None:
                    bits = np.random.Philox(key=self._noise_key, counter=[0, 0, index, copy])
                    random = np.random.Generator(bits)
                grain = random.standard_normal(image.shape, dtype=np.float32)
                grain *= np.float32(255 * value)
                cv2.add(image, np.rint(grain).astype(np.int16), dst=image, dtype=cv2.CV_8U)
            elif step.name == "cutout":
                _cut_out(image, *step.values[i].tolist())
            else:
                _AFTER[step.name](image, value)


def _copy(source: Image, _matrix: Floats, _size: object, target: Image, *_flags: int) -> None:
    np.copyto(target, source)


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


def painter(steps: Sequence[Step], gray: bool) -> tuple[Paint | None, NDArray[Any] | None]:
    """What changes the colors of an image, and by what those of each; None where nothing does."""
    if gray:
        steps = [step for step in steps if step.name not in {"saturation", "hue"}]
    if not steps:
        return None, None
    if gray:
        return cv2.LUT, plan.tables(steps)
    return cv2.transform, plan.matrices(steps).astype(np.float32)


def halvings(shrinks: Floats) -> NDArray[np.int64] | None:
    """How often x and y of each image are halved before the warp; None where none is."""
    mean, least = np.sqrt(shrinks.prod(axis=1)), shrinks.min(axis=1)
    both = np.log2(np.minimum(mean, least / _LEAST_LEFT).clip(1)).astype(int)[:, None]
    alone = np.ceil(np.log2((shrinks / 2.0**both / _MOST_ALONE).clip(1))).astype(int)
    times: NDArray[np.int64] = both + alone
    return times if times.any() else None


def _halve(source: Image, matrix: Floats, x_times: int, y_times: int) -> tuple[Image, Floats]:
    """Average pairs of columns and of rows so often, and let the matrix point there."""
    moved = matrix.copy()
    while x_times > 0 or y_times > 0:
        source, ratio = _halved(source, x_times > 0, y_times > 0)
        for row in (0, 1):
            moved[row] *= ratio[row]
            # Whole coordinates are the centers of pixels.
            moved[row] += (ratio[row] - 1) / 2 * (moved[2] if len(moved) == 3 else _HERE)
        x_times, y_times = x_times - 1, y_times - 1
    return source, moved


def _halved(source: Image, along_x: bool, along_y: bool) -> tuple[Image, tuple[float, float]]:
    height, width = source.shape[:2]
    if along_x and width >= _LEAST_CUT:
        width -= width % 2
    if along_y and height >= _LEAST_CUT:
        height -= height % 2
    source = source[:height, :width]
    small = (max(1, width // 2) if along_x else width, max(1, height // 2) if along_y else height)
    # Bilinear at exactly one half is the average, too, and faster on one axis alone.
    alone = along_x != along_y and small[0] * (1 + along_x) == width
    alone = alone and small[1] * (1 + along_y) == height
    how = cv2.INTER_LINEAR if alone else cv2.INTER_AREA
    ratio = (small[0] / width, small[1] / height)
    return cv2.resize(source, small, interpolation=how), ratio


def _solarize(image: Image, threshold: float) -> None:
    if threshold <= 1:
        levels = np.arange(256)
        inverted = np.where(levels >= threshold * 255, 255 - levels, levels).astype(np.uint8)
        cv2.LUT(image, inverted, dst=image)


def _posterize(image: Image, bits: float) -> None:
    if bits < 8:
        image &= np.uint8(0xFF << (8 - int(bits)) & 0xFF)


def _autocontrast(image: Image, happens: float) -> None:
    if not happens:
        return
    for plane in _planes(image):
        low, high = int(plane.min()), int(plane.max())
        if low < high:
            stretched = (np.arange(256) - low) * (255 / (high - low))
            plane[...] = cv2.LUT(plane, np.rint(stretched).clip(0, 255).astype(np.uint8))


def _equalize(image: Image, happens: float) -> None:
    if happens:
        for plane in _planes(image):
            plane[...] = cv2.equalizeHist(plane)


def _planes(image: Image) -> list[Image]:
    return [image] if image.ndim == 2 else [image[..., k] for k in range(image.shape[2])]


def _sharpen(image: Image, factor: float) -> None:
    if factor != 1:
        smooth = cv2.filter2D(image, -1, _SMOOTH, borderType=BORDER)
        cv2.addWeighted(image, factor, smooth, 1 - factor, 0, dst=image)


def _blur(image: Image, sigma: float) -> None:
    if sigma > _LEAST_SIGMA:
        image[...] = cv2.GaussianBlur(image, (0, 0), sigma, borderType=BORDER)


def _cut_out(image: Image, part: float, down: float, right: float) -> None:
    height, width = image.shape[:2]
    side = round(part * min(height, width))
    top = int(down * (height - side + 1))
    left = int(right * (width - side + 1))
    image[top : top + side, left : left + side] = 0


_AFTER: dict[str, Callable[[Image, float], None]] = {
    "solarize": _solarize,
    "posterize": _posterize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "sharpness": _sharpen,
    "blur": _blur,
}
