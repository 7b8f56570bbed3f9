"""Mix images of a batch with each other, labels in proportion: mixup and cutmix.

A leaf module: it imports numpy and OpenCV.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from .pipeline import Image
from .policy import MIX, Operation, Policy

Floats32 = NDArray[np.float32]


def as_weights(labels: ArrayLike, classes: int | None) -> Floats32:
    """Labels as the weights of the classes (or what else can be averaged), `(n, k)` float32.

    Raises
    ------
    UsageError
        They are numbers of classes, and how many there are is not known, or one is beyond.
    """
    array = np.asarray(labels)
    if array.ndim >= 2 or array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind not in "ui":
        raise UsageError(
            f"Labels that are mixed must be numbers, but these are {array.dtype}; give the number "
            "of each one's class."
        )
    if classes is None:
        raise UsageError(
            "mixup and cutmix make labels of several classes; say how many there are, as in "
            "augment(policy, classes=10)."
        )
    if array.size and not 0 <= array.min() <= array.max() < classes:
        wrong = array[(array < 0) | (array >= classes)][0]
        raise UsageError(
            f"There are {classes} classes, but a label is {wrong}, not 0 to {classes - 1}."
        )
    weights: Floats32 = np.eye(classes, dtype=np.float32)[array]
    return weights


def mix(
    policy: Policy, random: np.random.Generator, images: Image, weights: Floats32
) -> tuple[Image, Floats32]:
    """The images and weights of a batch, mixed as the policy says; the inputs are not written."""
    for operation in policy.operations:
        if operation.name in MIX and len(images) > 1:
            images, weights = _mix_once(operation, random, images, weights)
    return images, weights


def _mix_once(
    operation: Operation, random: np.random.Generator, images: Image, weights: Floats32
) -> tuple[Image, Floats32]:
    count, height, width = images.shape[:3]
    # A turn by at least one place: nobody is mixed with himself.
    order = random.permutation(count)
    partner = np.empty(count, np.intp)
    partner[order] = np.roll(order, 1)
    share: Any = random.beta(operation.low, operation.low, count)
    places = random.random((count, 2))
    happens = random.random(count) < operation.p
    mixed = images.copy()
    for i in np.flatnonzero(happens):
        other = images[partner[i]]
        if operation.name == "mixup":
            cv2.addWeighted(images[i], share[i], other, 1 - share[i], 0, dst=mixed[i])
            continue
        side = math.sqrt(1 - share[i])
        h, w = round(side * height), round(side * width)
        top, left = (places[i] * (height - h + 1, width - w + 1)).astype(int).tolist()
        mixed[i, top : top + h, left : left + w] = other[top : top + h, left : left + w]
        share[i] = 1 - h * w / (height * width)
    part = np.where(happens, share, 1.0).astype(np.float32).reshape(-1, *[1] * (weights.ndim - 1))
    blended: Any = part * weights + (1 - part) * weights[partner]
    return mixed, blended
