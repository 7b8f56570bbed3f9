"""Augmentation in the loaders of torch; `test_loader_tensorflow.py` has the other frameworks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import aios_jupyter
from aios_jupyter.data.pipeline import Pipeline
from aios_jupyter.errors import UsageError

POLICY = "rotate(15), shift(0.1), hflip, noise(0.05)"


class Pairs:
    def __init__(self, x, y) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


class Transformed(Pairs):
    """As datasets of torchvision do it: a transform on each image."""

    def __init__(self, x, y, transform) -> None:
        super().__init__(x, y)
        self.transform = transform

    def __getitem__(self, index):
        return self.transform(self.x[index]), int(self.y[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_same_for_any_number_of_workers(workers, digits):
    x, y = digits[0][:40], digits[1][:40]
    data = aios_jupyter.augment(POLICY, seed=4).dataset(Pairs(x, y))
    loader = DataLoader(data, batch_size=16, num_workers=workers, persistent_workers=workers > 0)
    images, labels = map(torch.cat, zip(*loader, strict=True))
    assert np.array_equal(images.numpy(), Pipeline(POLICY, 4).apply(x))
    assert np.array_equal(labels.numpy(), y)
    data.set_epoch(1)
    again = torch.cat([batch for batch, _ in loader])
    assert np.array_equal(again.numpy(), Pipeline(POLICY, 4).apply(x, copy=2))


def test_a_shuffled_loader_gives_each_image_what_its_index_says(digits):
    x = digits[0][:40]
    data = aios_jupyter.augment(POLICY).dataset(Pairs(x, np.arange(40)))
    expected = Pipeline(POLICY).apply(x)
    for images, indices in DataLoader(data, batch_size=7, shuffle=True):
        assert np.array_equal(images.numpy(), expected[indices.numpy()])
    data.set_epoch(0)
    image, label = data[3]
    assert label == 3 and np.array_equal(image, expected[3])


@pytest.mark.parametrize(("workers", "stay"), [(0, False), (2, False), (2, True)])
def test_each_pass_over_a_dataset_is_another_epoch_without_a_word(workers, stay, digits):
    x = digits[0][:40]
    data = aios_jupyter.augment(POLICY).dataset(Pairs(x, np.arange(40)))
    loader = DataLoader(
        data, batch_size=7, shuffle=True, num_workers=workers, persistent_workers=stay
    )
    for epoch in range(3):
        expected = Pipeline(POLICY).apply(x, copy=1 + epoch)
        for images, indices in loader:
            assert np.array_equal(images.numpy(), expected[indices.numpy()])
    # One who only looks gives nobody an image that was there before.
    assert not np.array_equal(data[3][0], data[3][0])


def test_a_transform_draws_anew_at_each_call_and_in_each_worker(digits):
    x = np.repeat(digits[0][:1], 32, axis=0)
    transform = aios_jupyter.augment("rotate(30), shift(0.2)")

    def epoch(seed: int):
        data = Transformed(x, np.arange(32), transform)
        torch.manual_seed(seed)
        loader = DataLoader(data, batch_size=4, num_workers=2)
        images, order = map(torch.cat, zip(*loader, strict=True))
        return images.numpy(), order.numpy()

    first, order = epoch(1)
    assert order.tolist() == list(range(32))
    assert len(np.unique(first, axis=0)) == 32
    assert np.array_equal(first, epoch(1)[0])
    assert not np.array_equal(first, epoch(2)[0])
    here = np.stack([transform(image) for image in x])
    assert len(np.unique(here, axis=0)) == 32


def test_one_image_comes_back_as_what_it_was():
    color = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    policy = "rotate(20), resize(16), saturation(0.2)"
    expected = Pipeline(policy).apply(color[None])[0]
    assert np.array_equal(aios_jupyter.augment(policy)(color), expected)
    picture = aios_jupyter.augment(policy)(Image.fromarray(color))
    assert isinstance(picture, Image.Image) and np.array_equal(np.asarray(picture), expected)
    tensor = aios_jupyter.augment(policy)(torch.from_numpy(color).permute(2, 0, 1))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), expected)
    gray = Image.fromarray(color[..., 0])
    assert aios_jupyter.augment(policy)(gray).mode == "L"


def test_images_of_several_sizes_are_augmented_one_by_one():
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (20 + k, 30, 3), np.uint8) for k in range(4)]
    data = aios_jupyter.augment("rotate(10), resize(16)").dataset(images)
    (batch,) = DataLoader(data, batch_size=4)
    pipeline = Pipeline("rotate(10), resize(16)")
    expected = [pipeline.apply(image[None], k)[0] for k, image in enumerate(images)]
    assert np.array_equal(batch.numpy(), np.stack(expected))


@pytest.mark.parametrize("policy", ["mixup(0.5)", "cutmix(1)"])
def test_mixing_blends_labels_as_it_blends_images(policy):
    # Image k is all of one level, so that the mean says which part of it is left.
    levels = np.array([0, 80, 160, 240], np.uint8)
    images = np.repeat(levels, 10)[:, None, None] + np.zeros((1, 32, 32), np.uint8)
    labels = np.repeat([0, 1, 2, 3], 10)
    transform = aios_jupyter.augment(policy, classes=4)
    mixed, weights = transform.batch(images, labels)
    assert weights.dtype == np.float32
    assert weights.sum(axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    assert mixed.mean(axis=(1, 2)) == pytest.approx(weights @ levels.astype(float), abs=1)
    shares = weights.max(axis=1)
    assert ((shares > 0.3) & (shares < 0.99)).sum() > 8
    assert images[0].max() == 0
    seldom, _ = aios_jupyter.augment(f"{policy[:-1]}, p=0.2)", classes=4).batch(images, labels)
    assert 0 < (seldom != images).any(axis=(1, 2)).sum() < 20


def test_mixing_in_a_dataset_gives_weights_the_same_again(digits):
    x, y = digits[0][:32], digits[1][:32]
    data = aios_jupyter.augment("rotate(10), mixup(0.5)", classes=10).dataset(Pairs(x, y))
    data.set_epoch(3)
    first, second = (list(DataLoader(data, batch_size=16, num_workers=k)) for k in (0, 1))
    for (images, weights), (again, same) in zip(first, second, strict=True):
        assert weights.shape == (16, 10)
        assert torch.equal(images, again) and torch.equal(weights, same)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda a, x, y: a("mixup(1)")(x[0]), "need a batch with its labels"),
        (lambda a, x, y: a("mixup(1)").batch(x), "give those of the batch"),
        (lambda a, x, y: a("mixup(1)").batch(x, y), "say how many there are"),
        (lambda a, x, y: a("mixup(1)", classes=2).batch(x, y), "There are 2 classes, but a label"),
        (lambda a, x, y: a("hflip").batch(x, y[:3]), "images but 3 labels"),
        (lambda a, x, y: a("hflip")("x.png"), "must be an array"),
        (lambda a, x, y: a("hflip")(x[0] / 255), "these are float64"),
        (lambda a, x, y: a("hflip")(torch.zeros(3, 3)), "A tensor of an image has the shape"),
        (lambda a, x, y: a("hflp"), "did you mean 'hflip'"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(work, words, digits):
    with pytest.raises(UsageError) as caught:
        work(aios_jupyter.augment, *digits)
    assert words in str(caught.value)


def test_boxes_come_along(digits):
    transform = aios_jupyter.augment("hflip(1)")
    found = transform.labeled(digits[0][0], boxes=[[2, 3, 10, 12]])
    assert found.boxes.tolist() == [[18, 3, 26, 12]]


def test_on_a_device_a_batch_draws_anew_or_by_index(digits):
    images = torch.from_numpy(np.repeat(digits[0][:1], 4, axis=0))[:, None]
    transform = aios_jupyter.augment("rotate(20), shift(0.2)")
    first, second = transform.on_device(images), transform.on_device(images)
    assert not torch.equal(first, second)
    by_index = transform.on_device(images, indices=[0, 1, 2, 3], epoch=0)
    assert torch.equal(by_index, first)
