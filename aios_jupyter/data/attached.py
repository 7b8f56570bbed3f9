"""Tables of databases that a query names: an SQLite file, or what SQLAlchemy has a driver for.

A leaf module: it imports SQLAlchemy and pyarrow. A table is read whole; DuckDB's own extensions for
this are downloaded when they are first used, which many networks do not allow.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import sqlalchemy
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, NoSuchTableError, SQLAlchemyError

from ..errors import MissingExtraError, NotFoundError, UsageError
from . import credentials

_ROWS_AT_ONCE = 10_000
_POSTGRES = "psycopg"


def read(place: str, name: str) -> pa.Table:
    """A table of the database at `place` (a path or an SQLAlchemy URL).

    Raises
    ------
    NotFoundError
        There is no such file or table.
    UsageError
        It is not a database that can be read.
    """
    with _opened(place) as connection:
        try:
            table = sqlalchemy.Table(name, sqlalchemy.MetaData(), autoload_with=connection)
        except NoSuchTableError:
            have = ", ".join(_names(connection)[:8]) or "none"
            raise NotFoundError(
                f"There is no table '{name}' in {_shown(place)}; there are {have}."
            ) from None
        columns: list[list[Any]] = [[] for _ in table.columns]
        # As text: SQLite's columns hold values of any type, which SQLAlchemy's types would refuse.
        chosen = ", ".join(_identifier(connection, column.name) for column in table.columns)
        text = f"SELECT {chosen} FROM {_identifier(connection, name)}"  # noqa: S608
        # In the same order each time, so that the same rows are the same version of a dataset.
        if keys := [_identifier(connection, column.name) for column in table.primary_key.columns]:
            text += f" ORDER BY {', '.join(keys)}"
        result = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(
            sqlalchemy.text(text.replace(":", r"\:"))
        )
        for rows in result.partitions():
            for column, values in zip(columns, zip(*rows, strict=True), strict=True):
                column.extend(values)
    names = [column.name for column in table.columns]
    return pa.table(dict(zip(names, map(_column, columns), strict=True)))


def place_of(url: str) -> tuple[str, str]:
    """Database and table of a dataset's URL, such as `postgresql://host/shop#orders`.

    Raises
    ------
    UsageError
        It names no table.
    """
    place, _, name = url.partition("#")
    if not name:
        some = ", ".join(names(place)[:8]) or "none"
        raise UsageError(f"{_shown(url)} names no table; write it behind a #: there are {some}.")
    return place, name


def table(url: str) -> pa.Table:
    """The table that a dataset is."""
    return read(*place_of(url))


def fingerprint(url: str) -> tuple[str, int]:
    """A hash of all rows of a dataset's table, and how many bytes they take."""
    found = table(url).combine_chunks()
    digest = hashlib.sha256()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    digest.update(sink.getvalue())
    return digest.hexdigest(), found.nbytes


def names(place: str) -> list[str]:
    """The tables and views of the database at `place`."""
    with _opened(place) as connection:
        return _names(connection)


def _names(connection: Any) -> list[str]:
    inspector = sqlalchemy.inspect(connection)
    return [*inspector.get_table_names(), *inspector.get_view_names()]


def _identifier(connection: Any, name: str) -> str:
    return str(connection.dialect.identifier_preparer.quote_identifier(name))


def _column(values: Sequence[Any]) -> pa.Array:
    """Values of one type as they are, others as text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([None if value is None else _text(value) for value in values])


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _opened(place: str) -> Iterator[Any]:
    try:
        engine = sqlalchemy.create_engine(_url(place), poolclass=sqlalchemy.pool.NullPool)
    except (ArgumentError, NoSuchModuleError):
        raise UsageError(
            f"{_shown(place)} is no database that can be attached; give the path of an SQLite "
            "file or a URL like postgresql+psycopg://host/name."
        ) from None
    except ImportError as error:
        if error.name == _POSTGRES:
            raise MissingExtraError("The driver for PostgreSQL", "postgres") from None
        raise UsageError(f"{_shown(place)} needs the driver '{error.name}'; install it.") from None
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise UsageError(f"{_shown(place)} cannot be read as a database: {reason}.") from None
    finally:
        engine.dispose()


def _url(place: str) -> str | sqlalchemy.URL:
    if "://" not in place:
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise NotFoundError(f"There is no database file {place}; check the path.")
        return f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true"
    url = sqlalchemy.make_url(place)
    if url.drivername == "sqlite" and url.database:
        # A path, which is opened for reading and not made where there is none.
        return _url(url.database)
    if url.password is not None:
        raise UsageError(
            "The URL has a password in it, which would be kept with the notebook; leave it out and "
            "store it with 'aios data keys add NAME' (user and password) and write NAME@ before the "
            "host, or put it where the database's own driver looks (PGPASSWORD, ~/.pgpass)."
        )
    known = credentials.get(url.username) if url.username else None
    if known is not None:
        url = url.set(username=known.get("user", url.username), password=known.get("password"))
    if url.drivername == "postgresql":
        url = url.set(drivername=f"postgresql+{_POSTGRES}")
    return url


def _shown(place: str) -> str:
    return place.rpartition("@")[2] if "://" in place else place
