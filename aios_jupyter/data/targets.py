"""Boxes, masks and key points, moved by the same warp as their image.

A leaf module: it imports numpy and OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from .pipeline import BORDER, Image, Pipeline
from .plan import Floats

# Parts of a window that a straight line bends into are found by points on its edges.
_CORNERS = np.array([[0, 1], [2, 1], [2, 3], [0, 3]])
_NEAREST = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP


@dataclass(frozen=True)
class Labeled:
    """An augmented image with what was said about it.

    Attributes
    ----------
    image
        The image.
    boxes
        `(k, 4)`: x and y of the edges, first the lower ones. Only those that are still seen.
    kept
        Which of the boxes given these are, to pick their labels.
    masks
        As given, in the image's new size.
    points
        `(n, 2)`: x and y of each point given, also of those that have left the image.
    inside
        Whether each point is still in the image.
    """

    image: Image
    boxes: Floats | None = None
    kept: NDArray[np.intp] | None = None
    masks: NDArray[Any] | None = None
    points: Floats | None = None
    inside: NDArray[np.bool_] | None = None


def apply_labeled(
    pipeline: Pipeline,
    image: NDArray[Any],
    index: int = 0,
    copy: int = 1,
    *,
    boxes: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    points: ArrayLike | None = None,
    least_visible: float = 0.1,
) -> Labeled:
    """Augment one image and what is known about it.

    What the warp uncovers shows the image's mirror image, and so do masks; boxes and points are
    of the thing itself, not of its mirror image.

    Parameters
    ----------
    boxes
        `(n, 4)` edges in pixels: `image[y0:y1, x0:x1]` is the box `(x0, y0, x1, y1)`. The result
        is the smallest upright box around the turned one, cut at the image's edges.
    masks
        Whole numbers, `(h, w)` or `(n, h, w)`; each pixel takes the nearest one's.
    points
        `(n, 2)` in pixels: `image[y, x]` is the point `(x, y)`.
    least_visible
        Boxes of which less is left in the image are dropped.

    Raises
    ------
    UsageError
        A shape does not fit, or a number is not finite.
    """
    result = pipeline.apply(image[None], index, copy)[0]
    height, width = image.shape[:2]
    out_height, out_width = result.shape[:2]
    drawn = pipeline.plan(np.array([index]), copy)
    warp = pipeline.warps(drawn, 1, height, width)[0]
    there = np.linalg.inv(warp)
    found: dict[str, Any] = {}
    if boxes is not None:
        edges = _numbers(boxes, 4, "boxes")
        if (edges[:, 2:] < edges[:, :2]).any():
            raise UsageError("A box has its right or lower edge first; give x0, y0, x1, y1.")
        found["boxes"], found["kept"] = _move_boxes(
            edges, there, (out_width, out_height), least_visible
        )
    if points is not None:
        moved = _move(_numbers(points, 2, "points"), there)
        found["points"] = moved
        size = np.array([out_width, out_height])
        found["inside"] = ((moved >= -0.5) & (moved <= size - 0.5)).all(axis=1)
    if masks is not None:
        found["masks"] = _warp_masks(np.asarray(masks), warp, (height, width), result.shape)
    return Labeled(result, **found)


def _numbers(values: ArrayLike, columns: int, what: str) -> Floats:
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return np.empty((0, columns))
    if array.ndim != 2 or array.shape[1] != columns:
        raise UsageError(
            f"{what} must have the shape (n, {columns}), but these have {array.shape}."
        )
    if not np.isfinite(array).all():
        raise UsageError(
            f"{what} must be finite numbers, but there is {array[~np.isfinite(array)][0]}."
        )
    return array


def _move(points: Floats, there: Floats) -> Floats:
    """Points through a homography."""
    moved = np.column_stack([points, np.ones(len(points))]) @ there.T
    result: Floats = moved[:, :2] / moved[:, 2:]
    return result


def _move_boxes(
    edges: Floats, there: Floats, size: tuple[int, int], least_visible: float
) -> tuple[Floats, NDArray[np.intp]]:
    # Edges lie half a pixel before the centers, which the warp is about.
    corners = edges.reshape(-1, 4)[:, _CORNERS].reshape(-1, 2) - 0.5
    moved = _move(corners, there).reshape(-1, 4, 2) + 0.5
    whole = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
    cut = whole.clip(0, [*size, *size])
    seen = _area(cut) > 0
    kept = np.flatnonzero(seen & (_area(cut) >= least_visible * _area(whole)))
    return cut[kept], kept


def _area(boxes: Floats) -> Floats:
    area: Floats = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return area


def _warp_masks(
    masks: NDArray[Any], warp: Floats, shape: tuple[int, int], out: tuple[int, ...]
) -> NDArray[Any]:
    if masks.ndim not in {2, 3} or masks.shape[-2:] != shape:
        raise UsageError(
            f"masks must have the image's shape {shape}, or (n, *{shape}), but have {masks.shape}."
        )
    if masks.dtype.kind not in "bui":
        raise UsageError(f"masks must be whole numbers, but are {masks.dtype}.")
    layers = masks.reshape(-1, *shape)
    result = np.empty((len(layers), *out[:2]), masks.dtype)
    # OpenCV knows few types; in float64 all that is common is exact.
    through = np.uint8 if masks.dtype.itemsize == 1 and masks.dtype.kind in "bu" else np.float64
    for layer, target in zip(layers, result, strict=True):
        target[...] = cv2.warpPerspective(
            layer.astype(through), warp, (out[1], out[0]), flags=_NEAREST, borderMode=BORDER
        )
    return result.reshape(*masks.shape[:-2], *out[:2])
