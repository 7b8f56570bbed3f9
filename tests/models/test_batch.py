"""Predictions for datasets of the catalogue, in this process; the session's test uses workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from aios_jupyter.data.catalog import Catalog
from aios_jupyter.errors import AccessError, UsageError
from aios_jupyter.models import batch as batch_module
from aios_jupyter.models import fetch, load
from aios_jupyter.models.batch import predict_dataset


def made(ref: str, src: str, dst: str, **options: Any) -> pd.DataFrame:
    predict_dataset(fetch(ref), ref, src, dst, **options)
    return Catalog().frame(dst)


def test_images_have_a_class_and_a_score_each(
    published: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "ROWS", 100)  # several parts
    Catalog().add_arrays("seen", digits.x[:, 0], digits.y)
    told: list[tuple[int, int]] = []
    found = made("digits/1", "seen", "seen-out", on_progress=lambda *step: told.append(step))
    expected = load("digits/1").predict(digits.x)
    assert found["row"].tolist() == list(range(len(digits.x)))
    assert found["prediction"].tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(found["score"], expected.max(1), rtol=1e-5)
    assert (found["label"] == found["prediction"]).mean() == pytest.approx(
        digits.accuracy, abs=0.01
    )
    assert told[-1] == (3, 3)
    entry = Catalog().get("seen-out")
    assert entry.made_from == (Catalog().get("seen").ref,)
    assert entry.how == "predicted by digits/1"


def test_whole_numbers_are_images_as_they_were_trained_on(published: Any, digits: Any) -> None:
    gray = (digits.x[:60, 0] * 255).round().astype(np.uint8)
    Catalog().add_arrays("gray", gray)
    expected = load("digits/1").predict((gray / np.float32(255))[:, None])
    assert (
        made("digits/1", "gray", "gray-out")["prediction"].tolist() == expected.argmax(1).tolist()
    )


def test_a_table_keeps_its_columns(line: Callable[..., Any], tmp_path: Path) -> None:
    line("tabular", 3.0)
    path = tmp_path / "people.csv"
    path.write_text("age,income,label\n1,2.5,a\n4,0,b\n,1,a\n")
    Catalog().add("people", path)
    found = made("tabular/1", "people", "people-out")
    assert list(found.columns) == ["age", "income", "label", "prediction", "score"]
    assert found["label"].tolist() == ["a", "b", "a"]
    assert found["prediction"].tolist()[:2] == [1, 0]
    assert found["score"].tolist()[:2] == [7.5, 12.0]


def test_data_that_does_not_fit_makes_nothing(
    published: Any, line: Callable[..., Any], tmp_path: Path
) -> None:
    line("tabular", 3.0)
    for name, text, says in (
        ("narrow", "a\n1\n", r"shape \[1, 1\]"),
        ("wordy", "a,b\n1,x\n", "must hold"),
    ):
        (tmp_path / f"{name}.csv").write_text(text)
        Catalog().add(name, tmp_path / f"{name}.csv")
        with pytest.raises(UsageError, match=says):
            made("tabular/1", name, "never")
    with pytest.raises(UsageError, match="shape"):
        made("digits/1", "mnist", "never")
    assert not Catalog().versions("never")


def test_a_pickle_is_not_opened_unasked(state_dir: Path, tmp_path: Path) -> None:
    from sklearn.dummy import DummyRegressor

    from aios_jupyter.models import publish

    model = DummyRegressor().fit([[0, 0]], [5])
    example = np.zeros((1, 2))
    ref = publish(model, "constant", input_example=example, allow_pickle=True).ref
    Catalog().add_arrays("zeros", np.zeros((3, 2)))
    with pytest.raises(AccessError, match="--allow-pickle"):
        made(ref, "zeros", "fives")
    assert made(ref, "zeros", "fives", allow_pickle=True)["prediction"].tolist() == [5, 5, 5]
