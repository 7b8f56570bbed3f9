"""Small state that notebooks, shells and ranks share: keys, values, versions, and who waits for them.

Where it is kept is a `Store`: an SQLite file of the cluster for one machine (`kv_sqlite`), a Redis
or Valkey server for several (`kv_redis`, by AIOS_KV). Each write has the next number of the whole
store as its version, so that a version says which value was read, and a watcher where it was.
"""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import msgspec

from ..errors import ConflictError, NotFoundError, UsageError
from ..schema import Struct

VARIABLE = "AIOS_KV"
# Above this, data belongs in the catalogue.
MOST_BYTES = 16 * 1024 * 1024
_KEY = re.compile(r"[^\s\x00-\x1f*?\[\]](?:[^\x00-\x1f*?\[\]]{0,510}[^\s\x00-\x1f*?\[\]])?")
# Attempts of `update` before it gives up; somebody else has written between each.
_TRIES = 1000
_UNSET: Any = type("Unset", (), {"__repr__": lambda self: "<none>"})()


class Item(Struct, frozen=True, kw_only=True):
    """A key and what it has.

    Attributes
    ----------
    key, value
        The value of a key that was removed or has expired is None, and `version` that of its end.
    version
        Rises with every write of the store.
    expires
        Seconds since the epoch, or None.
    removed
        In what `watch` gives: the key has gone.
    """

    key: str
    value: Any
    version: int
    expires: float | None = None
    removed: bool = False


class Row(NamedTuple):
    """As a store keeps it; no bytes: a mark that the key has gone, kept for watchers."""

    key: str
    blob: bytes | None
    version: int
    expires: float | None = None


class Conflict(Exception):  # noqa: N818 (a store's answer, not an error)
    """The key does not have the version that was expected; `found` is the one it has (0: none)."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class Store(Protocol):
    """Keeps rows. What is written is seen by every process, in one order."""

    def read(self, key: str) -> Row | None:
        """The row of a key that is there."""

    def write(self, key: str, blob: bytes | None, expect: int | None, expires: float | None) -> int:
        """Set (or with None remove) a key where it has version `expect`; gives the new version.

        Raises `Conflict` where it has another. 0: it must not be there; None: no matter.
        """

    def rows(self, since: int = -1) -> list[Row]:
        """All keys that are there, by key; after a version: what changed, in order, ends included."""

    def wait(self, timeout: float) -> None:
        """Return when something may have changed, or after so many seconds."""

    def close(self) -> None:
        """Give back what it holds."""


class KV:
    """Keys and values: text, numbers, booleans, None, bytes, and lists and dictionaries of these.

        kv.put("best", {"loss": 0.1})
        kv.get("best")
        kv.update("count", lambda n: (n or 0) + 1)
        for item in kv.watch("job/*"): ...

    `aios_jupyter.kv` is this user's; a `Session` has the same as `kv`.
    """

    def __init__(self, open_store: Callable[[], Store] | None = None) -> None:
        self._open = open_store or open_store_of_user
        self._made: tuple[int, Store] | None = None

    @property
    def _store(self) -> Store:
        # A process that was forked opens its own.
        if self._made is None or self._made[0] != os.getpid():
            self._made = (os.getpid(), self._open())
        return self._made[1]

    def get(self, key: str, default: Any = _UNSET) -> Any:
        """The value of a key.

        Raises
        ------
        NotFoundError
            There is none, and no default is given.
        """
        row = self._store.read(_checked(key))
        if row is not None:
            return _item(row).value
        if default is _UNSET:
            raise NotFoundError(f"There is no key '{key}'; 'aios kv ls' lists them.")
        return default

    def item(self, key: str) -> Item | None:
        """The value of a key with its version, or None."""
        row = self._store.read(_checked(key))
        return None if row is None else _item(row)

    def put(
        self, key: str, value: Any, *, expect: int | None = None, ttl: float | None = None
    ) -> int:
        """Set a key; gives its version.

        Parameters
        ----------
        expect
            Only where the key has this version; 0: only where there is none.
        ttl
            Seconds after which the key goes by itself.

        Raises
        ------
        ConflictError
            It has another version.
        UsageError
            The value is not one that can be kept.
        """
        if ttl is not None and not ttl > 0:
            raise UsageError(f"A key lives for more than 0 s, not {ttl:g} s.")
        blob = _packed(key, value)
        expires = None if ttl is None else time.time() + ttl
        return self._write(key, blob, expect, expires)

    def rm(self, key: str, *, expect: int | None = None) -> None:
        """Remove a key.

        Raises
        ------
        NotFoundError
            There is none.
        ConflictError
            It does not have version `expect`.
        """
        if expect == 0 or self._write(key, None, expect, None) == 0:
            raise NotFoundError(f"There is no key '{key}'; 'aios kv ls' lists them.")

    def update(self, key: str, change: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by what `change` makes of it (of `default` where there is none).

        Nobody else's write is lost: when one came between, it is done again with the new value.
        """
        for _ in range(_TRIES):
            row = self._store.read(_checked(key))
            old = default if row is None else _item(row).value
            new = change(old)
            blob = _packed(key, new)
            expires = None if row is None else row.expires
            try:
                self._store.write(key, blob, 0 if row is None else row.version, expires)
            except Conflict:
                continue
            return new
        raise ConflictError(f"Others change '{key}' all the time; try again.")

    def ls(self, pattern: str = "*") -> list[Item]:
        """What is there, by key; `*` stands for anything: `job/*`."""
        return [_item(row) for row in self._store.rows() if fnmatch.fnmatchcase(row.key, pattern)]

    def watch(self, pattern: str = "*", *, timeout: float | None = None) -> Iterator[Item]:
        """What is there, then each change as it happens.

        A key that changes several times between two looks is told once, with its newest value.

        Parameters
        ----------
        pattern
            As `ls`.
        timeout
            End when there was no change for so many seconds.
        """
        store = self._open()
        with closing(store):
            # In one look, ends included: what ended before now is nobody's news.
            first = store.rows(0)
            seen = max((row.version for row in first), default=0)
            there = sorted((row for row in first if row.blob is not None), key=lambda row: row.key)
            yield from (_item(row) for row in there if fnmatch.fnmatchcase(row.key, pattern))
            quiet = time.monotonic()
            while timeout is None or time.monotonic() - quiet < timeout:
                left = 1.0 if timeout is None else timeout - (time.monotonic() - quiet)
                store.wait(max(0.0, min(1.0, left)))
                for row in store.rows(seen):
                    seen = max(seen, row.version)
                    if fnmatch.fnmatchcase(row.key, pattern):
                        quiet = time.monotonic()
                        yield _item(row)

    def close(self) -> None:
        """Give back the connection; the next call opens one again."""
        if self._made is not None and self._made[0] == os.getpid():
            self._made[1].close()
        self._made = None

    def __enter__(self) -> KV:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(
        self, key: str, blob: bytes | None, expect: int | None, expires: float | None
    ) -> int:
        if expect is not None and expect < 0:
            raise UsageError(f"Versions are numbers from 1 on, or 0 for no key, not {expect}.")
        try:
            return self._store.write(_checked(key), blob, expect, expires)
        except Conflict as conflict:
            have = f"has version {conflict.found}" if conflict.found else "is not there"
            want = f"version {expect}" if expect else "none"
            raise ConflictError(
                f"The key '{key}' {have} where {want} was expected: somebody else has written it; "
                "get it again."
            ) from None


def open_store_of_user() -> Store:
    """The store that AIOS_KV names; else the file of this user's cluster on this machine."""
    url = os.environ.get(VARIABLE, "")
    if not url:
        from .kv_sqlite import SqliteStore, own_file

        return SqliteStore(own_file())
    if url.split("://")[0] not in {"redis", "rediss", "valkey", "valkeys", "unix"}:
        raise UsageError(
            f"{VARIABLE} does not name a store that is known; write one like redis://host:6379/0, "
            "or unset it."
        )
    from .kv_redis import RedisStore

    return RedisStore(url)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{key!r} cannot be a key; use up to 512 characters without *, ?, brackets, line ends, "
            "and spaces around it."
        )
    return key


def _packed(key: str, value: Any) -> bytes:
    try:
        blob = msgspec.msgpack.encode(value, enc_hook=_plain)
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The value of '{key}' cannot be kept ({error}); keep text, numbers, bytes, lists and "
            "dictionaries, and arrays as a dataset."
        ) from None
    if len(blob) > MOST_BYTES:
        raise UsageError(
            f"The value of '{key}' has {len(blob):,} bytes, and at most {MOST_BYTES:,} are kept; "
            "make it a dataset."
        )
    return blob


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}")


def _item(row: Row) -> Item:
    gone = row.blob is None
    value = None if row.blob is None else msgspec.msgpack.decode(row.blob)
    return Item(key=row.key, value=value, version=row.version, expires=row.expires, removed=gone)
