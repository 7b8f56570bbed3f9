"""What ranks are doing now: the Python stacks of their threads.

py-spy reads them from outside, so that a rank which waits in native code for ever is seen as well.
Where it is missing or may not (the kernel's rules for reading another process), the rank's own
`faulthandler` writes them on a signal, which also works while native code holds the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import linecache
import os
import re
import shutil
import signal
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from ..errors import NotFoundError
from ..process import alive
from ..runs import postmortem
from ..runs.lifeline import DUMP_SIGNAL
from ..runs.messages import Frame, RankStacks, Stack
from .accounts import Account
from .member import RankProcess

TIMEOUT = 10.0
# The rank writes piece by piece and does not say when it is done.
SETTLE = 0.1
FAULT_TIMEOUT = 3.0
LONGEST_SOURCE = 4 * 1024 * 1024

_PACKAGE = str(Path(__file__).resolve().parents[1])
_OURS = tuple(
    f"{_PACKAGE}/{name}.py" for name in ("runs/rank", "runs/lifeline", "runs/events", "node/zygote")
)
_LIBRARIES = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen"})
_THREAD = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


async def look(ranks: Sequence[RankProcess]) -> tuple[RankStacks, ...]:
    """The stacks of these ranks, in their order."""
    return tuple(await asyncio.gather(*(_look(rank) for rank in ranks)))


def failures(directory: Path, account: Account | None = None) -> tuple[RankStacks, ...]:
    """What ranks that raised have left in their run's directory, or in that of their account."""
    if account is not None:
        return tuple(_failures_of(account, directory))
    found = []
    for path in directory.glob(postmortem.file_of("*")):
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and not path.is_symlink():
            text = path.read_text("utf-8", errors="replace")
            found.append(RankStacks(rank=int(number), failure=text))
    return tuple(sorted(found, key=lambda rank: rank.rank))


def _failures_of(account: Account, directory: Path) -> Iterator[RankStacks]:
    # Whoever may write there says nothing of how many there are: the agent's own logs do.
    numbers = [path.stem.rpartition("-")[2] for path in directory.glob("rank-*.log")]
    for number in sorted(map(int, filter(str.isdecimal, numbers))):
        path = f"{account.place(directory.name)}/{postmortem.file_of(number)}"
        with contextlib.suppress(NotFoundError):
            data, _ = account.read(path, 0, postmortem.LONGEST * 4)
            yield RankStacks(rank=number, failure=data.decode("utf-8", errors="replace"))


async def _look(rank: RankProcess) -> RankStacks:
    spied, note = await _spy(rank.process.pid)
    if note:
        spied, other = await _fault(rank)
        note = f"{note} {other}"
    threads = await asyncio.to_thread(_readable, spied, rank.account)
    if not threads and not note:
        note = "It runs no code of yours now: it is starting, or ending."
    return RankStacks(
        rank=rank.number,
        pid=rank.process.pid,
        device=rank.spec.device,
        threads=threads,
        note=note,
    )


# --- py-spy


def find_spy() -> str:
    """The path of py-spy: beside this interpreter, else on the PATH; "" when it is not installed."""
    beside = Path(sysconfig.get_path("scripts")) / "py-spy"
    return str(beside) if beside.is_file() else shutil.which("py-spy") or ""


async def _spy(pid: int) -> tuple[list[Stack], str]:
    """Stacks, or why there are none."""
    program = find_spy()
    if not program:
        return [], "py-spy is not installed on this node (pip install py-spy)."
    spy = await asyncio.create_subprocess_exec(
        *(program, "dump", "--json", "--pid", str(pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            out, err = await spy.communicate()
    except TimeoutError:
        return [], f"py-spy took over {TIMEOUT:g} s."
    finally:
        if spy.returncode is None:
            spy.kill()
            await spy.wait()
            # It may have stopped the rank when it was killed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    if spy.returncode != 0:
        why = err.decode(errors="replace").strip().splitlines()
        return [], f"py-spy may not or cannot read the process ({why[-1] if why else 'no reason'})."
    return parse_spy(out), ""


def parse_spy(data: bytes) -> list[Stack]:
    """What `py-spy dump --json` printed."""
    return [
        Stack(
            name=thread.get("thread_name") or str(thread["thread_id"]),
            active=bool(thread["active"]),
            frames=tuple(
                Frame(function=frame["name"], file=frame["filename"], line=frame["line"])
                for frame in thread["frames"]
            ),
        )
        for thread in json.loads(data)
    ]


# --- faulthandler


async def _fault(rank: RankProcess) -> tuple[list[Stack], str]:
    """Have the rank write its stacks where it would write a crash."""
    pid = rank.process.pid
    async with rank.looking:
        if not DUMP_SIGNAL or not _catches(pid, DUMP_SIGNAL):
            # The signal would end a process that does not expect it.
            return (
                [],
                "The rank cannot write its stacks itself either: it is no longer prepared to.",
            )
        start = rank.fault_read = os.fstat(rank.fault).st_size
        os.kill(pid, DUMP_SIGNAL)
        size = start
        quiet = 0.0
        for _ in range(int(FAULT_TIMEOUT / 0.02)):
            await asyncio.sleep(0.02)
            if rank.code is not None:
                return [], "The rank has just ended."
            now = os.fstat(rank.fault).st_size
            quiet = quiet + 0.02 if now == size and now > start else 0.0
            size = now
            if quiet >= SETTLE:
                break
        # What a crash writes later is not taken for this, and the other way round.
        rank.fault_read = size
        text = os.pread(rank.fault, size - start, start).decode(errors="replace")
    if not text:
        return [], f"The rank did not write its stacks within {FAULT_TIMEOUT:g} s."
    return parse_fault(text), "These stacks the rank has written itself (faulthandler)."


def _catches(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(match and int(match[1], 16) >> (number - 1) & 1 and alive(pid))


def parse_fault(text: str) -> list[Stack]:
    """What `faulthandler` wrote."""
    found: list[tuple[str, list[Frame]]] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            current = thread[1] == "Current thread"
            found.append(("MainThread" if current else thread[2], []))
        elif (frame := _FRAME.match(line)) and found:
            found[-1][1].append(Frame(function=frame[3], file=frame[1], line=int(frame[2])))
    return [Stack(name=name, frames=tuple(frames)) for name, frames in found]


# --- for people


def _readable(threads: list[Stack], account: Account | None = None) -> tuple[Stack, ...]:
    """Without what is ours, the user's code marked, threads that run it first."""
    read = _source if account is None else functools.partial(_source_of, account, {})
    shown = []
    for thread in threads:
        frames = tuple(_told(frame, read) for frame in thread.frames if not _ours(frame))
        helper = len(frames) < len(thread.frames) and not any(frame.users for frame in frames)
        if frames and (thread.name == "MainThread" or not helper):
            shown.append(msgspec.structs.replace(thread, frames=frames))
    return tuple(
        sorted(
            shown,
            key=lambda thread: (
                thread.name != "MainThread",
                not any(frame.users for frame in thread.frames),
                thread.name,
            ),
        )
    )


def _ours(frame: Frame) -> bool:
    return frame.file.startswith(_OURS) or "runpy" in Path(frame.file).name


def _told(frame: Frame, read: Callable[[Frame], str]) -> Frame:
    users = not frame.file.startswith((*_LIBRARIES, _PACKAGE)) and not re.search(
        r"/(site|dist)-packages/|/lib/python3\.\d+/", frame.file
    )
    return msgspec.structs.replace(frame, users=users, source=read(frame) if users else "")


def _source(frame: Frame) -> str:
    """The line itself. The name of the file comes from the rank: only a plain file is read."""
    path = Path(frame.file)
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= LONGEST_SOURCE:
            linecache.checkcache(frame.file)
            return linecache.getline(frame.file, frame.line).strip()[:200]
    return ""


def _source_of(account: Account, known: dict[str, list[str]], frame: Frame) -> str:
    """The line itself, of a file that the rank's account can read."""
    if frame.file not in known:
        known[frame.file] = []
        with contextlib.suppress(NotFoundError):
            data, _ = account.read(frame.file, 0, LONGEST_SOURCE)
            known[frame.file] = data.decode("utf-8", errors="replace").splitlines()
    lines = known[frame.file]
    return lines[frame.line - 1].strip()[:200] if 0 < frame.line <= len(lines) else ""
