"""What ranks write: read without keeping them waiting, logged, numbered and passed on in batches."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runs.events import EventLog, Frames, Said, write_all

log = logging.getLogger("aios.node")

BATCH_DELAY = 0.05
BATCH_SIZE = 64 * 1024
PIPE_SIZE = 1024 * 1024
# A rank that prints line by line would wake the agent for each, on cores that the ranks need: after
# a read of less than so much, output collects in the pipe for a while. It is held longer anyway.
SMALL_READ = 16 * 1024
READ_DELAY = 0.02
_READ = 256 * 1024
# A dead rank's pipe holds no more than this; what its children write on and on is not waited for.
_LAST_READ = 4 * PIPE_SIZE


def anonymous_file(data: bytes) -> int:
    """A descriptor of a file without a name that has `data`, at its beginning."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("aios", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        write_all(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


class Outputs:
    """All that the ranks of a run say, in one numbered sequence.

    Output is held for `BATCH_DELAY` seconds or `BATCH_SIZE` bytes, events go at once; the order in
    which things were read is kept. Each batch is written to the log, then `on_events` gets it.

    `last` is the number of the last event, 0 before the first.
    """

    def __init__(
        self, file: EventLog, on_events: Callable[[list[dict[str, Any]]], None], last: int = 0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._file = file
        self._on_events = on_events
        self._pending: list[dict[str, Any]] = []
        self._size = 0
        self.last = last
        self._timer: asyncio.TimerHandle | None = None
        self._outputs: list[Output] = []
        self._told = False

    def add(
        self, rank: int, streams: dict[str, int], path: Path, on_said: Callable[[Said], None]
    ) -> Output:
        """Listen to one more rank."""
        output = Output(self, rank, streams, path, on_said)
        self._outputs.append(output)
        return output

    def event(self, rank: int, event: dict[str, Any]) -> None:
        """Add an event; it goes in this turn of the loop."""
        self._pending.append({"rank": rank, **event})
        self._schedule(0.0)

    def text(self, rank: int, stream: str, text: str) -> None:
        """Add output; it goes soon, together with what follows."""
        last = self._pending[-1] if self._pending else {}
        if last.get("type") == "log" and last["rank"] == rank and last["stream"] == stream:
            last["text"] += text
        else:
            event = {"type": "log", "time": time.time(), "stream": stream, "text": text}
            self._pending.append({"rank": rank, **event})
        self._size += len(text)
        if self._size >= BATCH_SIZE:
            self.flush()
        else:
            self._schedule(BATCH_DELAY)

    def flush(self) -> None:
        """Write and pass on what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        batch, self._pending, self._size = self._pending, [], 0
        for event in batch:
            self.last += 1
            event["seq"] = self.last
        self._file.append(batch)
        if self._file.failed and not self._told:
            self._told = True
            log.error("events are lost, as they cannot be written: %s", self._file.failed)
        try:
            self._on_events(batch)
        except Exception:
            log.exception("handling events failed")

    def close(self) -> None:
        """Pass on what is left, and stop listening."""
        for output in self._outputs:
            output.finish()
        self.flush()
        self._file.close()

    def _schedule(self, delay: float) -> None:
        when = self._loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self.flush)


class Output:
    """One rank's output, error output and events.

    Its complete output is appended to the file at `path`, as bytes.
    """

    def __init__(
        self,
        outputs: Outputs,
        rank: int,
        streams: dict[str, int],
        path: Path,
        on_said: Callable[[Said], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._outputs = outputs
        self._rank = rank
        self._streams = streams
        self._on_said = on_said
        self._frames = Frames()
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")
        }
        self._path = path
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._told = False
        self._resting: dict[str, asyncio.TimerHandle] = {}
        for name, fd in streams.items():
            os.set_blocking(fd, False)
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                # An unprivileged user has only so much of it; then the pipe stays as it is.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            self._loop.add_reader(fd, self._read, name)

    def note(self, text: str) -> None:
        """Add something to the file alone."""
        self._write(text.encode("utf-8", "backslashreplace"))

    def finish(self) -> None:
        """The rank has ended: read what is left in its pipes, and close everything."""
        for name in list(self._streams):
            taken = 0
            while name in self._streams and taken < _LAST_READ:
                count = self._read(name)
                if count == 0:
                    break
                taken += count
            self._close(name)
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _read(self, name: str) -> int:
        """Take what one read gives; returns how much, 0 when there is nothing now."""
        try:
            data = os.read(self._streams[name], _READ)
        except BlockingIOError:
            return 0
        if not data:
            self._close(name)
        elif name == "events":
            for said in self._frames.feed(data):
                self._on_said(said)
            if self._frames.broken:
                log.warning("rank %s sent what is no event: %s", self._rank, self._frames.broken)
                self._close(name)
        else:
            self._write(data)
            self._show(name, self._decoders[name].decode(data))
            if len(data) < SMALL_READ:
                self._rest(name)
        return len(data)

    def _rest(self, name: str) -> None:
        """Look at a stream again in `READ_DELAY` seconds."""
        if name not in self._resting:
            self._loop.remove_reader(self._streams[name])
            self._resting[name] = self._loop.call_later(READ_DELAY, self._go_on, name)

    def _go_on(self, name: str) -> None:
        del self._resting[name]
        self._loop.add_reader(self._streams[name], self._read, name)

    def _close(self, name: str) -> None:
        if (resting := self._resting.pop(name, None)) is not None:
            resting.cancel()
        fd = self._streams.pop(name, -1)
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
            if name in self._decoders:
                self._show(name, self._decoders[name].decode(b"", final=True))

    def _show(self, name: str, text: str) -> None:
        if text:
            self._outputs.text(self._rank, name, text)

    def _write(self, data: bytes) -> None:
        if self._log < 0:
            return
        try:
            write_all(self._log, data)
        except OSError as error:
            # The rank goes on all the same; one line a run is enough in the agent's log.
            if not self._told:
                self._told = True
                log.error("%s cannot be written: %s", self._path, error.strerror)
