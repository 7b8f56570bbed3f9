"""Keras models: published as ONNX, optimized, served, and taken to small devices as LiteRT."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.models import fetch, load, publish
from aios_jupyter.models.export import Options, export
from aios_jupyter.models.optimize import LITERT, Wish, optimize

from .conftest import shell

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None,
        reason="TensorFlow is not here: make test-tensorflow",
    ),
    pytest.mark.usefixtures("state_dir"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
]

CLASSES = np.arange(400) % 2
NOISE = np.random.default_rng(3).random((400, 8, 8, 1), np.float32)
LABELED = (NOISE + CLASSES[:, None, None, None] * 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> Any:
    """A small network that tells dark pictures from light ones."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.BatchNormalization(momentum=0.8),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(LABELED, CLASSES, epochs=15, verbose=0)
    return model


def functional(keras: Any) -> Any:
    """Two inputs, two outputs."""
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    return keras.Model([left, right], [keras.layers.Dense(4)(both), keras.layers.Dense(1)(both)])


def test_a_network_is_published_as_onnx_and_answers_as_itself(trained: Any) -> None:
    version = publish(trained, "light", input_example=LABELED[:1])
    assert version.framework == "keras"
    assert version.signature["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 8, 8, 1]}
    ]
    assert version.signature["outputs"][0]["name"] == "output"
    assert {"model.onnx", "model.keras", "input_example.npz"} <= fetch("light").files.keys()
    predictor = load("light")
    for count in (1, 7):
        expected = trained.predict(LABELED[:count], verbose=0)
        assert np.allclose(predictor.predict(LABELED[:count]), expected, atol=1e-5)


@pytest.mark.parametrize("which", ["keras", "tf_keras"])
def test_several_inputs_have_names_and_outputs_an_order(which: str) -> None:
    keras = pytest.importorskip(which)
    model = functional(keras)
    left, right = np.ones((3, 3), np.float32), np.full((3, 2), 2, np.float32)
    example = (left, right) if which == "keras" else {"right": right, "left": left}
    publish(model, f"two-{which.replace('_', '-')}", input_example=example)
    given = load(f"two-{which.replace('_', '-')}").predict({"left": left, "right": right})
    expected = [np.asarray(value) for value in model([left, right])]
    for have, want in zip(given.values(), expected, strict=True):
        assert np.allclose(have, want, atol=1e-5)


def test_a_dict_of_inputs_and_a_call_of_ones_own() -> None:
    import keras

    parts = {name: keras.Input((2,), name=name) for name in ("beta", "alpha")}
    total = keras.layers.Dense(1)(keras.layers.Concatenate()([parts["beta"], parts["alpha"]]))
    model = keras.Model(parts, total)
    given = {"alpha": np.ones((2, 2), np.float32), "beta": np.zeros((2, 2), np.float32)}
    publish(model, "named", input_example=given)
    assert np.allclose(load("named").predict(given), np.asarray(model(given)), atol=1e-5)

    class Doubled(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return 2 * self.dense(x)

    own = Doubled()
    x = np.ones((3, 4), np.float32)
    publish(own, "own", input_example=x)
    assert np.allclose(load("own").predict(x), np.asarray(own(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (None, "needs an input example"),
        (np.ones((2, 5, 5, 1), np.float32), "fails on the input example of shape"),
        (np.ones((), np.float32), "x\\[:1\\] rather than x\\[0\\]"),
        ((LABELED[:1], LABELED[:1]), "The model takes input; give an input example of each"),
    ],
)
def test_what_does_not_fit_is_a_sentence(trained: Any, example: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        publish(trained, "wrong", input_example=example)


def test_int8_is_tried_in_both_runtimes_and_measured(trained: Any) -> None:
    found = optimize(trained, (LABELED, CLASSES), Wish(int8=True, max_loss=0.05))
    rows = {row.name: row for row in found.rows}
    assert found.framework == "keras"
    assert rows[LITERT].size < rows["float32"].size / 2
    assert not rows[LITERT].stored
    assert rows[LITERT].score > 0.9
    assert rows[LITERT].p50_ms > 0
    assert found.chosen.startswith("int8")
    assert publish(found, "light-int8").lineage["optimized"] == found.chosen
    with pytest.raises(UsageError, match="Only a torch network can be pruned"):
        optimize(trained, (LABELED, CLASSES), Wish(prune=0.5))


@pytest.mark.parametrize("calibrate", [None, LABELED])
def test_litert_runs_without_tensorflow(trained: Any, tmp_path: Path, calibrate: Any) -> None:
    publish(trained, "small", input_example=LABELED[:2])
    if calibrate is None:
        found = export("small", "litert", tmp_path / "board", Options())
        assert found.size == sum(path.stat().st_size for path in (tmp_path / "board").iterdir())
    else:
        np.save(tmp_path / "ranges.npy", calibrate)
        flags = ("--calibrate", str(tmp_path / "ranges.npy"), "-o", str(tmp_path / "board"))
        assert shell("export", "small", "--to", "litert", *flags) == 0
    files = {path.name for path in (tmp_path / "board").iterdir()}
    assert files == {"model.tflite", "model.json", "run.py", "requirements.txt"}
    needs = (tmp_path / "board" / "requirements.txt").read_text()
    assert "ai-edge-litert==" in needs
    assert "tensorflow" not in needs
    np.save(tmp_path / "x.npy", LABELED[:3])
    code = "import sys; sys.modules['tensorflow'] = None; import runpy; sys.argv[0] = 'run.py'; "
    code += "runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.npy")],
        cwd=tmp_path / "board", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    given = np.asarray(json.loads(done.stdout.splitlines()[-1])["output"])
    tolerance = 1e-4 if calibrate is None else 0.1
    assert np.allclose(given, trained.predict(LABELED[:3], verbose=0), atol=tolerance)
    size = (tmp_path / "board" / "model.tflite").stat().st_size
    assert size < 60_000 if calibrate is not None else size > 100_000


def test_what_cannot_be_litert_is_a_sentence(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import keras

    class Scaled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    model = keras.Sequential([keras.Input((2,)), Scaled(), keras.layers.Dense(1)])
    publish(model, "unknown", input_example=np.ones((1, 2), np.float32))
    with pytest.raises(UsageError, match="register_keras_serializable"):
        export("unknown", "litert", tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()

    optimized = optimize(trained, (LABELED, CLASSES), Wish(int8=True, max_loss=0.05))
    publish(optimized, "already")
    assert shell("export", "already", "--to", "litert", "-o", str(tmp_path / "out")) == 2
    assert "this one was not published as one" in capsys.readouterr().err
