"""SQL over a dataset of ten million rows, against DuckDB called directly on the same file.

Each figure is how many times as long ours takes as DuckDB's own connection, the query's answer as a
DataFrame included; rounds alternate between the two, and the median of each is taken. `aggregate`
answers with a few rows, `filter` with two million; `frame` asks a DataFrame of the same rows.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pyarrow import parquet
from report import report

ROWS = 10_000_000
ROUNDS = 7
QUERIES = {
    "aggregate": "SELECT city, count(*) AS n, avg(income) AS mean FROM people GROUP BY city",
    "filter": "SELECT age, income FROM people WHERE age < 20",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AIOS_STATE_DIR"] = directory
        path = Path(directory) / "people.parquet"
        parquet.write_table(people(), path)
        from aios_jupyter.data import Catalog
        from aios_jupyter.session.tables import sql

        Catalog().add("people", path)
        loaded = parquet.read_table(path).to_pandas()
        figures = {}
        for name, query in QUERIES.items():
            direct = query.replace("people", f"'{path}'")
            figures[name] = ratio(lambda: sql(query, {}), lambda: plain(direct))  # noqa: B023
        query = QUERIES["aggregate"]
        figures["frame"] = ratio(lambda: sql(query, {"people": loaded}), lambda: framed(loaded))
        report("sql", figures, ["duckdb"])


def people() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "age": random.integers(0, 100, ROWS, np.int8),
            "income": random.lognormal(10, 1, ROWS),
            "city": pa.array(random.integers(0, 200, ROWS).astype(str)).dictionary_encode(),
        }
    )


def plain(query: str) -> Any:
    with duckdb.connect() as connection:
        return connection.sql(query).df()


def framed(people: Any) -> Any:
    with duckdb.connect() as connection:
        connection.register("people", people)
        return connection.sql(QUERIES["aggregate"]).df()


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """How many times as long ours takes; both give the same rows."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for name, work in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            answer = work()
            seconds[name].append(time.perf_counter() - start)
            if not len(answer):
                raise SystemExit("there is no answer")
    return statistics.median(seconds["ours"]) / statistics.median(seconds["theirs"])


if __name__ == "__main__":
    main()
