"""A policy on batches that lie on a device, with torch alone: the same plan, other arithmetic.

A leaf module: it imports torch and numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from ..errors import UsageError
from . import plan
from .pipeline import Pipeline, halvings
from .plan import Floats, Step

_KERNEL_SIGMAS = 3


def apply(pipeline: Pipeline, images: Any, indices: NDArray[Any], copy: int) -> Any:
    """Augment `(n, 1 or 3, h, w)` of uint8 on the device where it is.

    Raises
    ------
    UsageError
        It is something else.
    """
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] not in {1, 3}:
        what = tuple(getattr(images, "shape", ())) or type(images)
        raise UsageError(f"Batches on a device have the shape (n, 1 or 3, h, w), not {what}.")
    if images.dtype != torch.uint8:
        raise UsageError(f"Augmentation works on uint8 images, but these are {images.dtype}.")
    drawn = pipeline.plan(indices, copy)
    count, _, height, width = images.shape
    out = pipeline.output_shape((height, width))
    values = images.float()
    if drawn.geometry or out != (height, width):
        warps = pipeline.warps(drawn, count, height, width)
        values = _warp(values, warps, (out[0], out[1]))
    if drawn.color:
        values = _paint(values, drawn.color)
    generator = torch.Generator(images.device)
    generator.manual_seed(int(plan.key(pipeline.seed, 4, copy, int(indices[0]))[0]) >> 1)
    for step in drawn.after:
        # Each of these starts from whole levels, as where they are done in place.
        values = _after(step, values.round().clamp(0, 255), generator)
    return values.round().clamp(0, 255).to(torch.uint8)


def _warp(values: torch.Tensor, warps: Floats, out: tuple[int, int]) -> torch.Tensor:
    count, channels, height, width = values.shape
    result = values.new_empty((count, channels, *out))
    times = halvings(plan.shrinks(warps, height, width))
    if times is None:
        times = np.zeros((count, 2), np.int64)
    for level in np.unique(times, axis=0):
        here = np.flatnonzero((times == level).all(axis=1))
        part = torch.from_numpy(here).to(values.device)
        source = values[part]
        matrix = warps[here]
        for axis, halved in enumerate(level.tolist()):
            source, matrix = _halve(source, matrix, axis, halved)
        result[part] = _sample(source, matrix, out)
    return result


def _halve(
    source: torch.Tensor, matrix: Floats, axis: int, times: int
) -> tuple[torch.Tensor, Floats]:
    for _ in range(times):
        side = source.shape[3 - axis]
        small = max(1, side // 2)
        size = (source.shape[2], small) if axis == 0 else (small, source.shape[3])
        source = F.interpolate(source, size, mode="area")
        ratio = small / side
        matrix = matrix.copy()
        matrix[:, axis] = ratio * matrix[:, axis] + (ratio - 1) / 2 * matrix[:, 2]
    return source, matrix


def _sample(source: torch.Tensor, matrix: Floats, out: tuple[int, int]) -> torch.Tensor:
    height, width = source.shape[2:]
    # `grid_sample` counts from -1 to 1 between the centers of the outermost pixels.
    scale = np.diag([2 / max(1, width - 1), 2 / max(1, height - 1), 1.0])
    scale[:2, 2] = -1
    there = torch.from_numpy((scale @ matrix).astype(np.float32)).to(source.device)
    y, x = torch.meshgrid(
        torch.arange(out[0], device=source.device, dtype=torch.float32),
        torch.arange(out[1], device=source.device, dtype=torch.float32),
        indexing="ij",
    )
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(1, -1, 3)
    moved = places @ there.transpose(1, 2)
    grid = (moved[..., :2] / moved[..., 2:]).reshape(len(source), *out, 2)
    return F.grid_sample(source, grid, "bilinear", "reflection", align_corners=True)


def _paint(values: torch.Tensor, steps: tuple[Step, ...]) -> torch.Tensor:
    if values.shape[1] == 1:
        steps = tuple(step for step in steps if step.name not in {"saturation", "hue"})
        if not steps:
            return values
    matrices = torch.from_numpy(plan.matrices(steps).astype(np.float32)).to(values.device)
    if values.shape[1] == 1:
        # No step that is left mixes the channels.
        return values * matrices[:, :1, :1, None] + matrices[:, :1, 3:, None]
    flat = values.reshape(len(values), 3, -1)
    painted = torch.baddbmm(matrices[:, :, 3:], matrices[:, :, :3], flat)
    return painted.reshape(values.shape)


def _after(step: Step, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.from_numpy(step.values.astype(np.float32)).to(values.device)
    value = drawn[:, :1, None, None]
    match step.name:
        case "solarize":
            return torch.where(values >= value * 255, 255 - values, values)
        case "posterize":
            unit = 2 ** (8 - value)
            return (values / unit).floor() * unit
        case "autocontrast":
            low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
            stretched = (values - low) * 255 / (high - low).clamp(1)
            return torch.where((value > 0) & (high > low), stretched, values)
        case "equalize":
            return torch.where(value > 0, _equalize(values), values)
        case "sharpness":
            kernel = torch.ones(3, 3, device=values.device)
            kernel[1, 1] = 5
            smooth = _convolve(values, (kernel / 13).expand(len(values), 3, 3))
            return torch.where(value == 1, values, smooth + value * (values - smooth))
        case "blur":
            return _blur(values, step.values[:, 0])
        case "noise":
            grain = torch.randn(values.shape, generator=generator, device=values.device)
            return values + 255 * value * grain
    return _cut_out(values, step.values)


def _convolve(values: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Each image with its own kernel `(n, h, w)`."""
    count, channels, height, width = values.shape
    high, wide = kernels.shape[1] // 2, kernels.shape[2] // 2
    padded = F.pad(values, (wide, wide, high, high), mode="reflect")
    weights = kernels.repeat_interleave(channels, 0)[:, None]
    flat = F.conv2d(
        padded.reshape(1, count * channels, *padded.shape[2:]), weights, groups=count * channels
    )
    return flat.reshape(count, channels, height, width)


def _blur(values: torch.Tensor, sigmas: Floats) -> torch.Tensor:
    radius = math.ceil(_KERNEL_SIGMAS * float(sigmas.max()))
    radius = min(radius, min(values.shape[2:]) - 1)
    if radius == 0:
        return values
    places = np.arange(-radius, radius + 1)
    kernels = np.exp(-(places**2) / (2 * np.maximum(sigmas, 1e-3)[:, None] ** 2))
    kernels /= kernels.sum(axis=1, keepdims=True)
    line = torch.from_numpy(kernels.astype(np.float32)).to(values.device)
    return _convolve(_convolve(values, line[:, None, :]), line[:, :, None])


def _equalize(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1, values.shape[2] * values.shape[3]).long()
    counts = torch.zeros(len(flat), 256, device=values.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    sums = counts.cumsum(1)
    first = counts.gather(1, flat.amin(1, keepdim=True))
    total = flat.shape[1]
    tables = (sums - first) * 255 / (total - first).clamp(1)
    result = torch.where(first == total, flat.float(), tables.gather(1, flat))
    return result.reshape(values.shape)


def _cut_out(values: torch.Tensor, drawn: Floats) -> torch.Tensor:
    height, width = values.shape[2:]
    for image, (part, down, right) in zip(values, drawn.tolist(), strict=True):
        side = round(part * min(height, width))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        image[:, top : top + side, left : left + side] = 0
    return values
