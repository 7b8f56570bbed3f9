"""Starts the process of one rank: from a zygote's spare where there is one, else anew."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import msgspec

from ..config import IS_LINUX
from ..process import end_with_parent
from ..runs.rank import Orders
from ..runs.spec import Entry
from . import reaper
from .accounts import Account, enter, popen
from .member import Process
from .output import anonymous_file
from .spares import Waiting, ZygoteError
from .zygote import Birth
from .zygotes import Warm


@dataclass
class Started:
    """A rank's process, and the agent's ends of what it shares with it.

    `streams` has the reading ends of `stdout`, `stderr` and `events`; `lifeline` is to be held open
    as long as the rank may live; `fault` is where it writes when it crashes.
    """

    process: Process
    mark: str
    streams: dict[str, int]
    lifeline: int
    fault: int


def start(
    orders: Orders,
    environment: dict[str, str],
    cwd: str,
    python: str,
    account: Account | None = None,
    spare: Waiting | None = None,
) -> Started:
    """Start a rank.

    Parameters
    ----------
    orders
        Without the descriptors that are made here. Those that it has are the caller's.
    environment
        All that the rank inherits.
    account
        Its account; None: this one's.
    spare
        The process to use, of the same account; without one it is `python`, started anew.

    Raises
    ------
    OSError
        There is no such folder or interpreter.
    ZygoteError
        The spare has ended; nothing was started.
    """
    mark = secrets.token_hex(16)
    environment = {**environment, reaper.MARK: mark}
    streams = {name: os.pipe() for name in ("stdout", "stderr", "events")}
    lifeline, held = os.pipe()
    fault = anonymous_file(b"")
    own = {name: writing for name, (_, writing) in streams.items()}
    own["lifeline"] = lifeline
    orders = msgspec.structs.replace(
        orders, event_fd=own["events"], lifeline_fd=lifeline, fault_fd=fault
    )
    try:
        if orders.spec.entry is Entry.KERNEL:
            process: Process = _kernel(orders, environment, cwd, account, own)
        elif spare is None:
            process = _anew(orders, environment, cwd, python, account, own)
        else:
            process = _forked(orders, environment, cwd, spare, own)
    except BaseException:
        for fd in (held, fault, *(reading for reading, _ in streams.values())):
            os.close(fd)
        raise
    finally:
        for fd in own.values():
            os.close(fd)
    reading = {name: fd for name, (fd, _) in streams.items()}
    return Started(process, mark, reading, held, fault)


async def from_zygote(
    zygote: Warm, what: tuple[Orders, dict[str, str], str, str, Account | None]
) -> Started:
    """Start a rank from a zygote's spare; raises what `start` does."""
    spare = await zygote.spare()
    try:
        return start(*what, spare=spare)
    except ZygoteError:
        spare.end()
        raise
    except BaseException:
        zygote.spares.append(spare)
        raise


def _anew(
    orders: Orders,
    environment: dict[str, str],
    cwd: str,
    python: str,
    account: Account | None,
    own: dict[str, int],
) -> subprocess.Popen[bytes]:
    told = anonymous_file(msgspec.msgpack.encode(orders))
    passed = (told, *_descriptors(orders).values())
    try:
        return subprocess.Popen(
            [
                *(python or sys.executable, "-P", "-m", "aios_jupyter.runs.rank", str(told)),
                f"{orders.spec.id}/{orders.rank.rank}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=own["stdout"],
            stderr=own["stderr"],
            cwd=cwd,
            env=environment,
            start_new_session=True,
            pass_fds=passed,
            **popen(account),
        )
    finally:
        os.close(told)


def _kernel(
    orders: Orders,
    environment: dict[str, str],
    cwd: str,
    account: Account | None,
    own: dict[str, int],
) -> subprocess.Popen[bytes]:
    """A kernel is a program of its own: nothing of ours is in its process, which ends with ours."""
    tie = partial(end_with_parent, signal.SIGKILL) if IS_LINUX else None
    return subprocess.Popen(
        orders.spec.argv,
        stdin=subprocess.DEVNULL,
        stdout=own["stdout"],
        stderr=own["stderr"],
        cwd=cwd,
        env=environment,
        start_new_session=True,
        preexec_fn=tie if account is None else enter(orders.cwd, account, tie),  # noqa: PLW1509
        **popen(account),
    )


def _forked(
    orders: Orders, environment: dict[str, str], cwd: str, spare: Waiting, own: dict[str, int]
) -> Process:
    birth = Birth(orders=orders, environment=environment)
    handed = _descriptors(orders) | {name: own[name] for name in ("stdout", "stderr")}
    if orders.cwd:
        return spare.bear(birth, handed)
    with _folder(cwd) as folder:
        return spare.bear(birth, {**handed, "cwd": folder})


def _descriptors(orders: Orders) -> dict[str, int]:
    names = ("event_fd", "lifeline_fd", "fault_fd", "payload_fd", "pulled_fd", "listen_fd")
    return {name: fd for name in names if (fd := getattr(orders, name)) >= 0}


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    """A folder that a process can make its own; what is wrong with it is found out here."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not os.access(path, os.X_OK):
            raise PermissionError(13, os.strerror(13), path)
        yield fd
    finally:
        os.close(fd)
