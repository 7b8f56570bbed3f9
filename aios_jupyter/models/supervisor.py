"""An endpoint from its start to its end: how many replicas, of which version, and what is amiss.

Where there are no replicas, the first connection waits on the listening socket for one to start.
Light: neither the web server nor the model is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from ..errors import AiosError
from ..tls import Bundle
from .following import PARTS, moved, packages
from .hosts import Hosts
from .numbers import FOLDER
from .plan import Plan, Told
from .relaying import RelayProcess
from .replicas import Replicas
from .scaling import Scaler

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


class Supervisor(Replicas):
    """Replicas that follow load and aliases, and are looked after.

    Parameters
    ----------
    url
        Where clients ask.
    """

    def __init__(self, plan: Plan, listener: socket.socket, url: str, told: Told) -> None:
        super().__init__(plan, listener, told)
        self._url = url
        self._knocked = asyncio.Event()  # somebody waits, and there is no replica

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises
        ------
        AiosError
            The model cannot be opened, or its replicas die again and again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        gathering = await self._gather() if self.plan.gather else []
        for _ in range(self.plan.scale.first):
            self.grow()  # they import what they need while the registry is asked
        beside = [
            asyncio.create_task(self._failing(work))
            for work in (self._watch(), self._rescale(), self._look(), *gathering)
        ]
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            self.serving = self.confirmed = await self._resolved()
            self.known.set()
            ends: list[asyncio.Future[Any]] = [self.failed, stopping]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self.failed.done():
                self.failed.result()
        finally:
            self.stopping.set()
            self.known.set()  # also where it is not: whoever waits ends
            self.room.set()
            if self.relay is not None:
                self.relay.close()
            loop.remove_reader(self.listener.fileno())
            self.listener.close()
            await self.end()
            if self.relay is not None:
                await self.relay.end()
            if self.hosts is not None:
                await self.hosts.close()
            for task in (*beside, stopping):
                task.cancel()
            await asyncio.gather(*self._keepers, *beside, stopping, return_exceptions=True)
            if not self.failed.done():
                self.failed.cancel()

    async def _gather(self) -> list[Coroutine[Any, Any, None]]:
        """Let other machines join; gives back what is to be done beside."""
        plan = self.plan
        bundle = Bundle.of(Path(plan.gather), "endpoint")
        numbers = Path(os.environ[FOLDER])
        self.hosts = Hosts(plan, bundle, numbers, self._packages, self._rooms_changed)
        self.relay = RelayProcess(self.listener, self._knocked.set)
        self.told.gather(await self.hosts.open(self.listener.getsockname()[0]))
        return [self.hosts.keep(), self.relay.run()]

    def _rooms_changed(self) -> None:
        self.room.set()
        self._relay_to()

    def _packages(self) -> list[dict[str, Any]]:
        """What replicas may be told to serve."""
        both = (self.serving, self.confirmed)
        return [one[part] for one in both for part in PARTS if one.get(part)]

    async def _failing(self, work: Coroutine[Any, Any, None]) -> None:
        """What goes wrong beside the replicas ends the endpoint, as what goes wrong with them."""
        try:
            await work
        except Exception as error:
            log.exception("the endpoint failed")
            if not self.failed.done():
                self.failed.set_exception(error)

    # --- how many

    async def _rescale(self) -> None:
        """As many replicas as the load needs."""
        scale = self.plan.scale
        if scale.least == scale.most:
            return
        await self.known.wait()
        scaler = Scaler(scale, time.monotonic())
        while not self.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._knocked.wait(), _LOOK_SECONDS)
            now = time.monotonic()
            load = [one.in_hand(now) for one in self.live]
            waits = self._knocked.is_set()
            wanted = scaler.wanted(now, self.staying, load, waits=waits)
            self._knocked.clear()
            if wanted != self.staying:
                self._resize(wanted)

    def _resize(self, wanted: int) -> None:
        log.info("%d replicas where there were %d", wanted, self.staying)
        asleep = self.staying == 0
        while self.staying < wanted:
            self.grow()
        self.shrink(self.staying - wanted)
        if self.relay is not None:
            self.told.report(self.totals())
            return  # it says when somebody waits
        loop = asyncio.get_running_loop()
        if self.staying == 0:
            loop.add_reader(self.listener.fileno(), self._knock)
        elif asleep:
            loop.remove_reader(self.listener.fileno())
        self.told.report(self.totals())

    def _knock(self) -> None:
        """Somebody has connected, and waits until there is a replica."""
        asyncio.get_running_loop().remove_reader(self.listener.fileno())
        self._knocked.set()

    # --- versions

    async def _resolved(self) -> dict[str, Any]:
        """What to serve at first (`replica.Serving`)."""
        plan = self.plan
        if plan.package is not None:
            return {"main": msgspec.to_builtins(plan.package)}
        found = await packages(list(plan.refs.values()))
        serving: dict[str, Any] = dict(zip(plan.refs, found, strict=True))
        if plan.canary:
            serving["share"] = plan.canary[1]
        return serving

    async def _watch(self) -> None:
        """Follow the aliases that this endpoint was asked to serve."""
        from . import alias_watch
        from .store import registry_uri

        refs = {
            part: (name, alias)
            for part, ref in self.plan.refs.items()
            for name, at, alias in [ref.partition("@")]
            if at
        }
        if not self.plan.follow or not refs:
            return
        uri = registry_uri()
        every = alias_watch.interval(uri)
        if every is None:
            log.warning("this registry cannot be watched: aliases are not followed")
            return
        await self.known.wait()
        while not self.stopping.is_set():
            await asyncio.sleep(every)
            if found := await moved(refs, self.serving, self.unfit, uri):
                await self._move(found)

    async def _move(self, found: dict[str, str]) -> None:
        try:
            files = await packages(list(found.values()))
        except AiosError as error:
            log.warning("an alias names what cannot be served: %s", error)
            self.unfit |= {(part, int(ref.rpartition("/")[2])) for part, ref in found.items()}
            return
        self.serving = {**self.serving, **dict(zip(found, files, strict=True))}
        for one in list(self.live):
            if one.answers:
                one.order({"serving": self.serving})

    # --- alerts

    async def _look(self) -> None:
        """Now and then: is anything that a person should look at?"""
        from .alerting import Watch

        plan = self.plan

        await self.known.wait()
        watch = Watch(self._url, plan.token, plan.certificate, plan.max_seconds)
        told: set[str] = set()
        asked = 0.0
        while not self.stopping.is_set():
            await asyncio.sleep(self.plan.watch)
            requests = self.totals()["requests"]
            if requests == asked or not any(one.answers for one in self.live):
                continue
            asked = requests
            found = await watch.look(self.confirmed["main"])
            if found is not None and set(found) != told:  # the figures in them always change
                told = set(found)
                self.told.alarm(found)
