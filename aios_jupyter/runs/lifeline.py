"""A rank does not outlive its agent, and hears a stop even while it is stuck in native code.

Three layers against orphans: every rank leads its own session and process group, which the agent
kills; the agent holds the writing end of a pipe (the lifeline) whose closing kills the rank's whole
group; and on Linux the kernel also kills the rank when its parent dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import select
import signal
import threading
from types import FrameType

from ..config import IS_LINUX

STOPPED = 128 + signal.SIGTERM
HANDLE_TIMEOUT = 1.0

_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61

# On it a rank writes its stacks; 0 where there are no such signals. Users' code takes the first.
DUMP_SIGNAL = signal.SIGRTMIN + 13 if IS_LINUX else 0


class Stopped(SystemExit):
    """The rank was told to stop; raised in the user's code, whose `finally` blocks run."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


def tie_to_agent(lifeline: int, parent: int) -> bool:
    """End this process and its group when the agent is gone.

    Parameters
    ----------
    lifeline
        Reading end of a pipe that the agent holds open and never writes to.
    parent
        Pid of the process that started this one.

    Returns
    -------
    bool
        Whether the kernel does it. If not, somebody has to wait for the end of the lifeline and
        then call `end_group` (`Watch` does).
    """
    tied = IS_LINUX and _tied_by_kernel(lifeline)
    gone, _, _ = select.select([lifeline], [], [], 0)
    if gone or os.getppid() != parent:
        end_group()
    return tied


def _tied_by_kernel(lifeline: int) -> bool:
    try:
        # When the other end closes the kernel sends this signal to the whole group: also while
        # native code holds the interpreter, where no thread of ours could run.
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    except OSError:
        return False
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return True


def let_look(parent: int, fault: int) -> None:
    """Let the agent see what this process is doing: through py-spy, or by a signal.

    Yama (`ptrace_scope` 1) lets only ancestors look, and py-spy is the agent's child as we are; so
    the agent and what it starts are named to it.
    """
    if not IS_LINUX:
        return
    import ctypes

    # Refused where there is no Yama, which then forbids nothing.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(parent), 0, 0, 0)
    if fault >= 0:
        faulthandler.register(DUMP_SIGNAL, fault, all_threads=True)


def end_group() -> None:
    """Kill this process and its group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


class Watch:
    """Turns SIGTERM into `Stopped`, and helps where Python cannot.

    A Python handler runs only when the main thread is back from native code, which may be waiting
    in a collective for ever. So a thread also hears the signal, and ends the process when the
    handler has not run within `HANDLE_TIMEOUT`; a handler that the user's code has set instead is
    left all the time it wants.

    Attributes
    ----------
    told
        Whether the rank was told to stop.
    """

    def __init__(self, lifeline: int | None) -> None:
        self.told = False
        self._deferred = False
        self._handled = threading.Event()
        self._lifeline = lifeline
        self._heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        # A forked child shares the pipe: its signals are not the rank's.
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._listen, name="aios-watch", daemon=True).start()

    def defer(self) -> None:
        """From here on SIGTERM only sets `told`: the user's code asks for it, and ends by itself."""
        self._deferred = True

    def end(self) -> None:
        """The user's code is over: from here on SIGTERM ends the process at once."""
        signal.set_wakeup_fd(-1)
        if self._ours():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._handled.set()
        self.told = True
        if not self._deferred:
            raise Stopped

    def _forget(self) -> None:
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            if self._ours():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _ours(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._stop

    def _listen(self) -> None:
        sources = [self._heard] + ([] if self._lifeline is None else [self._lifeline])
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._lifeline in ready:
                end_group()
            numbers = os.read(self._heard, 4096)
            stopping = signal.SIGTERM in numbers
            if (
                stopping
                and not self._deferred
                and not self._handled.wait(HANDLE_TIMEOUT)
                and self._ours()
            ):
                os.kill(os.getpid(), signal.SIGKILL)


# Of this process, when it is a rank.
watch: Watch | None = None
