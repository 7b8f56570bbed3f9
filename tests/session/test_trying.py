"""Endpoints that people try: what they take, an example, and their answers and refusals as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clusters import until

from aios_jupyter.config import settings
from aios_jupyter.data import Recipe
from aios_jupyter.errors import AccessError, NotFoundError, UsageError
from aios_jupyter.models import load
from aios_jupyter.models.example import MOST_VALUES, example
from aios_jupyter.session import Session, connect, trying


def body(**columns: Any) -> bytes:
    return json.dumps({"inputs": columns}).encode()


@pytest.fixture(scope="module")
def rows(cluster: Any, slopes: Path) -> Iterator[Session]:
    """An endpoint "tried" that takes raw rows, half of which a second version answers."""
    raw = pd.DataFrame({"id": [1, 1, 2], "a": [None, 2, 3], "b": ["x", "x", "y"]})
    recipe = Recipe("drop_missing(a), drop(id), ordinal(b)").fit(raw)
    with connect(label="test") as session:
        for slope, alias in ((1, "champion"), (2, "challenger")):
            file = str(slopes / f"{slope}.onnx")
            session.publish(file, "tried", alias=alias, recipe=recipe, input_example=raw)
        session.serve("tried@champion", canary=("challenger", 0.5))
        yield session


def test_a_form_has_the_raw_columns_and_a_row_that_the_recipe_keeps(rows: Session) -> None:
    form = rows.endpoint_form("tried")
    assert (form["name"], form["model"], form["versions"]) == ("tried", "tried", ("1", "2"))
    assert form["inputs"] == (
        {"name": "a", "datatype": "FP64", "shape": (-1,), "missing": True},
        {"name": "b", "datatype": "BYTES", "shape": (-1,), "missing": True},
    )
    assert (form["example"], form["note"]) == ({"a": [2.0], "b": ["x"]}, "")
    answer = rows.try_endpoint("tried", json.dumps({"inputs": form["example"]}).encode())
    assert answer["milliseconds"] > 0


def test_an_answer_says_which_version_gave_it(rows: Session) -> None:
    seen: dict[str, Any] = {}

    def both() -> bool:
        answer = rows.try_endpoint("tried", body(a=[3], b=["y"]))
        seen[answer["version"]] = json.loads(bytes(answer["outputs"]))
        return len(seen) == 2

    until(both, "an answer of each version")
    assert seen == {"1": [[3.0, 1.0]], "2": [[6.0, 2.0]]}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "not JSON"),
        (b'{"inputs": NaN}', "not JSON"),
        (b'{"inputs": {"a": [1]}}', "'b' is missing"),
        (body(a=["one"], b=["x"]), "Input 'a' must hold FP64"),
        (body(a=[1, 2], b=["x"]), "different numbers of samples"),
        (body(a=[None], b=["x"]), "the recipe leaves out"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_the_endpoint_refuses_is_told_in_its_words(
    rows: Session, given: bytes, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        rows.try_endpoint("tried", given)


def test_an_answer_that_nobody_can_look_at_is_not_read(
    rows: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "MOST_ANSWER", 40)
    with pytest.raises(UsageError, match="more than 40 B"):
        rows.try_endpoint("tried", body(a=[1] * 9, b=["x"] * 9))


def test_an_endpoint_is_tried_by_its_owner_alone(
    rows: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody else could read the token: here both have one account."""
    rows.user_add("bob", "admin", tmp_path / "bob")
    monkeypatch.setenv("AIOS_BUNDLE", str(tmp_path / "bob"))
    settings.cache_clear()
    with connect(label="bob") as bob:
        for ask in (bob.endpoint_form, lambda name: bob.try_endpoint(name, b"{}")):
            with pytest.raises(AccessError, match=r"belongs to .*, who alone has its token"):
                ask("tried")
    monkeypatch.undo()
    settings.cache_clear()


def test_a_token_that_is_not_here_is_a_sentence(rows: Session) -> None:
    (row,) = [row for row in rows.endpoints() if row["name"] == "tried"]
    token = Path(row["token_file"])
    aside = token.rename(token.with_suffix(".aside"))
    try:
        for ask in (rows.monitor, rows.endpoint_form, lambda name: rows.predict(name, {})):
            with pytest.raises(AccessError, match="who started it, on their machine"):
                ask("tried")
    finally:
        aside.rename(token)


def test_examples_are_of_any_kind_and_none_is_too_large(
    session: Session, slopes: Path, tmp_path: Path
) -> None:
    import onnx
    from onnx import TensorProto, helper

    def take(ref: str) -> dict[str, Any]:
        return example(ref, load(ref).signature)

    session.publish(str(slopes / "1.onnx"), "sampled", input_example=np.array([[1.1, np.nan]] * 2))
    assert take("sampled") == {"x": [[pytest.approx(1.1), None]]}
    session.publish(str(slopes / "1.onnx"), "sampled")
    with pytest.raises(NotFoundError, match="sampled/2 has no input example; publish one"):
        take("sampled/2")

    wide = MOST_VALUES + 1
    for name, kind, given in (
        ("wide", TensorProto.FLOAT, np.zeros((1, wide))),
        ("words", TensorProto.STRING, np.array([["añ", "<b>"]], object)),
    ):
        size = given.shape[1]
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            name,
            [helper.make_tensor_value_info("x", kind, ["n", size])],
            [helper.make_tensor_value_info("y", kind, ["n", size])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
        session.publish(str(tmp_path / f"{name}.onnx"), name, input_example=given)
    assert take("words") == {"x": [["añ", "<b>"]]}
    with pytest.raises(NotFoundError, match="too large to be shown: 200,001 values"):
        take("wide")


def test_a_row_that_could_not_be_sent_is_no_example_and_no_reason_to_publish_nothing(
    session: Session, slopes: Path
) -> None:
    recipe = Recipe("drop_missing(b), ordinal(b)")
    recipe = recipe.fit(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}))
    # Numbers beside text, and rows that the recipe leaves out.
    for b in ([3, "x"], [None, None]):
        raw = pd.DataFrame({"a": [1.0, 2.0], "b": pd.Series(b, dtype=object)})
        file = str(slopes / "1.onnx")
        version = session.publish(file, "mixed", recipe=recipe, input_example=raw)
        with pytest.raises(NotFoundError, match="has no input example"):
            example(version.ref, load(version.ref).signature)


def test_an_endpoint_that_is_gone_is_said_to_be(rows: Session) -> None:
    rows.stop_endpoint("tried")
    for ask in (rows.endpoint_form, lambda name: rows.try_endpoint(name, b"{}")):
        with pytest.raises(NotFoundError, match="No endpoint 'tried' is live"):
            ask("tried")
