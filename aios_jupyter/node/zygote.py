"""A zygote: a process that has imported a framework and from which ranks are forked.

`python -P -m aios_jupyter.node.zygote FD PARENT FRAMEWORK LABEL` is started by `node/zygotes.py`,
which talks to it over a socket. It has one thread and touches no device, so that forking it is safe.
On each `Fork` it makes a spare: a process that is the agent's own child, not the zygote's, leads a
session, and waits on a socket of its own for the `Birth` that makes it a rank. Where the framework
does not survive a fork the process is a spare itself. Linux only; the framework is imported when it
runs, and the agent imports only the messages from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..runs import frameworks, rank
from ..runs.rank import Orders
from ..schema import Struct

# The first of each has to be there; the others are what it imports late, in the user's first step.
_TORCH = (
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "torch._dynamo",
    "numpy",
    "cloudpickle",
    "aios_jupyter.runs.torch",
    "aios_jupyter.train",
)
PRELOADED = {
    "torch": _TORCH,
    "horovod": (*_TORCH, "horovod.torch", "psutil"),
    "tensorflow": (
        "tensorflow",
        "tensorflow.python.distribute.collective_all_reduce_strategy",
        "keras",
        "h5py",
        "numpy",
        "cloudpickle",
        "aios_jupyter.runs.tensorflow",
        "aios_jupyter.runs.keras",
        "aios_jupyter.train",
    ),
}
# Its own runtime says so, whether or not its threads are there already.
NEVER_FORKED = frozenset({"tensorflow"})
# While the zygote imports, so that no library starts threads; the ranks get their own numbers.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MARK = "AIOS_RANK_MARK"
# What `ps` shows of a spare; a rank shows its run instead, in as many characters.
LABEL = "zygote".ljust(40)

PACKET = 64 * 1024
ADOPTION_TIMEOUT = 5.0
_FDS = 16
_PR_SET_PDEATHSIG = 1
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class Ready(Struct):
    """The zygote can fork, unless `unfit` says why it is of no use, or `alone` why it is only a spare.

    `memory` in bytes; `packages` are the folders that packages are installed in, and when each was
    changed last (nanoseconds).
    """

    unfit: str = ""
    alone: str = ""
    memory: int = 0
    packages: dict[str, int] = {}

    @property
    def fresh(self) -> bool:
        """Whether the packages are still those that were imported."""
        return changed(list(self.packages)) == self.packages


class Fork(Struct):
    """Make a spare; comes with the spare's end of its socket."""


class Forked(Struct):
    """The spare's pid; 0 when there is none, and `error` says why."""

    pid: int = 0
    error: str = ""


class Birth(Struct):
    """What makes a spare a rank; comes in a file, as it may be long."""

    orders: Orders
    environment: dict[str, str]


class Handed(Struct):
    """Names of the descriptors that come with it: those of `Orders`, and `birth`, `cwd`, `stdout`,
    `stderr`.
    """

    names: tuple[str, ...]


encode = msgspec.msgpack.encode


# --- the zygote


def main() -> None:
    """Be a zygote; in the processes that it forks, be a rank."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    parent = int(sys.argv[2])
    tie(parent)
    ready = _preload(sys.argv[3])
    control.send(encode(ready))
    spare: socket.socket | None = control
    if not ready.alone:
        spare = _serve(control, parent)
        control.close()
    if spare is None:
        return
    orders = _be_born(spare)
    if orders is not None:
        sys.exit(rank.run(orders))


def tie(parent: int) -> None:
    """End with the parent, by the kernel's doing."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _preload(framework: str) -> Ready:
    needed, *others = PRELOADED[framework]
    if framework == "tensorflow":
        frameworks.quieten_tensorflow(1)
        if os.environ.get("TF_USE_LEGACY_KERAS"):
            others.append("tf_keras")
    try:
        importlib.import_module(needed)
    except Exception as error:  # noqa: BLE001  # a broken package raises anything
        return Ready(unfit=f"importing {needed} raised {type(error).__name__}: {error}")
    for name in others:
        # Builds differ in what they have, and the user's code says so itself where it needs it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    unfit = alone = ""
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208  # names are enough
    if device := _open_device():
        unfit = f"importing {framework} opened {device}"
    elif threads > 1:
        alone = f"importing {framework} started {threads - 1} threads"
    elif framework in NEVER_FORKED:
        alone = f"{framework} does not survive a fork"
    gc.collect()
    # Else the first collection in each rank would copy all of it.
    gc.freeze()
    folders = changed(_package_folders())
    return Ready(unfit=unfit, alone=alone, memory=_memory(), packages=folders)


def _open_device() -> str:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith(_DEVICES):
                return target
    return ""


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _package_folders() -> list[str]:
    folders = {p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")}
    for name in ("torch", "numpy", "tensorflow", "keras", "horovod"):
        file = getattr(sys.modules.get(name), "__file__", None)
        folders |= {str(Path(file).parent)} if file else set()
    return sorted(folders)


def changed(folders: Sequence[str]) -> dict[str, int]:
    """When each folder was changed last, in nanoseconds; 0 for one that is not there."""
    result = dict.fromkeys(folders, 0)
    for folder in folders:
        with contextlib.suppress(OSError):
            result[folder] = os.stat(folder).st_mtime_ns  # noqa: PTH116  # called for each run
    return result


def _serve(control: socket.socket, parent: int) -> socket.socket | None:
    """Fork on order until the agent closes the socket; in a spare, returns its own socket."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, PACKET, _FDS)
        if not data:
            return None
        spare = socket.socket(fileno=fds[0])
        try:
            pid = _fork(parent)
        except OSError as error:
            control.send(encode(Forked(error=str(error))))
        else:
            if pid == 0:
                return spare
            control.send(encode(Forked(pid=pid)))
        spare.close()


def _fork(parent: int) -> int:
    """Fork a child of the agent; returns its pid, and 0 in it.

    It is forked twice: when the process in between ends, the kernel gives its child to the agent,
    which has asked for orphans. So the agent can wait for it as for any process that it started,
    and the zygote's end does not touch it.
    """
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            os.close(reading)
            if os.fork() > 0:
                os._exit(0)
            os.setsid()
            _await_adoption(parent)
            os.write(writing, str(os.getpid()).encode())
            os.close(writing)
        except BaseException:  # noqa: BLE001  # nobody else may go on in this copy of the zygote
            os._exit(1)
        return 0
    try:
        os.close(writing)
        os.waitpid(between, 0)
        told = os.read(reading, 32)
    finally:
        os.close(reading)
    if not told:
        raise ChildProcessError("the forked process was not given to the agent")
    return int(told)


def _await_adoption(parent: int) -> None:
    deadline = time.monotonic() + ADOPTION_TIMEOUT
    while os.getppid() != parent:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.0002)
    tie(parent)


# --- the rank


def _be_born(control: socket.socket) -> Orders | None:
    """Wait for orders, and make this process what a fresh interpreter would be; None: not needed."""
    select.select([control], [], [])
    data, fds, _, _ = socket.recv_fds(control, PACKET, _FDS)
    if not data:
        return None
    control.close()
    handed = dict(zip(msgspec.msgpack.decode(data, type=Handed).names, fds, strict=True))
    for name, number in (("stdout", 1), ("stderr", 2)):
        fd = handed.pop(name)
        os.dup2(fd, number)
        os.close(fd)
    # In another account than the agent's a rank goes to its folder itself.
    if (cwd := handed.pop("cwd", -1)) >= 0:
        os.fchdir(cwd)
        os.close(cwd)
    with os.fdopen(handed.pop("birth"), "rb") as file:
        birth = msgspec.msgpack.decode(file.read(), type=Birth)
    orders = msgspec.structs.replace(birth.orders, **handed)
    _show(orders, birth.environment[MARK])
    os.environ.clear()
    os.environ.update(birth.environment)
    _renew(orders)
    return orders


def _show(orders: Orders, mark: str) -> None:
    """Let others see whose process this is, in the memory that /proc shows.

    Children that are not started anew carry the same, and are found by it.
    """
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    label = f"{orders.spec.id}/{orders.rank.rank}".encode()[: len(LABEL)].ljust(len(LABEL))
    # proc(5): 48 is where the arguments begin, 50 where the environment does.
    _overwrite("cmdline", int(fields[48 - 3]), LABEL.encode() + b"\0", label)
    _overwrite("environ", int(fields[50 - 3]), f"{MARK}=".encode(), mark.encode(), after=True)


def _overwrite(file: str, address: int, found: bytes, new: bytes, *, after: bool = False) -> None:
    at = Path("/proc/self", file).read_bytes().index(found)
    ctypes.memmove(address + at + (len(found) if after else 0), new, len(new))


def _renew(orders: Orders) -> None:
    """What an interpreter takes from its environment, or by chance, when it starts."""
    time.tzset()
    importlib.invalidate_caches()
    tempfile.tempdir = None
    # `random` has been seeded anew by the fork.
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        # Not torch.seed(), which has plans for the GPUs too.
        torch.default_generator.seed()
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        processes.current_process().authkey = os.urandom(32)
    wanted = os.environ | rank.environment(orders, dict(os.environ))
    if torch is not None:
        torch.set_num_threads(_threads(wanted, "MKL_NUM_THREADS"))
    blas = _threads(wanted, "OPENBLAS_NUM_THREADS")
    if numpy is not None and numpy.__file__ and blas > 1:
        _set_blas_threads(Path(numpy.__file__).parent, blas)


def _threads(environment: dict[str, str], own: str) -> int:
    """Threads of a library: its own variable, else OpenMP's, whose first number counts."""
    for name in (own, "OMP_NUM_THREADS"):
        with contextlib.suppress(ValueError):
            number = int(environment.get(name, "").partition(",")[0])
            if number > 0:
                return number
    return 1


def _set_blas_threads(numpy: Path, number: int) -> None:
    """Wheels of numpy bring OpenBLAS beside them; other builds keep to one thread."""
    for library in (numpy.parent / "numpy.libs").glob("lib*openblas*"):
        loaded = ctypes.CDLL(str(library))
        for name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads"):
            if hasattr(loaded, name):
                getattr(loaded, name)(number)
                return


if __name__ == "__main__":
    # `__main__` becomes the user's, and this module has to stay.
    from aios_jupyter.node.zygote import main as _main

    _main()
