from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from aios_jupyter.data import plan
from aios_jupyter.data.pipeline import Pipeline
from aios_jupyter.errors import UsageError

FULL = (
    "rotate(15), shift(0.1), scale(0.9, 1.1), shear(5), hflip, crop(0.8), brightness(0.2), "
    "contrast(0.2), noise(0.05), blur(1), cutout(0.2)"
)


@pytest.fixture
def colors():
    """Smooth RGB images, so that resampling changes little."""
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (6, 5, 6, 3), np.uint8)
    return np.stack([cv2.resize(image, (48, 40)) for image in small])


@pytest.mark.parametrize("policy", [FULL, FULL + ", saturation(0.5), hue(0.1)"])
def test_any_division_into_chunks_gives_the_same_bytes(colors, policy):
    pipeline = Pipeline(policy, seed=3)
    whole = pipeline.apply(colors, first=10, copy=2)
    ones = [pipeline.apply(colors[i : i + 1], first=10 + i, copy=2)[0] for i in range(len(colors))]
    assert np.array_equal(whole, np.stack(ones))
    assert np.array_equal(whole, Pipeline(policy, seed=3).apply(colors, first=10, copy=2))


def test_seed_index_and_copy_each_change_the_result(colors):
    same = np.repeat(colors[:1], 2, axis=0)
    first = Pipeline(FULL, seed=3).apply(same, first=0, copy=1)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, Pipeline(FULL, seed=4).apply(same, first=0, copy=1))
    assert not np.array_equal(first, Pipeline(FULL, seed=3).apply(same, first=0, copy=2))


@pytest.mark.parametrize("shape", [(4, 20, 30), (4, 20, 30, 1), (4, 20, 30, 3)])
def test_shape_is_kept_and_the_source_is_not_written(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images.setflags(write=False)
    out = Pipeline(FULL).apply(images)
    assert out.shape == shape
    assert out.dtype == np.uint8


def test_a_single_channel_is_treated_like_none(digits):
    x, _ = digits
    flat = Pipeline(FULL).apply(x[:5])
    assert np.array_equal(Pipeline(FULL).apply(x[:5, ..., None])[..., 0], flat)


def test_flips_with_certainty_are_exact(colors):
    assert np.array_equal(Pipeline("hflip(1)").apply(colors), colors[:, :, ::-1])
    assert np.array_equal(Pipeline("vflip(1)").apply(colors), colors[:, ::-1])
    assert np.array_equal(Pipeline("hflip(0), vflip(0)").apply(colors), colors)


def test_a_flip_by_half_happens_about_half_the_time(digits):
    x = np.repeat(digits[0][:1], 1000, axis=0)
    flipped = (Pipeline("hflip").apply(x) != x).any(axis=(1, 2)).sum()
    assert 400 < flipped < 600


def test_a_right_angle_turns_counterclockwise(digits):
    x = digits[0][:3]
    assert np.array_equal(Pipeline("rotate(90, 90)").apply(x), np.rot90(x, axes=(1, 2)))


def test_a_shift_moves_right_and_down():
    dot = np.zeros((1, 20, 20), np.uint8)
    dot[0, 8, 8] = 255
    moved = Pipeline("shift(0.25, 0.25)").apply(dot)
    assert np.argwhere(moved[0]).tolist() == [[13, 13]]


def test_what_a_shift_uncovers_is_the_mirror_image():
    ramp = np.tile(np.arange(20, dtype=np.uint8), (1, 20, 1))
    moved = Pipeline("shift(0.25, 0.25)").apply(ramp)[0]
    assert moved[10].tolist() == [5, 4, 3, 2, 1, *range(15)]


def test_a_scale_enlarges_about_the_center():
    square = np.zeros((1, 40, 40), np.uint8)
    square[0, 15:25, 15:25] = 255
    larger = Pipeline("scale(2, 2)").apply(square)[0]
    assert abs(int((larger > 127).sum()) - 400) <= 40
    rows = np.flatnonzero((larger > 127).any(axis=1))
    assert abs((rows[0] + rows[-1]) / 2 - 19.5) <= 0.5


def test_geometric_operations_act_in_the_order_written():
    dot = np.zeros((1, 21, 21), np.uint8)
    dot[0, 10, 10] = 255
    turned_last = Pipeline("shift(0.2, 0.2), rotate(90, 90)").apply(dot)[0]
    turned_first = Pipeline("rotate(90, 90), shift(0.2, 0.2)").apply(dot)[0]
    # 4.2 pixels to the right and down; a turn to the left then takes (right, down) to (right, up).
    assert np.unravel_index(turned_last.argmax(), dot.shape[1:]) == (6, 14)
    assert np.unravel_index(turned_first.argmax(), dot.shape[1:]) == (14, 14)


def test_the_fused_warp_agrees_with_one_operation_after_the_other(colors):
    steps = ["rotate(10, 10)", "scale(1.1, 1.1)", "shear(4, 4)"]
    fused = Pipeline(", ".join(steps)).apply(colors)
    one_by_one = colors
    for step in steps:
        one_by_one = Pipeline(step).apply(one_by_one)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    difference = fused[inner].astype(int) - one_by_one[inner]
    assert np.abs(difference).mean() < 2.5


def test_one_warp_blurs_less_than_one_after_the_other():
    random = np.random.default_rng(0).integers(0, 256, (4, 40, 40), np.uint8)
    steps = ["rotate(7, 7)", "shift(0.013, 0.013)", "rotate(-7, -7)", "shift(-0.013, -0.013)"]
    one_by_one = random
    for step in steps:
        one_by_one = Pipeline(step).apply(one_by_one)
    assert Pipeline(", ".join(steps)).apply(random).std() > 1.2 * one_by_one.std()


def test_crop_shows_a_window_of_the_source():
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (1, 100, 1))
    for copy in range(1, 20):
        out = Pipeline("crop(0.5)").apply(ramp, copy=copy)[0].astype(int)
        width = (out[50, -1] - out[50, 0]) / 2 / 99
        assert 0.49 <= width <= 1.01
        assert out.min() >= 0
        assert out.max() <= 198


@pytest.mark.parametrize("policy", ["brightness(0.2, 0.2)", "contrast(1.5, 1.5)"])
def test_tables_and_matrices_agree_with_arithmetic(colors, policy):
    values = colors.astype(float)
    expected = values + 51 if policy.startswith("b") else 127.5 + 1.5 * (values - 127.5)
    expected = expected.clip(0, 255)
    by_table = Pipeline(policy).apply(colors[..., 0])
    assert np.abs(by_table - expected[..., 0]).max() <= 0.5
    by_matrix = Pipeline(policy).apply(colors)
    assert np.abs(by_matrix - expected).max() <= 1


def test_no_saturation_is_gray_and_a_full_turn_of_hue_is_the_same(colors):
    gray = Pipeline("saturation(0, 0)").apply(colors).astype(int)
    assert np.ptp(gray, axis=3).max() <= 1
    expected = cv2.cvtColor(colors[0], cv2.COLOR_RGB2GRAY)
    assert np.abs(gray[0, ..., 0] - expected).max() <= 1
    half = Pipeline("hue(0.5, 0.5), hue(-0.5, -0.5)").apply(colors)
    assert np.abs(half.astype(int) - colors).max() <= 1


def test_saturation_and_hue_leave_gray_images_alone(digits):
    x = digits[0][:4]
    assert np.array_equal(Pipeline("saturation(0, 0), hue(0.3, 0.3)").apply(x), x)


def test_noise_has_the_sigma_asked_for_and_no_bias():
    gray = np.full((4, 100, 100), 128, np.uint8)
    noise = Pipeline("noise(0.05)").apply(gray).astype(float) - 128
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.03)
    assert abs(noise.mean()) < 0.3
    assert not np.array_equal(noise[0], noise[1])


def test_blur_smooths_and_keeps_the_mean():
    random = np.random.default_rng(0).integers(0, 256, (8, 40, 40), np.uint8)
    out = Pipeline("blur(2)").apply(random)
    assert out.std() < 0.8 * random.std()
    assert abs(out.mean() - random.mean()) < 2


def test_cutout_blackens_one_square():
    white = np.full((20, 30, 40), 255, np.uint8)
    out = Pipeline("cutout(0.5)").apply(white)
    assert ((out == 0).sum(axis=(1, 2)) == 15 * 15).all()
    assert len({tuple(np.argwhere(image == 0)[0]) for image in out}) > 5


def test_resize_gives_the_size_and_does_not_alias():
    stripes = np.zeros((1, 128, 128), np.uint8)
    stripes[:, :, ::2] = 255
    out = Pipeline("resize(16, 32)").apply(stripes)
    assert out.shape == (1, 16, 32)
    assert np.abs(out.astype(int) - 127).max() <= 2


def test_resize_agrees_with_opencv(colors):
    out = Pipeline("resize(60, 80)").apply(colors)
    expected = np.stack([cv2.resize(image, (80, 60)) for image in colors])
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(out[inner].astype(int) - expected[inner]).max() <= 6


def test_shrinking_keeps_things_in_place():
    dot = np.zeros((1, 64, 64), np.uint8)
    dot[0, 40:44, 20:24] = 255
    small = Pipeline("resize(16)").apply(dot)[0].astype(float)
    rows, columns = np.indices(small.shape)
    center = ((rows * small).sum() / small.sum(), (columns * small).sum() / small.sum())
    assert center == pytest.approx((10, 5), abs=0.1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8)), "these are float64"),
        (np.zeros((8, 8), np.uint8), "these are (8, 8)"),
        (np.zeros((2, 8, 8, 4), np.uint8), "these are (2, 8, 8, 4)"),
        (np.zeros((2, 0, 8), np.uint8), "1 to 32766 pixels"),
    ],
)
def test_what_is_not_an_image_is_a_usage_error(images, words):
    with pytest.raises(UsageError) as caught:
        Pipeline("hflip").apply(images)
    assert words in str(caught.value)


def test_a_negative_seed_is_a_usage_error():
    with pytest.raises(UsageError, match="-1"):
        Pipeline("hflip", seed=-1)


def test_draws_are_uniform_and_those_of_an_index_do_not_depend_on_the_others():
    key, indices = plan.key(1, 0, 1), np.arange(5000, dtype=np.uint64)
    draws = plan.draw(key, 2, indices)
    assert draws.shape == (5000, 2, 4)
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert draws.std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    flat = draws.reshape(5000, 8)
    between = np.corrcoef(flat.T) - np.eye(8)
    assert np.abs(between).max() < 0.06
    assert abs(np.corrcoef(flat[1:, 0], flat[:-1, 0])[0, 1]) < 0.06
    some = np.array([4000, 3, 77], np.uint64)
    assert np.array_equal(plan.draw(key, 2, some), draws[[4000, 3, 77]])
    assert not np.array_equal(plan.draw(plan.key(1, 0, 2), 2, some), draws[[4000, 3, 77]])


def test_a_probability_is_that_of_each_image(digits):
    x = np.repeat(digits[0][:1], 1000, axis=0)
    for policy in ("blur(3, p=0.2)", "rotate(30, 30, p=0.2)", "contrast(0.3, 0.3, p=0.2)"):
        changed = (Pipeline(policy).apply(x) != x).any(axis=(1, 2)).sum()
        assert 140 < changed < 260
    assert np.array_equal(Pipeline("rotate(30, p=0), noise(0.5, p=0)").apply(x), x)


def test_randaugment_chooses_evenly_and_by_its_magnitude():
    drawn = Pipeline("randaugment(1, 15)").plan(np.arange(14_000), 1)
    steps = {step.name: step.values for step in (*drawn.geometry, *drawn.color, *drawn.after)}
    assert set(steps) >= {"rotate", "exposure", "posterize", "equalize", "shear_y"}
    turns = steps["rotate"][:, 0]
    assert set(np.unique(turns)) == {-15, 0, 15}
    assert 900 < (turns != 0).sum() < 1100
    assert set(np.unique(steps["posterize"])) == {6, 8}
    assert set(np.unique(steps["solarize"])) == {0.5, 2}


def test_more_rounds_and_magnitude_change_more_and_zero_nothing(colors):
    many = np.tile(colors, (20, 1, 1, 1))

    def change(policy: str) -> float:
        return float(np.abs(Pipeline(policy).apply(many).astype(int) - many).mean())

    assert change("randaugment(1, 5)") < change("randaugment(2, 10)") < change("randaugment(4, 25)")
    assert change("trivialaugment") > 5


def test_autocontrast_and_equalize_fill_the_range():
    dull = np.tile(np.arange(100, 140, dtype=np.uint8), (2, 40, 1))
    stretched = Pipeline("autocontrast(1)").apply(dull)
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert np.ptp(Pipeline("equalize(1)").apply(np.stack([dull] * 3, axis=-1))) == 255
    flat = np.full((1, 8, 8), 77, np.uint8)
    assert np.array_equal(Pipeline("autocontrast(1), equalize(1)").apply(flat), flat)


def test_perspective_shows_nothing_from_beyond_the_border():
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (20, 100, 1))
    out = Pipeline("perspective(0.5)").apply(ramp).astype(int)
    assert (np.diff(out, axis=2) >= 0).all()
    slopes = np.diff(out[:, [0, -1]][:, :, [0, -1]], axis=2)
    assert np.ptp(slopes) > 40


def test_a_result_goes_where_it_is_asked_to_and_indices_may_be_any(colors):
    pipeline = Pipeline(FULL, seed=1)
    out = np.empty_like(colors)
    assert pipeline.apply(colors, out=out) is out
    assert np.array_equal(out, pipeline.apply(colors))
    some = pipeline.apply(colors[[4, 1]], indices=np.array([4, 1]))
    assert np.array_equal(some, out[[4, 1]])
