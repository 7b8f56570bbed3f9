"""A run in the hands of whoever started or attached to it, and what comes of it."""

from __future__ import annotations

import mmap
import queue
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import RunError
from ..schema import Run, RunState
from .cells import RESULT
from .packed import load

if TYPE_CHECKING:
    from .launcher import LiveRun


class RunResult(msgspec.Struct, frozen=True):
    """How a run ended, and what came back.

    `pulled` has the pulled names of rank 0, `value` what a function returned there; `seconds` is
    from start to end.
    """

    id: str
    state: str
    world_size: int
    seconds: float
    metrics: dict[str, float]
    pulled: dict[str, Any]
    value: Any = None


class RunHandle:
    """A run in the hands of a notebook's own thread.

    `run_in` runs a coroutine in the client's loop and waits for it. `ours`: we started it, so that
    an interrupt stops it; one that we only look at goes on.
    """

    def __init__(self, live: LiveRun, run_in: Callable[[Any], Any], *, ours: bool = True) -> None:
        self.ours = ours
        self._live = live
        self._run_in = run_in
        self._result: RunResult | None = None

    @property
    def id(self) -> str:
        """The run's id."""
        return self._live.run.id

    @property
    def run(self) -> dict[str, Any]:
        """The run's facts as they were when it was started."""
        facts: dict[str, Any] = msgspec.to_builtins(self._live.run)
        return facts

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._live.run.world_size

    @property
    def done(self) -> bool:
        """Whether all ranks have ended."""
        return self._live.done.done()

    def events(self) -> Iterator[dict[str, Any]]:
        """Events of all ranks as they come, until the run has ended. To be read once.

        Of what was printed before anybody read, the last 16 MB are there; `aios logs` has all.
        """
        while True:
            try:
                event = self.next_event(0.2)
            except queue.Empty:
                continue
            if event is None:
                return
            yield event

    def next_event(self, timeout: float) -> dict[str, Any] | None:
        """The next event, None when the run has ended; raises `queue.Empty` after `timeout`."""
        return self._live.events.get(timeout=timeout)

    def stop(self, reason: str = "stopped by the notebook") -> None:
        """End all ranks: SIGTERM, then SIGKILL after the grace."""
        if not self.done:
            self._run_in(self._live.stop(reason))

    def wait(self) -> RunResult:
        """Wait for the end and fetch what was pulled.

        Raises
        ------
        RunError
            A rank failed, or the run was stopped; has the failing rank's own traceback.
        """
        if self._result is None:
            # Unpickled in the caller's thread: it may import torch, and heartbeats must go on.
            run, data = self._run_in(self._finish())
            pulled = load(data) if data else {}
            self._result = RunResult(
                id=run.id,
                state=run.state.value,
                world_size=run.world_size,
                seconds=(run.ended or time.time()) - run.started,
                metrics=dict(run.metrics),
                value=pulled.pop(RESULT, None),
                pulled=pulled,
            )
        return self._result

    async def _finish(self) -> tuple[Run, bytearray | mmap.mmap | None]:
        run = await self._live.done
        if run.state is not RunState.SUCCEEDED:
            failure = self._live.failure(run) or {}
            stopped = run.state is RunState.STOPPED
            verb = "was stopped" if stopped else "failed"
            raise RunError(
                f"Run {run.id} {verb}: {run.reason or failure.get('reason') or 'no reason given'}",
                traceback="" if stopped else failure.get("traceback", ""),
                rank=failure.get("rank"),
                run=run.id,
                preempted=run.lease if run.detail.get("preempted") else "",
            )
        return run, await self._live.fetch_pulled() if self._live.pulled else None
