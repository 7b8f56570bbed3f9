"""A recipe in front of a model: raw rows go in, on every way to an answer."""

from __future__ import annotations

import ast
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
from aios_jupyter.errors import NotFoundError, UsageError
from aios_jupyter.models import fetch, load, publish
from aios_jupyter.models.batch import predict_dataset
from aios_jupyter.models.client import EndpointClient, infer
from aios_jupyter.models.registry import resolve

from .conftest import TOKEN, Served, run_bare, shell
from .test_serve import ask

CLEAN = "drop(note), drop_duplicates(id), number(age), drop_missing(label), drop_outside(income, 0, 1e6)"
FEATURES = (
    "fill(age, median), scale(age, income), onehot(city), date(born), date_parts(born), "
    "rename(member, joined), ordinal(label), drop(id)"
)
RAW = ["age", "income", "city", "born", "member"]


def people(n: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "id": range(n),
            "age": [None if i % 9 == 0 else str(a) for i, a in enumerate(random.integers(18, 90, n))],
            "income": random.lognormal(9, 1, n).round(2),
            "city": random.choice(["Ulm", "Bonn", "Kiel", None], n),
            "born": [f"19{y}-0{1 + y % 9}-11" for y in random.integers(40, 99, n)],
            "member": random.integers(0, 2, n),
            "note": "x",
            "label": random.choice(["yes", "no"], n),
        }
    )  # fmt: skip


class Tabular:
    """What the tests ask: the model, and the recipe that its data was prepared with."""

    def __init__(self, net: Any, recipe: Recipe) -> None:
        self.net, self.recipe = net, recipe

    def __call__(self, rows: pd.DataFrame) -> np.ndarray:
        """In Python: the recipe, then the model."""
        import torch

        given = rows.assign(id=range(len(rows)), note="", label="yes")
        made = self.recipe.transform(given).drop(columns=["label"])
        with torch.no_grad():
            return self.net(torch.tensor(made.to_numpy("float32"))).numpy()


@pytest.fixture(scope="module")
def model(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tabular:
    """A network behind two recipes, published as "incomes" with the dataset "ready-in"."""
    import torch

    path = tmp_path_factory.mktemp("people") / "people.parquet"
    people().to_parquet(path)
    Catalog().add("people-in", path)
    prepare("people-in", "clean-in", CLEAN)
    prepare("clean-in", "ready-in", FEATURES)
    recipe = Recipe.load("ready-in")
    width = len(Catalog().frame("ready-in").columns) - 1
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    publish(net, "incomes", recipe="ready-in", alias="champion", profile=people().head(100))
    # The catalogue goes on: what is published does not.
    prepare("clean-in", "ready-in", FEATURES.replace("scale", "minmax"))
    return Tabular(net.eval(), recipe)


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served], model: Tabular) -> Served:
    return serve("incomes@champion")


@pytest.fixture
def rows() -> pd.DataFrame:
    return people(340)[300:].reset_index(drop=True)


def as_sent(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    found = rows.astype(object).where(rows.notna(), None)[RAW].to_dict("records")
    return [dict(row) for row in found]


def test_the_version_takes_raw_rows(model: Tabular) -> None:
    version = resolve("incomes@champion")
    taken = {tensor["name"]: tensor for tensor in version.signature["inputs"]}
    assert list(taken) == RAW  # no label, nothing that the model does not depend on
    assert taken["income"] == {"name": "income", "datatype": "FP64", "shape": [-1], "missing": True}
    assert taken["city"]["datatype"] == taken["age"]["datatype"] == "BYTES"
    assert version.lineage["recipe"].startswith("number(age), drop_outside(income, 0, 1000000)")
    assert "label" not in version.lineage["recipe"]
    assert "drop_duplicates" not in version.lineage["recipe"]


def test_it_answers_as_recipe_and_model_do(model: Tabular, rows: pd.DataFrame) -> None:
    expected = model(rows)
    found = load("incomes@champion").predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        load("incomes@champion").predict(as_sent(rows)), expected, rtol=1e-5, atol=1e-4
    )


def test_every_route_takes_raw_rows(model: Tabular, served: Served, rows: pd.DataFrame) -> None:
    expected = model(rows)
    records = as_sent(rows)
    columns = {name: [row[name] for row in records] for name in RAW}
    more = [{**row, "id": 7, "note": None} for row in records]
    for path, body, key in (
        ("/predict", {"inputs": records}, "outputs"),
        ("/predict", {"inputs": columns}, "outputs"),
        ("/invocations", {"inputs": columns}, "predictions"),
        ("/invocations", {"instances": records}, "predictions"),
        ("/invocations", {"dataframe_records": more}, "predictions"),
        (
            "/invocations",
            {"dataframe_split": json.loads(rows.to_json(orient="split"))},
            "predictions",
        ),
    ):
        status, reply = ask(served, "POST", path, json.dumps(body))
        assert status == 200, reply
        np.testing.assert_allclose(reply[key], expected, rtol=1e-5, atol=1e-4)
    tensors = [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": "BYTES" if isinstance(columns[name][1], str) else "FP64",
            "data": columns[name],
        }
        for name in RAW
    ]
    status, reply = ask(served, "POST", "/v2/models/incomes/infer", json.dumps({"inputs": tensors}))
    assert status == 200, reply
    np.testing.assert_allclose(
        np.reshape(reply["outputs"][0]["data"], (-1, 3)), expected, rtol=1e-5, atol=1e-4
    )
    for given in (rows, records, columns):  # our own client
        np.testing.assert_allclose(infer(served.url, TOKEN, given), expected, rtol=1e-5, atol=1e-4)


def test_requests_that_are_run_together_keep_their_own_answers(
    model: Tabular, served: Served, rows: pd.DataFrame
) -> None:
    """One that the recipe refuses takes none of the others with it."""
    import concurrent.futures

    expected = model(rows)

    def one(number: int) -> None:
        with EndpointClient(served.url, TOKEN) as client:
            row = rows.iloc[number : number + 1]
            if number % 4:
                np.testing.assert_allclose(
                    client.infer(row), expected[number : number + 1], rtol=1e-5, atol=1e-4
                )
            else:
                with pytest.raises(UsageError, match=r"Row 0 .* drop_outside|Row 0 .*leaves out"):
                    client.infer(row.assign(income=-5.0))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(len(rows))))


def test_rows_that_are_not_right_are_refused_in_a_sentence(served: Served) -> None:
    good = {"age": "30", "income": 100.0, "city": "Ulm", "born": "1970-02-03", "member": 1}
    for change, says in (
        ({"income": "much"}, "'income' must hold FP64"),
        ({"income": -1}, "Row 1 is one that the recipe leaves out (drop_outside(income"),
        ({"city": 7}, "'city' must hold"),
        ({"born": {"year": 1}}, "'born' must hold text"),
        ({"age": ["30"]}, "'age'"),
        ({"member": None, "income": None, "age": "old"}, ""),  # all of it may be missing
    ):
        status, reply = ask(
            served, "POST", "/predict", json.dumps({"inputs": [good, {**good, **change}]})
        )
        assert status == (400 if says else 200), reply
        if says:
            assert says in reply["error"], reply
    for body, says in (
        ({"inputs": [{k: v for k, v in good.items() if k != "city"}]}, "Row 0 has no 'city'"),
        ({"inputs": [[1, 2, 3]]}, "an object for each row"),
        ({"inputs": []}, "an object for each row"),
        ({"inputs": [good, 5]}, "an object for each row"),
    ):
        status, reply = ask(served, "POST", "/predict", json.dumps(body))
        assert (status, says in reply["error"]) == (400, True), reply
    frame = {"columns": ["age", "income"], "data": [["3", 1]]}
    status, reply = ask(served, "POST", "/invocations", json.dumps({"dataframe_split": frame}))
    assert status == 400
    assert "no column city, born, member" in reply["error"]


def test_its_documents_show_the_raw_fields(served: Served) -> None:
    status, metadata = ask(served, "GET", "/v2/models/incomes")
    assert status == 200
    assert [tensor["name"] for tensor in metadata["inputs"]] == RAW
    document = ask(served, "GET", "/openapi.json")[1]
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    row, columns = body["schema"]["properties"]["inputs"]["anyOf"]
    assert row["items"]["required"] == RAW
    assert row["items"]["properties"]["city"] == {"type": ["string", "null"]}
    assert columns["properties"]["income"]["items"] == {"type": ["number", "null"]}
    assert ask(served, "GET", "/monitor")[0] == 200


def test_a_whole_dataset_is_predicted_from_its_raw_rows(model: Tabular, tmp_path: Path) -> None:
    raw = people(60)
    raw.loc[5, "income"] = -4.0
    raw.to_parquet(tmp_path / "new.parquet")
    Catalog().add("new-people", tmp_path / "new.parquet")
    predict_dataset(fetch("incomes@champion"), "incomes@champion", "new-people", "new-incomes")
    found = Catalog().frame("new-incomes")
    left = raw.drop(index=5)
    assert found["id"].tolist() == left["id"].tolist()  # what the recipe drops is not there
    expected = model(left)
    assert found["prediction"].tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(found["score"], expected.max(1), rtol=1e-5, atol=1e-4)
    Catalog().add("ready-people", tmp_path / "new.parquet")
    raw[["income"]].to_parquet(tmp_path / "narrow.parquet")
    Catalog().add("narrow-people", tmp_path / "narrow.parquet")
    with pytest.raises(UsageError, match="no column 'age'"):
        predict_dataset(fetch("incomes"), "incomes", "narrow-people", "never-incomes")


def test_dates_and_whole_numbers_are_what_they_were(state_dir: Path) -> None:
    """Types of columns that JSON does not have, with a recipe that was never in the catalogue."""
    import torch

    raw = pd.DataFrame(
        {
            "when": pd.date_range("2024-01-30", periods=40, freq="D"),
            "zip": np.arange(40) % 3,
            "new": np.arange(40) % 2 == 0,
            "survived": np.arange(40) % 2,
        }
    )
    recipe = Recipe("text(zip), onehot(zip), date_parts(when)").fit(raw)
    net = torch.nn.Linear(9, 2)
    version = publish(net, "dated", recipe=recipe, label="survived", input_example=raw)
    fields = {t["name"]: t["datatype"] for t in version.signature["inputs"]}
    assert fields == {"when": "BYTES", "zip": "FP64", "new": "BOOL"}
    made = recipe.transform(raw).drop(columns="survived").to_numpy("float32")
    with torch.no_grad():
        expected = net(torch.tensor(made)).numpy()
    found = load("dated").predict(raw)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    sent = {"when": ["2024-01-30"], "zip": [0], "new": [True]}
    np.testing.assert_allclose(load("dated").predict(sent), expected[:1], rtol=1e-5, atol=1e-4)
    with pytest.raises(UsageError, match=r"'when' has text that is no date"):
        load("dated").predict({**sent, "when": ["soon"]})


def test_a_recipe_that_does_not_fit_the_model_is_not_published(model: Tabular) -> None:
    import torch

    raw = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [3.0, 4.0, 5.0], "kind": [0, 1, 0]})
    recipe = Recipe("scale(a)").fit(raw)
    net = torch.nn.Linear(2, 1)
    with pytest.raises(UsageError, match="input_example, as a data frame"):
        publish(net, "never", recipe=recipe)
    with pytest.raises(UsageError, match=r"3 .*--label|input example"):
        publish(net, "never", recipe=recipe, input_example=raw)
    example = torch.zeros(2, 2)
    with pytest.raises(UsageError, match="input_example, as a data frame"):
        publish(net, "never", recipe=recipe, input_example=example)
    with pytest.raises(UsageError, match="--recipe"):
        publish(net, "never", label="kind", input_example=example)
    with pytest.raises(NotFoundError, match="not made by a recipe"):
        publish(net, "never", recipe="people-in")
    assert publish(net, "fits", recipe=recipe, label="kind", input_example=raw).version == 1


def test_a_pickled_model_and_its_exports(model: Tabular, tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeClassifier

    from aios_jupyter.models.export import export

    recipe, ready = model.recipe, model.recipe.transform(people())
    fitted = DecisionTreeClassifier(random_state=0).fit(
        ready.drop(columns="label").to_numpy("float64"), ready["label"]
    )
    ref = publish(fitted, "tree", recipe=recipe, input_example=people(), allow_pickle=True).ref
    rows = people(40)
    found = load(ref, allow_pickle=True).predict(rows)
    expected = fitted.predict(recipe.transform(rows).drop(columns="label").to_numpy("float64"))
    assert found.tolist() == expected.tolist()
    export("incomes", "container", tmp_path / "box")
    assert "pandas==" in (tmp_path / "box" / "requirements.txt").read_text()
    from aios_jupyter.models.predictor import open_package
    from aios_jupyter.models.serve import package_in

    boxed = open_package(package_in(tmp_path / "box" / "model"))
    np.testing.assert_allclose(boxed.predict(rows), model(rows), rtol=1e-5, atol=1e-4)


def test_an_edge_bundle_prepares_rows_without_torch_or_this_package(
    model: Tabular,
    tmp_path: Path,
    clean: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    edge = tmp_path / "edge"
    assert shell("export", "incomes@champion", "--to", "edge", "-o", str(edge)) == 0
    assert "python run.py ROWS.csv" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in edge.iterdir()} == {
        "model.onnx", "model.json", "recipe.json", "run.py", "requirements.txt", "app"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in (edge / "app").rglob("*.py")) < 150_000
    python = clean(edge / "requirements.txt")
    for absent in ("torch", "onnx", "mlflow", "dask", "pyarrow", "aios_jupyter"):
        assert run_bare(python, "-c", f"import {absent}").returncode != 0

    rows = people(40)
    expected = model(rows)
    rows.drop(columns="label").to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.json").write_text(json.dumps(as_sent(rows)))
    for name in ("rows.csv", "rows.json"):
        given = tmp_path / name
        done = run_bare(python, "run.py", str(given), "-o", str(tmp_path / "y.npy"), cwd=edge)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-4)
    code = "import json, sys, run; x = json.load(open(sys.argv[1])); print(run.Model().predict(x).tolist())"
    said = run_bare(python, "-c", code, str(tmp_path / "rows.json"), cwd=edge)
    np.testing.assert_allclose(json.loads(said.stdout), expected, rtol=1e-5, atol=1e-4)
    speed = json.loads(run_bare(python, str(edge / "run.py"), "--speed").stdout)
    assert 0 < speed["p50_ms"] <= speed["p95_ms"]

    for change, says in (
        ({"income": -5.0}, "Row 0 is one that the recipe leaves out (drop_outside(income"),
        ({"income": "much"}, "Input 'income' must hold FP64 values"),
        ({"city": 7}, "Input 'city' must hold"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps([{**as_sent(rows)[1], **change}]))
        done = run_bare(python, str(edge / "run.py"), str(tmp_path / "bad.json"))
        assert (done.returncode, done.stderr[: len(says)]) == (1, says)
        assert "Traceback" not in done.stderr
    rows[["age"]].to_csv(tmp_path / "narrow.csv", index=False)
    done = run_bare(python, str(edge / "run.py"), str(tmp_path / "narrow.csv"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    (edge / "recipe.json").write_text((edge / "recipe.json").read_text().replace("0.", "0.1", 1))
    done = run_bare(python, str(edge / "run.py"), str(tmp_path / "rows.csv"))
    assert "recipe.json was changed after it was exported" in done.stderr


def test_a_bundle_holds_what_prepares_rows_and_no_more() -> None:
    """What `app/` has is what a process that prepares rows has loaded of this package."""
    from aios_jupyter.models import edge_recipe

    code = (
        "import sys, aios_jupyter.models.prepared\n"
        "print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'aios_jupyter'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    root = Path(edge_recipe.__file__).parents[1]
    loaded = {str(Path(f).relative_to(root).with_suffix("")) for f in ast.literal_eval(done.stdout)}
    assert set(edge_recipe._CODE) == loaded


def test_a_step_that_asks_a_function_of_ones_own_is_not_exported(
    state_dir: Path, tmp_path: Path
) -> None:
    import torch

    from aios_jupyter.data import embedding
    from aios_jupyter.models.export import export

    embedding("lengths", lambda texts: np.array([[len(text)] for text in texts], "float32"))
    raw = pd.DataFrame({"note": ["a", "bb", "ccc"], "size": [1.0, 2.0, 3.0]})
    recipe = Recipe("embed(note, lengths)").fit(raw)
    publish(torch.nn.Linear(2, 1), "noted", recipe=recipe, input_example=raw)
    with pytest.raises(UsageError, match=r"step embed\(note, lengths\) .* serve the model"):
        export("noted", "edge", tmp_path / "edge")
    assert not (tmp_path / "edge").exists()
