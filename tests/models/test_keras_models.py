"""Keras models: published as ONNX, optimized, served, and taken to small devices as LiteRT."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from aios_jupyter.data import Catalog, Recipe
from aios_jupyter.data.prepare import prepare
from aios_jupyter.errors import UsageError
from aios_jupyter.models import fetch, load, publish
from aios_jupyter.models.batch import predict_dataset
from aios_jupyter.models.client import infer
from aios_jupyter.models.export import Options, export
from aios_jupyter.models.optimize import LITERT, Wish, optimize

from .conftest import TOKEN, Served, shell
from .test_prepared import RAW, as_sent, people
from .test_serve import ask

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


# --- behind a recipe

FEATURES = (
    "number(age), fill(age, median), scale(age, income), onehot(city), date(born), date_parts(born), "
    "scale(born_year, born_month, born_weekday), drop_outside(income, -1, 20), drop(note, id, born_day, born_hour)"
)


class Table:
    """The raw people as "people-keras", prepared as "ready-keras"."""

    def __init__(self, folder: Path) -> None:
        people().to_parquet(folder / "people.parquet")
        Catalog().add("people-keras", folder / "people.parquet")
        prepare("people-keras", "ready-keras", FEATURES)
        self.recipe = Recipe.load("ready-keras")
        ready = Catalog().frame("ready-keras").drop(columns="label")
        self.columns = list(ready.columns)
        self.x = ready.to_numpy("float32")
        self.y = Catalog().frame("ready-keras")["label"].eq("yes").to_numpy("int32")

    def prepared(self, rows: pd.DataFrame) -> np.ndarray:
        """Raw rows as the model takes them."""
        made: np.ndarray = self.recipe.transform(rows)[self.columns].to_numpy("float32")
        return made


@pytest.fixture(scope="module")
def table(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return Table(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def behind(table: Table) -> Any:
    """A network that scales once more itself, trained and published behind the recipe."""
    import keras

    scaled = keras.layers.Normalization()
    scaled.adapt(table.x)
    model = keras.Sequential(
        [
            keras.Input((len(table.columns),)),
            scaled,
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(table.x, table.y, epochs=2, verbose=0)
    publish(
        model, "members", recipe="ready-keras", alias="champion", profile=people().head(100),
        input_example=people().head(20),
    )  # fmt: skip
    return model


def test_a_model_behind_a_recipe_takes_rows_on_every_way(
    table: Table, behind: Any, serve: Callable[..., Served], tmp_path: Path
) -> None:
    rows = people(330)[300:].reset_index(drop=True)
    expected = behind.predict(table.prepared(rows), verbose=0)
    np.testing.assert_allclose(load("members@champion").predict(rows), expected, atol=1e-5)

    served = serve("members@champion")
    records = as_sent(rows)
    for given in (rows, records, {name: [row[name] for row in records] for name in RAW}):
        np.testing.assert_allclose(infer(served.url, TOKEN, given), expected, atol=1e-5)
    for path, body, key in (
        ("/predict", {"inputs": records}, "outputs"),
        ("/invocations", {"dataframe_records": records}, "predictions"),
    ):
        status, reply = ask(served, "POST", path, json.dumps(body))
        assert status == 200, reply
        np.testing.assert_allclose(reply[key], expected, atol=1e-5)
    status, reply = ask(
        served, "POST", "/predict", json.dumps({"inputs": [{**records[0], "income": 1e9}]})
    )
    assert status == 400
    assert "drop_outside" in reply["error"]

    rows.to_parquet(tmp_path / "new.parquet")
    Catalog().add("new-keras", tmp_path / "new.parquet")
    predict_dataset(fetch("members"), "members", "new-keras", "new-members")
    found = Catalog().frame("new-members")
    assert found["prediction"].tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(found["score"], expected.max(1), atol=1e-5)


@pytest.mark.parametrize("which", ["keras", "tf_keras"])
@pytest.mark.parametrize("size", [(1,), ()])
def test_a_model_with_an_input_for_each_column_takes_the_columns_of_these_names(
    table: Table, which: str, size: tuple[int, ...]
) -> None:
    keras = pytest.importorskip(which)
    names = {"member": "int32", "age": "float32"}
    inputs = [keras.Input(size, name=name, dtype=kind) for name, kind in names.items()]
    member, age = (keras.layers.Reshape((1,))(one) for one in inputs)
    both = [keras.layers.Flatten()(keras.layers.Embedding(2, 3)(member)), age]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(both)))
    name = f"columns-{which}-{len(size)}".replace("_", "-")
    version = publish(model, name, recipe="ready-keras")
    assert [tensor["name"] for tensor in version.signature["inputs"]] == ["age", "member"]
    rows = people(40)
    made = table.recipe.transform(rows)
    given = [made[column].to_numpy(kind) for column, kind in names.items()]
    given = [one.reshape(-1, *size) for one in given]
    np.testing.assert_allclose(load(name).predict(rows), np.asarray(model(given)), atol=1e-5)


def test_a_model_that_the_recipe_does_not_fit_is_not_published(table: Table) -> None:
    import keras

    narrow = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(UsageError, match=r"expected axis -1 of input shape to have value 3"):
        publish(narrow, "never-keras", recipe="ready-keras")
    inputs = [keras.Input((1,), name=name) for name in ("age", "height")]
    other = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))
    with pytest.raises(UsageError, match="takes age, height; the data has no column height"):
        publish(other, "never-keras", recipe="ready-keras")


@pytest.mark.parametrize("calibrated", [False, True])
def test_litert_is_written_with_the_recipe_beside_it(
    table: Table, behind: Any, tmp_path: Path, calibrated: bool
) -> None:
    options = Options(calibrate=people().head(200)) if calibrated else Options()
    found = export("members@champion", "litert", tmp_path / "board", options)
    assert "model.tflite by itself takes rows that are prepared" in found.note
    about = json.loads((tmp_path / "board" / "model.json").read_text())
    assert about["prepared"]["columns"] == table.columns
    assert about["prepared"]["inputs"][0]["shape"] == [-1, len(table.columns)]
    assert [tensor["name"] for tensor in about["signature"]["inputs"]] == RAW
    needs = (tmp_path / "board" / "requirements.txt").read_text()
    assert "pandas==" in needs
    assert "tensorflow" not in needs
    rows = people(20)
    (tmp_path / "rows.json").write_text(json.dumps(as_sent(rows)))
    code = "import sys; sys.modules['tensorflow'] = None; import runpy; sys.argv[0] = 'run.py'; "
    code += "runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.json")],
        cwd=tmp_path / "board", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    given = np.asarray(json.loads(done.stdout.splitlines()[-1])["output"])
    expected = behind.predict(table.prepared(rows), verbose=0)
    assert np.allclose(given, expected, atol=0.1 if calibrated else 1e-4)
    assert ("int8 gives the same class for " in found.note) == calibrated
