"""SQL over datasets, DataFrames and attached databases, by a real DuckDB."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from clusters import until
from pyarrow import parquet

from aios_jupyter.data.catalog import Catalog
from aios_jupyter.errors import NotFoundError, UsageError
from aios_jupyter.session.tables import sql


@pytest.fixture
def people() -> pd.DataFrame:
    return pd.DataFrame({"age": [18, 30, 45], "name": ["ä", "bo", None]})


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute('CREATE TABLE orders (id INTEGER, "od:d name" TEXT, mixed)')
        rows = [(1, "a", 1.5), (2, "b", "x"), (3, None, b"\xff")]
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
    database.close()
    return path


def test_datasets_of_arrays_are_tables(catalog: Catalog) -> None:
    found = sql("SELECT y, count(*) AS n, any_value(len(x)) AS pixels FROM mnist GROUP BY y", {})
    x, y = catalog.load("mnist")
    assert y is not None
    counts = dict(zip(found["y"], found["n"], strict=True))
    assert counts == {label: int((y == label).sum()) for label in range(10)}
    assert set(found["pixels"]) == {x[0].size}


def test_each_row_of_an_array_is_what_numpy_has(catalog: Catalog, digits) -> None:
    catalog.add_arrays("digits", *digits)
    found = sql("SELECT list_sum(x) AS ink, x[407] AS middle FROM digits", {})
    flat = digits[0].reshape(len(digits[0]), -1)
    assert np.array_equal(found["ink"], flat.sum(1))
    assert np.array_equal(found["middle"], flat[:, 406])


def test_variables_come_before_datasets_and_datasets_have_a_schema(people: pd.DataFrame) -> None:
    query = "SELECT (SELECT count(*) FROM mnist) AS own, (SELECT count(*) FROM data.mnist m) AS all"
    assert sql(query.replace("all", '"all"'), {"mnist": people}).values.tolist() == [[3, 10000]]


@pytest.mark.parametrize(
    ("value", "total"),
    [
        (pa.table({"x": [1, 2]}), 3),
        ({"x": [1, 2, 3]}, 6),
        (np.array([4, 5]), 9),
        (pd.Series([7], name="x"), 7),
        ([{"x": 1}, {"x": 9}], 10),
    ],
)
def test_what_is_like_a_table_is_one(value: object, total: int) -> None:
    assert sql("SELECT sum(x) AS s FROM v", {"v": value})["s"][0] == total


def test_numbers_and_text_are_parameters_not_text_of_the_query(people: pd.DataFrame) -> None:
    variables = {"people": people, "least": 30, "who": "bo'; DROP TABLE people; --"}
    found = sql(
        "SELECT name FROM people WHERE age >= $least AND name IS DISTINCT FROM $who", variables
    )
    assert len(found) == 2
    with pytest.raises(NotFoundError, match=r"has \$most, but there is no variable 'most'"):
        sql("SELECT * FROM people WHERE age < $most", variables)


def test_names_with_a_hyphen_versions_and_remote_files(catalog: Catalog, people) -> None:
    with fsspec.open("memory://bucket/people.parquet", "wb") as file:
        parquet.write_table(pa.Table.from_pandas(people), file)
    entry = catalog.add("the-people", "memory://bucket/people.parquet")
    assert sql('SELECT max(age) AS a FROM "the-people"', {})["a"][0] == 45
    assert len(sql(f'SELECT * FROM "{entry.ref}" LIMIT 2', {})) == 2
    with pytest.raises(UsageError, match="names with a hyphen are quoted"):
        sql("SELECT * FROM the-people", {})


def test_folders_of_images_are_tables_of_their_files(catalog: Catalog, photos: Path) -> None:
    catalog.add("photos", photos)
    found = sql("SELECT label, count(*) AS n FROM photos GROUP BY label ORDER BY label", {})
    assert found.values.tolist() == [["cat", 3], ["dog", 2]]


def test_the_answer_becomes_a_dataset_with_lineage(catalog: Catalog, people: pd.DataFrame) -> None:
    entry = sql(
        "SELECT people.age, m.y FROM people\nJOIN data.mnist m ON m.y = people.age % 10",
        {"people": people},
        to="joined",
    )
    assert entry == catalog.get("joined")
    assert entry.made_from == (catalog.get("mnist").ref,)
    assert entry.how.startswith("sql: SELECT people.age, m.y FROM people JOIN")
    assert sql("SELECT count(*) AS n FROM joined", {})["n"][0] == entry.rows > 2000
    for query, words in [
        ("SELECT * FROM mnist WHERE y > 9", "no rows"),
        ("SELECT 1 AS a, 2 AS a", "two columns 'a'"),
    ]:
        with pytest.raises(UsageError, match=words):
            sql(query, {}, to="none")
    with pytest.raises(NotFoundError):
        catalog.get("none")


def test_tables_of_an_sqlite_file_join_with_datasets(shop: Path, people: pd.DataFrame) -> None:
    found = sql(
        "SELECT o.*, p.name FROM shop.orders o JOIN people p ON p.age = o.id * 15 ORDER BY id",
        {"people": people},
        attach={"shop": str(shop)},
    )
    assert found["id"].tolist() == [2, 3]
    assert found["mixed"].tolist() == ["x", "ff"]
    assert list(found.columns)[1] == "od:d name"
    with pytest.raises(NotFoundError, match=r"no table 'nope' in .*shop.db; there are orders"):
        sql("SELECT * FROM shop.nope", {}, attach={"shop": str(shop)})
    with pytest.raises(UsageError, match=r"no table 'order'; did you mean 'shop.orders'"):
        sql("SELECT * FROM 'order'", {}, attach={"shop": str(shop)})


def test_databases_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("not a database, but long enough to be looked at" * 50)
    for place, kind, words in [
        (str(tmp_path / "missing.db"), NotFoundError, "no database file"),
        (str(tmp_path / "no.db"), UsageError, "cannot be read as a database"),
        ("nosuch://host/db", UsageError, "no database that can be attached"),
        ("postgresql://me:secret@host/db", UsageError, "a password in it"),
    ]:
        with pytest.raises(kind, match=words) as caught:
            sql("SELECT * FROM d.x", {}, attach={"d": place})
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "sentence", "mark"),
    [
        ("SELECT agee FROM people", "line 1: there is no column 'agee'; did you mean 'age'?", "agee"),
        ("SELECT name, 'ä',\n  agee FROM people", "line 2: there is no column 'agee'", "agee"),
        ("SELECT * FROM poeple", "line 1: there is no table 'poeple'; did you mean 'people'?", "poeple"),
        ("SELEC 1", 'line 1: syntax error at or near "SELEC".', "SELEC"),
        ("SELECT sqr(age) FROM people", "scalar Function with name sqr does not exist", "sqr"),
        ("SELECT name::INT FROM people", "could not convert string 'ä' to INT32", "::INT"),
        ("SELECT age FROM people WHERE name > 3", "cannot compare values", "name >"),
    ],
)  # fmt: skip
def test_a_failed_query_is_a_sentence_that_points_at_the_place(
    query: str, sentence: str, mark: str, people: pd.DataFrame
) -> None:
    with pytest.raises(UsageError) as caught:
        sql(query, {"people": people})
    first, line, pointer = str(caught.value).split("\n")
    assert sentence in first
    assert line[pointer.index("^") :].startswith(mark)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "The query is empty"),
        ("-- nothing", "The query is empty"),
        ("SET threads = 1", "has no answer"),
        ("SELECT * FROM number", "is a int, which is no table.*\\$number"),
        ("SELECT * FROM self", "no table 'self'"),
        ("SELECT * FROM 'http://127.0.0.1:1/x.parquet'", "aios data add"),
        ("SELECT * FROM 'missing.parquet'", "no files found"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(query: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sql(query, {"number": 3})


@pytest.mark.parametrize(
    "query",
    [
        "SELECT sum(a.range * b.range) FROM range(100000000) a, range(100000000) b",
        # Of few tasks, each of which takes minutes.
        "SELECT a.range, sum(b.range) FROM range(3000000) a, range(1000000) b GROUP BY 1",
    ],
)
@pytest.mark.parametrize("to", [None, "answer"])
def test_ctrl_c_ends_a_query(query: str, to: str | None, state: Path) -> None:
    """A real signal to a process that would be busy for hours."""
    code = (
        "from aios_jupyter.session.tables import sql\n"
        "print('ready', flush=True)\n"
        f"sql({query!r}, {{}}, to={to!r})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        process = psutil.Process(child.pid)
        before = process.cpu_times().user
        until(lambda: process.cpu_times().user > before + 1, "the query is at work")
        os.kill(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
