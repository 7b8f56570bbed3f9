"""Real gangs of real processes: what they see, what they say, and how they end."""

from __future__ import annotations

import asyncio
import importlib.util
import resource
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gangs import Gang, idle, warmed

from aios_jupyter.config import IS_LINUX
from aios_jupyter.node import reaper
from aios_jupyter.node.ranks import EventReader
from aios_jupyter.node.zygotes import Zygotes
from aios_jupyter.process import alive, process_start
from aios_jupyter.runs import cells
from aios_jupyter.runs.spec import Entry

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


GangOf = Callable[..., Gang]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygotes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Zygotes | None]:
    """With a zygote that is ready; None where there cannot be one."""
    if not IS_LINUX or importlib.util.find_spec("torch") is None:
        yield None
        return
    made = Zygotes(tmp_path_factory.mktemp("zygotes"), 600)
    await warmed(made, tmp_path_factory.mktemp("first"))
    yield made
    await made.close()


@pytest.fixture(params=["anew", "forked"])
def gang(tmp_path: Path, zygotes: Zygotes | None, request: pytest.FixtureRequest) -> GangOf:
    """Each test twice: with ranks that are started anew, and with ranks that are forked."""
    if request.param == "anew":
        return lambda source, **more: Gang(tmp_path, source, **more)
    if zygotes is None:
        pytest.skip("there are no zygotes here")
    forked = {"framework": "torch", "zygotes": zygotes}
    return lambda source, **more: Gang(tmp_path, source, **{**forked, **more})


# --- what a rank is


async def test_a_cell_runs_as_a_script_on_every_rank(gang: GangOf) -> None:
    made = gang(
        """
        import inspect, os, sys, pathlib
        def f(): return 1
        print(__name__, pathlib.Path(__file__).name, sys.modules["__main__"].f is f)
        print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["AIOS_DEVICE"], scale * 2)
        print(inspect.getsource(f).strip(), os.getpgrp() == os.getpid() == os.getsid(0), sys.stdin.read())
        """,
        push={"scale": 21},
    )
    assert [exit.code for exit in await made.run()] == [0, 0]
    for rank in range(2):
        assert made.text(rank).splitlines() == [
            "__main__ cell-7.py True",
            f"{rank} 2 cpu 42",
            "def f(): return 1 True ",
        ]
        assert made.log(rank) == made.text(rank)


async def test_what_a_user_may_have_in_the_folder_does_not_shadow_ours(
    gang: GangOf, tmp_path: Path
) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "mine.py").write_text("x = 5")
    made = gang("import mine; print(mine.x)", world=1)
    assert [exit.code for exit in await made.run()] == [0], made.events
    assert made.text() == "5\n"


async def test_a_script_gets_its_arguments_and_its_folder(gang: GangOf, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "beside.py").write_text("x = 'beside'")
    script = tmp_path / "code" / "script.py"
    script.write_text("import sys, beside\nprint(__file__, sys.argv[1:], beside.x)\n")
    made = gang("code/script.py", entry=Entry.SCRIPT, argv=("--lr", "0.1"), world=1)
    assert [exit.code for exit in await made.run()] == [0]
    assert made.text() == f"{script} ['--lr', '0.1'] beside\n"


async def test_a_module_runs_as_python_m_does(gang: GangOf, tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "go.py").write_text(
        "import sys\nfrom . import __name__ as n\nprint(n, __name__, sys.argv[1:])"
    )
    made = gang("pkg.go", entry=Entry.MODULE, argv=("a",), world=1)
    assert [exit.code for exit in await made.run()] == [0]
    assert made.text() == "pkg __main__ ['a']\n"


async def test_a_function_is_called_and_its_result_can_be_pulled(gang: GangOf) -> None:
    offset = 10

    def work(x: int, times: int = 1) -> dict[str, int]:
        import os

        return {"rank": int(os.environ["RANK"]), "value": x * times + offset}

    push = {cells.FUNCTION: work, cells.ARGUMENTS: ((4,), {"times": 3})}
    made = gang("", entry=Entry.FUNCTION, push=push, pull=(cells.RESULT,))
    assert [exit.code for exit in await made.run()] == [0, 0], made.events
    assert made.pulled() == {cells.RESULT: {"rank": 0, "value": 22}}


@pytest.mark.skipif(not IS_LINUX, reason="only glibc has the settings that this is about")
async def test_memory_that_a_step_frees_is_kept_for_the_next(gang: GangOf) -> None:
    made = gang(
        """
        import resource

        def step():
            # Freed together they are more than glibc keeps by itself.
            one, other = bytearray(b"x") * (30 << 20), bytearray(b"x") * (30 << 20)

        step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """
    )
    assert [exit.code for exit in await made.run()] == [0, 0], made.events
    pages_of_a_step = (60 << 20) // resource.getpagesize()
    assert int(made.text(0)) < pages_of_a_step


async def test_names_are_pulled_from_rank_0(gang: GangOf) -> None:
    made = gang(
        """
        import os
        class Net:
            def __init__(self): self.rank = os.environ["RANK"]
            def go(self): return "rank " + self.rank
        net, n = Net(), 7
        """,
        pull=("net", "n"),
    )
    await made.run()
    back = made.pulled()
    assert (back["net"].go(), back["n"]) == ("rank 0", 7)


async def test_a_name_that_was_not_defined_cannot_be_pulled(gang: GangOf) -> None:
    made = gang("x = 1", pull=("x", "history"), world=1)
    (exit,) = await made.run()
    assert exit.code == 1
    assert exit.reason.startswith("The code did not define 'history', so that it cannot be pulled;")
    assert exit.traceback == ""


async def test_a_name_that_cannot_be_pickled_cannot_be_pulled(gang: GangOf) -> None:
    made = gang("import threading; lock = threading.Lock()", pull=("lock",), world=1)
    (exit,) = await made.run()
    assert exit.reason.startswith("'lock' cannot be pulled: cannot pickle '_thread.lock' object;")


async def test_reports_reach_the_agent(gang: GangOf) -> None:
    made = gang(
        """
        from aios_jupyter import train
        train.progress(1, 4, "epoch", "warm-up")
        train.log(2, loss=0.25)
        """,
        world=1,
    )
    await made.run()
    (progress,), (metrics,) = made.of("progress"), made.of("metrics")
    assert [progress[key] for key in ("done", "total", "unit", "label")] == [
        1,
        4,
        "epoch",
        "warm-up",
    ]
    assert (metrics["step"], metrics["values"]) == (2, {"loss": 0.25})


# --- what is said


async def test_events_are_numbered_and_on_disk_before_they_are_told(gang: GangOf) -> None:
    made = gang("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    await made.run()
    assert [e["seq"] for e in made.events] == list(range(1, len(made.events) + 1))
    assert all({"seq", "time", "rank", "type"} <= e.keys() for e in made.events)
    assert EventReader(made.directory).read() == made.events
    assert EventReader(made.directory, after=3).read() == made.events[3:]
    assert made.text(1, "stderr") == "err\n"


async def test_output_comes_while_the_rank_runs(gang: GangOf) -> None:
    made = await gang("import time\nprint('begun')\ntime.sleep(60)", world=1).start()
    await made.until(lambda: made.text() == "begun\n")
    assert made.gang.pids.keys() == {0}
    await made.gang.stop(5)
    assert made.gang.pids == {}


async def test_ten_megabytes_are_logged_whole_without_blocking(gang: GangOf) -> None:
    made = gang(
        """
        for n in range(100_000):
            print(f"{n:08d} " + "x" * 90)
        """,
        world=2,
    )
    assert [exit.code for exit in await made.run()] == [0, 0]
    expected = "".join(f"{n:08d} " + "x" * 90 + "\n" for n in range(100_000))
    for rank in range(2):
        assert made.log(rank) == expected
        assert made.text(rank) == expected


async def test_characters_are_not_cut_and_bytes_do_no_harm(gang: GangOf) -> None:
    made = gang(
        r"""
        import os, time
        for byte in "é✓".encode() + b"\xff\n":
            os.write(1, bytes([byte]))
            time.sleep(0.03)
        print("lone \ud800", "ü")
        """,
        world=1,
    )
    await made.run()
    assert made.text() == "é✓\ufffd\nlone \\ud800 ü\n"


async def test_a_rank_that_writes_nonsense_as_events_does_no_harm(gang: GangOf) -> None:
    made = gang(
        r"""
        import os, time
        from aios_jupyter.runs import events
        os.write(events.channel()._fd, b"\xff" * 100)
        time.sleep(0.2)
        print("still here")
        """,
        world=1,
    )
    assert [exit.code for exit in await made.run()] == [0]
    assert made.text() == "still here\n"


async def test_a_full_disk_does_not_stop_the_ranks(
    gang: GangOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    made = await gang("print('a')\nimport time; time.sleep(0.3)\nprint('b')", world=1).start()
    monkeypatch.setattr("aios_jupyter.node.output.write_all", full)
    monkeypatch.setattr("aios_jupyter.runs.events.write_all", full)
    (exit,) = await made.gang.wait()
    assert exit.code == 0
    assert made.text() == "a\nb\n"


# --- how it ends


async def test_an_exception_comes_first_with_the_users_own_traceback(gang: GangOf) -> None:
    made = gang(
        """
        import os, time
        def train(rank):
            if rank == 1:
                raise ValueError("the labels are empty")
            time.sleep(60)
        train(int(os.environ["RANK"]))
        """
    )
    begun = time.monotonic()
    first, second = await made.run()
    assert time.monotonic() - begun < 40
    assert (first.rank, first.code) == (1, 1)
    assert first.reason == "rank 1 raised ValueError: the labels are empty"
    frames = [line for line in first.traceback.splitlines() if line.startswith("  File")]
    assert frames == [
        '  File "cell-7.py", line 7, in <module>',
        '  File "cell-7.py", line 5, in train',
    ]
    assert (second.rank, second.code) == (0, -15)
    assert second.reason == "stopped because rank 1 failed"
    assert [e["rank"] for e in made.of("exit")] == [1, 0]
    assert [e["rank"] for e in made.of("error")] == [1]
    assert "the labels are empty" in made.log(1)
    assert first.time < second.time


async def test_ranks_that_fail_alike_each_say_why(gang: GangOf) -> None:
    made = gang("undefined_name")
    exits = await made.run()
    assert [exit.code for exit in exits] == [1, 1]
    for exit in exits:
        assert (
            exit.reason
            == f"rank {exit.rank} raised NameError: name 'undefined_name' is not defined"
        )


async def test_a_syntax_error_that_got_this_far_is_shown(gang: GangOf) -> None:
    (exit,) = await gang("x = (1,\n", world=1).run()
    assert exit.reason == "rank 0 raised SyntaxError: '(' was never closed (cell-7.py, line 1)"
    assert '"cell-7.py", line 1' in exit.traceback


@pytest.mark.parametrize(
    ("death", "code", "reason"),
    [
        ("os._exit(3)", 3, "rank 1 exited with code 3"),
        ("sys.exit(4)", 4, "rank 1 exited with code 4"),
        ("sys.exit('no data')", 1, "rank 1 raised SystemExit: no data"),
        ("os.kill(os.getpid(), 9)", -9, "rank 1 was killed by SIGKILL (out of memory?)"),
        ("os.kill(os.getpid(), 15); time.sleep(60)", 143, "rank 1 was ended by SIGTERM from outside"),
        ("ctypes.string_at(0)", -11, "rank 1 was killed by SIGSEGV (a crash in native code)"),
        ("os.abort()", -6, "rank 1 was killed by SIGABRT (native code gave up)"),
    ],
)  # fmt: skip
async def test_every_death_ends_the_gang_and_is_named(
    gang: GangOf, death: str, code: int, reason: str
) -> None:
    made = gang(
        f"""
        import ctypes, os, sys, time
        if os.environ["RANK"] == "1":
            {death}
        time.sleep(60)
        """
    )
    begun = time.monotonic()
    first, second = await made.run()
    assert time.monotonic() - begun < 40
    assert (first.rank, first.code, first.reason) == (1, code, reason)
    assert second.reason == "stopped because rank 1 failed"


async def test_a_crash_in_native_code_shows_where(gang: GangOf) -> None:
    made = gang("import ctypes\ndef crash():\n    ctypes.string_at(0)\ncrash()", world=1)
    (exit,) = await made.run()
    assert 'File "cell-7.py", line 3 in crash' in exit.traceback
    assert "runs/rank.py" not in exit.traceback
    assert "line 3 in crash" in made.log()


async def test_stop_lets_the_code_clean_up(gang: GangOf) -> None:
    made = await gang(
        """
        import time
        from aios_jupyter import train
        try:
            print("ready")
            time.sleep(60)
        finally:
            open(f"clean-{train.rank()}", "w").close()
        """
    ).start()
    await made.until(lambda: made.text(0) and made.text(1))
    begun = time.monotonic()
    await made.gang.stop(10)
    assert time.monotonic() - begun < 8
    exits = await made.gang.wait()
    assert [(exit.code, exit.reason) for exit in exits] == [(-15, "stopped")] * 2
    assert made.files("clean") == {"clean-0", "clean-1"}
    assert made.of("error") == []


async def test_a_rank_stuck_in_native_code_does_not_have_the_whole_grace(gang: GangOf) -> None:
    """Where no Python handler can run, as in a collective that waits for ever."""
    made = await gang(
        """
        import ctypes
        mutex = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        print("stuck")
        libc.pthread_mutex_lock(mutex)
        """,
        world=1,
    ).start()
    await made.until(made.text)
    await asyncio.sleep(0.1)
    begun = time.monotonic()
    await made.gang.stop(30)
    assert time.monotonic() - begun < 20


async def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(gang: GangOf) -> None:
    made = await gang(
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready")
        time.sleep(60)
        """,
        world=1,
    ).start()
    await made.until(made.text)
    begun = time.monotonic()
    await made.gang.stop(0.5)
    assert 0.4 < time.monotonic() - begun < 20
    (exit,) = await made.gang.wait()
    assert (exit.code, exit.reason) == (-9, "killed, as it did not stop in the time given")


async def test_a_handler_of_the_users_own_has_the_whole_grace(gang: GangOf) -> None:
    made = await gang(
        """
        import signal, sys, time
        def save(*_):
            time.sleep(1.6)
            print("saved")
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("ready")
        time.sleep(60)
        """,
        world=1,
    ).start()
    await made.until(made.text)
    await made.gang.stop(20)
    (exit,) = await made.gang.wait()
    assert exit.code == 0
    assert made.text() == "ready\nsaved\n"


async def test_a_signal_to_a_forked_child_does_not_end_the_rank(gang: GangOf) -> None:
    """As when a DataLoader ends its workers."""
    made = gang(
        """
        import multiprocessing, time
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.1)
        child.terminate()
        child.join()
        print(child.exitcode)
        time.sleep(1.5)
        print("done")
        """,
        world=1,
    )
    (exit,) = await made.run()
    assert exit.code == 0
    assert made.text() == "-15\ndone\n"


CHILDREN = """
    import os, subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    if (child := os.fork()) == 0:
        time.sleep(60)
    print(*pids, child, flush=True)
"""


@pytest.mark.skipif(not IS_LINUX, reason="only Linux tells who started whom")
@pytest.mark.parametrize(
    "end", ["pass", "os._exit(1)", "os.kill(os.getpid(), 9)", "time.sleep(60)"]
)
async def test_nothing_that_a_rank_started_is_left(gang: GangOf, end: str) -> None:
    made = await gang(textwrap.dedent(CHILDREN) + end, world=1).start()
    await made.until(made.text)
    pids = [int(pid) for pid in made.text().split()]
    if end.startswith("time"):
        await made.gang.stop(5)
    await made.gang.wait()
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)
    assert not (made.directory / reaper.RECORD).exists()


@pytest.mark.skipif(not IS_LINUX, reason="only Linux ends a group from the kernel")
async def test_ranks_and_their_children_end_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    """Also ranks that never come back to Python."""
    source = textwrap.dedent(CHILDREN).splitlines()[1:]
    agent = tmp_path / "agent.py"
    cell = "\n".join([*source, "import re", "re.match('(a+)+$', 'a' * 60 + 'b')"])
    agent.write_text(
        textwrap.dedent(
            f"""
            import asyncio, sys
            sys.path.insert(0, {str(Path(__file__).parents[1])!r})
            from pathlib import Path
            from gangs import Gang
            async def main():
                gang = await Gang(Path({str(tmp_path)!r}), {cell!r}, world=2).start()
                while not (gang.text(0).endswith("\\n") and gang.text(1).endswith("\\n")):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                print(*gang.gang.pids.values(), gang.text(0), gang.text(1), flush=True)
                await asyncio.sleep(60)
            asyncio.run(main())
            """
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, agent, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pids: list[int] = []
    while len(pids) < 8:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line, "the agent ended"
        pids += [int(pid) for pid in line.split()]
    started = {pid: process_start(pid) for pid in pids}
    process.kill()
    await process.wait()
    # A session of its own is out of the group's reach; that is what the sweep is for.
    groups = [(pid, started[pid]) for pid in pids if pid not in (pids[3], pids[6])]
    assert await reaper._gone(groups, 5)
    assert await reaper.sweep(tmp_path.parent) >= 2
    assert not [pid for pid in pids if alive(pid, started[pid])]


async def test_a_gang_that_cannot_start_leaves_nothing(gang: GangOf, tmp_path: Path) -> None:
    made = gang("", cwd=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await made.start()
    other = gang("", python=str(tmp_path / "no-python"))
    with pytest.raises(FileNotFoundError, match="no-python"):
        await other.start()
    assert not (tmp_path / reaper.RECORD).exists()


async def test_handlers_that_fail_do_not_stop_the_gang(gang: GangOf) -> None:
    made = gang("print(1)", world=1)

    def fail(events: list[dict[str, Any]]) -> None:
        raise RuntimeError("handler")

    made.gang._on_events = fail
    assert [exit.code for exit in await made.run()] == [0]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if IS_LINUX else 0


async def test_no_descriptor_is_left_open(gang: GangOf, zygotes: Zygotes | None) -> None:
    async def count() -> int:
        # A zygote's next spares have sockets.
        if zygotes is not None:
            await idle(zygotes)
        return open_descriptors()

    await gang("print(1)", push={"a": 1}).run()
    before = await count()
    for _ in range(3):
        await gang("print(1)", push={"a": 1}).run()
    assert await count() <= before


# --- torch


TRAIN = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group()
torch.manual_seed(dist.get_rank())
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(60):
    loss = model(torch.randn(8, 4)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print([round(float(p.sum()), 6) for p in model.parameters()], torch.get_num_threads())
"""


@pytest.mark.slow
async def test_a_cell_with_ddp_trains_on_all_ranks_and_is_counted(gang: GangOf) -> None:
    torch = pytest.importorskip("torch")
    made = gang(TRAIN, pull=("model",), framework="torch")
    assert [exit.code for exit in await made.run()] == [0, 0], made.events
    assert made.text(0) == made.text(1)
    assert made.text(0).endswith(" 1\n")
    assert made.of("progress", 0)[-1]["done"] == 60
    assert made.of("metrics", 0)[-1]["values"]["steps_per_second"] > 0
    assert type(made.pulled()["model"]) is torch.nn.Linear


@pytest.mark.slow
async def test_single_process_code_is_distributed_by_prepare(gang: GangOf) -> None:
    pytest.importorskip("torch")
    made = gang(
        """
        import torch
        from aios_jupyter import train
        from torch.utils.data import DataLoader, TensorDataset
        data = TensorDataset(torch.arange(8.).reshape(8, 1))
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.001)
        model, optimizer, loader = train.prepare(model, optimizer, DataLoader(data, 2, shuffle=True))
        for epoch in range(2):
            for (x,) in loader:
                optimizer.zero_grad()
                model(x.to(train.device())).mean().backward()
                optimizer.step()
        print(type(model).__name__, len(loader), float(next(model.parameters()).sum()))
        """
    )
    assert [exit.code for exit in await made.run()] == [0, 0], made.events
    assert made.text(0) == made.text(1)
    assert made.text(0).startswith("DistributedDataParallel 2 ")


@pytest.mark.slow
async def test_a_death_beside_a_collective_is_the_cause_that_is_shown(gang: GangOf) -> None:
    pytest.importorskip("torch")
    made = gang(
        """
        import os, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        dist.barrier()
        if dist.get_rank() == 1:
            os._exit(3)
        dist.barrier()
        """
    )
    first, second = await made.run()
    assert (first.rank, first.reason) == (1, "rank 1 exited with code 3")
    assert second.reason == "stopped because rank 1 failed"
    assert made.of("error") == []


@pytest.mark.slow
async def test_stop_ends_ranks_that_wait_in_a_collective(gang: GangOf) -> None:
    pytest.importorskip("torch")
    made = await gang(
        """
        import torch, torch.distributed as dist
        dist.init_process_group()
        print("ready")
        if dist.get_rank() == 0:
            dist.barrier()
        else:
            dist.recv(torch.zeros(1), 0)
        """
    ).start()
    await made.until(lambda: made.text(0) and made.text(1))
    await asyncio.sleep(0.3)
    begun = time.monotonic()
    await made.gang.stop(20)
    assert time.monotonic() - begun < 15
    assert [exit.reason for exit in await made.gang.wait()] == ["stopped", "stopped"]
