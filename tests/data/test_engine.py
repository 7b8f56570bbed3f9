"""DuckDB instances that queries take turns with: nothing of one query reaches the next."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path

import pandas as pd
import pytest

from aios_jupyter.data import engine as engines
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.errors import UsageError
from aios_jupyter.session.tables import sql


@pytest.fixture(autouse=True)
def alone(catalog: Catalog):
    """Nothing is idle from another test."""
    engines._end()
    yield
    engines._end()


def test_one_instance_answers_one_query_after_another() -> None:
    sql("SELECT count(*) FROM mnist", {})
    (kept,) = engines._idle
    sql("SELECT count(*) FROM mnist", {})
    assert engines._idle == [kept]


@pytest.mark.parametrize(
    "before",
    [
        "SELECT * FROM mnist",
        "CREATE TABLE numbers AS SELECT 1 AS x; FROM numbers",
        "CREATE VIEW numbers AS SELECT 1 AS x; FROM numbers",
        "CREATE TEMP TABLE numbers AS SELECT 1 AS x; FROM numbers",
        "CREATE SCHEMA more; CREATE TABLE more.numbers AS SELECT 1 AS x; FROM more.numbers",
    ],
)
def test_a_query_finds_nothing_of_the_one_before(before: str) -> None:
    sql(before, {})
    for table in ("numbers", "more.numbers"):
        with pytest.raises(UsageError, match=r"there is no table|does not exist"):
            sql(f"SELECT * FROM {table}", {})
    assert (
        sql("SELECT count(*) AS n FROM duckdb_views() WHERE view_name = 'mnist'", {})["n"][0] == 0
    )


@pytest.mark.parametrize(
    "setting", ["SET threads = 1", "SET GLOBAL threads = 1", "PRAGMA threads=1"]
)
def test_a_setting_holds_for_its_query_alone(setting: str) -> None:
    asked = "SELECT current_setting('threads') AS n"
    usual = sql(asked, {})["n"][0]
    assert usual > 1 or os.cpu_count() == 1
    assert sql(f"{setting}; {asked}", {})["n"][0] == 1
    assert sql(asked, {})["n"][0] == usual


def test_a_dataframe_is_let_go_with_its_query() -> None:
    frame = pd.DataFrame({"x": [1, 2]})
    gone = weakref.ref(frame)
    assert sql("SELECT sum(x) AS s FROM frame", {"frame": frame})["s"][0] == 3
    del frame
    gc.collect()
    assert engines._idle
    assert gone() is None


def test_a_variable_of_the_same_name_is_the_new_one() -> None:
    for number in (1, 2):
        assert sql("SELECT x FROM v", {"v": {"x": [number]}})["x"].tolist() == [number]


def test_after_a_mistake_the_next_query_is_answered() -> None:
    with pytest.raises(UsageError):
        sql("SELECT nothing FROM mnist", {})
    assert not engines._idle
    assert sql("SELECT 1 AS x", {})["x"][0] == 1


def test_threads_have_an_instance_each_and_one_is_kept() -> None:
    answers: list[int] = []
    together = threading.Barrier(4)

    def ask(number: int) -> None:
        together.wait()
        query = "SELECT sum(a.range + b.x) AS s FROM range(100000) a, v b"
        answers.append(int(sql(query, {"v": {"x": [number]}})["s"][0]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [4999950000 + 100000 * number for number in range(4)]
    assert len(engines._idle) == 1


def test_a_forked_process_has_an_instance_of_its_own() -> None:
    sql("SELECT 1", {})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if sql("SELECT sum(range) AS s FROM range(1000)", {})["s"][0] == 499500 else 2
            gc.collect()
        finally:
            os._exit(code)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert sql("SELECT 2 AS x", {})["x"][0] == 2


def test_an_instance_ends_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "KEPT_SECONDS", 0.2)
    sql("SELECT 1", {})
    assert engines._idle
    ended = time.monotonic() + 20
    while engines._idle and time.monotonic() < ended:
        time.sleep(0.05)
    assert not engines._idle
    assert sql("SELECT 3 AS x", {})["x"][0] == 3


def test_another_state_directory_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = "SELECT current_setting('temp_directory') AS place"
    first = sql(asked, {})["place"][0]
    monkeypatch.setenv("AIOS_STATE_DIR", str(tmp_path / "other"))
    assert sql(asked, {})["place"][0] != first
