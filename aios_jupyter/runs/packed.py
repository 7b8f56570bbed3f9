"""Values on their way: a pickle, and beside it the large buffers as they are in memory.

A stream without large buffers is a plain pickle. One with them is

    magic (8) · random (24) · sizes (8 bytes each: their number, pickle, buffers) · pickle · buffers

each part aligned to `ALIGN`, so that a mapping of the whole can be used in place: what is unpickled
from a private mapping is backed by it, can be written to, and nothing was copied.

Between a kernel and an agent of the same account on the same machine the stream goes through
memory: a file without a name (memfd), which the other side opens through /proc. It has no name to
be left behind, and its memory is free when the last process that maps it has ended, however it did.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..schema import Struct

MAGIC = b"AIOSbuf1"
PROOF = 32
ALIGN = 64
# Smaller ones are copied into the pickle.
LARGE = 64 * 1024
# Streams from this size on go through memory where they can.
SHARE_FROM = 1024 * 1024

_NUMBER = struct.Struct("<Q")
_FILE = re.compile(r"/proc/\d+/fd/\d+")


class Packed:
    """A stream that has not been put together: its buffers are still where their owners have them."""

    def __init__(self, body: bytes, buffers: list[pickle.PickleBuffer]) -> None:
        if not buffers:
            self.parts: list[bytes | memoryview] = [body]
            return
        views = [buffer.raw() for buffer in buffers]
        sizes = [len(views), len(body), *(view.nbytes for view in views)]
        head = MAGIC + os.urandom(PROOF - len(MAGIC)) + b"".join(map(_NUMBER.pack, sizes))
        self.parts = []
        whole: list[bytes | memoryview] = [head, body, *views]
        for part in whole:
            self.parts += [part, bytes(-memoryview(part).nbytes % ALIGN)]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(memoryview(part).nbytes for part in self.parts)

    def pieces(self, size: int) -> Iterator[bytes]:
        """The stream in pieces of at most so many bytes."""
        pending = bytearray()
        for part in self.parts:
            view = memoryview(part).cast("B")
            while view:
                taken = view[: size - len(pending)]
                pending += taken
                view = view[len(taken) :]
                if len(pending) == size:
                    yield bytes(pending)
                    pending.clear()
        if pending:
            yield bytes(pending)

    def write(self, fd: int) -> None:
        """Write it to a blocking descriptor.

        Raises
        ------
        OSError
            There is no room.
        """
        for part in self.parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(fd, view) :]

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


def load(data: Any) -> Any:
    """Unpickle a stream. Only for data of the same owner.

    Parameters
    ----------
    data
        Bytes, or a mapping. Arrays live in it when it can be written to, else in a copy.
    """
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        return pickle.loads(view)  # noqa: S301  # from the owner's own kernel or rank
    if view.readonly:
        view = memoryview(bytearray(view))
    (count,) = _NUMBER.unpack_from(view, PROOF)
    sizes = [_NUMBER.unpack_from(view, PROOF + 8 * (i + 1))[0] for i in range(count + 1)]
    start = _aligned(PROOF + 8 * (count + 2))
    parts = []
    for size in sizes:
        parts.append(view[start : start + size])
        start = _aligned(start + size)
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301  # as above


def _aligned(offset: int) -> int:
    return offset + -offset % ALIGN


def mapped(fd: int) -> mmap.mmap:
    """A private mapping of a whole file: can be written to, and nobody else sees that."""
    return mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)


# --- through memory


class Shared(Struct, frozen=True, kw_only=True):
    """A file of an agent's in memory, and what proves that a process sees the same: its place and its
    first bytes. An empty `path` says that there is none.
    """

    path: str = ""
    device: int = 0
    inode: int = 0
    proof: bytes = b""


def new_memory() -> int:
    """A descriptor of an empty file in memory; -1 where the system has none."""
    return os.memfd_create("aios", os.MFD_CLOEXEC) if hasattr(os, "memfd_create") else -1


def offer(fd: int, *, empty: bool) -> Shared:
    """What to tell a process that may be on the same machine; `empty` gets random first bytes."""
    if empty:
        os.pwrite(fd, os.urandom(PROOF), 0)
    facts = os.fstat(fd)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    proof = os.pread(fd, PROOF, 0)
    return Shared(path=path, device=facts.st_dev, inode=facts.st_ino, proof=proof)


@contextlib.contextmanager
def opened(shared: Shared) -> Iterator[int]:
    """The file that an agent offers, open for reading and writing; -1 where it cannot be seen.

    It cannot from another machine or container, or from another account. Nothing is opened that is
    not a file in memory of this account.
    """
    fd = -1
    if _FILE.fullmatch(shared.path) and _is_it(shared, Path(shared.path)):
        with contextlib.suppress(OSError):
            fd = os.open(shared.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        same = fd >= 0 and _is(os.fstat(fd), shared) and os.pread(fd, PROOF, 0) == shared.proof
        yield fd if same else -1
    finally:
        if fd >= 0:
            os.close(fd)


def _is_it(shared: Shared, path: Path) -> bool:
    # Looked at before it is opened: opening a pipe or device may do something.
    try:
        return _is(path.stat(), shared)
    except OSError:
        return False


def _is(facts: os.stat_result, shared: Shared) -> bool:
    return (
        stat.S_ISREG(facts.st_mode)
        and facts.st_nlink == 0
        and facts.st_uid == os.getuid()
        and (facts.st_dev, facts.st_ino) == (shared.device, shared.inode)
    )
