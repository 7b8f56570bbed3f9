"""What a rank tells its agent, on the way there and on disk.

A rank inherits the writing end of a pipe and sends frames through a `Channel`: the length (4
bytes, big-endian) and one msgpack map. The agent takes them apart with `Frames`,
numbers them together with the ranks' output, and appends batches to the run's `events.msgpack`
(`EventLog`), where any number of followers read at their own pace (`EventReader`).
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ..schema import Struct

EVENTS_FILE = "events.msgpack"

_LENGTH = struct.Struct(">I")
_BATCH = struct.Struct(">IQ")
MAX_FRAME = 16 * 1024 * 1024


class _Said(Struct, tag_field="type"):
    """Base of what a rank may say; `time` is when it said so."""

    time: float


class ProgressMade(_Said, tag="progress"):
    """How far the rank is: `done` of `total` units, total 0 when unknown."""

    done: float
    total: float = 0.0
    unit: str = ""
    label: str = ""


class MetricsMade(_Said, tag="metrics"):
    """Numbers at a step, or at no step in particular."""

    values: dict[str, float]
    step: int | None = None


class ErrorRaised(_Said, tag="error"):
    """The exception that ends this rank. `ours`: `message` is a sentence that says it all."""

    etype: str
    message: str
    traceback: str = ""
    ours: bool = False


class EndpointReady(_Said, tag="endpoint"):
    """An endpoint answers at `url`."""

    url: str
    model: str = ""
    version: str = ""


class Gathering(_Said, tag="gathering"):
    """Machines that are to run replicas of an endpoint join it at `address`."""

    address: str


class Alerted(_Said, tag="alerts"):
    """What a person should look at now has changed: a sentence for each subject, {} when all is well."""

    alerts: dict[str, str]


class NamesPulled(_Said, tag="pulled"):
    """The pulled names are in the file `path`, `size` bytes."""

    path: str
    size: int


class CheckpointMade(_Said, tag="checkpoint"):
    """What is needed to go on after `step` is kept at `path`; writing it took so many seconds."""

    step: int
    path: str
    seconds: float


class DataRead(_Said, tag="data"):
    """A dataset is read: `ref` is `name@version`, `url` where it is."""

    ref: str
    url: str


Said = (
    ProgressMade
    | MetricsMade
    | ErrorRaised
    | EndpointReady
    | Gathering
    | Alerted
    | NamesPulled
    | CheckpointMade
    | DataRead
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Said).decode


class Channel:
    """The rank's end: sends at once where it can, and never waits for the agent.

    Frames that the pipe does not take now are kept and sent by a thread; so are metrics and
    progress that come within `INTERVAL` of the last, of which the newest values win. Thread-safe.
    A forked child says nothing: it is not the rank.

    Parameters
    ----------
    fd
        Writing end of the pipe; becomes non-blocking and is not inherited by programs that the
        rank starts.

    Attributes
    ----------
    counts_steps
        Whether optimizer steps are reported as progress: until something better is.
    own_progress, own_loss
        Whether the user's code reports them.
    steps
        Optimizer steps so far.
    """

    INTERVAL = 0.01
    KEEP = 10_000

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        self._fd = fd
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._metrics: MetricsMade | None = None
        self._progress: ProgressMade | None = None
        self._frames: deque[bytes] = deque(maxlen=self.KEEP)
        self._rest = b""
        self._sent = 0.0
        self._thread: threading.Thread | None = None
        self._open = True
        self.counts_steps = True
        self.own_progress = self.own_loss = False
        self.steps = 0
        self._data: set[str] = set()

    @property
    def mine(self) -> bool:
        """Whether this is the process that opened it, and not a forked child."""
        return os.getpid() == self._pid

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Report numbers."""
        self.send(MetricsMade(time=time.time(), values=values, step=step))

    def progress(self, done: float, total: float = 0.0, unit: str = "", label: str = "") -> None:
        """Report how far the rank is."""
        self.send(ProgressMade(time=time.time(), done=done, total=total, unit=unit, label=label))

    def endpoint(self, url: str, model: str = "", version: str = "") -> None:
        """Report that an endpoint answers."""
        self.send(EndpointReady(time=time.time(), url=url, model=model, version=version))

    def data(self, ref: str, url: str) -> None:
        """Report that a dataset is read, once."""
        if ref not in self._data:
            self._data.add(ref)
            self.send(DataRead(time=time.time(), ref=ref, url=url))

    def send(self, said: Said) -> None:
        """Send one event; what cannot go now goes soon."""
        if not self.mine:
            return
        with self._lock:
            if not self._open:
                return
            if isinstance(said, MetricsMade):
                self._metrics = _merged(self._metrics, said)
            elif isinstance(said, ProgressMade):
                self._progress = said
            else:
                self._collect()
                self._frames.append(_frame(said))
            soon = isinstance(said, MetricsMade | ProgressMade) and (
                time.monotonic() - self._sent < self.INTERVAL
            )
            if soon or not self._write():
                self._start()
                self._wake.notify()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything is sent; False when it was not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.mine:
            with self._lock:
                if not self._open or self._write():
                    return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([], [self._fd], [], min(left, 0.05))
        return True

    def _collect(self) -> None:
        """Turn what was held back into frames."""
        for held in (self._metrics, self._progress):
            if held is not None:
                self._frames.append(_frame(held))
        self._metrics = self._progress = None

    def _write(self) -> bool:
        """Give the pipe what it takes; True when nothing is left."""
        try:
            while True:
                # While the pipe is full, metrics go on being merged and not queued.
                if not (self._rest or self._frames):
                    self._collect()
                    if not self._frames:
                        break
                self._rest = self._rest or self._frames.popleft()
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except BlockingIOError:
            return False
        except OSError:
            # The agent is gone, and the lifeline ends this process in a moment.
            self._open = False
            return True
        self._sent = time.monotonic()
        return True

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="aios-events", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while self._open:
            with self._lock:
                self._wake.wait_for(self._waiting)
            time.sleep(self.INTERVAL)
            with self._lock:
                done = self._write()
            if not done:
                select.select([], [self._fd], [], 1.0)

    def _waiting(self) -> bool:
        return bool(self._rest or self._frames or self._metrics or self._progress)


def _merged(held: MetricsMade | None, new: MetricsMade) -> MetricsMade:
    if held is None:
        return new
    step = new.step if new.step is not None else held.step
    return MetricsMade(time=new.time, values={**held.values, **new.values}, step=step)


def _frame(said: Said) -> bytes:
    body = _encode(said)
    return _LENGTH.pack(len(body)) + body


_channel: Channel | None = None


def open_channel(fd: int) -> Channel:
    """Make `fd` this process's channel; the rank does this before anything else."""
    global _channel  # noqa: PLW0603  # one process has one agent
    _channel = Channel(fd)
    return _channel


def channel() -> Channel | None:
    """This process's channel to its agent; None outside a run and in a rank's children."""
    return _channel if _channel is not None and _channel.mine else None


class Frames:
    """The agent's end of a channel: bytes in, events out.

    The bytes come from a user's process: what is not a frame of ours ends the parsing, and is
    never an exception in the agent.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self.broken = ""

    def feed(self, data: bytes) -> list[Said]:
        """Events that `data` completes. `broken` says why no more will come."""
        if self.broken:
            return []
        self._rest += data
        events: list[Said] = []
        start = 0
        while len(self._rest) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._rest, start)
            if length > MAX_FRAME:
                self.broken = f"a frame of {length} bytes"
                break
            end = start + _LENGTH.size + length
            if end > len(self._rest):
                break
            try:
                events.append(_decode(self._rest[start + _LENGTH.size : end]))
            except msgspec.DecodeError as error:
                self.broken = str(error)
                break
            start = end
        del self._rest[:start]
        return events


class EventLog:
    """Appends batches of numbered events to the run's file.

    A full disk does not stop the ranks: the batch is lost, `failed` says why, and the next is
    tried.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(
            directory / EVENTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self.failed = ""

    def append(self, events: list[dict[str, Any]]) -> None:
        """Write one batch; its events carry rising `seq`."""
        body = _encode(events)
        data = _BATCH.pack(len(body), events[-1]["seq"]) + body
        size = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, data)
        except OSError as error:
            self.failed = error.strerror or str(error)
            # Half a batch would make all that follow unreadable.
            os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class EventReader:
    """A cursor into a run's events; also for runs whose agent has since been started anew.

    Parameters
    ----------
    directory
        The run's; its events file may not be there yet.
    after
        Give only events with a larger `seq`. What comes before is skipped without decoding.
    """

    def __init__(self, directory: Path, after: int = 0) -> None:
        self._path = directory / EVENTS_FILE
        self._after = after
        self._position = 0
        self._file: BinaryIO | None = None

    def read(self, limit: int = 1024 * 1024) -> list[dict[str, Any]]:
        """The next events, about `limit` bytes of them; [] when there are no more for now."""
        events: list[dict[str, Any]] = []
        taken = 0
        while taken < limit and (header := self._next()):
            length, last = header
            if last > self._after:
                assert self._file is not None
                self._file.seek(self._position + _BATCH.size)
                batch: list[dict[str, Any]] = msgspec.msgpack.decode(self._file.read(length))
                events += [event for event in batch if event["seq"] > self._after]
                taken += length
            self._position += _BATCH.size + length
        return events

    def skip(self) -> int:
        """Go to the end; the `seq` of the last event, 0 where there is none."""
        last = 0
        while header := self._next():
            length, last = header
            self._position += _BATCH.size + length
        return last

    def more(self) -> bool:
        """Whether `read` would find something."""
        return self._next() is not None

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.close()

    def _next(self) -> tuple[int, int] | None:
        """Length and last `seq` of the batch at the cursor, once all of it is there."""
        if self._file is None:
            try:
                self._file = self._path.open("rb", buffering=0)
            except FileNotFoundError:
                return None
        self._file.seek(self._position)
        header = self._file.read(_BATCH.size)
        if len(header) < _BATCH.size:
            return None
        length, last = _BATCH.unpack(header)
        size = os.fstat(self._file.fileno()).st_size
        if size < self._position + _BATCH.size + length:
            return None
        return length, last


def last_number(directory: Path) -> int:
    """The `seq` of the last event of a run; 0 where there is none."""
    reader = EventReader(directory)
    try:
        return reader.skip()
    finally:
        reader.close()
