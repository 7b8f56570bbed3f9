"""What is fused does what one operation after the other does, within a stated tolerance.

In levels of 255. On smooth photographs the mean difference is below `SMOOTH`, whatever the order
and number of operations; on sharp ones below `SHARP`, as the one resamples bilinearly and once, the
other bicubically for each operation. Where no pixel moves, no level differs by more than `COLOR`.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from peers import one_by_one

from aios_jupyter.data.pipeline import Pipeline
from aios_jupyter.errors import UsageError

SMOOTH, SHARP, COLOR = 1.0, 4.0, 2
INDICES = np.arange(12)


@pytest.fixture(scope="module")
def photographs():
    """Twelve real photographs of 96 x 144 pixels."""
    from sklearn.datasets import load_sample_images

    parts = [
        image[r : r + 384, c : c + 576]
        for image in load_sample_images().images
        for r in (0, 40)
        for c in (0, 30, 60)
    ]
    return np.stack([cv2.resize(p, (144, 96), interpolation=cv2.INTER_AREA) for p in parts])


MOVING = [
    *("rotate(30)", "shift(0.2)", "scale(0.8, 1.5)", "shear(20)", "hflip", "vflip", "crop(0.5)"),
    *("perspective(0.4)", "resize(80, 130)", "resize(40, 60)"),
    "rotate(20, p=0.5), perspective(0.2, p=0.5), hflip, crop(0.7), shear(10), shift(0.1)",
    "rotate(30), hflip, crop(0.5), resize(64), brightness(.2), contrast(.2), hue(.05)",
]


@pytest.mark.parametrize("policy", MOVING)
@pytest.mark.parametrize(("sigma", "most"), [(1.5, SMOOTH), (0, SHARP)])
def test_one_warp_agrees_with_one_operation_after_the_other(policy, sigma, most, photographs):
    if sigma:
        photographs = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in photographs])
    pipeline = Pipeline(policy, seed=2)
    fused = pipeline.apply(photographs)
    plain = one_by_one.augment(photographs, pipeline, INDICES)
    # What lies beyond the border twice is mirrored twice, in another way.
    difference = fused[:, 8:-8, 8:-8].astype(int) - plain[:, 8:-8, 8:-8]
    assert np.median(np.abs(difference).mean(axis=(1, 2, 3))) < most
    # Nothing is displaced: what differs cancels out.
    assert abs(difference.mean()) < 0.5
    assert not np.array_equal(fused[:, :16, :16], photographs[:, :16, :16])


STAYING = [
    *("brightness(0.3)", "contrast(0.5)", "saturation(0.8)", "hue(0.1)", "cutout(0.3)"),
    *("solarize(0.6, p=0.5)", "posterize(3, p=0.5)", "sharpness(0.8)", "blur(2)"),
    "brightness(.2, p=.5), contrast(.2), saturation(.2), hue(.05)",
]


@pytest.mark.parametrize("policy", STAYING)
@pytest.mark.parametrize("gray", [False, True])
def test_what_moves_no_pixel_agrees_level_by_level(policy, gray, photographs):
    images = np.ascontiguousarray(photographs[..., 1]) if gray else photographs
    pipeline = Pipeline(policy, seed=1)
    fused = pipeline.apply(images).astype(int)
    assert np.abs(fused - one_by_one.augment(images, pipeline, INDICES)).max() <= COLOR


@pytest.mark.parametrize(
    "policy",
    [
        *MOVING,
        *STAYING,
        *("autocontrast", "equalize", "randaugment(2, 9)", "trivialaugment"),
        "rotate(15), solarize(0.5), sharpness(0.5), blur(1), cutout(0.2), resize(50)",
    ],
)
@pytest.mark.parametrize("gray", [False, True])
def test_torch_on_a_device_agrees_with_opencv(policy, gray, photographs):
    import torch

    from aios_jupyter.data.ondevice import apply

    images = photographs[..., :1] if gray else photographs
    pipeline = Pipeline(policy, seed=3)
    here = pipeline.apply(images).astype(int)
    there = apply(pipeline, torch.from_numpy(images).permute(0, 3, 1, 2), INDICES, 1)
    difference = np.abs(there.permute(0, 2, 3, 1).numpy() - here)
    assert there.dtype == torch.uint8
    # OpenCV's own resampling is in fixed point, and equalizing spreads a level to several.
    assert difference.mean() < 1.0


def test_noise_on_a_device_has_its_sigma_and_is_the_same_again(photographs):
    import torch

    from aios_jupyter.data.ondevice import apply

    gray = torch.full((4, 3, 60, 60), 128, dtype=torch.uint8)
    pipeline = Pipeline("noise(0.05)")
    noise = apply(pipeline, gray, np.arange(4), 1)
    assert noise.float().std().item() == pytest.approx(0.05 * 255, rel=0.05)
    assert torch.equal(noise, apply(pipeline, gray, np.arange(4), 1))
    assert not torch.equal(noise, apply(pipeline, gray, np.arange(4), 2))


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((2, 8, 8), "uint8", "(n, 1 or 3, h, w), not (2, 8, 8)"),
        ((2, 8, 8, 3), "uint8", "not (2, 8, 8, 3)"),
        ((2, 3, 8, 8), "float32", "these are torch.float32"),
    ],
)
def test_what_is_no_batch_on_a_device_is_a_usage_error(shape, kind, words):
    import torch

    from aios_jupyter.data.ondevice import apply

    with pytest.raises(UsageError) as caught:
        apply(Pipeline("hflip"), torch.zeros(shape, dtype=getattr(torch, kind)), np.arange(2), 1)
    assert words in str(caught.value)


def test_shrinking_averages_also_where_one_axis_shrinks_more():
    stripes = np.zeros((1, 64, 512), np.uint8)
    stripes[:, :, ::2] = 255
    narrow = Pipeline("resize(64, 64)").apply(stripes).astype(int)
    assert np.abs(narrow - 127).max() <= 2
    rows = np.ascontiguousarray(stripes.transpose(0, 2, 1))
    low = Pipeline("resize(64, 64)").apply(rows).astype(int)
    assert np.abs(low - 127).max() <= 2
    # And the axis that does not shrink keeps its detail.
    rows = np.repeat(np.arange(64) % 2 * 255, 512).astype(np.uint8).reshape(1, 64, 512)
    kept = Pipeline("resize(64, 64)").apply(rows)
    assert kept.std() > 100
