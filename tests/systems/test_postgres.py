"""Tables of a real PostgreSQL, as datasets and attached to queries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from systems.conftest import ASKED_FOR, system

import aios_jupyter
from aios_jupyter.commands import main
from aios_jupyter.data import credentials, upkeep
from aios_jupyter.errors import NotFoundError, UsageError
from aios_jupyter.session.tables import sql

pytestmark = [
    pytest.mark.systems,
    pytest.mark.skipif(
        not (ASKED_FOR and Path("/usr/lib/postgresql").is_dir()),
        reason="PostgreSQL is not here: make test-systems",
    ),
    pytest.mark.timeout(200),
]
TABLES = """
CREATE TABLE orders (
  id serial PRIMARY KEY, price numeric(8, 2), placed timestamptz, paid boolean, tags text[],
  "od:d name" text, label text
);
INSERT INTO orders (price, placed, paid, tags, "od:d name", label)
  SELECT n + 0.25, timestamptz '2026-01-01' + n * interval '1 day', n % 2 = 0, ARRAY['x', 'y'],
    'ä''' || n, CASE WHEN n % 3 = 0 THEN 'fizz' ELSE 'buzz' END FROM generate_series(1, 30000) AS n;
INSERT INTO orders (label) VALUES (NULL);
CREATE VIEW dear AS SELECT * FROM orders WHERE price > 29990;
CREATE ROLE poor LOGIN PASSWORD 'poor';
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    import psycopg

    with system("postgres.sh") as port:
        place = f"host=127.0.0.1 port={port} user=aios password=right dbname=postgres"
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute(TABLES)
        yield port


@pytest.fixture
def shop(port) -> str:
    """The database by the credentials `lab`, which are kept apart from its URL."""
    credentials.put("lab", {"user": "aios", "password": "right"})
    return f"postgresql://lab@127.0.0.1:{port}/postgres"


def change(port: int, statement: str) -> None:
    import psycopg

    place = f"host=127.0.0.1 port={port} user=aios password=right dbname=postgres"
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute(statement)


def test_tables_and_views_join_with_datasets_and_frames(shop):
    people = pd.DataFrame({"n": [1, 2, 3], "name": ["ana", "bob", "carl"]})
    found = sql(
        'SELECT o.id, o.price, o."od:d name" AS odd, p.name, m.y '
        "FROM shop.orders o JOIN people p ON p.n = o.id JOIN mnist m ON m.y = o.id "
        "GROUP BY ALL ORDER BY o.id",
        {"people": people},
        attach={"shop": shop},
    )
    assert found["name"].tolist() == ["ana", "bob", "carl"]
    assert found["odd"].tolist() == ["ä'1", "ä'2", "ä'3"]
    assert [float(price) for price in found["price"]] == [1.25, 2.25, 3.25]
    counts = sql(
        "SELECT count(*) AS n, count(price) AS priced, max(placed) AS last FROM shop.orders",
        {},
        attach={"shop": shop},
    )
    assert (counts["n"][0], counts["priced"][0]) == (30_001, 30_000)
    assert counts["last"][0].year == 2108
    dear = sql("SELECT count(*) AS n FROM shop.dear", {}, attach={"shop": shop})
    assert dear["n"][0] == 11


def test_an_answer_becomes_a_dataset(shop, catalog, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "sql",
                "SELECT id, price FROM shop.orders WHERE paid",
                "--attach",
                f"shop={shop}",
                "--to",
                "paid",
            ]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    assert catalog.get("paid").rows == 15_000


def test_a_table_is_a_dataset_and_its_change_another_version(shop, port, catalog):
    entry = catalog.add("orders", f"{shop}#orders")
    assert (entry.format, entry.rows) == ("database", 30_001)
    assert entry.classes == ("buzz", "fizz")
    fields = {field.name: field for field in entry.fields}
    assert (fields["id"].least, fields["id"].most, fields["price"].missing) == (1, 30_001, 1)
    assert "right" not in repr(entry)
    assert catalog.add("orders", f"{shop}#orders").version == entry.version
    assert sql("SELECT count(*) AS n FROM orders WHERE paid", {})["n"][0] == 15_000
    ((x, _),) = aios_jupyter.loader(
        catalog.add_arrays("ids", catalog.frame("orders")[["id"]].to_numpy()), 30_001, shuffle=False
    ).arrays()
    assert x[:3, 0].tolist() == [1, 2, 3]
    change(port, "UPDATE orders SET price = 0 WHERE id = 17")
    (found,) = upkeep.verify(catalog, entry)
    assert found.what == "not what it was when it was added"
    change(port, "UPDATE orders SET price = 17.25 WHERE id = 17")
    # Where a row lies in the database is none of its content.
    assert upkeep.verify(catalog, entry) == []


def test_the_environment_may_have_the_password(port, monkeypatch):
    place = f"postgresql://aios@127.0.0.1:{port}/postgres"
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with pytest.raises(UsageError, match=r"cannot be read as a database.*no password"):
        sql("SELECT * FROM shop.orders", {}, attach={"shop": place})
    monkeypatch.setenv("PGPASSWORD", "right")
    found = sql("SELECT count(*) AS n FROM shop.orders", {}, attach={"shop": place})
    assert found["n"][0] == 30_001


def test_what_is_refused_or_missing_is_a_sentence_without_the_password(shop, port):
    credentials.put("wrong", {"user": "aios", "password": "wr0ng"})
    credentials.put("poor", {"user": "poor", "password": "poor"})
    for name, table, kind, words in [
        ("wrong", "orders", UsageError, "password authentication failed"),
        ("poor", "orders", UsageError, "permission denied"),
        ("lab", "nope", NotFoundError, "no table 'nope' in .*there are orders, dear"),
    ]:
        place = shop.replace("lab@", f"{name}@")
        with pytest.raises(kind, match=words) as caught:
            sql(f"SELECT * FROM shop.{table}", {}, attach={"shop": place})
        assert "wr0ng" not in str(caught.value)
    gone = f"postgresql://lab@127.0.0.1:{port + 7}/postgres"
    with pytest.raises(UsageError, match=r"cannot be read as a database.*refused"):
        sql("SELECT * FROM shop.orders", {}, attach={"shop": gone})
    assert "PGPASSWORD" not in os.environ
