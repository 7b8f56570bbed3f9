"""SQL over a dataset of ten million rows, against DuckDB called directly on the same file.

Each figure is how many times as long ours takes as DuckDB's own connection, the query's answer as a
DataFrame included; rounds alternate between the three, and the median of each is taken. `aggregate`
answers with a few rows, `filter` with two million; `frame` asks a DataFrame of the same rows. The
peer opens a connection for its query, as ours has a database of its own for each; `_over_kept` is the
same over DuckDB's default connection, which stays open.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pyarrow import parquet
from report import report

ROWS = 10_000_000
ROUNDS = 11
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
            figures |= ratios(name, lambda: sql(query, {}), lambda on: plain(on, direct))  # noqa: B023
        query = QUERIES["aggregate"]
        asked = partial(sql, query, {"people": loaded})
        figures |= ratios("frame", asked, lambda on: framed(on, loaded))
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


def plain(connection: Any, query: str) -> Any:
    return connection.sql(query).df()


def framed(connection: Any, people: Any) -> Any:
    connection.register("people", people)
    try:
        return connection.sql(QUERIES["aggregate"]).df()
    finally:
        connection.unregister("people")


def ratios(name: str, ours: Callable[[], Any], theirs: Callable[[Any], Any]) -> dict[str, float]:
    """How many times as long ours takes, by each way to call DuckDB; all give the same rows."""

    def opened() -> Any:
        with duckdb.connect() as connection:
            return theirs(connection)

    ways = {"ours": ours, "opened": opened, "kept": lambda: theirs(duckdb)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, work in ways.items():
            start = time.perf_counter()
            answer = work()
            seconds[way].append(time.perf_counter() - start)
            if not len(answer):
                raise SystemExit("there is no answer")
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    return {
        name: median["ours"] / median["opened"],
        f"{name}_over_kept": median["ours"] / median["kept"],
    }


if __name__ == "__main__":
    main()
