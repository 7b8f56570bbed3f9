"""What `-p` means, and when two notebooks of a batch are the same."""

from __future__ import annotations

from typing import Any

import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.session.batch import as_csv
from aios_jupyter.session.grid import jobs, parse_parameters


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x=0.1,0.01", [0.1, 0.01]),
        ("x=1..5", [1, 2, 3, 4, 5]),
        ("x=5..3", [5, 4, 3]),
        ("x=0..1..0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("x=1..3,10", [1, 2, 3, 10]),
        ("x=adam, sgd", ["adam", "sgd"]),
        ("x='0.1',true,none", ["0.1", True, None]),
        ("x=1e-3", [0.001]),
        ("x=a=b", ["a=b"]),
        ('x=[[64, 32], [128], "a,b"]', [[64, 32], [128], "a,b"]),
    ],
)
def test_values_of_a_parameter(text: str, values: list[Any]) -> None:
    assert parse_parameters([text]) == {"x": values}
    assert [type(value) for value in parse_parameters([text])["x"]] == list(map(type, values))


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["lr"], "'lr' is not a parameter; write name=values"),
        (["1a=3"], "'1a=3' is not a parameter"),
        (["lr="], "at least one value"),
        (["lr=1", "lr=2"], "Parameter lr is there twice"),
        (["lr=[1,"], "not a JSON list"),
        (["lr=[]"], "at least one value"),
        (["lr=1..1000000"], "not a range"),
        (["lr=1..5..0"], "not a range"),
    ],
)
def test_what_is_no_parameter_is_one_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence.replace("[", r"\[")):
        parse_parameters(texts)


def test_each_point_of_the_grid_is_a_job_with_a_name_of_its_own() -> None:
    made = jobs("sweep", ["code"], {"lr": [0.1, 0.01], "name": ["a/b", "../c"]}, "")
    assert [dict(job.parameters) for job in made] == [
        {"lr": lr, "name": name} for lr in (0.1, 0.01) for name in ("a/b", "../c")
    ]
    assert made[0].name.startswith("sweep-lr=0.1-name=a_b-")
    assert len({job.name for job in made}) == 4
    assert not any("/" in job.name for job in made)


def test_a_job_is_the_same_with_the_same_code_kernel_and_parameters_alone() -> None:
    def key(cells: list[str], lr: float, kernel: str = "") -> str:
        (job,) = jobs("sweep", cells, {"lr": [lr]}, kernel)
        return job.key

    assert key(["a"], 1) == key(["a"], 1)
    assert len({key(["a"], 1), key(["b"], 1), key(["a"], 2), key(["a"], 1, "r")}) == 4


def test_without_parameters_there_is_one_job_and_the_same_point_is_run_once() -> None:
    assert len(jobs("sweep", [], {}, "")) == 1
    assert len(jobs("sweep", [], {"x": [1, 1, 2]}, "")) == 2
    with pytest.raises(UsageError, match="makes 40000 notebooks"):
        jobs("sweep", [], {"x": list(range(200)), "y": list(range(200))}, "")


def test_the_csv_has_a_column_for_each_parameter_and_value() -> None:
    row = {"status": "failed", "waited": 1.0, "seconds": 2.5, "error": "a, b", "notebook": "/n"}
    rows = [
        {**row, "parameters": {"lr": 0.1}, "values": {}},
        {**row, "parameters": {"lr": 0.2}, "values": {"loss": 3}, "error": ""},
    ]
    assert as_csv(rows).splitlines() == [
        "lr,status,waited,seconds,error,notebook,loss",
        '0.1,failed,1.0,2.5,"a, b",/n,',
        "0.2,failed,1.0,2.5,,/n,3",
    ]
