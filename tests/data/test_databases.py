"""Tables of databases as datasets; `tests/systems` does the same with PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

import aios_jupyter
from aios_jupyter.data import credentials, upkeep, vault
from aios_jupyter.data.attached import _url
from aios_jupyter.data.prepare import prepare
from aios_jupyter.errors import NotFoundError, UsageError
from aios_jupyter.session.tables import sql


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    change(path, "CREATE TABLE orders (id INTEGER PRIMARY KEY, price REAL, label TEXT)")
    for row in range(6, 0, -1):
        change(path, f"INSERT INTO orders VALUES ({row}, {row}.5, '{'ab'[row % 2]}')")
    change(path, "INSERT INTO orders VALUES (7, NULL, 'a')")
    return path


def change(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def _as_it_is(x, y):
    """Who gives a transform has seen that a price is missing."""
    return x, y


def test_a_table_is_a_dataset(catalog, shop):
    entry = catalog.add("orders", f"sqlite:///{shop}#orders")
    assert (entry.format, entry.rows, entry.classes) == ("database", 7, ("a", "b"))
    fields = {field.name: field for field in entry.fields}
    assert (fields["price"].missing, fields["price"].most) == (1, 6.5)
    assert catalog.frame("orders")["id"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert sql("SELECT sum(id) AS s FROM orders", {})["s"][0] == 28
    made = prepare("orders", "ready", "fill(price, median), scale(price)")
    assert made.entry.made_from == (entry.ref,) and made.entry.rows == 7
    ((x, y),) = aios_jupyter.loader("orders", 7, shuffle=False, transform=_as_it_is).arrays()
    assert x[:2].tolist() == [[1, 1.5], [2, 2.5]] and y.tolist() == [1, 0, 1, 0, 1, 0, 0]


def test_a_change_of_the_table_is_another_version(catalog, shop):
    entry = catalog.add("orders", f"sqlite:///{shop}#orders")
    assert upkeep.verify(catalog, entry) == []
    assert catalog.add("orders", f"sqlite:///{shop}#orders").version == entry.version
    change(shop, "UPDATE orders SET price = 9 WHERE id = 3")
    (found,) = upkeep.verify(catalog, entry)
    assert found.what == "not what it was when it was added"
    assert catalog.add("orders", f"sqlite:///{shop}#orders").version != entry.version


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("sqlite:///{}", UsageError, r"names no table.*there are orders"),
        ("sqlite:///{}#order", NotFoundError, r"no table 'order'.*there are orders"),
        ("sqlite:///{}.not#orders", NotFoundError, "no database file"),
        ("postgresql://me:secret@host/shop#orders", UsageError, "has a password in it"),
    ],
)
def test_what_is_no_table_is_a_sentence(url, kind, words, catalog, shop):
    with pytest.raises(kind, match=words) as caught:
        catalog.add("orders", url.format(shop))
    assert "secret" not in str(caught.value)
    assert sorted(p.name for p in shop.parent.iterdir() if p.is_file()) == ["shop.db"]


def test_rows_of_a_table_are_not_copied_as_files(catalog, shop, tmp_path):
    catalog.add("orders", f"sqlite:///{shop}#orders")
    with pytest.raises(UsageError, match=r"no files to copy.*aios sql"):
        catalog.copy("orders", tmp_path / "copy")
    vault.key("me")
    with pytest.raises(UsageError):
        vault.encrypt("orders", ["me"])


def test_credentials_of_a_database_go_by_name(state):
    credentials.put("lab", {"user": "ana", "password": "s3cret"})
    url = _url("postgresql://lab@127.0.0.1/shop")
    assert (url.username, url.password) == ("ana", "s3cret")
    assert _url("postgresql://bob@127.0.0.1/shop").username == "bob"
