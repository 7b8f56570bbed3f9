"""Keeping storage in order: what takes how much, what may go, and whether all is still as it was.

A leaf module: it imports fsspec, through `storage`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..config import settings
from ..errors import AiosError, ConflictError
from . import cache, layout, storage
from .catalog import Catalog
from .entries import Entry
from .layout import BLOCK, FileCheck
from .records import is_own

DAY = 86400.0
# An interrupted write may still be going on.
_STALE = 3600.0
# Directories of the data directory that are no dataset's.
_SHARED = frozenset({"cache", "work"})


@dataclass(frozen=True)
class Use:
    """What takes space: its kind, its name, bytes, and files."""

    kind: str
    name: str
    size: int


@dataclass(frozen=True)
class Garbage:
    """Something that may go, and why. `entry` is a version that would be forgotten."""

    path: Path | None
    size: int
    why: str
    entry: Entry | None = None

    @property
    def what(self) -> str:
        return self.entry.ref if self.entry is not None else str(self.path)


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file of a dataset, and whether it was mended.

    `written`: somebody has written the file since it was added, who may have meant to.
    """

    entry: Entry
    file: str
    what: str
    mended: bool = False
    written: bool = False


# --- how much


def usage(catalog: Catalog) -> list[Use]:
    """What takes space in the state directory, the largest first; and datasets that are elsewhere."""
    root, state = storage.data_dir(), settings().state_dir
    found = [
        Use("cache" if home.name == "cache" else "unfinished", "", storage.tree_size(home))
        for home in root.iterdir()
        if home.name in _SHARED
    ]
    own = {str(root / home.name) for home in root.iterdir() if home.is_dir()}
    for entry in (version for each in catalog.list() for version in catalog.versions(each.name)):
        here = any(entry.url.startswith(f"{home}/") for home in own)
        found.append(Use("dataset" if here else "elsewhere", entry.ref, entry.size))
    for kind, pattern in (
        ("runs", "clusters/*/runs"),
        ("checkpoints", "clusters/*/checkpoints"),
        ("models", "models"),
    ):
        size = sum(storage.tree_size(path) for path in state.glob(pattern))
        found.append(Use(kind, "", size))
    return sorted((use for use in found if use.size), key=lambda use: -use.size)


# --- what may go


def garbage(catalog: Catalog, now: float | None = None) -> list[Garbage]:
    """What nothing refers to any more, or a rule of retention lets go.

    Data that lies anywhere else than in the state directory is never garbage.
    """
    now = now or time.time()
    found = _retired(catalog, now)
    gone = {item.entry.ref for item in found if item.entry is not None}
    kept = {
        entry.url
        for each in catalog.list()
        for entry in catalog.versions(each.name)
        if entry.ref not in gone
    }
    for home in storage.data_dir().iterdir():
        if not home.is_dir():
            continue
        going = dict.fromkeys(_leftovers(home, now), "left by an interrupted write")
        if home.name not in _SHARED:
            seen = (path for path in home.iterdir() if not path.name.startswith("."))
            lost = (path for path in seen if str(path) not in kept)
            going |= dict.fromkeys(lost, "no dataset refers to it")
        found += [Garbage(path, storage.tree_size(path), why) for path, why in going.items()]
    return found


def _leftovers(home: Path, now: float) -> list[Path]:
    found = [*home.glob(".*.partial"), *home.glob(".*.old"), *home.glob("*/.*.partial")]
    return [path for path in found if path.stat().st_mtime < now - _STALE]


def _retired(catalog: Catalog, now: float) -> list[Garbage]:
    """Versions that a rule lets go: neither among the newest, nor young."""
    found = []
    for name, (versions, days) in catalog.retention().items():
        known = catalog.versions(name)
        for entry in known[: max(0, len(known) - versions)]:
            if entry.created < now - days * DAY:
                why = f"older than the newest {versions} and {days:g} days"
                found.append(Garbage(None, 0, why, entry))
    return found


def collect(catalog: Catalog, now: float | None = None) -> list[Garbage]:
    """Remove the garbage; what it was.

    Raises
    ------
    ConflictError
        Data is being written, which no entry refers to yet.
    """
    with storage.writing(alone=True):
        found = garbage(catalog, now)
        for item in found:
            if item.entry is not None:
                catalog.remove(item.entry.ref)
            elif item.path is not None and item.path.is_dir():
                shutil.rmtree(item.path)
            elif item.path is not None:
                item.path.unlink(missing_ok=True)
    return found


# --- whether it is whole


def verify(catalog: Catalog, entry: Entry, *, mend: bool | None = None) -> list[Finding]:
    """Read a dataset and hold it against its hashes; what is damaged is mended from another copy.

    Parameters
    ----------
    mend
        False: only look. True: bring back also files that have been written since they were added,
        which is not for this to decide: it may be somebody's new version of them.

    Raises
    ------
    AiosError
        The storage cannot be reached at all.
    """
    checks = catalog.checks(entry)
    if not checks:
        same = layout.content(entry.url, entry.format).version == entry.version
        return [] if same else [Finding(entry, "", "not what it was when it was added")]
    found = []
    for check in checks:
        bad = _bad_blocks(entry.url, check)
        if not bad:
            continue
        what = bad if isinstance(bad, str) else _name_blocks(bad, check)
        if written := _is_written(entry, check):
            what = f"written since it was added ({what})"
        mended = (not written if mend is None else mend) and any(
            _mend(entry.url, other, check, bad) for other in catalog.copies(entry)
        )
        found.append(Finding(entry, check.name, what, mended, written))
    return found


def _is_written(entry: Entry, check: FileCheck) -> bool:
    """Whether a file has another time or mark than it had: a disk that fails changes neither.

    What is gone is not, nor what lies where only the catalogue writes.
    """
    if is_own(entry.url):
        return False
    place = storage.joined(entry.url, check.name)
    now: tuple[int, int | str] | None
    if storage.is_remote(place):
        now = layout.remote_stamps(place).get("")
    else:
        now = layout.stamps(place, entry.format, ()).get("")
    return now is not None and now[1] != check.stamp


def verify_all(
    catalog: Catalog,
    refs: Iterable[str] = (),
    *,
    mend: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[Finding]]:
    """`verify` for datasets by name, all where none is named; how many, and what was found."""
    entries = [catalog.get(ref) for ref in refs] or catalog.list()
    found = []
    for number, entry in enumerate(entries, 1):
        found += verify(catalog, entry, mend=mend)
        if on_progress is not None:
            on_progress(number, len(entries))
    return len(entries), found


def check_unchanged(entry: Entry, catalog: Catalog | None = None) -> None:
    """Refuse a dataset whose files are not those that were added: it would be no such version.

    Files of the size and time (or, elsewhere, of the mark) that they had are not read. Of others the
    bytes decide, and their new time is kept then. Of what is remote the storage is asked once, for all
    files; not where a copy in this machine's cache is read, which has been verified.

    Raises
    ------
    ConflictError
        A file is another, new or gone.
    """
    catalog = catalog or Catalog()
    remote = storage.is_remote(entry.url)
    if not entry.name or entry.format == layout.DATABASE or not catalog.has(entry):
        return
    if remote and cache.has(entry.version):
        return
    known = {check.name: check for check in catalog.checks(entry)}
    there = _there(entry, known)
    # What is missing as a whole is told by who reads it.
    if not known or not there:
        return
    new = min(there.keys() - known.keys(), default=None)
    if new is not None:
        raise _changed(entry, new, "is new")
    same = True
    for name, check in known.items():
        size, stamp = there.get(name) or _stamp(entry, name)
        if size == check.size and (not check.stamp or stamp == check.stamp):
            continue
        if _bad_blocks(entry.url, check):
            raise _changed(entry, name, "has changed")
        kept = {"mark": stamp} if remote else {"modified": stamp}
        known[name] = msgspec.structs.replace(check, **kept)
        same = False
    if not same:
        catalog.mark(entry, known.values())


def _there(entry: Entry, known: Collection[str]) -> Mapping[str, tuple[int, int | str]]:
    """Size and stamp of each file that is there now and belongs to a dataset."""
    if not storage.is_remote(entry.url):
        return layout.stamps(entry.url, entry.format, known)
    found = layout.remote_stamps(entry.url)
    form = entry.format
    return {name: stamp for name, stamp in found.items() if layout.belongs(form, name, known)}


def _stamp(entry: Entry, name: str) -> tuple[int, int]:
    with contextlib.suppress(FileNotFoundError):
        if not storage.is_remote(entry.url):
            return layout.stamp(Path(entry.url) / name)
    raise _changed(entry, name, "is gone")


def _changed(entry: Entry, name: str, how: str) -> ConflictError:
    return ConflictError(
        f"{storage.joined(entry.url, name)} {how} since {entry.ref} was added; 'aios data add "
        f"{entry.name} {entry.url}' makes a new version of what is there now, and 'aios data verify "
        f"{entry.name}' says what is damaged."
    )


def _name_blocks(bad: list[int], check: FileCheck) -> str:
    where = ", ".join(f"{n * BLOCK:,} to {min((n + 1) * BLOCK, check.size):,}" for n in bad[:5])
    return f"damaged in bytes {where}{' and more' if len(bad) > 5 else ''}"


def _bad_blocks(url: str, check: FileCheck) -> list[int] | str:
    """The blocks of a file that are not what they were; or what is wrong with all of it."""
    fs, root = storage.locate(url)
    path = f"{root.rstrip('/')}/{check.name}" if check.name else root
    with storage.reading(url):
        if not storage.retrying(lambda: fs.exists(path)):
            return "missing"
        size = int(fs.info(path)["size"])
        if size != check.size:
            return f"{size:,} bytes long in place of {check.size:,}"
        with fs.open(path, "rb") as file:
            now = layout.block_hashes(file)
            return [
                n
                for n, (known, (_, digest)) in enumerate(zip(check.blocks, now, strict=True))
                if digest[:16] != known
            ]


def _mend(url: str, other: str, check: FileCheck, bad: list[int] | str) -> bool:
    """Bring what is damaged from another copy, if that one is whole there; whether it was."""
    try:
        wrong = _bad_blocks(other, check)
    except AiosError:
        return False
    if isinstance(wrong, str) or (isinstance(bad, list) and set(wrong) & set(bad)):
        return False
    if isinstance(bad, str) and wrong:
        return False
    from_fs, from_root = storage.locate(other)
    source = f"{from_root.rstrip('/')}/{check.name}" if check.name else from_root
    target = f"{url.rstrip('/')}/{check.name}" if check.name else url
    if isinstance(bad, str) or storage.is_remote(url):
        if wrong:
            return False
        with from_fs.open(source, "rb") as file, storage.written_aside(target) as aside:
            shutil.copyfileobj(file, aside, BLOCK)
    else:
        with Path(target).open("r+b") as place:
            for number in bad:
                start = number * BLOCK
                place.seek(start)
                end = min(start + BLOCK, check.size)
                place.write(from_fs.cat_file(source, start=start, end=end))
    return not _bad_blocks(url, check)
