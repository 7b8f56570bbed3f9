"""Large values between a notebook and its ranks: through memory where both see it, else over TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from clusters import environment, free, pid_of, until

from aios_jupyter.errors import RunError
from aios_jupyter.node import memory
from aios_jupyter.runs import launcher
from aios_jupyter.runs.packed import Shared
from aios_jupyter.session import Session

SIZE = 100_000_000

USES = """
import numpy as np
assert data.flags.writeable
first = int(data[0]), int(data[-1])
data[0] = 77            # this rank's own copy
double = data.astype(np.int16) if False else data * np.uint8(2)
total = int(data.sum(dtype=np.int64))
"""


def memory_files(pid: int) -> list[str]:
    """Files in memory that a process of ours holds open, and their sizes."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memfd:aios" in str(path.readlink()) and path.stat().st_size > SIZE // 20:
                found.append(f"{path} {path.stat().st_size}")
        except FileNotFoundError:
            continue
    return found


def shared_memory() -> list[str]:
    """Large files that have a name there; others on this machine have small ones."""
    found = []
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [path.name] if path.stat().st_size > SIZE // 20 else []
    return sorted(found)


@pytest.mark.parametrize("way", ["memory", "tls"])
def test_a_large_array_arrives_whole_and_can_be_written_to(
    session: Session, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm = shared_memory()
    written = []
    if way == "tls":
        # As from another machine: nothing of the agent's memory is seen.
        monkeypatch.setattr("aios_jupyter.runs.packed._is_it", lambda shared, path: False)
    else:
        write = launcher.Packed.write
        monkeypatch.setattr(
            launcher.Packed, "write", lambda self, fd: (written.append(self.size), write(self, fd))
        )
    data = np.arange(SIZE, dtype=np.uint8)
    handle = session.start(
        USES, cell=True, gpus=2, push={"data": data}, pull=["double", "first", "total"]
    )
    result = handle.wait()
    assert result.pulled["first"] == (0, (SIZE - 1) % 256)
    expected = data.copy()
    expected[0] = 77
    assert result.pulled["total"] == int(expected.sum(dtype=np.int64))
    double = result.pulled["double"]
    assert np.array_equal(double, expected * np.uint8(2))
    double[:] = 1
    assert data[0] == 0
    assert bool(written) == (way == "memory")
    assert shared_memory() == shm
    # It goes to the disk for whoever attaches later, and the agent keeps none of it.
    agent = pid_of("node")
    until(lambda: not memory_files(agent), "the agent's memory is free", memory.LINGER + 20)
    again = session.attach(handle.id).wait()
    assert np.array_equal(again.pulled["double"], expected * np.uint8(2))


def test_tensors_travel_with_their_types(session: Session) -> None:
    torch = pytest.importorskip("torch")
    given = {
        "plain": torch.randn(400, 500),
        "half": torch.randn(1000, 300).to(torch.bfloat16),
        "complex": torch.randn(300, 300, dtype=torch.complex64),
        "flags": torch.rand(500, 700) > 0.5,
        "leaf": torch.randn(400, 400, requires_grad=True),
        "weights": torch.nn.Parameter(torch.randn(400, 400)),
        "turned": torch.randn(300, 400).T,
    }
    code = "back = {name: value for name, value in given.items()}\nfor v in back.values(): v.data[0] = v.data[0]"
    back = session.train(code, cell=True, gpus=1, push={"given": given}, pull=["back"]).pulled[
        "back"
    ]
    for name, value in given.items():
        assert type(back[name]) is type(value)
        assert (back[name].dtype, back[name].requires_grad) == (value.dtype, value.requires_grad)
        assert torch.equal(back[name], value), name


def test_nothing_is_kept_of_a_run_that_failed_or_was_stopped(session: Session) -> None:
    data = np.ones(SIZE // 10, dtype=np.uint8)
    agent = pid_of("node")
    with pytest.raises(RunError, match="ZeroDivisionError"):
        session.train("big = data * 2\n1 / 0", cell=True, gpus=1, push={"data": data}, pull=["big"])
    assert not memory_files(agent)
    handle = session.start(
        "import time\nprint(data[0], flush=True)\ntime.sleep(600)",
        cell=True, gpus=1, push={"data": data}, pull=["data"], max_restarts=2,
    )  # fmt: skip
    next(event for event in handle.events() if event["type"] == "log")
    # Kept for a restart, until there will be none.
    assert memory_files(agent)
    handle.stop()
    until(lambda: not memory_files(agent), "the agent's memory is free")
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_restarted_rank_gets_the_pushed_values_again(session: Session) -> None:
    code = """
import os
data[0] += 1
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    raise SystemExit(3)
"""
    data = np.zeros(SIZE // 10, dtype=np.uint8)
    result = session.train(
        code, cell=True, gpus=1, push={"data": data}, pull=["data"], max_restarts=1
    )
    assert result.pulled["data"][0] == 1


def test_a_killed_kernel_leaves_no_memory(session: Session) -> None:
    agent = pid_of("node")
    code = f"""
    import numpy as np, time
    from aios_jupyter.session import connect
    session = connect()
    data = np.ones({SIZE // 10}, dtype=np.uint8)
    handle = session.start(
        "import time; print('up', flush=True); time.sleep(600)", cell=True, gpus=1,
        push={{"data": data}}, pull=["data"], max_restarts=1,
    )
    next(event for event in handle.events() if event["type"] == "log")
    print("up", flush=True)
    time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(), stdout=subprocess.PIPE
    ) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"up\n"
        assert memory_files(agent)
        os.kill(kernel.pid, signal.SIGKILL)
    until(lambda: not memory_files(agent), "the agent's memory is free")
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_what_an_agent_offers_is_looked_at_before_it_is_opened(tmp_path: Path) -> None:
    from aios_jupyter.runs.packed import PROOF, new_memory, offer, opened

    fd = new_memory()
    good = offer(fd, empty=True)
    with opened(good) as seen:
        assert seen >= 0
    own = tmp_path / "own"
    own.write_bytes(bytes(PROOF))
    number = os.open(own, os.O_RDWR)
    facts = os.fstat(number)
    wrong = [
        Shared(),
        Shared(path=str(own), device=facts.st_dev, inode=facts.st_ino, proof=bytes(PROOF)),
        # A file with a name is not memory of an agent's.
        Shared(path=f"/proc/{os.getpid()}/fd/{number}", device=facts.st_dev, inode=facts.st_ino,
               proof=bytes(PROOF)),
        Shared(path=good.path, device=good.device, inode=good.inode + 1, proof=good.proof),
        Shared(path=good.path, device=good.device, inode=good.inode, proof=bytes(PROOF)),
        Shared(path="/proc/1/fd/999999", device=good.device, inode=good.inode, proof=good.proof),
    ]  # fmt: skip
    for shared in wrong:
        with opened(shared) as seen:
            assert seen == -1, shared
    os.close(number)
    os.close(fd)
