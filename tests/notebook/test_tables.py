"""`%%aios sql` and `%aios kv` in IPython: they need no cluster, so nothing is faked here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from aios_jupyter.commands import main
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.errors import AiosError


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIOS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def fails(shell: InteractiveShell, code: str) -> str:
    result = shell.run_cell(code)
    assert isinstance(result.error_in_exec, AiosError)
    return str(result.error_in_exec)


def aios(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_cell_asks_and_its_answer_is_a_variable(shell: InteractiveShell, capsys) -> None:
    shell.user_ns["people"] = pd.DataFrame({"age": [18, 30], "name": ["ä", "b"]})
    shell.user_ns["least"] = 20
    code = "%%aios sql -o grown\nSELECT *\nFROM people WHERE age > $least -- {least}"
    shell.run_cell(code).raise_error()
    assert shell.user_ns["grown"].values.tolist() == [[30, "b"]]
    out = capsys.readouterr().out
    assert "columns  age, name" in out
    result = shell.run_cell("%%aios sql\nSELECT count(*) AS n FROM people")
    assert result.result["n"].tolist() == [2]
    shell.run_cell("%%aios sql --to adults\nFROM people").raise_error()
    assert Catalog().get("adults").rows == 2


def test_mistakes_in_a_cell_are_sentences(shell: InteractiveShell, capsys) -> None:
    assert "no column 'agee'" in fails(shell, "%%aios sql\nSELECT agee FROM (SELECT 1 AS age)")
    assert "not a variable's name" in fails(shell, "%%aios sql -o 1a\nSELECT 1")
    assert "The cell is the query" in fails(shell, "%%aios sql SELECT\nSELECT 1")
    assert "in quotes" in fails(shell, "%aios sql SELECT 1")
    assert "not both" in fails(shell, "%%aios sql -o a --to b\nSELECT 1")
    capsys.readouterr()


def test_a_shell_prints_writes_and_reads(state: Path, capsys, monkeypatch) -> None:
    assert aios("sql", "SELECT y, count(*) AS n FROM mnist GROUP BY y ORDER BY y LIMIT 1") == 0
    assert capsys.readouterr().out.split() == ["y", "n", "0", "0", "1001"]
    assert aios("sql", "SELECT 1 AS a, 'x' AS b", "--json") == 0
    assert '"b": "x"' in capsys.readouterr().out
    for suffix, read in {".csv": pd.read_csv, ".parquet": pd.read_parquet}.items():
        path = state / f"out{suffix}"
        assert aios("sql", "SELECT 1 AS a", "-o", str(path)) == 0
        assert read(path).to_dict("records") == [{"a": 1}]
    assert aios("sql", "SELECT 1", "-o", "df") == 2
    assert "A shell has no variable 'df'; give a file" in capsys.readouterr().err
    assert aios("sql", "SELECT 1", "-o", "/nowhere/x.csv") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_notebook_and_a_shell_share_keys(shell: InteractiveShell, capsys) -> None:
    assert aios("kv", "put", "best", '{"loss": 0.5}') == 0
    assert shell.run_cell("%aios kv get best").result == {"loss": 0.5}
    shell.run_cell("from aios_jupyter import kv\nkv.put('best', 7)\nkv.close()").raise_error()
    capsys.readouterr()
    assert aios("kv", "get", "best") == 0
    assert capsys.readouterr().out == "7\n"
    assert aios("kv", "put", "best", "8", "--if-version", "1") == 1
    assert "somebody else has written it" in capsys.readouterr().err
    assert aios("kv", "put", "note", "8", "--text", "--ttl", "1h") == 0
    assert aios("kv", "ls", "n*") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-1:]] == [
        ["note", "8", "3", "1", "h"]
    ]
    assert aios("kv", "watch", "b*", "--timeout", "0.1s") == 0
    assert capsys.readouterr().out == "best = 7\n"
    assert aios("kv", "rm", "best") == 0
    assert aios("kv", "rm", "best") == 1
    assert "no key 'best'" in capsys.readouterr().err


def test_a_table_is_held_against_a_schema_of_the_notebook(
    shell: InteractiveShell, state: Path, capsys
) -> None:
    import pandera.pandas as pa

    (state / "people.csv").write_text("age\n18\n300\n")
    Catalog().add("people", str(state / "people.csv"))
    shell.user_ns["adults"] = pa.DataFrameSchema({"age": pa.Column(int, pa.Check.lt(120))})
    said = fails(shell, "%aios data validate people --schema adults")
    assert said.startswith("1 of 2 rows of people@") and "does not pass 1 check of adults" in said
    assert "less_than(120)" in capsys.readouterr().out
    shell.user_ns["adults"] = pa.DataFrameSchema({"age": pa.Column(int)})
    result = shell.run_cell("%aios data validate people --schema adults")
    assert result.result.passed
    shell.user_ns["adults"] = 3
    assert "is no schema" in fails(shell, "%aios data validate people --schema adults")


def test_suspected_labels_are_judged_by_a_variable_of_the_notebook(
    shell: InteractiveShell, state: Path
) -> None:
    y = np.repeat([0, 1], 40)
    given = y.copy()
    given[7] = 1
    Catalog().add_arrays("noisy", np.zeros((80, 8, 8), np.uint8), given)
    shell.user_ns["seen"] = np.eye(2)[y]
    result = shell.run_cell("%aios data label-noise noisy --features seen").result
    assert (result.rows.tolist(), result.given, result.likely) == ([7], ("1",), ("0",))
