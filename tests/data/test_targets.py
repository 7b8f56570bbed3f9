from __future__ import annotations

import numpy as np
import pytest

from aios_jupyter.data.pipeline import Pipeline
from aios_jupyter.data.targets import apply_labeled
from aios_jupyter.errors import UsageError

MOVES = [
    "rotate(30), shift(0.1), crop(0.7), hflip",
    "perspective(0.3), vflip, shear(10)",
    "scale(0.5, 0.7), rotate(180), resize(90, 70)",
    "randaugment(3, 15)",
]


@pytest.fixture
def scene():
    """A bright rectangle on black, its mask, its box and its corners."""
    image = np.zeros((80, 100, 3), np.uint8)
    image[30:50, 40:70] = 255
    mask = (image[..., 0] > 0).astype(np.int64) * 70_000
    corners = [[40, 30], [69, 30], [69, 49], [40, 49]]
    return image, mask, [[40, 30, 70, 50]], corners


@pytest.mark.parametrize("policy", MOVES)
def test_boxes_masks_and_points_go_where_their_pixels_go(policy, scene):
    image, mask, boxes, corners = scene
    pipeline = Pipeline(policy, seed=5)
    checked = 0
    for index in range(12):
        found = apply_labeled(pipeline, image, index, boxes=boxes, masks=mask, points=corners)
        seen = found.masks > 0
        assert np.array_equal(found.image, pipeline.apply(image[None], index)[0])
        assert found.masks.dtype == np.int64
        assert set(np.unique(found.masks)) <= {0, 70_000}
        # Mirrored at the border, the thing would be seen twice.
        if not len(found.kept) or not found.inside.all():
            continue
        x0, y0, x1, y1 = found.boxes[0]
        height, width = seen.shape
        if min(x0, y0) < 2 or x1 > width - 2 or y1 > height - 2:
            continue
        checked += 1
        inside = np.zeros_like(seen)
        inside[round(y0) : round(y1), round(x0) : round(x1)] = True
        rows, columns = np.nonzero(seen & inside)
        assert (columns.min(), rows.min()) == pytest.approx((x0, y0), abs=1.5)
        assert (columns.max() + 1, rows.max() + 1) == pytest.approx((x1, y1), abs=1.5)
        for x, y in found.points:
            near = seen[max(0, int(y) - 2) : int(y) + 3, max(0, int(x) - 2) : int(x) + 3]
            assert near.any() and not near.all()
    assert checked >= 3


def test_a_flip_moves_edges_and_pixels_exactly(scene):
    image, mask, boxes, corners = scene
    found = apply_labeled(Pipeline("hflip(1)"), image, boxes=boxes, masks=mask, points=corners)
    assert found.boxes.tolist() == [[30, 30, 60, 50]]
    assert found.points[0].tolist() == [59, 30]
    assert np.array_equal(found.masks, mask[:, ::-1])
    left, top, right, bottom = map(int, found.boxes[0])
    assert (found.image[top:bottom, left:right] == 255).all()


def test_what_leaves_the_image_is_dropped_or_marked(scene):
    image, _, _, _ = scene
    away = Pipeline("shift(0.5, 0.5)")
    boxes = [[0, 0, 20, 20], [60, 50, 90, 70], [45, 30, 60, 45]]
    found = apply_labeled(away, image, boxes=boxes, points=[[10, 10], [70, 60]], least_visible=0.3)
    assert found.kept.tolist() == [0]
    assert found.boxes.tolist() == [[50, 40, 70, 60]]
    assert found.inside.tolist() == [True, False]
    half = apply_labeled(away, image, boxes=boxes, least_visible=0)
    assert half.kept.tolist() == [0, 2]


def test_several_masks_and_no_boxes_at_all(scene):
    image, mask, _, _ = scene
    masks = np.stack([mask > 0, mask == 0])
    found = apply_labeled(Pipeline("rotate(90, 90), resize(50, 40)"), image, masks=masks, boxes=[])
    assert found.masks.shape == (2, 50, 40)
    assert found.masks.dtype == bool
    assert (found.masks[0] ^ found.masks[1]).all()
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"boxes": [[1, 2, 3]]}, "boxes must have the shape (n, 4)"),
        ({"boxes": [[9, 2, 3, 4]]}, "right or lower edge first"),
        ({"boxes": [[0, 0, np.nan, 4]]}, "finite numbers, but there is nan"),
        ({"points": [1, 2]}, "points must have the shape (n, 2)"),
        ({"masks": np.zeros((3, 3), int)}, "must have the image's shape (80, 100)"),
        ({"masks": np.zeros((80, 100))}, "whole numbers, but are float64"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(given, words, scene):
    with pytest.raises(UsageError) as caught:
        apply_labeled(Pipeline("hflip"), scene[0], **given)
    assert words in str(caught.value)
