"""Tables and small shared state: `sql`, `kv`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .assets import AssetVerbs

if TYPE_CHECKING:
    from ..data.catalog import Entry
    from ..data.kv import KV


class TableVerbs(AssetVerbs):
    """A session that asks and prepares tables."""

    @cached_property
    def kv(self) -> KV:
        """Small values shared with other notebooks, shells and runs: `session.kv.put("a", 1)`."""
        from ..data.kv import KV

        return KV()

    def sql(
        self,
        query: str,
        *,
        to: str | None = None,
        attach: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> Any:
        """Ask datasets, DataFrames and databases in SQL (DuckDB's), in this process.

            session.sql("SELECT y, count(*) AS n FROM mnist GROUP BY y")
            session.sql("SELECT * FROM df WHERE age > $least", df=df, least=18)
            session.sql("SELECT * FROM shop.orders", attach={"shop": "shop.db"}, to="orders")

        Parameters
        ----------
        query
            It names datasets of the catalogue (`mnist`, `"mnist-aug"`, `data.mnist`), files by
            their path in quotes, and what the other parameters bring.
        to
            Keep the answer as this dataset.
        attach
            Schema to the path of an SQLite file or to an SQLAlchemy URL; the tables that the query
            names are read whole.
        **variables
            DataFrames, Arrow tables and the like as tables; other values are `$name`.

        Returns
        -------
        object
            A pandas DataFrame, or the `Entry` with `to`.

        Raises
        ------
        UsageError, NotFoundError
            The query fails; the sentence points at the place.
        """
        return sql(query, variables, to=to, attach=attach)


def sql(
    query: str,
    variables: Mapping[str, Any],
    *,
    to: str | None = None,
    attach: Mapping[str, str] | None = None,
) -> Any | Entry:
    """`Session.sql`, for those who have no session: no cluster takes part."""
    from ..data.sql import Tables, frame, store

    tables = Tables(variables=variables, databases=attach or {})
    return frame(query, tables) if to is None else store(query, to, tables)
