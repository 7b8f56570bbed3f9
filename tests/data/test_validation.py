"""`data validate`: tables held against pandera's schemas, by all three doors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandera.pandas as pa
import pytest

from aios_jupyter.commands import main
from aios_jupyter.data import Catalog, validation
from aios_jupyter.errors import ConflictError, NotFoundError, UsageError

ORDERS = "id,age,sex\n1,30,f\n2,200,m\n2,40,x\n4,,f\n"
SCHEMA = pa.DataFrameSchema(
    {
        "id": pa.Column(int, unique=True),
        "age": pa.Column(float, pa.Check.in_range(0, 120), nullable=False),
        "sex": pa.Column(str, pa.Check.isin(["f", "m"])),
    }
)


@pytest.fixture
def orders(tmp_path: Path) -> str:
    (tmp_path / "orders.csv").write_text(ORDERS)
    return Catalog().add("orders", str(tmp_path / "orders.csv")).ref


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", "validate", *arguments])
    return int(ended.value.code or 0)


def test_every_check_that_fails_is_told_with_its_rows(orders: str) -> None:
    found = validation.validate("orders", SCHEMA)
    assert (found.entry.ref, found.count, found.passed) == (orders, 4, False)
    failed = {(each.column, each.check): each for each in found.failed}
    assert failed["id", "field_uniqueness"].rows == (1, 2)
    assert failed["age", "in_range(0, 120)"].values == ("200.0",)
    assert failed["age", "not_nullable"].rows == (3,)
    assert failed["sex", "isin(['f', 'm'])"].values == ("x",)
    assert list(found.rows.index) == [1, 2, 3]


def test_what_is_wrong_with_the_table_as_a_whole_is_told_without_rows(orders: str) -> None:
    schema = pa.DataFrameSchema({"gone": pa.Column(int), "age": pa.Column(float, nullable=True)})
    found = validation.validate("orders", schema)
    (failed,) = found.failed
    assert (failed.column, failed.check, failed.rows) == ("gone", "column_in_dataframe", ())
    assert not len(found.rows)


def test_models_of_pandera_are_schemas_too(orders: str) -> None:
    class Orders(pa.DataFrameModel):
        id: int = pa.Field(ge=1)

    assert validation.validate("orders", Orders).passed


def test_a_schema_is_written_read_and_narrowed_by_hand(
    orders: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("schema.yaml", "schema.json"):
        path = tmp_path / name
        assert run("orders", "--infer", str(path)) == 0
        assert run("orders", "--schema", str(path)) == 0
        assert f"All 4 rows of {orders} pass." in capsys.readouterr().out
        with pytest.raises(ConflictError, match="exists"):
            validation.infer("orders", path)
    text = (tmp_path / "schema.yaml").read_text()
    (tmp_path / "narrow.yaml").write_text(text.replace("200.0", "120.0"))
    assert run("orders", "--schema", str(tmp_path / "narrow.yaml")) == 1
    said = capsys.readouterr()
    assert "less_than_or_equal_to(120.0)" in said.out
    assert "rows that fail" in said.out and "200.0" in said.out
    assert f"1 of 4 rows of {orders} does not pass 1 check of" in said.err
    assert "Traceback" not in said.err


def test_programs_get_json(orders: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCHEMA.to_yaml())
    assert run("orders", "--schema", str(path), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["failing"] == [1, 2, 3]
    assert {"column": "sex", "check": "isin(['f', 'm'])", "rows": [2], "values": ["x"]} in told[
        "failed"
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.yaml", "nonsense: [", "is not a schema of pandera's"),
        ("s.json", "{", "is not a schema of pandera's"),
        ("s.yaml", "a: 1", "names no column"),
        ("s.yaml", "columns:\n  x:\n    dtype: nosuch", "is not a schema of pandera's"),
        ("s.txt", "", "does not end in"),
        ("gone.yaml", None, "There is nothing at"),
    ],
)
def test_what_is_no_schema_is_a_sentence(
    orders: str, tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises((UsageError, NotFoundError), match=says) as failed:
        validation.validate("orders", path)
    assert name in str(failed.value)


def test_what_is_no_table_is_a_sentence(
    orders: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    Catalog().add("x", str(tmp_path / "x.npy"))
    with pytest.raises(UsageError, match="no table"):
        validation.validate("x", SCHEMA)
    with pytest.raises(UsageError, match="is no schema"):
        validation.validate("orders", 3)
    assert run("orders") == 2
    assert "one of --schema" in capsys.readouterr().err
