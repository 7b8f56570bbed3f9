"""What an agent knows of one run on its machine."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from ..broker import messages as msg
from ..runs.messages import StartRun
from ..schema import RankExit, Run
from .accounts import Account
from .memory import Values
from .ranks import LocalGang


class Hosted:
    """One run on this machine.

    One that may be restarted rests between the end of its ranks and the broker's word: `again` starts
    the next attempt, `over` says that there is none. Meanwhile it may lose its lease, and go on under
    another one, here or elsewhere: `token` then admits the nodes that get it from here.
    """

    def __init__(self, run: Run, ranks: tuple[int, ...], directory: Path) -> None:
        self.run = run
        self.ranks = ranks
        self.directory = directory
        self.gang: LocalGang | None = None
        self.order: StartRun | None = None
        self.values = Values(directory)
        self.attempt = 0
        self.resting = False
        self.token = ""
        self.called: msg.RunAgain | None = None
        self.exits: tuple[RankExit, ...] = ()
        self.listener: socket.socket | None = None
        self.ended = asyncio.Event()
        self.changed = asyncio.Condition()
        self.devices: dict[int, str] = {}
        self.account: Account | None = None
        self.summary: dict[str, Any] = {}
        self.reporting = False
        self.sampled = 0.0

    @property
    def live(self) -> bool:
        """Whether it may still have processes."""
        return self.gang is not None and not self.ended.is_set()
