"""Alerts of an endpoint while it serves: what has come since the last look, against its limits.

What compares needs numpy and scipy, so it is a process of its own for a moment
(`python -m aios_jupyter.models.alerting`): an `Asked` in on standard input, a `Found` out.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import msgspec

from ..schema import Struct

log = logging.getLogger(__name__)


class Asked(Struct, frozen=True):
    """Where to look. `before` is what was seen the last time, as `Found` had it."""

    url: str
    token: str
    authority: str
    folder: str
    max_seconds: float | None
    before: Any = None


class Found(Struct, frozen=True):
    """What a person should look at by subject (`monitor.crossed`), and what was seen."""

    alerts: dict[str, str]
    seen: Any


class Watch:
    """Looks at an endpoint again and again.

    Parameters
    ----------
    authority
        The certificate that the endpoint's is checked by; "" for none.
    max_seconds
        What a request may take.
    """

    def __init__(self, url: str, token: str, authority: str, max_seconds: float | None) -> None:
        self._asked = Asked(
            url=url, token=token, authority=authority, folder="", max_seconds=max_seconds
        )

    async def look(self, package: dict[str, Any]) -> dict[str, str] | None:
        """Alerts by what has come since the last look at this version; None where it failed."""
        if package["path"] != self._asked.folder:
            self._asked = msgspec.structs.replace(self._asked, folder=package["path"])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await process.communicate(msgspec.msgpack.encode(self._asked))
        finally:
            if process.returncode is None:  # the endpoint ends meanwhile
                process.kill()
                await process.wait()
        if process.returncode != 0:
            log.warning("alerts could not be looked for; the reason is above")
            return None
        found = msgspec.msgpack.decode(output, type=Found)
        self._asked = msgspec.structs.replace(self._asked, before=found.seen)
        return found.alerts


def main() -> int:
    """Look once."""
    from pathlib import Path

    from ..errors import AiosError
    from .client import EndpointClient
    from .monitor import Traffic, crossed, drift, profile_in, since, traffic

    asked = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Asked)
    before = None if asked.before is None else msgspec.convert(asked.before, Traffic)
    authority = Path(asked.authority) if asked.authority else None
    try:
        with EndpointClient(asked.url, asked.token, authority=authority) as client:
            now = traffic(client.metrics())
            window = client.window()
        known = profile_in(Path(asked.folder))
    except AiosError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    drifts = drift(known, window) if known is not None else []
    found = crossed(since(before, now), drifts, asked.max_seconds)
    # Not JSON, which has no infinity for the last bucket of a histogram.
    sys.stdout.buffer.write(msgspec.msgpack.encode(Found(alerts=found, seen=now)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
