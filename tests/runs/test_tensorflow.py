"""What a rank does for Keras and TensorFlow, in one process; `tests/session` has it with two ranks."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aios_jupyter import train
from aios_jupyter.errors import UsageError
from aios_jupyter.runs import events

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not here: make test-tensorflow")
    keras = pytest.importorskip("keras")

import numpy as np

from aios_jupyter.runs import keras as ours

# TensorFlow's and Keras's own.
pytestmark = pytest.mark.filterwarnings("ignore")


# --- each rank's part of the data


def rows(dataset: Any) -> list[list[int]]:
    return [np.ravel(batch).astype(int).tolist() for batch in dataset.as_numpy_iterator()]


@pytest.mark.parametrize(("total", "batch", "world"), [(10, 4, 2), (11, 5, 3), (7, 7, 4)])
def test_the_ranks_parts_are_the_batches(total: int, batch: int, world: int) -> None:
    whole = tf.data.Dataset.range(total).batch(batch)
    parts = [rows(ours.shared(whole, rank, world)) for rank in range(world)]
    for index, expected in enumerate(rows(whole)):
        found = [row for part in parts for row in part[index]]
        if len(expected) >= world:
            assert found == expected
        else:
            # No rank is left without a row, since all take part in each step.
            assert set(found) == set(expected)
    assert all(len(part) == len(rows(whole)) for part in parts)


def test_every_part_of_a_batch_is_cut_and_its_structure_stays() -> None:
    batch = (
        {"a": tf.range(4), "s": tf.sparse.from_dense(tf.eye(4))},
        tf.ragged.constant([[1], [2, 3], [], [4]]),
    )
    dataset = tf.data.Dataset.from_tensors(batch)
    ((x, y),) = list(ours.shared(dataset, 1, 2))
    assert x["a"].numpy().tolist() == [2, 3]
    assert tf.sparse.to_dense(x["s"]).numpy().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert y.to_list() == [[], [4]]


def test_how_many_batches_there_are_stays_known() -> None:
    dataset = tf.data.Dataset.range(10).batch(4)
    assert int(ours.shared(dataset, 0, 2).cardinality()) == 3


def test_a_dataset_that_says_so_is_the_ranks_own() -> None:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = tf.data.Dataset.range(4).batch(4).with_options(options)
    assert rows(ours.shared(dataset, 1, 2)) == [[0, 1, 2, 3]]


# --- reports


class Heard:
    """A channel that only listens."""

    def __init__(self, *, counts_steps: bool = True) -> None:
        self.counts_steps = counts_steps
        self.values: list[dict[str, float]] = []
        self.made: list[tuple[float, float, str, str]] = []

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.values.append({**values, "step": float(step or 0)})

    def progress(self, done: float, total: float = 0.0, unit: str = "", label: str = "") -> None:
        self.made.append((done, total, unit, label))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    from keras.src.models.model import Model

    channel = Heard()
    monkeypatch.setattr(events, "channel", lambda: channel)
    monkeypatch.setattr(Model, "fit", Model.fit)
    ours.attach(keras, 0, lambda: None)
    return channel


def model(**compiled: Any) -> Any:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    made.compile(**{"optimizer": "adam", "loss": "mse", "metrics": ["mae"], **compiled})
    return made


X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


def test_fit_reports_steps_and_losses_without_a_word_in_the_code(heard: Heard) -> None:
    history = model().fit(X, Y, batch_size=2, epochs=3, verbose=0)
    assert heard.made[-1] == (12, 12, "step", "epoch 3 of 3")
    last = heard.values[-1]
    assert last["loss"] == pytest.approx(history.history["loss"][-1])
    assert last["mae"] == pytest.approx(history.history["mae"][-1])
    assert (last["step"], last["steps_per_second"] > 0) == (12, True)


def test_code_that_reports_its_own_progress_keeps_it(heard: Heard) -> None:
    heard.counts_steps = False
    model().fit(X, Y, verbose=0)
    assert heard.made == []
    assert heard.values


def test_data_of_unknown_length_is_reported_by_epochs(heard: Heard) -> None:
    def batches() -> Iterator[Any]:
        yield from [(X, Y)] * 3

    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=(tf.TensorSpec((8, 2)), tf.TensorSpec((8, 1)))
    )
    model().fit(dataset, epochs=2, verbose=0)
    assert heard.made[-1][:3] == (2, 2, "epoch")


def test_bars_become_a_line_for_each_epoch(
    heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    model().fit(X, Y, epochs=2)
    lines = capsys.readouterr().out
    assert "Epoch 2/2" in lines
    assert "━" not in lines


def test_wrong_arguments_are_told_by_keras_names(heard: Heard) -> None:
    with pytest.raises(TypeError, match="epoch_count"):
        model().fit(X, Y, epoch_count=3)


# --- checkpoints


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a local disk, and behind fsspec as an object store would be."""
    place = str(tmp_path / "kept") if request.param == "local" else f"memory://{tmp_path.name}/kept"
    monkeypatch.setenv("AIOS_CHECKPOINTS", place)
    monkeypatch.delenv("RANK", raising=False)
    return place


def facts(made: Any) -> list[Any]:
    variables = [*made.weights, *made.optimizer.variables]
    return [np.asarray(variable).tolist() for variable in variables]


def test_a_model_comes_back_with_its_optimizer_and_all_else(folder: str) -> None:
    one = model()
    one.fit(X, Y, epochs=2, verbose=0)
    train.checkpoint({"model": one, "best": {"loss": 0.5}}, 2)
    other = model()
    assert facts(other) != facts(one)
    state = {"model": other, "best": None}
    assert train.restore(state) == 2
    assert facts(other) == facts(one)
    assert state["best"] == {"loss": 0.5}
    one.fit(X, Y, epochs=2, verbose=0)
    other.fit(X, Y, epochs=2, verbose=0)
    assert facts(other) == facts(one)


def test_an_optimizer_of_a_custom_loop_comes_back(folder: str) -> None:
    made, optimizer = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), None
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.apply([tf.ones((2, 1)), tf.ones((1,))], made.trainable_variables)
    train.checkpoint({"model": made, "optimizer": optimizer}, 1)
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    fresh = keras.optimizers.Adam(0.1)
    assert train.restore({"model": other, "optimizer": fresh}) == 1
    assert int(fresh.iterations) == 1
    pairs = zip(optimizer.variables, fresh.variables, strict=True)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_only_rank_0_writes(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    train.checkpoint({"model": model()}, 1)
    monkeypatch.setenv("RANK", "0")
    assert train.restore({"model": model()}) == 0


def test_the_last_ones_are_kept(folder: str) -> None:
    from aios_jupyter.runs.places import Place

    made = model()
    for step in (1, 2, 10):
        train.checkpoint({"model": made}, step)
    assert sorted(Place(folder).steps()) == [2, 10]
    train.checkpoint({"model": made}, 10)
    assert train.restore({"model": made}) == 10


def test_a_model_without_weights_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="'net' has no weights yet"):
        train.checkpoint({"net": keras.Sequential([keras.layers.Dense(1)])}, 1)


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIOS_CHECKPOINTS", str(tmp_path / "file" / "kept"))
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"could not be written .* --checkpoints"):
        train.checkpoint({"model": model()}, 1)


def test_a_legacy_models_optimizer_comes_back(folder: str) -> None:
    legacy = pytest.importorskip("tf_keras")

    def made() -> Any:
        one = legacy.Sequential([legacy.Input((2,)), legacy.layers.Dense(1)])
        one.compile("adam", "mse")
        return one

    one, other = made(), made()
    one.fit(X, Y, epochs=2, verbose=0)
    train.checkpoint({"model": one}, 2)
    assert train.restore({"model": other}) == 2
    assert int(other.optimizer.iterations) == 2
    one.fit(X, Y, verbose=0)
    other.fit(X, Y, verbose=0)
    assert np.array_equal(one.get_weights()[0], other.get_weights()[0])


# --- the rest


def test_prepare_says_that_keras_needs_nothing() -> None:
    with pytest.raises(UsageError, match="a Keras model needs nothing"):
        train.prepare(model())


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("import keras\nmodel.fit(x)", True),
        ("from tensorflow import keras", True),
        ("import tensorflow as tf\ntf.add(1, 2)", False),
        ("import keras\ns = tf.distribute.MultiWorkerMirroredStrategy()", False),
        ("import keras, horovod.tensorflow", False),
    ],
)
def test_code_with_a_strategy_of_its_own_is_left_alone(source: str, plain: bool) -> None:
    from aios_jupyter.runs import tensorflow
    from aios_jupyter.runs.spec import Entry

    orders: Any = SimpleNamespace(spec=SimpleNamespace(source=source, entry=Entry.CELL))
    assert tensorflow._is_plain(orders) is plain


def test_the_package_loads_neither() -> None:
    import subprocess

    code = (
        "import sys, aios_jupyter, aios_jupyter.train, aios_jupyter.runs.rank;"
        "print({'tensorflow', 'keras', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
