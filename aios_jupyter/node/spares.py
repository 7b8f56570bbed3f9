"""The agent's side of a zygote: its process, and the spares that were forked from it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from ..process import process_start, users_of
from . import reaper, zygote
from .accounts import Account, popen
from .member import Process
from .output import anonymous_file
from .zygote import LABEL, ONE_THREAD, PACKET, Birth, Fork, Forked, Handed, Ready, encode

log = logging.getLogger("aios.node")

READY_TIMEOUT = 120.0
FORK_TIMEOUT = 10.0

_PR_SET_CHILD_SUBREAPER = 36


class ZygoteError(Exception):
    """A zygote or spare has ended or does not answer; the rank starts the usual way."""


@dataclass(frozen=True)
class Key:
    """Runs that agree in this can be forked from the same zygote."""

    python: str
    framework: str
    variables: frozenset[tuple[str, str]]
    account: Account | None = None


class Waiting(Protocol):
    """A process that has imported a framework and waits to be a rank."""

    pid: int

    def bear(self, birth: Birth, fds: dict[str, int]) -> Process:
        """Make it a rank; raises `ZygoteError` when it has ended."""

    def kill(self) -> None:
        """Kill it; `end` has to follow."""

    def end(self) -> None:
        """Kill it and wait for its end."""


class Adopted:
    """A forked rank's process: a child of this process that it has not started itself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


class Spare:
    """A forked process that waits to be a rank."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control

    def bear(self, birth: Birth, fds: dict[str, int]) -> Adopted:
        """Make it a rank, which gets copies of the descriptors.

        Raises
        ------
        ZygoteError
            It has ended.
        """
        _tell(self._control, birth, fds, self.pid)
        self._control.close()
        return Adopted(self.pid)

    def kill(self) -> None:
        """Kill it; `end` has to follow."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and wait for its end."""
        self.kill()
        Adopted(self.pid).wait()


def _tell(control: socket.socket, birth: Birth, fds: dict[str, int], pid: int) -> None:
    """Send a waiting process all that makes it a rank."""
    told = anonymous_file(encode(birth))
    handed = {**fds, "birth": told}
    try:
        head = encode(Handed(names=tuple(handed)))
        socket.send_fds(control, [head], list(handed.values()))
    except OSError as error:
        raise ZygoteError(f"spare {pid} cannot be told: {error}") from error
    finally:
        os.close(told)


class Zygote:
    """A zygote's process, and the spares that it has made.

    Attributes
    ----------
    spares
        Those that wait to be ranks.
    ended
        Whether it is used no more.
    """

    def __init__(self, key: Key, environment: Mapping[str, str], directory: Path) -> None:
        self.key = key
        self.ready = Ready()
        self.spares: list[Waiting] = []
        self.used = 0.0
        self.ended = False
        self.held = -1
        self.timer: asyncio.TimerHandle | None = None
        self._hearing = False
        self._forking = asyncio.Lock()
        mark = secrets.token_hex(16)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        # A rank's streams are pipes, and Python looks at what they are when it starts.
        self._output, writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                [
                    *(key.python, "-P", "-m", zygote.__name__, str(theirs.fileno())),
                    *(str(os.getpid()), key.framework, LABEL),
                ],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd="/",
                env={**environment, **ONE_THREAD, zygote.MARK: mark},
                start_new_session=True,
                pass_fds=[theirs.fileno()],
                **popen(key.account),
            )
        except BaseException:
            self._control.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
            os.close(writing)
        asyncio.get_running_loop().add_reader(self._output, self._log)
        pid = self.process.pid
        self._directory = directory / str(pid)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        started = reaper.Started(pid=pid, start=process_start(pid), run="", lease="", mark=mark)
        reaper.record(self._directory, [started])

    async def prepare(self) -> None:
        """Wait until it has imported.

        Raises
        ------
        ZygoteError
            It has ended, or says that it must not be forked.
        """
        self.ready = msgspec.msgpack.decode(await self._hear(READY_TIMEOUT), type=Ready)
        if self.ready.unfit:
            raise ZygoteError(self.ready.unfit)

    def _log(self) -> None:
        data = os.read(self._output, PACKET)
        if data:
            text = data.decode(errors="replace").strip()
            log.info("zygote %d says: %s", self.process.pid, text)
        else:
            asyncio.get_running_loop().remove_reader(self._output)

    @property
    def fresh(self) -> bool:
        """Whether its packages are still those that it has imported."""
        return self.ready.fresh

    async def spare(self) -> Waiting:
        """A spare: one that waits, or a new one.

        Raises
        ------
        ZygoteError
            The zygote cannot make one.
        """
        return self.spares.pop(0) if self.spares else await self.fork()

    async def fork(self) -> Spare:
        """Make a spare.

        Raises
        ------
        ZygoteError
            The zygote cannot.
        """
        async with self._forking:
            if self.ended:
                raise ZygoteError("it was ended")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                answer = await self._order(theirs)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        return self._kept(Spare(answer.pid, ours))

    def _kept(self, spare: Spare) -> Spare:
        if self.ended:
            spare.end()
            raise ZygoteError("it was ended")
        return spare

    async def _order(self, theirs: socket.socket) -> Forked:
        try:
            with _adopting():
                socket.send_fds(self._control, [encode(Fork())], [theirs.fileno()])
                answer = msgspec.msgpack.decode(await self._hear(FORK_TIMEOUT), type=Forked)
        except BaseException as error:
            # Its answer may come yet, and would be taken for the next one's.
            self.process.kill()
            if isinstance(error, OSError):
                raise ZygoteError(f"it cannot be told: {error}") from error
            raise
        if not answer.pid:
            raise ZygoteError(answer.error)
        if not _is_own(answer.pid, self.process.pid):
            raise ZygoteError(f"it names process {answer.pid}, which is none of its own")
        return answer

    async def _hear(self, timeout: float) -> bytes:
        loop = asyncio.get_running_loop()
        self._hearing = True
        try:
            async with asyncio.timeout(timeout):
                data = await loop.sock_recv(self._control, PACKET)
        except TimeoutError:
            raise ZygoteError(f"it does not answer for {timeout:g} s") from None
        except OSError as error:
            raise ZygoteError(f"it cannot be heard: {error}") from error
        finally:
            self._hearing = False
            if self.ended:
                self._control.close()
        if not data:
            raise ZygoteError("it has ended")
        return data

    def become(self, birth: Birth, fds: dict[str, int]) -> subprocess.Popen[bytes]:
        """Make the process itself a rank, where it must not be forked; it is no zygote any more.

        Raises
        ------
        ZygoteError
            It has ended.
        """
        _tell(self._control, birth, fds, self.process.pid)
        self.ended = True
        self._let_go()
        return self.process

    def pids(self) -> list[int]:
        """It and its spares."""
        return [] if self.ended else [self.process.pid, *(spare.pid for spare in self.spares)]

    def end(self) -> None:
        """Kill it and its spares, and wait for that; not the ranks, which are none of its own."""
        if self.ended:
            return
        self.ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for spare in self.spares:
            spare.kill()
        for spare in self.spares:
            spare.end()
        self.spares.clear()
        self.process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.held >= 0:
            asyncio.get_running_loop().remove_reader(self.held)
            os.close(self.held)
        asyncio.get_running_loop().remove_reader(self._output)
        os.close(self._output)
        if not self._hearing:
            self._control.close()
        reaper.forget(self._directory)
        self._directory.rmdir()


def _is_own(pid: int, zygote: int) -> bool:
    """Whether a process is a child of this one, in the zygote's account: its word is not enough."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return users_of(pid) == users_of(zygote)
    except (ChildProcessError, FileNotFoundError, ProcessLookupError):
        return False


_adoptions = 0


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Orphans of this process's descendants become its children.

    Only while a zygote forks: at other times they are nobody's to wait for here.
    """
    global _adoptions  # noqa: PLW0603  # it is the process that adopts
    prctl = ctypes.CDLL(None).prctl
    _adoptions += 1
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _adoptions -= 1
        if not _adoptions:
            prctl(_PR_SET_CHILD_SUBREAPER, 0)
