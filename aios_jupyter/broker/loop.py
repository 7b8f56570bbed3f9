"""An event loop in a thread of its own, for verbs that are called from a notebook's thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")
_LAST_TURNS = 5

log = logging.getLogger("aios.loop")


class Loop:
    """An event loop in a daemon thread, so that a busy cell never delays a heartbeat."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="aios-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait; KeyboardInterrupt cancels it and is raised here."""
        outcome = _Outcome(coroutine)
        self.loop.call_soon_threadsafe(outcome.begin, self.loop)
        try:
            outcome.over.acquire()
        except BaseException:
            self.loop.call_soon_threadsafe(outcome.cancel)
            raise
        try:
            return cast("T", outcome.result())
        finally:
            # An error that is raised has this frame, and with it itself.
            del outcome

    def stop(self) -> None:
        """End the thread, with what still runs there."""
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self.loop.close()


class _Outcome:
    """A coroutine that another thread waits for, woken by its last step.

    `asyncio.run_coroutine_threadsafe` takes two turns of the loop more, and a second future.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.over = threading.Lock()
        self.over.acquire()
        self.value: Any = None
        self.error: BaseException | None = None
        self._coroutine = coroutine
        self._task: asyncio.Task[None] | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._task = loop.create_task(self._run())
        # One that is cancelled before its first step never gets to `_run`.
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        assert self._task is not None
        self._task.cancel()

    def result(self) -> Any:
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            self.error = None

    async def _run(self) -> None:
        try:
            self.value = await self._coroutine
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits
            self.error = error
        finally:
            self.over.release()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._coroutine.close()
            self.error = asyncio.CancelledError()
            self.over.release()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        # Its TLS is compiled: a call takes half as long.
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_report)
    return loop


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what nobody was there to catch, but for what uvloop does after a given-up handshake.

    It closes the socket and reads on what has arrived; the answer to that has nowhere to go.
    """
    error = context.get("exception")
    if isinstance(error, RuntimeError) and str(error).endswith("the handler is closed"):
        log.debug("a connection was given up in its handshake: %s", error)
    else:
        loop.default_exception_handler(context)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # What they have closed is closed in the next turns, and by nobody once the loop has ended.
    for _ in range(_LAST_TURNS):
        await asyncio.sleep(0)
