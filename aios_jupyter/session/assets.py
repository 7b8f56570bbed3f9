"""Datasets: `augment`, and the catalogue's listings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cluster import embedded
from ..config import settings
from ..errors import AccessError, ClusterError, NotFoundError
from ..runs.tunnel import KEYS
from ..tls import Bundle as TlsBundle
from .link import locate_tasks
from .runs import RunVerbs

if TYPE_CHECKING:
    from ..data.augment import Source
    from ..data.catalog import Entry as Dataset
    from ..data.records import Quota
    from ..data.upkeep import Finding, Garbage, Use

WORKER_TIMEOUT = 60
REACH_TIMEOUT = 10


class AssetVerbs(RunVerbs):
    """A session that makes datasets."""

    def dask(self) -> Any:
        """A `distributed.Client` of the cluster's workers, made once.

        Raises
        ------
        ClusterError
            No worker has come up in time.
        """
        address, own = self._tasks()
        if self._dask is not None and self._dask.scheduler.address == address:
            return self._dask
        if self._dask is not None:
            self._dask.close()
            self._dask = None
        from ..cluster.tasks import client_of

        try:
            self._dask = client_of(address, own, REACH_TIMEOUT)
        except OSError as error:
            raise ClusterError(
                f"The cluster's Dask scheduler at {address} is not reached from here ({error}); start "
                "the cluster with 'aios up --host ADDRESS', or do this in a notebook of your own machine."
            ) from None
        try:
            self._dask.wait_for_workers(1, timeout=WORKER_TIMEOUT)
        except TimeoutError:
            log = settings().cluster_dir / "dask" / "worker.log"
            raise ClusterError(f"The cluster's Dask worker does not come up; see {log}") from None
        return self._dask

    def _tasks(self) -> tuple[str, TlsBundle]:
        """Where Dask's scheduler is, and what opens it."""
        if not self._forward:
            return locate_tasks(self._bundle), TlsBundle.dask(embedded.Paths.current().tls)
        address = self._forward.tasks()
        keys = os.environ.get(KEYS)
        if not keys:
            raise AccessError(
                "This kernel runs on a node that does no data tasks, and has no key for the cluster's "
                "Dask workers; add such nodes with 'aios node add --data', or do this in a notebook of "
                "your own machine."
            )
        return address, TlsBundle.dask(Path(keys))

    def _workers(self) -> Any:
        """The client of `dask`; None where it is not for us, and this process does the work."""
        try:
            return self.dask()
        except AccessError:
            return None

    def augment(
        self,
        src: Source,
        dst: str | Path,
        policy: str,
        copies: int = 1,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Dataset:
        """Make a dataset of originals and augmented copies, as tasks on the cluster's workers.

        Where its workers are not for this session (with AIOS_BUNDLE, or on a node without `--data`) it
        is made in this process.
        `data.augment.augment` has the parameters and errors.
        """
        from ..data.augment import augment, resolved
        from ..data.catalog import Catalog

        # What is wrong with the request is said before workers are waited for.
        src, parsed = resolved(src, policy, Catalog())
        return augment(src, dst, parsed, copies, seed, self._workers(), on_progress)

    def augment_preview(self, src: Source, policy: str, pictures: int = 16, seed: int = 0) -> bytes:
        """What a policy does to some images: a PNG, each row an original and copies of it.

        The same policy and seed make the same copies with `augment`.
        """
        from ..data.preview import png

        return png(src[0] if isinstance(src, tuple) else src, policy, pictures, seed)

    def datasets(self) -> list[Dataset]:
        """The catalogue."""
        from ..data.catalog import Catalog

        return list(Catalog().list())

    def data_add(
        self,
        name: str,
        url: str | Path,
        format: str | None = None,  # noqa: A002
        *,
        made_from: str | Dataset | Iterable[str | Dataset] = (),
        how: str = "",
        tags: Iterable[str] = (),
    ) -> Dataset:
        """Put data that lies at `url` into the catalogue; `Catalog.add` has the details."""
        from ..data.catalog import Catalog

        return Catalog().add(name, str(url), format, made_from=made_from, how=how, tags=tags)

    def data_copy(
        self,
        ref: str | Path,
        target: str | Path,
        bandwidth: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        compress: str = "",
    ) -> Dataset:
        """Copy a dataset to a name, path or URL and verify it; `Catalog.copy` has the details."""
        from ..data.catalog import Catalog

        return Catalog().copy(
            ref, target, compress=compress, bandwidth=bandwidth, on_progress=on_progress
        )

    def data_show(self, name: str) -> Dataset:
        """A dataset by name, `name@version`, path or URL."""
        from ..data.catalog import Catalog

        return Catalog().get(name)

    def data_versions(self, name: str) -> list[Dataset]:
        """All versions of a dataset, the oldest first.

        Raises
        ------
        NotFoundError
            The catalogue has none by that name.
        """
        from ..data.catalog import Catalog

        found = list(Catalog().versions(name))
        if not found:
            raise NotFoundError(f"There is no dataset {name!r}; 'aios data ls' lists them.")
        return found

    def data_remove(self, ref: str) -> None:
        """Forget a dataset, or with `name@version` one version; its data stays where it is."""
        from ..data.catalog import Catalog

        Catalog().remove(ref)

    def data_tag(self, ref: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Dataset:
        """Give a dataset tags, or take some from it."""
        from ..data.catalog import Catalog

        return Catalog().tag(ref, add, remove)

    def data_usage(self) -> list[Use]:
        """What takes how much space, the largest first."""
        from ..data.catalog import Catalog
        from ..data.upkeep import usage

        return usage(Catalog())

    def data_quota(
        self, owner: str = "", size: int | None = None, *, remove: bool = False
    ) -> list[Quota]:
        """What each owner's datasets take here and may take; `records.Quota` says what is what.

        Parameters
        ----------
        owner
            Whose limit is set or removed; all owners' together by default.
        size
            Bytes that are the limit from now on.
        """
        from ..data.catalog import Catalog
        from ..data.records import EVERYBODY

        catalog = Catalog()
        if size is not None or remove:
            catalog.set_quota(owner or EVERYBODY, size)
        return catalog.quotas()

    def data_keep(self, name: str, versions: int, days: float = 0.0) -> None:
        """Say which versions `data_collect` keeps; `Catalog.keep` has the details."""
        from ..data.catalog import Catalog

        Catalog().keep(name, versions, days)

    def data_collect(self, *, dry_run: bool = False) -> list[Garbage]:
        """Remove what nothing refers to or no rule keeps, and say what it was."""
        from ..data.catalog import Catalog
        from ..data.upkeep import collect, garbage

        return garbage(Catalog()) if dry_run else collect(Catalog())

    def data_verify(
        self,
        *refs: str,
        mend: bool | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Finding]:
        """Hold datasets (all, where none is named) against their hashes; what is not as it was.

        What is damaged is mended from another copy where there is one; `upkeep.verify` has `mend`.
        """
        from ..data.catalog import Catalog
        from ..data.upkeep import verify_all

        return verify_all(Catalog(), refs, mend=mend, on_progress=on_progress)[1]
