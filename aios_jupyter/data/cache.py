"""Copies of remote datasets on this machine, the least recently used dropped for new ones.

Each version has a directory `cache/VERSION` of the state directory's data; its time is when it was
last used. The file `whole` in it says that the copy is complete and has been verified. What is
unpacked or decoded for augmentation and for ranks lies there, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..config import settings
from . import storage, transfer
from .entries import Entry, ending
from .layout import DATABASE

# Somebody may be reading what was used a moment ago.
_IN_USE = 600.0


def local(
    entry: Entry,
    *,
    bandwidth: float | None = None,
    on_progress: transfer.Progress | None = None,
) -> Entry:
    """The entry with its data on this machine; as it is where it is here, or does not fit.

    Raises
    ------
    ConflictError, AiosError
        The data has changed since it was added, or cannot be read.
    """
    if not storage.is_remote(entry.url) or entry.format == DATABASE:
        return entry
    home = storage.data_dir("cache", entry.version)
    place = _place(home, entry.url)
    with _locked(home):
        if not (home / "whole").exists():
            if not make_room(entry.size, spare=entry.version):
                return entry
            transfer.copy(
                entry.url,
                entry.format,
                str(place),
                expect=entry.version,
                bandwidth=bandwidth,
                on_progress=on_progress,
            )
            (home / "whole").touch()
        os.utime(home)
    return msgspec.structs.replace(entry, url=str(place))


def has(version: str) -> bool:
    """Whether this machine has a whole copy of a version."""
    return (place_of(version) / "whole").exists()


def nearest(url: str, version: str) -> str:
    """Where to read a dataset that is not worth a copy: this machine's, if it has one by now.

    Parameters
    ----------
    version
        "" for data that has none here, as on a local disk.
    """
    if version and has(version):
        # The same content may have come from a file of another name.
        place = _place(place_of(version), url)
        return str(place) if place.exists() else url
    return url


def _place(home: Path, url: str) -> Path:
    return home / f"data{ending(url)}"


def place_of(version: str) -> Path:
    """The directory of a version, which may not be there; it counts as used now."""
    path = storage.data_dir("cache") / version
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
    return path


@contextlib.contextmanager
def held(version: str) -> Iterator[Path]:
    """The directory of a version, for one process at a time, which may write there aside."""
    path = place_of(version)
    with _locked(path):
        os.utime(path)
        yield path


def make_room(need: int, *, spare: str = "", now: float | None = None) -> bool:
    """Drop what was used least recently until so many bytes fit; whether they do.

    Parameters
    ----------
    spare
        A version that stays.
    """
    limit = settings().cache_limit * 2**30
    found = contents()
    total = sum(size for _, size, _ in found)
    for home, size, used in sorted(found, key=lambda row: row[2]):
        if total + need <= limit:
            break
        if home.name != spare and used < (now or time.time()) - _IN_USE:
            drop(home)
            total -= size
    return total + need <= limit


def contents() -> list[tuple[Path, int, float]]:
    """Each version's directory, its bytes, and when it was last used."""
    root = storage.data_dir("cache")
    return [
        (home, storage.tree_size(home), home.stat().st_mtime)
        for home in sorted(root.iterdir())
        if home.is_dir()
    ]


def drop(home: Path) -> None:
    """Remove a version's copy; one that is read just now stays readable to its reader."""
    gone = home.with_name(f".{home.name}.{os.getpid()}.old")
    with contextlib.suppress(FileNotFoundError):
        home.rename(gone)
        shutil.rmtree(gone)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process fetches a version; others wait for it. The lock goes when its holder dies."""
    with (home.parent / f".{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home.mkdir(exist_ok=True)
        yield
