"""A rank: `python -P -m aios_jupyter.runs.rank FD` runs the user's code on one device.

The agent passes a descriptor with `Orders`. Nothing of a framework is imported here unless the
user's code does: what has to be done for torch waits for its import.
"""

from __future__ import annotations

import builtins
import faulthandler
import io
import os
import runpy
import sys
import time
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..config import IS_LINUX
from ..errors import AiosError, UsageError
from ..schema import DeviceKind, Struct
from . import cells, frameworks, postmortem
from . import lifeline as lifelines
from .events import Channel, ErrorRaised, NamesPulled, open_channel
from .lifeline import STOPPED, Stopped, Watch, tie_to_agent
from .packed import SHARE_FROM, mapped
from .spec import Entry, RankSpec, Rendezvous, RunSpec

PULLED_FILE = "pulled.pkl"
CHECKPOINTS = "checkpoints"
LONGEST_MESSAGE = 10_000
LONGEST_TRACEBACK = 200_000


class Orders(Struct):
    """All that a rank is told. Descriptors are inherited; -1 where there is none.

    Attributes
    ----------
    directory
        The run's.
    pulled_fd
        A file in memory for large pulled values; without it they go into the run's directory.
    file
        Where a cell's source was written; "" for other entries.
    cwd
        Where the code runs, for a rank in another account than the agent's: it goes there itself, and
        makes `directory` and `file`. "" for the others, which are started there.
    parent
        Pid of the agent.
    agent_store
        Whether rank 0 serves torch's store on `listen_fd`, so that every rank is a client of it.
    threads
        What OMP_NUM_THREADS is set to, unless the user has set it.
    interface
        Network interface of this node at which ranks of other nodes find it; "" where unknown.
    """

    spec: RunSpec
    rank: RankSpec
    rendezvous: Rendezvous
    directory: str
    file: str
    parent: int
    event_fd: int
    lifeline_fd: int
    fault_fd: int = -1
    payload_fd: int = -1
    pulled_fd: int = -1
    listen_fd: int = -1
    agent_store: bool = False
    threads: int = 1
    interface: str = ""
    cwd: str = ""


def environment(orders: Orders, inherited: dict[str, str]) -> dict[str, str]:
    """What a rank's environment has besides what it inherits: that of `torchrun`, and devices.

    Every rank of a node sees all the lease's GPUs there, and LOCAL_RANK says which is its own. A
    process can use one MIG slice only, so there each rank is as if alone on its machine. Where the
    lease has a share of a device, AIOS_DEVICE_MEMORY is how many bytes.
    """
    spec, rank, meet = orders.spec, orders.rank, orders.rendezvous
    alone = rank.kind is DeviceKind.MIG
    local, local_world = (0, 1) if alone else (rank.local_rank, rank.local_world_size)
    share = {"AIOS_DEVICE_MEMORY": str(rank.share)} if rank.share else {}
    on_gpu = rank.kind in (DeviceKind.GPU, DeviceKind.MIG)
    visible = ((rank.device,) if alone else rank.devices) if on_gpu else ()
    variables = {
        "RANK": rank.rank,
        "LOCAL_RANK": local,
        "GROUP_RANK": rank.rank if alone else rank.node_rank,
        "ROLE_RANK": rank.rank,
        "ROLE_NAME": "default",
        "WORLD_SIZE": spec.world_size,
        "LOCAL_WORLD_SIZE": local_world,
        "GROUP_WORLD_SIZE": spec.world_size if alone else rank.nnodes,
        "ROLE_WORLD_SIZE": spec.world_size,
        "MASTER_ADDR": meet.address,
        "MASTER_PORT": meet.port,
        "TORCHELASTIC_RUN_ID": spec.id,
        "TORCHELASTIC_RESTART_COUNT": meet.attempt,
        "TORCHELASTIC_MAX_RESTARTS": spec.max_restarts,
        "TORCHELASTIC_USE_AGENT_STORE": orders.agent_store,
        "CUDA_VISIBLE_DEVICES": ",".join(visible),
        "AIOS_RUN": spec.id,
        "AIOS_CHECKPOINTS": spec.checkpoints or _checkpoints(orders),
        "AIOS_DEVICE": f"cuda:{local}" if on_gpu else "cpu",
    }
    defaults = {
        "OMP_NUM_THREADS": str(orders.threads),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        # What Lightning's Trainer takes where the code names no devices: of CPUs it sees one.
        "PL_TRAINER_DEVICES": str(local_world),
        "PL_TRAINER_NUM_NODES": str(variables["GROUP_WORLD_SIZE"]),
    }
    if not on_gpu:
        # Else Accelerate has every rank train alone.
        defaults["ACCELERATE_USE_CPU"] = "true"
    if orders.interface:
        # Else gloo looks up this machine's name, which need not resolve, or not to an address that
        # other nodes reach.
        defaults["GLOO_SOCKET_IFNAME"] = orders.interface
    result = {name: value for name, value in defaults.items() if name not in inherited}
    if inherited.get("MPLBACKEND", "").startswith("module://"):
        # A notebook's backend, which draws where a rank has nothing.
        result["MPLBACKEND"] = "Agg"
    return result | share | {name: str(value) for name, value in variables.items()}


def _checkpoints(orders: Orders) -> str:
    """Where a run's checkpoints are on its node: beside its logs, or where those of another are.

    A gang on several nodes has no such place in common.
    """
    if orders.rank.nnodes > 1:
        return ""
    own = Path(orders.directory)
    return str((own.parent / orders.spec.resume if orders.spec.resume else own) / CHECKPOINTS)


def run(orders: Orders) -> int:
    """Run the user's code; gives back the exit code."""
    lifeline = orders.lifeline_fd
    for fd in (lifeline, orders.fault_fd, orders.payload_fd, orders.pulled_fd, orders.listen_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    tied = tie_to_agent(lifeline, orders.parent)
    watch = lifelines.watch = Watch(None if tied else lifeline)
    channel = open_channel(orders.event_fd)
    if orders.fault_fd >= 0:
        faulthandler.enable(orders.fault_fd, all_threads=False)
    lifelines.let_look(orders.parent, orders.fault_fd)
    if IS_LINUX:
        Path("/proc/self/comm").write_text(f"aios-rank-{orders.rank.rank}"[:15])
    os.environ.update(environment(orders, dict(os.environ)))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Whole lines, also under PYTHONUNBUFFERED: what ranks write at once is read as one text.
            stream.reconfigure(
                encoding="utf-8",
                errors="backslashreplace",
                line_buffering=True,
                write_through=False,
            )
    try:
        code = _attempt(orders, channel)
        if code == 0:
            frameworks.await_others()
    finally:
        frameworks.finish()
        channel.flush()
        watch.end()
    return code


def _attempt(orders: Orders, channel: Channel) -> int:
    try:
        if orders.cwd:
            _settle(orders)
        frameworks.prepare(orders)
        values = _execute(orders)
        if orders.rank.rank == 0 and orders.spec.pull:
            _pull(orders, values, channel)
    except Stopped:
        return STOPPED
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        said = ErrorRaised(time=time.time(), etype="SystemExit", message=str(error.code))
        channel.send(said)
        return 1
    except BaseException as error:  # noqa: BLE001  # reported, and the process ends
        # Whoever hears of the failure may end the lease, and with it this process: not before the end.
        if lifelines.watch is not None:
            lifelines.watch.defer()
        channel.send(_error(error, orders))
        if not isinstance(error, AiosError):
            trace = _users_part(error.__traceback__)
            postmortem.write(error, trace, orders.rank.rank, Path(orders.directory), orders.file)
        return 1
    return 0


def _settle(orders: Orders) -> None:
    """In another account than the agent's: make what the agent has made for the others."""
    place, file = Path(orders.directory), Path(orders.file)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if orders.file:
            # Each rank of this node writes the same.
            aside = file.with_name(f".{file.name}.{os.getpid()}")
            aside.write_text(orders.spec.source, encoding="utf-8")
            aside.replace(file)
    except OSError as error:
        raise UsageError(
            f"{place} cannot be made on this node ({error.strerror}); runs write there in your home."
        ) from error
    try:
        os.chdir(orders.cwd)
    except OSError as error:
        raise UsageError(
            f"Your account cannot enter the folder {orders.cwd} on this node ({error.strerror}); "
            "start the run in another folder."
        ) from error


def _error(error: BaseException, orders: Orders) -> ErrorRaised:
    """An exception as its user wants to see it: from their first frame on."""
    ours = isinstance(error, AiosError)
    shown = traceback.TracebackException(type(error), error, _users_part(error.__traceback__))
    text = "".join(shown.format())
    if orders.file:
        text = text.replace(f'"{orders.file}"', f'"{Path(orders.file).name}"')
    try:
        message = str(error).strip()
    except Exception:  # noqa: BLE001  # the user's class may be broken
        message = "(its message cannot be shown)"
    return ErrorRaised(
        time=time.time(),
        etype=type(error).__name__,
        message=message[:LONGEST_MESSAGE],
        traceback="" if ours and not shown.stack else text[-LONGEST_TRACEBACK:],
        ours=ours,
    )


_OURS = frozenset({__file__, runpy.__file__, "<frozen runpy>", cells.__file__})


def _users_part(trace: types.TracebackType | None) -> types.TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        trace = trace.tb_next
    return trace


# --- the user's code


def _execute(orders: Orders) -> dict[str, Any]:
    """Run it as `__main__`; gives back its namespace."""
    spec = orders.spec
    match spec.entry:
        case Entry.MODULE:
            sys.path.insert(0, str(Path.cwd()))
            sys.argv = [spec.source, *spec.argv]
            return runpy.run_module(spec.source, run_name="__main__", alter_sys=True)
        case Entry.SCRIPT:
            path = Path(spec.source).absolute()
            namespace = _main_module(str(path), path.resolve().parent, spec.argv)
            code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
            exec(code, namespace)  # noqa: S102  # it is what the user asked for
            return namespace
        case Entry.CELL:
            namespace = _main_module(orders.file, Path.cwd(), spec.argv)
            namespace.update(_payload(orders))
            code = compile(spec.source, orders.file, "exec", dont_inherit=True)
            exec(code, namespace)  # noqa: S102  # it is what the user asked for
            return namespace
        case Entry.FUNCTION:
            _main_module("", Path.cwd(), spec.argv)
            values = _payload(orders)
            args, kwargs = values[cells.ARGUMENTS]
            return {cells.RESULT: values[cells.FUNCTION](*args, **kwargs)}
        case Entry.KERNEL:
            raise UsageError("A kernel is a program of its own, and no rank.")


def _main_module(file: str, folder: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Make a new `__main__`, as the interpreter does for a script; gives back its namespace."""
    module = types.ModuleType("__main__")
    namespace = vars(module)
    namespace["__builtins__"] = builtins
    if file:
        namespace["__file__"] = file
    sys.modules["__main__"] = module
    sys.argv = [file, *argv]
    sys.path.insert(0, str(folder))
    return namespace


def _payload(orders: Orders) -> dict[str, Any]:
    if orders.payload_fd < 0:
        return {}
    try:
        # The ranks share the descriptor's position, and a mapping has none. It stays as long as an
        # array lives in it.
        return cells.unpack(mapped(orders.payload_fd))
    except Exception as error:
        raise UsageError(
            f"The pushed values cannot be read in the run ({type(error).__name__}: {error}); "
            "create them inside the cell."
        ) from error
    finally:
        os.close(orders.payload_fd)


def _pull(orders: Orders, values: dict[str, Any], channel: Channel) -> None:
    missing = [name for name in orders.spec.pull if name not in values]
    if missing:
        raise UsageError(
            f"The code did not define '{missing[0]}', so that it cannot be pulled; define it at the "
            "top level of the cell, or leave it out of --pull."
        )
    packed = cells.pack_pulled({name: values[name] for name in orders.spec.pull})
    path = Path(orders.directory) / PULLED_FILE
    if orders.pulled_fd >= 0 and (packed.size >= SHARE_FROM or orders.cwd):
        packed.write(orders.pulled_fd)
    else:
        aside = path.with_suffix(".part")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            packed.write(fd)
        finally:
            os.close(fd)
        aside.replace(path)
    channel.send(NamesPulled(time=time.time(), path=str(path), size=packed.size))


def main() -> None:
    """Read the orders and obey."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    with os.fdopen(fd, "rb") as file:
        orders = msgspec.msgpack.decode(file.read(), type=Orders)
    sys.exit(run(orders))


if __name__ == "__main__":
    # `__main__` becomes the user's, and this module has to stay.
    from aios_jupyter.runs.rank import main as _main

    _main()
