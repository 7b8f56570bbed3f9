"""Libraries that augment images, each doing the same to the same; see `peers/__init__.py`.

    augmenting.py NAME IMAGES.npy SIDE SECONDS

For each line on standard input it augments for so many seconds of this process's CPU time, and
prints how many images it did in one of them. It runs in any interpreter that has the library.
"""

from __future__ import annotations

import os
import random
import sys
import time

ANGLE, LEAST_SIDE, JITTER, HUE = 30, 0.5, 0.2, 0.05
POLICY = (
    f"rotate({ANGLE}), hflip, crop({LEAST_SIDE}), resize({{side}}), brightness({JITTER}), "
    f"contrast({JITTER}), saturation({JITTER}), hue({HUE})"
)

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402


def fused(side, images):
    import cv2

    from aios_jupyter.data.pipeline import Pipeline

    cv2.setNumThreads(1)
    pipeline = Pipeline(POLICY.format(side=side))
    out = np.empty((len(images), side, side, 3), np.uint8)
    return cv2.__version__, lambda: pipeline.apply(images, out=out)


def warp(side, images):
    """One `cv2.warpAffine` with the same matrices, and nothing else."""
    import cv2

    from aios_jupyter.data.pipeline import Pipeline

    cv2.setNumThreads(1)
    pipeline = Pipeline(POLICY.format(side=side))
    out = np.empty((len(images), side, side, 3), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def work():
        drawn = pipeline.plan(np.arange(len(images)), 1)
        matrices = pipeline.warps(drawn, len(images), *images.shape[1:3])[:, :2]
        for image, matrix, target in zip(images, matrices, out, strict=True):
            border = cv2.BORDER_REFLECT_101
            cv2.warpAffine(image, matrix, (side, side), target, flags, border)

    return cv2.__version__, work


def draw(height, width):
    side = random.uniform(LEAST_SIDE, 1)
    h, w = round(side * height), round(side * width)
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    return random.uniform(-ANGLE, ANGLE), random.random() < 0.5, (top, left, h, w)


def factor():
    return random.uniform(1 - JITTER, 1 + JITTER)


def opencv(side, images):
    import cv2

    cv2.setNumThreads(1)
    levels = np.arange(256, dtype=np.float32)

    def one(image):
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

    return cv2.__version__, lambda: [one(image) for image in images]


def pil(side, images):
    import PIL
    from PIL import Image, ImageEnhance

    def one(image):
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

    return PIL.__version__, lambda: [np.asarray(one(Image.fromarray(image))) for image in images]


def albumentations(side, images):
    # It would ask a registry for its newest version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as library
    import cv2

    cv2.setNumThreads(1)
    aspect = images.shape[2] / images.shape[1]
    transform = library.Compose(
        [
            library.Rotate(limit=ANGLE, border_mode=cv2.BORDER_REFLECT_101, p=1),
            library.HorizontalFlip(p=0.5),
            library.RandomResizedCrop(
                (side, side), scale=(LEAST_SIDE**2, 1), ratio=(aspect, aspect * 1.001), p=1
            ),
            library.ColorJitter(
                (1 - JITTER, 1 + JITTER),
                (1 - JITTER, 1 + JITTER),
                (1 - JITTER, 1 + JITTER),
                HUE,
                p=1,
            ),
        ]
    )
    return library.__version__, lambda: [transform(image=image)["image"] for image in images]


OPERATORS = [
    *("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"),
    *(f"_{n}_backward" for n in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")),
    "_deform_conv2d_backward",
]


def _torchvision(side, aspect):
    import torch

    torch.set_num_threads(1)
    # With a torch for CPUs alone it does not import, for want of operators that nothing here uses.
    operators = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        operators.define(f"{operator}(Tensor x) -> Tensor")
    import torchvision
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomRotation(ANGLE, v2.InterpolationMode.BILINEAR),
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(
                side, (LEAST_SIDE**2, 1), (aspect, aspect * 1.001), antialias=True
            ),
            v2.ColorJitter(JITTER, JITTER, JITTER, HUE),
        ]
    )
    transform.operators = operators
    return torchvision.__version__, transform


def torchvision_pil(side, images):
    from PIL import Image

    version, transform = _torchvision(side, images.shape[2] / images.shape[1])
    return version, lambda: [np.asarray(transform(Image.fromarray(image))) for image in images]


def torchvision_tensor(side, images):
    import torch

    version, transform = _torchvision(side, images.shape[2] / images.shape[1])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return version, lambda: [transform(tensor) for tensor in tensors]


def torchvision_batch(side, images):
    """All images of a batch get the same draw: less than what is asked for."""
    import torch

    version, transform = _torchvision(side, images.shape[2] / images.shape[1])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return version, lambda: transform(tensors)


def kornia(side, images):
    import kornia as library
    import torch

    torch.set_num_threads(1)
    aspect = images.shape[2] / images.shape[1]
    transform = library.augmentation.AugmentationSequential(
        library.augmentation.RandomRotation(ANGLE, p=1.0),
        library.augmentation.RandomHorizontalFlip(p=0.5),
        library.augmentation.RandomResizedCrop(
            (side, side), (LEAST_SIDE**2, 1), (aspect, aspect * 1.001), p=1.0
        ),
        library.augmentation.ColorJitter(JITTER, JITTER, JITTER, HUE, p=1.0),
        data_keys=["input"],
    )

    def work():
        tensors = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return (transform(tensors) * 255).to(torch.uint8)

    return library.__version__, work


def keras(side, images):
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as library
    import torch

    torch.set_num_threads(1)
    layers = library.layers
    whole = (0, 255)
    steps = [
        layers.RandomRotation(ANGLE / 360, fill_mode="reflect"),
        layers.RandomFlip("horizontal"),
        layers.RandomZoom((-LEAST_SIDE, 0), fill_mode="reflect"),
        layers.Resizing(side, side, antialias=True),
        layers.RandomBrightness(JITTER, whole),
        layers.RandomContrast(JITTER, whole),
        layers.RandomSaturation((0.5 - JITTER / 2, 0.5 + JITTER / 2), whole),
        layers.RandomHue(HUE, whole),
    ]

    def work():
        batch = images.astype(np.float32)
        for step in steps:
            batch = step(batch, training=True) if "Resiz" not in step.name else step(batch)
        return batch

    return library.__version__, work


def main() -> None:
    name, path, side, seconds = sys.argv[1:]
    images = np.load(path)
    random.seed(0)
    few = images[:4]
    globals()[name](int(side), few)[1]()
    version, work = globals()[name](int(side), images)
    print("ready", version, flush=True)
    for _ in sys.stdin:
        done, started = 0, time.process_time()
        while (spent := time.process_time() - started) < float(seconds):
            work()
            done += len(images)
        print(done / spent, flush=True)


if __name__ == "__main__":
    main()
