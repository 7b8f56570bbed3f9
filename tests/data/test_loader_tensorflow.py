"""Augmentation and feeding for tf.data and Keras."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import aios_jupyter
from aios_jupyter.data.pipeline import Pipeline
from aios_jupyter.errors import UsageError

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None,
        reason="TensorFlow is not here: make test-tensorflow",
    ),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]

POLICY = "rotate(15), shift(0.1), hflip, resize(20)"


@pytest.fixture
def batches(digits):
    import tensorflow as tf

    x, y = digits
    return tf.data.Dataset.from_tensor_slices((x[:64], y[:64].astype(np.int64))).batch(16)


def test_a_pipeline_of_tf_data_is_augmented_anew_each_epoch(batches):
    transform = aios_jupyter.augment(POLICY, seed=3)
    data = batches.apply(transform.tf)
    assert data.element_spec[0].shape.as_list() == [None, 20, 20]
    first, second = (np.concatenate([x.numpy() for x, _ in data]) for _ in range(2))
    assert first.shape == (64, 20, 20) and first.dtype == np.uint8
    assert not np.array_equal(first, second)
    again = np.concatenate(
        [x.numpy() for x, _ in batches.apply(aios_jupyter.augment(POLICY, seed=3).tf)]
    )
    assert np.array_equal(first, again)
    plain = np.concatenate([y.numpy() for _, y in batches])
    assert np.array_equal(np.concatenate([y.numpy() for _, y in data]), plain)


def test_mixing_in_tf_data_gives_weights(batches):
    transform = aios_jupyter.augment("cutmix(1)", classes=10)
    data = batches.apply(transform.tf)
    assert data.element_spec[1].shape.as_list() == [None, 10]
    for _, weights in data:
        assert weights.numpy().sum(axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    with pytest.raises(UsageError, match="mix labels"):
        batches.map(lambda x, _: x).apply(transform.tf)


def test_keras_fits_on_augmented_batches_whatever_the_number_of_workers(digits):
    import keras

    x, y = digits[0][:64], digits[1][:64]
    transform = aios_jupyter.augment("rotate(15), shift(0.1)", seed=1)
    data = transform.keras(x, y, batch_size=24)
    assert len(data) == 3
    order = data.order
    images, labels = data[2]
    assert images.shape == (16, 28, 28, 1) and images.dtype == np.float32
    picked = order[48:]
    expected = Pipeline("rotate(15), shift(0.1)", 1).apply(x[picked], indices=picked)
    assert images[..., 0] == pytest.approx(expected / np.float32(255), abs=1e-6)
    assert np.array_equal(labels, y[picked])
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    history = model.fit(transform.keras(x, y, workers=2), epochs=8, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    data.on_epoch_end()
    assert not np.array_equal(data.order, order)


def numbered(catalog, count=50):
    x = np.arange(count, dtype=np.float32).reshape(-1, 1)
    catalog.add_arrays("numbers", x, np.arange(count) % 3)


def seen(batches) -> list[int]:
    return [int(value) for x, _ in batches for value in x[:, 0]]


def test_batches_of_a_rank_are_those_of_torch(catalog):
    numbered(catalog)
    for rank in range(2):
        options = {"batch_size": 4, "seed": 1, "rank": rank, "world_size": 2}
        tensors = aios_jupyter.loader("numbers", **options).tf()
        assert tensors.element_spec[0].shape.as_list() == [4, 1]
        arrays = aios_jupyter.loader("numbers", **options)
        # Gone through again, each is the next epoch.
        for _ in range(2):
            assert seen(tensors) == seen(arrays.arrays())


def test_tensors_go_on_where_a_checkpoint_was(catalog):
    numbered(catalog)
    batches = aios_jupyter.loader("numbers", 4, seed=1)
    running = iter(batches.tf())
    first = seen([next(running) for _ in range(5)])
    state = batches.state_dict()
    assert state["taken"] == 20
    other = aios_jupyter.loader("numbers", 4, seed=1)
    other.load_state_dict(state)
    assert first + seen(other.tf()) == seen(aios_jupyter.loader("numbers", 4, seed=1).arrays())
    assert other.epoch == 1


def test_keras_fits_on_it_and_resumes_with_the_epochs_that_are_left(catalog):
    import keras

    numbered(catalog)
    model = keras.Sequential([keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    batches = aios_jupyter.loader("numbers", 10, seed=1)
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    model.fit(batches.tf(), epochs=2, verbose=0, callbacks=[count])
    assert (len(steps), batches.epoch) == (10, 2)
    # Keras takes the length of a first pass for that of all: this one is in the middle of an epoch.
    batches.load_state_dict({**batches.state_dict(), "epoch": 2, "taken": 30})
    model.fit(batches.tf(endless=True), steps_per_epoch=5, epochs=2, verbose=0, callbacks=[count])
    assert len(steps) == 20
    assert (batches.epoch, batches.state_dict()["taken"]) == (4, 30)


def test_texts_and_augmented_images_are_tensors(catalog, tmp_path, digits):
    (tmp_path / "lines.txt").write_text("one two\nthree four\n")
    lines = catalog.add("lines", tmp_path / "lines.txt")
    (batch,) = aios_jupyter.loader(lines, 2, shuffle=False).tf()
    assert batch.numpy().tolist() == [b"one two", b"three four"]
    catalog.add_arrays("digits", *digits)
    transform = aios_jupyter.augment("resize(16), mixup(0.2)", classes=10)
    ((x, y), *_) = aios_jupyter.loader("digits", 8, transform=transform).tf()
    assert x.shape == (8, 16, 16) and y.numpy().sum(axis=1) == pytest.approx(np.ones(8), abs=1e-5)


def test_what_a_transform_raises_ends_the_pass(catalog):
    numbered(catalog)

    def bad(x, y):
        if x[0, 0] >= 8:
            raise ZeroDivisionError("it does not work")
        return x, y

    data = aios_jupyter.loader("numbers", 4, shuffle=False, transform=bad).tf()
    with pytest.raises(Exception, match="it does not work"):
        list(data)
