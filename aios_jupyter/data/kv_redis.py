"""The store of several machines: a Redis or Valkey server, by its URL.

All is in a few keys `{aios-kv}:…`, changed by scripts that run whole on the server, so that a
version and its value are never apart. The server's clock says when a key has expired.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ..errors import AccessError, AiosError, MissingExtraError, UsageError
from .kv import Conflict, Row

_PREFIX = "{aios-kv}:"
_NAMES = ("values", "versions", "ends", "marks", "version", "changes")
_KEYS = [_PREFIX + name for name in _NAMES]
_TIMEOUT = 10.0

_COMMON = """
local values, versions, ends, marks, version, changes = unpack(KEYS)
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function forget(key)
  local number = redis.call('INCR', version)
  redis.call('HDEL', values, key)
  redis.call('ZREM', ends, key)
  redis.call('ZADD', versions, number, key)
  redis.call('ZADD', marks, now, key)
  redis.call('PUBLISH', changes, number)
  return number
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now)) do forget(key) end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', marks, '-inf', now - 3600)) do
  redis.call('ZREM', marks, key)
  redis.call('ZREM', versions, key)
end
local function number_of(key)
  if redis.call('HEXISTS', values, key) == 0 then return 0 end
  return tonumber(redis.call('ZSCORE', versions, key))
end
local function row(key)
  local value = redis.call('HGET', values, key)
  local stop = redis.call('ZSCORE', ends, key)
  return {key, value and 1 or 0, value or '', redis.call('ZSCORE', versions, key), stop or ''}
end
"""
_READ = """
if redis.call('HEXISTS', values, ARGV[1]) == 0 then return {} end
return row(ARGV[1])
"""
_WRITE = """
local key, keeps, value, expect, ttl = unpack(ARGV)
local have = number_of(key)
if expect ~= '' and tonumber(expect) ~= have then return {0, have} end
if keeps == '0' then
  if have == 0 then return {1, 0} end
  return {1, forget(key)}
end
local number = redis.call('INCR', version)
redis.call('HSET', values, key, value)
redis.call('ZADD', versions, number, key)
redis.call('ZREM', marks, key)
redis.call('ZREM', ends, key)
if ttl ~= '' then redis.call('ZADD', ends, string.format('%.6f', now + tonumber(ttl)), key) end
redis.call('PUBLISH', changes, number)
return {1, number}
"""
_ROWS = """
local found = {}
local since = tonumber(ARGV[1])
local from = since < 0 and '-inf' or '(' .. ARGV[1]
for _, key in ipairs(redis.call('ZRANGEBYSCORE', versions, from, '+inf')) do
  local one = row(key)
  if since >= 0 or one[2] == 1 then found[#found + 1] = one end
end
return found
"""


class RedisStore:
    """See `kv.Store`.

    Parameters
    ----------
    url
        As redis-py reads it, `valkey://` too. A password in it is shown nowhere.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise MissingExtraError("The client for Redis and Valkey", "redis") from None
        self._redis = redis
        parts = urlsplit(url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        try:
            self._client: Any = redis.Redis.from_url(
                url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
            )
        except ValueError as error:
            raise UsageError(f"AIOS_KV ({self._shown}) is no URL of a server: {error}.") from None
        self._scripts = {
            name: self._client.register_script(_COMMON + body)
            for name, body in (("read", _READ), ("write", _WRITE), ("rows", _ROWS))
        }
        self._news: Any = None

    def read(self, key: str) -> Row | None:
        """The row of a key that is there."""
        found = self._run("read", key)
        return _row(found) if found else None

    def write(self, key: str, blob: bytes | None, expect: int | None, expires: float | None) -> int:
        """Set or remove a key; 0 where it was to be removed and is not there."""
        done, version = self._run(
            "write",
            key,
            0 if blob is None else 1,
            blob or b"",
            "" if expect is None else expect,
            "" if expires is None else f"{max(0.0, expires - time.time()):.6f}",
        )
        if not done:
            raise Conflict(int(version))
        return int(version)

    def rows(self, since: int = -1) -> list[Row]:
        """All keys that are there, or what changed since a version."""
        found = [_row(one) for one in self._run("rows", since)]
        return sorted(found, key=lambda row: row.key) if since < 0 else found

    def wait(self, timeout: float) -> None:
        """Return when the server tells of a write; at once on the first call, after subscribing."""
        with self._said():
            if self._news is None:
                self._news = self._client.pubsub()
                self._news.subscribe(_KEYS[-1])
                self._news.get_message(timeout=_TIMEOUT)
                return
            self._news.get_message(timeout=timeout)

    def close(self) -> None:
        """Close the connections."""
        if self._news is not None:
            self._news.close()
        self._client.close()

    def _run(self, name: str, *values: Any) -> Any:
        with self._said():
            return self._scripts[name](keys=_KEYS, args=values)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (self._redis.AuthenticationError, self._redis.exceptions.NoPermissionError):
            raise AccessError(
                f"The store {self._shown} does not let us in; put user and password into AIOS_KV."
            ) from None
        except self._redis.RedisError as error:
            raise AiosError(
                f"The store {self._shown} (AIOS_KV) does not answer as it should: {error}."
            ) from None


def _row(found: list[Any]) -> Row:
    key, there, blob, version, expires = found
    return Row(
        key.decode(),
        bytes(blob) if there else None,
        int(float(version)),
        float(expires) if expires else None,
    )
