"""CSV as people write it: what `data show`, SQL, recipes and pandas find in it is the same."""

from __future__ import annotations

import datetime
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aios_jupyter.data import dialect
from aios_jupyter.data.dialect import Dialect
from aios_jupyter.data.prepare import prepare
from aios_jupyter.errors import UsageError
from aios_jupyter.session.tables import sql

EUROPEAN = 'größe;Name;seit\n1,5;Ana;2024-01-02\n-0,25;"Bo; b";2024-02-03\n'


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("", Dialect()),
        ("a\n1\n", Dialect()),
        ("a,b\n1.5,2\n", Dialect()),
        ("a;b\n1,5;2\n", Dialect(";", ",")),
        ("a;b\n1.5;2\n", Dialect(";", ".")),
        # Some have a comma, some a point: they are no numbers of either kind.
        ("a;b\n1,5;2\n1.5;3\n4;", Dialect(";", ".")),
        ("a\tb\n1\t2\n", Dialect("\t")),
        ("a|b|c\n1|2|3\n", Dialect("|")),
        ('name,"a;b;c"\nx,1\n', Dialect()),
        ("temp, C;hum, %;x\n1;2;3\n", Dialect(";")),
        # The second line says that it is a comma.
        ("a;b;c,d\nx,2\n", Dialect()),
        ('a;b\n"goes\non";2\n', Dialect(";")),
    ],
)
def test_the_first_lines_say_how_a_file_is_written(sample, expected):
    assert dialect.of(sample) == expected


def test_a_european_file_is_read_the_same_by_all(catalog, tmp_path):
    path = tmp_path / "people.csv"
    path.write_bytes(b"\xef\xbb\xbf" + EUROPEAN.encode())
    entry = catalog.add("people", path)
    assert entry.schema == {"größe": "double", "Name": "string", "seit": "date32[day]"}
    assert (entry.fields[0].least, entry.fields[0].most) == (-0.25, 1.5)
    for frame in (catalog.frame("people"), sql('SELECT * FROM "people"', {})):
        assert frame["größe"].tolist() == [1.5, -0.25]
        assert frame["Name"].tolist() == ["Ana", "Bo; b"]
    made = prepare("people", "more", "scale(größe)").entry
    assert catalog.frame(made)["Name"].tolist() == ["Ana", "Bo; b"]


def test_sql_and_recipes_have_the_types_that_the_catalogue_shows(catalog, tmp_path):
    """Words like yes and no, and numbers beside NA, are what libraries disagree about."""
    (tmp_path / "t.csv").write_text(
        "id, paid,n,d\n1,yes,NA,1/2/2024\n2,no,7,3/2/2024\n3,,N/A,NULL\n"
    )
    entry = catalog.add("t", tmp_path / "t.csv")
    assert entry.schema == {"id": "int64", " paid": "string", "n": "int64", "d": "string"}
    found = sql("SELECT typeof(n) AS n, typeof(d) AS d, typeof(paid) AS paid FROM t", {})
    assert found.iloc[0].tolist() == ["BIGINT", "VARCHAR", "VARCHAR"]
    assert sql("SELECT count(n) AS n, count(d) AS d, count(paid) AS p FROM t", {}).iloc[
        0
    ].tolist() == [1, 2, 2]
    made = prepare("t", "filled", "fill(n, mean)").entry
    assert catalog.frame(made)["n"].tolist() == [7, 7, 7]


def test_parts_may_have_their_columns_in_another_order(catalog, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "1.tsv").write_text("when\tn\n2024-01-02\t1\n")
    (folder / "2.tsv").write_text("n\twhen\n2\t2024-01-03\n")
    catalog.add("parts", folder)
    expected = [(datetime.date(2024, 1, 2), 1), (datetime.date(2024, 1, 3), 2)]
    for frame in (catalog.frame("parts"), sql("SELECT * FROM parts", {})):
        days = [day.date() if hasattr(day, "date") else day for day in frame["when"]]
        assert list(zip(days, frame["n"], strict=True)) == expected


@pytest.mark.parametrize(
    "text", [EUROPEAN, "name,n\nköln,1\n", "n,name\n" + "1,a\n" * 20_000 + "2,ö\n"]
)
def test_what_is_no_utf_8_is_refused_with_what_to_do(text, catalog, tmp_path):
    (tmp_path / "old.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"old\.csv is not UTF-8 text \(.*iconv -f WINDOWS"):
        catalog.add("old", tmp_path / "old.csv")


def test_a_table_on_a_web_server_is_asked_and_prepared(catalog, tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "people.csv").write_text(EUROPEAN)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "web")) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        entry = catalog.add("people", f"http://127.0.0.1:{web.server_port}/people.csv")
        assert sql('SELECT sum("größe") AS s FROM people', {})["s"][0] == 1.25
        assert prepare("people", "clean", "drop_duplicates").entry.rows == entry.rows == 2
        web.shutdown()
