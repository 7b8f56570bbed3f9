"""A cluster that is kept: `aios up --foreground`, for systemd, containers and the like.

Whoever has a session mends the own cluster when its broker or agent has died. Where people come with
bundles, nobody may have one of its owner's: then this process mends it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ..config import settings
from ..errors import ClusterError, NoClusterError
from . import embedded

LOOK_INTERVAL = 2.0
LONGEST_PAUSE = 60.0


def keep(tell: Callable[[str], None], **asked: Any) -> None:
    """Start the cluster, mend it, and stop it on SIGTERM or an interrupt, from the main thread.

    It does not end by disuse, unless AIOS_IDLE_TIMEOUT says so. This returns when it was stopped, by
    `aios down` too.

    Parameters
    ----------
    tell
        Is given a sentence about each thing that happens.
    asked
        What `embedded.ensure` takes for a new cluster.

    Raises
    ------
    ClusterError
        It does not start.
    """
    os.environ.setdefault("AIOS_IDLE_TIMEOUT", "inf")
    settings.cache_clear()
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        facts = embedded.ensure(start=True, **asked)
        tell(
            f"Cluster {settings().cluster} is up at {facts['address']}; it is kept until this ends."
        )
        asked.pop("from_snapshot", None)
        if _mend(stop, tell, asked):
            embedded.down()
            tell("The cluster is stopped.")
        else:
            tell("The cluster was stopped by 'aios down', or as nobody used it.")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mend(stop: threading.Event, tell: Callable[[str], None], asked: dict[str, Any]) -> bool:
    """Mend the cluster until this process is told to end; False: somebody else has stopped it."""
    paths = embedded.Paths.current()
    pause, known = LOOK_INTERVAL, _pids(paths)
    while not stop.wait(pause):
        try:
            _ensure(asked)
        except NoClusterError:
            return False
        except ClusterError as error:
            tell(str(error))
            pause = min(LONGEST_PAUSE, 2 * pause)
            continue
        pause, now = LOOK_INTERVAL, _pids(paths)
        for what, pid in now.items():
            if pid != known[what]:
                tell(f"The {what} had ended; it is started again as process {pid}.")
        known = now
    return True


def _ensure(asked: dict[str, Any]) -> None:
    try:
        embedded.ensure(start=False)
    except NoClusterError:
        # Both are gone: by 'aios down', or because they were killed.
        if not embedded.Paths.current().connection.exists():
            raise
        embedded.ensure(start=True, **asked)


def _pids(paths: embedded.Paths) -> dict[str, int]:
    found = {"broker": embedded.running(paths.broker), "node agent": embedded.running(paths.node)}
    return {what: facts["pid"] if facts else 0 for what, facts in found.items()}
