"""Augmentation: the fused pipeline against PIL and OpenCV operation by operation.

Rotate, flip, random crop, resize and color jitter of real photographs (427 x 640 to 224 x 224) and
of 32 x 32 pieces of them; images per CPU-second, one thread, the passes of all taking turns.

Not like for like: the fused pipeline resamples once where the others do it two or three times, and
its colors are one linear step without clipping in between; it turns hue in YIQ, the others in HSV.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import random
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from report import report
from sklearn.datasets import load_sample_images

from aios_jupyter.data.pipeline import Pipeline

ANGLE, LEAST_SIDE, JITTER, HUE = 30, 0.5, 0.2, 0.05
POLICY = (
    f"rotate({ANGLE}), hflip, crop({LEAST_SIDE}), resize({{side}}), brightness({JITTER}), "
    f"contrast({JITTER}), saturation({JITTER}), hue({HUE})"
)
PASSES = 5

Images = NDArray[np.uint8]
Work = Callable[[Images], object]


def fused(side: int) -> Work:
    return Pipeline(POLICY.format(side=side)).apply


def raw_warp(side: int) -> Work:
    """One `cv2.warpAffine` with the same matrices, and nothing else."""
    pipeline = Pipeline(POLICY.format(side=side))

    def work(images: Images) -> None:
        draws = pipeline._draws(0, len(images), 1)
        shape = (side, side, 3)
        warps = pipeline._warps(draws, *images.shape[1:3], shape)
        out = np.empty(shape, np.uint8)
        for image, warp in zip(images, warps, strict=True):
            cv2.warpAffine(
                image,
                warp,
                (side, side),
                dst=out,
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )

    return work


def draw(height: int, width: int) -> tuple[float, bool, tuple[int, int, int, int]]:
    side = random.uniform(LEAST_SIDE, 1)
    h, w = round(side * height), round(side * width)
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    return random.uniform(-ANGLE, ANGLE), random.random() < 0.5, (top, left, h, w)


def factor() -> float:
    return random.uniform(1 - JITTER, 1 + JITTER)


def with_opencv(side: int) -> Work:
    levels = np.arange(256, dtype=np.float32)

    def one(image: Images) -> Images:
        height, width = image.shape[:2]
        angle, flip, (top, left, h, w) = draw(height, width)
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
        image = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        if flip:
            image = cv2.flip(image, 1)
        image = cv2.resize(image[top : top + h, left : left + w], (side, side))
        shift = 255 * random.uniform(-JITTER, JITTER)
        image = cv2.LUT(image, (levels + shift).clip(0, 255).astype(np.uint8))
        stretched = 127.5 + factor() * (levels - 127.5)
        image = cv2.LUT(image, stretched.clip(0, 255).astype(np.uint8))
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        much = factor()
        image = cv2.addWeighted(image, much, gray, 1 - much, 0)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(256 * random.uniform(-HUE, HUE)) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)

    return lambda images: [one(image) for image in images]


def with_pil(side: int) -> Work:
    def one(image: Image.Image) -> Image.Image:
        angle, flip, (top, left, h, w) = draw(image.height, image.width)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        box = (left, top, left + w, top + h)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(factor())
        hue, saturation, value = image.convert("HSV").split()
        turn = round(256 * random.uniform(-HUE, HUE))
        hue = hue.point(lambda level: (level + turn) % 256)
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    return lambda images: [np.asarray(one(Image.fromarray(image))) for image in images]


def with_albumentations(side: int) -> Work:
    # It would ask a registry for its newest version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    transform = albumentations.Compose(
        [
            albumentations.Rotate(limit=ANGLE, border_mode=cv2.BORDER_REFLECT_101, p=1),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.RandomResizedCrop((side, side), scale=(LEAST_SIDE**2, 1), p=1),
            albumentations.ColorJitter(JITTER, JITTER, JITTER, HUE, p=1),
        ]
    )
    return lambda images: [transform(image=image) for image in images]


def rates(works: dict[str, Work], images: Images, seconds: float) -> dict[str, float]:
    """Images per CPU-second of each, the best of several passes that take turns."""
    best = dict.fromkeys(works, 0.0)
    for work in works.values():
        work(images[:4])
    for _ in range(PASSES):
        for name, work in works.items():
            done, started = 0, time.process_time()
            while (spent := time.process_time() - started) < seconds / PASSES:
                work(images)
                done += len(images)
            best[name] = max(best[name], done / spent)
    return best


def peers(side: int, names: Sequence[str]) -> dict[str, Work]:
    known = {"PIL": with_pil, "OpenCV": with_opencv, "albumentations": with_albumentations}
    return {name: known[name](side) for name in names}


def main() -> None:
    cv2.setNumThreads(1)
    random.seed(0)
    names = ["PIL", "OpenCV"]
    versions = {"PIL": PIL.__version__, "OpenCV": cv2.__version__}
    if importlib.util.find_spec("albumentations"):
        names.append("albumentations")
        versions["albumentations"] = importlib.metadata.version("albumentations")
    photos = np.stack(load_sample_images().images)
    pieces = np.concatenate(
        [photos[:, r : r + 32, c : c + 32] for r in range(0, 390, 32) for c in range(0, 600, 32)]
    )
    # Speedups are over the best library; OpenCV by hand is a bound rather than a library.
    figures: dict[str, float] = {}
    for label, images, side, seconds in (
        ("photos", np.concatenate([photos] * 8), 224, 4.0),
        ("small", pieces, 32, 2.0),
    ):
        works = {"fused": fused(side), "warpAffine": raw_warp(side), **peers(side, names)}
        found = rates(works, images, seconds)
        print(f"{label}: {images.shape[1]} x {images.shape[2]} to {side} x {side}")
        for name, rate in sorted(found.items(), key=lambda item: -item[1]):
            print(f"  {name:15}{rate:10.0f} images per CPU-second")
        libraries = [found[name] for name in names if name != "OpenCV"]
        figures[f"{label}_speedup"] = found["fused"] / max(libraries)
        figures[f"{label}_over_opencv"] = found["fused"] / found["OpenCV"]
        figures[f"{label}_per_cpu_second"] = found["fused"]
        if label == "photos":
            figures["over_raw_warp"] = found["warpAffine"] / found["fused"]
    report("augment", figures, versions)


if __name__ == "__main__":
    main()
