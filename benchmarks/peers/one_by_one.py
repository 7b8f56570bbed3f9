"""A policy carried out plainly: one operation after the other, each by a function of its own.

It takes the values that were drawn, and nothing else, from the code that it is held against.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

BORDER = cv2.BORDER_REFLECT_101


def augment(images, pipeline, indices, copy=1):
    """What `pipeline.apply` gives, as near as separate operations come to it."""
    drawn = pipeline.plan(np.asarray(indices), copy)
    steps = [*drawn.geometry, *drawn.color, *drawn.after]
    height, width = pipeline.output_shape(images.shape[1:3])
    results = []
    for i, image in enumerate(images):
        work = image.astype(np.float32)
        resized = False
        for step in steps:
            if step.name not in GEOMETRIC and not resized:
                work, resized = resize(work, height, width), True
            work = DO[step.name](work, *step.values[i].tolist())
        work = work if resized else resize(work, height, width)
        results.append(np.rint(work).clip(0, 255).astype(np.uint8))
    return np.stack(results)


def resize(image, height, width):
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] > height
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _affine(image, matrix):
    size = (image.shape[1], image.shape[0])
    return cv2.warpAffine(image, np.float64(matrix), size, flags=cv2.INTER_CUBIC, borderMode=BORDER)


def _middle(image):
    return (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2


def rotate(image, degrees):
    return _affine(image, cv2.getRotationMatrix2D(_middle(image), degrees, 1))


def scale(image, times):
    return _affine(image, cv2.getRotationMatrix2D(_middle(image), 0, times))


def shift(image, x, y):
    return _affine(image, [[1, 0, x * image.shape[1]], [0, 1, y * image.shape[0]]])


def shear_x(image, slope):
    return _affine(image, [[1, slope, -slope * _middle(image)[1]], [0, 1, 0]])


def shear_y(image, slope):
    return _affine(image, [[1, 0, 0], [slope, 1, -slope * _middle(image)[0]]])


def mirror_x(image, sign):
    return cv2.flip(image, 1) if sign < 0 else image


def mirror_y(image, sign):
    return cv2.flip(image, 0) if sign < 0 else image


def crop(image, part, right, down):
    height, width = image.shape[:2]
    left, top = (1 - part) * right * width, (1 - part) * down * height
    # From edges of the window to those of the image, which lie half a pixel before the centers.
    move = [(0.5 - edge) / part - 0.5 for edge in (left, top)]
    return _affine(image, [[1 / part, 0, move[0]], [0, 1 / part, move[1]]])


def perspective(image, *parts):
    height, width = image.shape[:2]
    ends = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    middle = np.array([width / 2, height / 2])
    seen = middle + (ends - middle) * (1 - np.reshape(parts, (4, 2)))
    matrix = cv2.getPerspectiveTransform(np.float32(seen - 0.5), np.float32(ends - 0.5))
    return cv2.warpPerspective(
        image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=BORDER
    )


def brightness(image, plus):
    return image + 255 * plus


def exposure(image, times):
    return image * times


def contrast(image, times):
    return 127.5 + times * (image - 127.5)


def saturation(image, times):
    if image.ndim == 2:
        return image
    gray = (image @ np.float32([0.299, 0.587, 0.114]))[..., None]
    return gray + times * (image - gray)


def hue(image, turn):
    """Turn in YIQ, color by color."""
    if image.ndim == 2:
        return image
    axes = np.array([np.subtract(colorsys.rgb_to_yiq(*unit), 0) for unit in np.eye(3)]).T
    y, i, q = np.moveaxis(image @ axes.T, -1, 0)
    angle = 2 * np.pi * turn
    i, q = i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)
    return (np.stack([y, i, q], axis=-1) @ np.linalg.inv(axes).T).astype(np.float32)


def solarize(image, threshold):
    levels = image.round().clip(0, 255)
    return np.where(levels >= 255 * threshold, 255 - levels, levels)


def posterize(image, bits):
    unit = 2 ** (8 - bits)
    return np.floor(image.round().clip(0, 255) / unit) * unit


def sharpness(image, factor):
    kernel = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = cv2.filter2D(image.clip(0, 255), -1, kernel, borderType=BORDER)
    return smooth + factor * (image.clip(0, 255) - smooth)


def blur(image, sigma):
    if sigma <= 0.05:
        return image
    return cv2.GaussianBlur(image.clip(0, 255), (0, 0), sigma, borderType=BORDER)


def cutout(image, part, down, right):
    height, width = image.shape[:2]
    side = round(part * min(height, width))
    top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
    image = image.copy()
    image[top : top + side, left : left + side] = 0
    return image


GEOMETRIC = {
    function.__name__: function
    for function in (rotate, scale, shift, shear_x, shear_y, mirror_x, mirror_y, crop, perspective)
}
DO = GEOMETRIC | {
    function.__name__: function
    for function in (
        *(brightness, exposure, contrast, saturation, hue),
        *(solarize, posterize, sharpness, blur, cutout),
    )
}
