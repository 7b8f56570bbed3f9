"""Tables and small shared state: `sql`, `prepare`, `label_noise`, `split`, `kv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .assets import AssetVerbs

if TYPE_CHECKING:
    from ..data.catalog import Entry
    from ..data.kv import KV
    from ..data.label_noise import Suspects
    from ..data.prepare import Prepared
    from ..data.recipe import Recipe

PARTS = "train=0.8,val=0.1,test=0.1"


class TableVerbs(AssetVerbs):
    """A session that asks and prepares tables."""

    @cached_property
    def kv(self) -> KV:
        """Small values shared with other notebooks, shells and runs: `session.kv.put("a", 1)`."""
        from ..data.kv import KV

        return KV()

    def close(self) -> None:
        """End the session."""
        if "kv" in self.__dict__:
            self.kv.close()
        super().close()

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

    def prepare(
        self,
        src: str | Entry,
        dst: str,
        steps: str | Recipe | None = None,
        *,
        like: str | None = None,
        kind: str = "clean",
        label: str = "",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Prepared:
        """Clean a table, or make features of it, as tasks on the cluster's workers.

            made = session.prepare("people", "ready", "fill(age, median), scale(age), onehot(city)")
            made.recipe.transform(frame)        # the same, with what was learned from people

        Where the cluster is somebody else's (AIOS_BUNDLE) it is made in this process.

        Parameters
        ----------
        steps
            A recipe; None for one that suits the data, by `kind`: "clean" or "features".
        like
            In place of steps: the dataset whose recipe is applied, with what it has learned.
        label
            A column that a recipe which suits the data leaves alone.

        Raises
        ------
        UsageError, NotFoundError
            As `data.prepare.prepare`.
        """
        from ..data.prepare import prepare
        from ..data.recipe import Recipe

        if like is not None:
            if steps is not None:
                raise UsageError("Give --steps or --like, not both.")
            steps = Recipe.load(like, whole=False)
        elif isinstance(steps, str):
            steps = Recipe(steps)
        client = self._workers()
        return prepare(
            src, dst, steps, suggested=kind, label=label, client=client, on_progress=on_progress
        )

    def label_noise(self, src: str | Entry, *, to: str = "", **more: Any) -> Suspects:
        """Find rows whose label is probably wrong; with `to`, keep the others as this dataset.

        `data.label_noise.label_noise` has the parameters and errors.
        """
        from ..data.label_noise import label_noise, without

        found = label_noise(src, **more)
        if to:
            without(found, to)
        return found

    def data_identity(self, name: str = "", public: str = "") -> str:
        """The public key (`age1…`) of a person here; see `data.vault.key`."""
        from ..data.vault import key

        return key(name, public)

    def data_encrypt(self, src: str, people: Sequence[str], to: str = "") -> Entry:
        """Make an encrypted copy of a dataset for people with a key; see `data.vault.encrypt`."""
        from ..data.vault import encrypt

        return encrypt(src, people, to)

    def data_decrypt(self, src: str, to: str = "") -> Entry:
        """Make a plain copy of an encrypted dataset; see `data.vault.decrypt`."""
        from ..data.vault import decrypt

        return decrypt(src, to)

    def data_require(self, name: str, *, remove: bool = False) -> None:
        """Refuse new versions of a dataset that are not encrypted; or allow them again."""
        from ..data.catalog import Catalog

        Catalog().seal(name, not remove)

    def split(
        self,
        src: str | Entry,
        parts: str | Mapping[str, float] = PARTS,
        *,
        stratify: str = "",
        by: str = "",
        seed: int = 0,
        to: str = "",
    ) -> dict[str, Entry]:
        """Divide a dataset for training, validation and testing, by a hash of each row.

        `data.division.divide` has the parameters and errors.
        """
        return split(src, parts, stratify=stratify, by=by, seed=seed, to=to)


def split(
    src: str | Entry,
    parts: str | Mapping[str, float],
    *,
    stratify: str = "",
    by: str = "",
    seed: int = 0,
    to: str = "",
) -> dict[str, Entry]:
    """`Session.split`, for those who have no session: no cluster takes part."""
    from ..data.division import divide, parse_parts

    shares = parse_parts(parts) if isinstance(parts, str) else parts
    return divide(src, shares, stratify=stratify, by=by, seed=seed, to=to)


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
