"""Ranks that are forked from a zygote: as good as new, of their own, and nobody's orphans.

`test_ranks.py` runs all that it tests with such ranks too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gangs import Gang, idle, warmed

from aios_jupyter.config import IS_LINUX
from aios_jupyter.node import reaper, spares
from aios_jupyter.node import zygotes as pool
from aios_jupyter.node.spares import Zygote
from aios_jupyter.node.zygotes import Zygotes
from aios_jupyter.process import alive, process_start
from aios_jupyter.runs.spec import Entry
from aios_jupyter.schema import RunKind, WarmUse

pytest.importorskip("torch")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
    pytest.mark.skipif(not IS_LINUX, reason="zygotes are for Linux"),
]

FromHere = Callable[..., Gang]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygotes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Zygotes]:
    """With one zygote that is ready."""
    made = Zygotes(tmp_path_factory.mktemp("zygotes"), 600)
    await warmed(made, tmp_path_factory.mktemp("first"))
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def zygote(zygotes: Zygotes, tmp_path: Path) -> Zygote:
    """The zygote of this process's environment, with spares for two ranks."""
    return await warmed(zygotes, tmp_path)


@pytest.fixture
def gang(tmp_path: Path, zygotes: Zygotes) -> FromHere:
    """A gang in a folder of its own, so that there can be several."""

    def make(source: str, **more: Any) -> Gang:
        folder = tmp_path / f"run-{time.monotonic_ns()}"
        folder.mkdir()
        return Gang(folder, source, **{"framework": "torch", "zygotes": zygotes, **more})

    return make


def is_forked(pid: int) -> bool:
    """Whether a rank's process was forked from a zygote: it still has its command."""
    return b"node.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def said(made: Gang) -> list[Any]:
    """What each rank of a gang printed as JSON, once all have ended well."""
    exits = await made.run()
    assert [exit.code for exit in exits] == [0] * len(exits), [made.events, exits]
    return [json.loads(made.text(rank)) for rank in range(len(exits))]


FACTS = """
import json, os, random, signal, sys, threading, multiprocessing, tempfile
early = "torch" in sys.modules
import numpy, torch
print(json.dumps({
    "forked": early, "argv": sys.argv[1:], "cwd": os.getcwd(), "main": __name__,
    "environment": {**os.environ}, "threads": threading.active_count(),
    "handlers": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD)],
    "torch": torch.initial_seed(), "torch_threads": torch.get_num_threads(),
    "random": random.random(), "numpy": numpy.random.random(),
    "key": multiprocessing.current_process().authkey.hex(), "path": sys.path, "argv0": sys.argv[0],
    "umask": os.umask(0), "tmp": tempfile.gettempdir(), "stdin": sys.stdin.read(),
    "streams": [sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.errors, os.isatty(1)],
    "ids": [os.getpid() == os.getpgrp() == os.getsid(0), os.getppid()],
    "label": open("/proc/self/cmdline").read().split("\\0")[-2].strip(),
}))
"""


# --- like new


async def test_the_second_run_is_forked_and_the_first_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "START_DELAY", 0.0)
    own = Zygotes(tmp_path / "zygotes", 600)
    try:
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            made = Gang(folder, FACTS, framework="torch", zygotes=own)
            facts = await said(made)
            assert [fact["forked"] for fact in facts] == [number == 1] * 2
            # A child of the agent in any case.
            assert [fact["ids"] for fact in facts] == [[True, os.getpid()]] * 2
            await idle(own)
    finally:
        await own.close()


async def test_a_forked_rank_finds_what_one_that_was_started_anew_finds(gang: FromHere) -> None:
    env = {"MINE": "ü", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "2"}
    cwd = str(Path(__file__).parent)
    options = {"env": env, "cwd": cwd, "argv": ("a", "b c")}
    forked = await said(gang(FACTS, **options))
    anew = await said(gang(FACTS, **options, zygotes=None))
    for rank in range(2):
        assert (forked[rank]["forked"], anew[rank]["forked"]) == (True, False)
        assert forked[rank]["cwd"] == cwd
        assert forked[rank]["argv"] == ["a", "b c"]
        assert forked[rank]["torch_threads"] == 2
        assert forked[rank]["label"] == f"r1/{rank}"
        own = {"forked", "random", "numpy", "torch", "key", "argv0", "environment"}
        for name in forked[rank].keys() - own:
            assert forked[rank][name] == anew[rank][name], name
        differ = {"AIOS_RANK_MARK", "MASTER_PORT", "AIOS_CHECKPOINTS"}
        there, here = forked[rank]["environment"], anew[rank]["environment"]
        assert {k for k in there.keys() | here.keys() if there.get(k) != here.get(k)} <= differ
        assert there["RANK"] == str(rank)
    for name in ("random", "numpy", "torch", "key"):
        assert len({fact[name] for fact in forked + anew}) == 4, name


async def test_threads_are_those_of_the_rank_and_not_of_the_zygote(gang: FromHere) -> None:
    source = """
        import json, torch, numpy, os
        x = torch.randn(600, 600); (x @ x).sum()
        n = numpy.ones((600, 600)); n @ n
        print(json.dumps([torch.get_num_threads(), len(os.listdir("/proc/self/task"))]))
    """
    ((one, few),) = await said(gang(source, world=1, env={"OMP_NUM_THREADS": "1"}))
    ((three, many),) = await said(gang(source, world=1, env={"OMP_NUM_THREADS": "3"}))
    assert (one, three) == (1, 3)
    # Two more of OpenMP's, two more of numpy's OpenBLAS.
    assert many >= few + 2


async def test_ranks_have_no_descriptors_of_others(gang: FromHere) -> None:
    source = """
        import json, os, torch
        paths = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        links = [os.readlink(path) for path in paths if os.path.exists(path)]
        print(json.dumps([sum(x.startswith(k) for x in links) for k in ("socket", "pipe")]))
        REST
    """
    waiting = await gang(source.replace("REST", "import time; time.sleep(60)")).start()
    await waiting.until(lambda: waiting.text(0) and waiting.text(1))
    forked = await said(gang(source.replace("REST", "")))
    anew = await said(gang(source.replace("REST", ""), zygotes=None))
    await waiting.gang.stop(5)
    assert [json.loads(waiting.text(rank)) for rank in range(2)] == forked
    assert forked == anew


async def test_a_script_runs_in_its_folder_with_its_name(gang: FromHere, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("x = 3")
    script = tmp_path / "script.py"
    script.write_text("import sys, torch, beside\nprint(__file__, sys.argv, beside.x)")
    made = gang(str(script), entry=Entry.SCRIPT, argv=("--n", "1"), world=1)
    await made.run()
    assert made.text() == f"{script} {[str(script), '--n', '1']} 3\n"


async def test_a_folder_that_is_not_there_is_the_error_and_costs_no_spare(
    gang: FromHere, zygote: Zygote
) -> None:
    before = [spare.pid for spare in zygote.spares]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await gang("", cwd="/nowhere").start()
    assert sorted(spare.pid for spare in zygote.spares) == sorted(before)


# --- torch


async def test_ddp_and_loaders_with_forked_workers_train(gang: FromHere) -> None:
    made = gang(
        """
        import json, torch, torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
        dist.init_process_group()
        data = TensorDataset(torch.arange(64.).reshape(16, 4))
        loader = DataLoader(data, 4, sampler=DistributedSampler(data), num_workers=2)
        model = DistributedDataParallel(torch.nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters())
        for epoch in range(2):
            for (x,) in loader:
                optimizer.zero_grad()
                model(x).mean().backward()
                optimizer.step()
        print(json.dumps([float(p.sum()) for p in model.parameters()]))
        dist.destroy_process_group()
        """
    )
    first, second = await said(made)
    assert first == second
    assert made.of("progress", 0)[-1]["done"] == 4


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
async def test_processes_that_a_rank_starts_anew_work(
    gang: FromHere, tmp_path: Path, method: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, multiprocessing, os\n"
        "def double(x): return 2 * x, 'torch' in __import__('sys').modules\n"
        "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context({method!r}).Pool(1) as pool:\n"
        "        print(json.dumps(pool.map(double, [1, 2])))\n"
    )
    (result,) = await said(gang(str(script), entry=Entry.SCRIPT, world=1))
    assert result == [[2, False], [4, False]]


# --- ends


async def test_a_zygote_killed_during_a_run_does_not_end_it(
    gang: FromHere, zygotes: Zygotes, zygote: Zygote
) -> None:
    made = await gang("import time; print('begun'); time.sleep(1); print('done')").start()
    assert all(is_forked(pid) for pid in made.gang.pids.values())
    await made.until(lambda: made.text(0) and made.text(1))
    waiting = [spare.pid for spare in zygote.spares]
    zygote.process.kill()
    assert [(exit.code, exit.reason) for exit in await made.gang.wait()] == [(0, "")] * 2
    assert made.text(0) == made.text(1) == "begun\ndone\n"
    await idle(zygotes)
    assert zygote.ended
    assert not any(alive(pid) for pid in waiting)
    later = await gang("print('on')").start()
    assert [exit.code for exit in await later.gang.wait()] == [0, 0]


async def test_a_zygote_that_was_killed_unseen_is_not_waited_for(
    gang: FromHere, zygotes: Zygotes, zygote: Zygote
) -> None:
    """As when it is killed in the very moment in which a run starts."""
    for spare in zygote.spares:
        spare.end()
    zygote.spares.clear()
    zygote.process.kill()
    made = await gang("print('on')").start()
    assert not any(is_forked(pid) for pid in made.gang.pids.values())
    assert [exit.code for exit in await made.gang.wait()] == [0, 0]
    assert zygote.ended


async def test_a_spare_that_was_killed_is_replaced_by_a_new_process(
    gang: FromHere, zygotes: Zygotes, zygote: Zygote
) -> None:
    dead = zygote.spares[0].pid
    os.kill(dead, signal.SIGKILL)
    assert await reaper._gone([(dead, 0)], 5)
    made = gang("print('on')")
    assert [exit.code for exit in await made.run()] == [0, 0]
    assert process_start(dead) == 0, "it was waited for"


AGENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from gangs import Gang, warmed
from aios_jupyter.node.zygotes import Zygotes

async def main():
    zygotes = Zygotes(Path({root!r}, "zygotes"), 600)
    zygote = await warmed(zygotes, Path({root!r}), 3)
    source = "import os, time; print(os.getpid()); time.sleep(60)"
    gang = await Gang(Path({root!r}), source, framework="torch", zygotes=zygotes).start()
    await gang.until(lambda: gang.text(0) and gang.text(1))
    print(zygote.process.pid, zygote.spares[0].pid, *gang.gang.pids.values(), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_an_agent_that_is_killed_takes_zygote_spares_and_ranks_along(tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    tests = str(Path(__file__).parents[1])
    agent.write_text(AGENT.format(tests=tests, root=str(tmp_path)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, agent, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(process.stdout.readline(), 60)).split()]
    assert len(pids) == 4
    assert all(is_forked(pid) for pid in pids)
    started = [(pid, process_start(pid)) for pid in pids]
    process.kill()
    await process.wait()
    assert await reaper._gone(started, 3)


async def test_what_is_left_is_swept_by_record(tmp_path: Path) -> None:
    """As where the kernel did not end it with the agent."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = {**os.environ, reaper.MARK: "m" * 32}
    left = await asyncio.create_subprocess_exec(*sleep, env=own, start_new_session=True)
    spare = await asyncio.create_subprocess_exec(*sleep, env=own, start_new_session=True)
    stranger = await asyncio.create_subprocess_exec(*sleep)
    folder = tmp_path / "zygotes" / str(left.pid)
    folder.mkdir(parents=True)
    start = process_start(left.pid)
    reaper.record(folder, [reaper.Started(left.pid, start, "", "", mark="m" * 32)])
    assert await Zygotes(tmp_path / "zygotes", 600).sweep() == 2
    assert [await left.wait(), await spare.wait()] == [-9, -9]
    assert alive(stranger.pid)
    stranger.kill()
    await stranger.wait()


async def test_closing_leaves_no_process_and_no_record(tmp_path: Path) -> None:
    own = Zygotes(tmp_path / "zygotes", 600)
    zygote = await warmed(own, tmp_path)
    pids = [zygote.process.pid, *(spare.pid for spare in zygote.spares)]
    assert all(alive(pid) for pid in pids)
    assert len(list((tmp_path / "zygotes").glob("*/ranks.json"))) == 1
    await own.close()
    assert not any(process_start(pid) for pid in pids), "not even as zombies"
    assert list((tmp_path / "zygotes").iterdir()) == []


async def test_a_stop_while_ranks_are_being_started_ends_them(gang: FromHere) -> None:
    made = gang("import time; time.sleep(60)")
    starting = asyncio.create_task(made.start())
    await asyncio.sleep(0)
    await made.gang.stop(5)
    await starting
    assert {exit.reason for exit in await made.gang.wait()} <= {"stopped"}


# --- which zygotes there are


async def test_a_zygote_ends_when_nothing_needs_it(tmp_path: Path) -> None:
    own = Zygotes(tmp_path / "zygotes", 0.5)
    try:
        zygote = await warmed(own, tmp_path)
        deadline = time.monotonic() + 10
        while not zygote.ended:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert own._zygotes == {}
    finally:
        await own.close()


async def test_changed_packages_make_a_new_zygote(
    gang: FromHere, zygotes: Zygotes, zygote: Zygote
) -> None:
    zygote.ready.packages["/"] = 1
    made = await gang("print('anew')").start()
    assert not any(is_forked(pid) for pid in made.gang.pids.values())
    assert zygote.ended
    assert [exit.code for exit in await made.gang.wait()] == [0, 0]


class FakeZygote:
    """For the pool's own decisions, which need no process."""

    fresh = True
    takes = 1
    made: list[FakeZygote] = []

    def __init__(self, key: spares.Key, environment: dict[str, str], directory: Path) -> None:
        self.key = key
        self.used = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False
        self.spares: list[int] = []
        self.ready = spares.Ready(memory=self.takes)
        self.process = dataclasses.make_dataclass("P", ["pid"])(os.getpid())
        self.made.append(self)

    async def prepare(self) -> None:
        if self.key.python == "/unfit":
            raise spares.ZygoteError("it started 3 threads")

    async def fork(self) -> int:
        return 1

    def pids(self) -> list[int]:
        return [1, *self.spares]

    def end(self) -> None:
        self.ended = True


@pytest_asyncio.fixture(loop_scope="module")
async def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Zygotes]:
    monkeypatch.setattr(pool, "Zygote", FakeZygote)
    monkeypatch.setattr(Zygotes, "_watch", lambda self, made: None)
    monkeypatch.setattr(FakeZygote, "made", [])
    monkeypatch.setattr(FakeZygote, "takes", 1)
    own = Zygotes(tmp_path / "zygotes", 600)
    yield own
    await own.close()


async def expected(own: Zygotes, directory: Path, **spec: Any) -> spares.Key | None:
    made = Gang(directory, "", framework="torch", **spec)
    made.listener.close()
    key = own.key(made.gang._spec, made.gang._env)
    over = asyncio.Event()
    over.set()
    own.expect(key, {}, 3, over)
    await idle(own)
    return key


async def test_there_are_two_zygotes_at_most(fakes: Zygotes, tmp_path: Path) -> None:
    keys = [await expected(fakes, tmp_path, env={"PYTHONPATH": f"/p{n}"}) for n in range(2)]
    assert fakes.find(keys[0]) is FakeZygote.made[0], "it was used last"
    await expected(fakes, tmp_path, env={"PYTHONPATH": "/p2"})
    assert [zygote.ended for zygote in FakeZygote.made] == [False, True, False]
    assert [len(zygote.spares) for zygote in FakeZygote.made] == [3, 3, 3]


async def test_one_that_cannot_be_forked_is_not_tried_for_each_run(
    fakes: Zygotes, tmp_path: Path
) -> None:
    for _ in range(3):
        await expected(fakes, tmp_path, python="/unfit")
    assert [zygote.ended for zygote in FakeZygote.made] == [True]


@pytest.mark.parametrize(
    ("spec", "shared"),
    [
        ({"env": {"LR": "1"}}, True),
        ({"env": {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "1"}}, True),
        ({"cwd": "/"}, True),
        ({"env": {"TORCH_LOGS": "dynamo"}}, False),
        ({"env": {"LD_LIBRARY_PATH": "/x"}}, False),
        ({"env": {"VIRTUAL_ENV": "/v"}}, False),
        ({"python": "/usr/bin/python3"}, False),
    ],
)
async def test_what_is_read_at_the_start_separates_zygotes(
    fakes: Zygotes, tmp_path: Path, spec: dict[str, Any], shared: bool
) -> None:
    first = await expected(fakes, tmp_path)
    assert (await expected(fakes, tmp_path, **spec) == first) is shared


@pytest.mark.parametrize(
    "spec",
    [
        {"framework": "none"},
        {"kind": RunKind.ENDPOINT},
        {"entry": Entry.MODULE},
        {"env": {"PYTHONPATH": "/a:src"}},
    ],
)
async def test_some_runs_are_started_anew(
    fakes: Zygotes, tmp_path: Path, spec: dict[str, Any]
) -> None:
    made = Gang(tmp_path, "", **{"framework": "torch", **spec})
    made.listener.close()
    assert fakes.key(made.gang._spec, made.gang._env) is None


async def test_zero_turns_them_off(tmp_path: Path) -> None:
    own = Zygotes(tmp_path / "zygotes", 0)
    assert await expected(own, tmp_path) is None


# --- what they cost


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes 300 MB."""
    monkeypatch.setattr(pool, "own_memory", lambda pid: 300_000_000)


async def test_spares_are_as_many_as_the_memory_allows(
    fakes: Zygotes, tmp_path: Path, large: None
) -> None:
    fakes._memory = 800_000_000
    await expected(fakes, tmp_path)
    assert len(FakeZygote.made[0].spares) == 2, "the zygote, and what there was room for"
    assert fakes.use() == WarmUse(frameworks=("torch",), processes=3, memory=900_000_000)


async def test_a_new_zygote_takes_the_memory_of_the_one_that_rests(
    fakes: Zygotes, tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes._memory = 1_500_000_000
    monkeypatch.setattr(FakeZygote, "takes", 300_000_001)
    await expected(fakes, tmp_path)
    await expected(fakes, tmp_path, env={"PYTHONPATH": "/p"})
    assert [zygote.ended for zygote in FakeZygote.made] == [True, False]
    assert [len(zygote.spares) for zygote in FakeZygote.made] == [3, 3]


async def test_one_that_is_larger_than_all_may_be_is_not_kept(
    fakes: Zygotes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fakes._memory = 100_000_000
    FakeZygote.takes = 100_000_001
    for _ in range(2):
        await expected(fakes, tmp_path)
    assert [zygote.ended for zygote in FakeZygote.made] == [True], "and not tried for each run"
    assert "more than AIOS_ZYGOTE_MEMORY" in caplog.text
    assert fakes.use() == WarmUse()


async def test_one_can_be_made_before_the_first_run_and_is_kept(
    fakes: Zygotes, tmp_path: Path
) -> None:
    fakes.ahead("torch", 2)
    fakes.ahead("cobol", 2)
    await idle(fakes)
    made = Gang(tmp_path, "", framework="torch")
    made.listener.close()
    found = fakes.find(fakes.key(made.gang._spec, made.gang._env))
    assert found is FakeZygote.made[0]
    assert len(found.spares) == 2
    assert found.timer is None, "nothing ends it"


# --- where forking is not safe

STARTS_A_THREAD = """
import sys, threading, time
if "aios_jupyter.node.zygote" in sys.orig_argv:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""


async def test_where_threads_are_started_each_spare_is_a_process_of_its_own(
    tmp_path: Path,
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "sitecustomize.py").write_text(STARTS_A_THREAD)
    before = filter(None, [os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": os.pathsep.join([str(packages), *before])}
    own = Zygotes(tmp_path / "zygotes", 600)
    try:
        standby = await warmed(own, tmp_path, env=env)
        assert standby.ready.alone == "importing torch started 1 threads"
        waiting = [spare.pid for spare in standby.spares]
        assert own.use().processes == 2
        assert own.use().memory > 100_000_000
        spares, standby.spares = standby.spares, []
        assert own.find(standby.key) is None, "a rank for which there is none does not wait"
        standby.spares = spares
        os.kill(waiting[1], signal.SIGKILL)
        # Until all of its threads are gone.
        await asyncio.to_thread(os.waitid, os.P_PID, waiting[1], os.WEXITED | os.WNOWAIT)
        source = FACTS.replace('"forked": early', '"forked": early, "pid": os.getpid()')
        folder = tmp_path / "run"
        folder.mkdir()
        facts = await said(Gang(folder, source, framework="torch", zygotes=own, env=env))
        assert facts[0]["pid"] == waiting[0]
        assert [fact["forked"] for fact in facts] == [True, False]
        assert [fact["label"] for fact in facts] == ["r1/0", "r1/1"]
        assert [fact["ids"] for fact in facts] == [[True, os.getpid()]] * 2
        for name in ("cwd", "argv", "handlers", "streams", "torch_threads", "umask", "main"):
            assert facts[0][name] == facts[1][name], name
        assert facts[0]["random"] != facts[1]["random"]
        assert standby.fresh
        # As when a package is installed.
        (packages / "new-1.0.dist-info").mkdir()
        assert not standby.fresh
        assert not any(process_start(pid) for pid in waiting)
    finally:
        await own.close()
    assert list((tmp_path / "zygotes").iterdir()) == []


async def test_what_cannot_be_kept_ready_says_why(tmp_path: Path) -> None:
    own = Zygotes(tmp_path / "zygotes", 600)
    made = Gang(tmp_path, "", framework="torch")
    made.listener.close()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    environment = {**made.gang._env, "PYTHONPATH": path}
    key = own.key(made.gang._spec, environment)
    assert key is not None
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so')")
    zygote = Zygote(key, environment, tmp_path / "zygotes")
    try:
        says = r"importing torch raised OSError: libcudart\.so"
        with pytest.raises(spares.ZygoteError, match=says):
            await zygote.prepare()
    finally:
        zygote.end()
