"""Runs through the Python API on a live cluster: cells, scripts and functions on every device."""

from __future__ import annotations

import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from clusters import free, until

from aios_jupyter.config import IS_LINUX
from aios_jupyter.errors import AllocationError, NotFoundError, RunError, UsageError
from aios_jupyter.session import Session, connect


def test_a_cell_runs_once_on_each_device_and_brings_names_back(session: Session) -> None:
    session.alloc(gpus=3)
    source = (
        "import os\n"
        "from aios_jupyter import train\n"
        "total = scale * int(os.environ['WORLD_SIZE'])\n"
        "train.log(loss=0.5)\n"
        "print('rank', train.rank(), flush=True)\n"
    )
    handle = session.start(source, cell=True, push={"scale": 7}, pull=["total"])
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    result = handle.wait()
    assert result.pulled == {"total": 21}
    assert result.world_size == 3
    assert sorted(text.split("\n")[:3]) == ["rank 0", "rank 1", "rank 2"]
    row = until(
        lambda: next(r for r in session.runs() if r["id"] == handle.id and r["metrics"]),
        "the broker has the metrics",
    )
    assert row["metrics"]["loss"] == 0.5
    assert row["state"] == "succeeded"


def test_without_a_lease_a_run_takes_one_and_gives_it_back(session: Session) -> None:
    result = session.train("x = 1", cell=True, gpus=2)
    assert result.world_size == 2
    until(lambda: len(free(session)) == 4, "the devices are free")
    assert session.leases() == []


def test_a_run_that_says_which_devices_takes_a_lease_of_its_own(session: Session) -> None:
    held = session.alloc(gpus=1)
    code = "import os; told = os.environ['AIOS_DEVICE_MEMORY']"
    handle = session.start(
        code,
        cell=True,
        gpus=1,
        pull=["told"],
        model="simulated",
        memory="8GB",
        share=True,
        time="1h",
    )
    (own,) = [lease for lease in session.leases() if lease.id != held.id]
    assert own.expires is not None
    assert handle.wait().pulled == {"told": "8000000000"}
    with pytest.raises(UsageError, match="leave out --lease"):
        session.start(code, cell=True, lease=held.id, time="1h")
    with pytest.raises(AllocationError, match="'h100'"):
        session.start(code, cell=True, gpus=1, model="h100")
    with pytest.raises(UsageError, match="length of time"):
        session.start(code, cell=True, gpus=1, time=0)


def test_a_function_and_its_arguments_travel(session: Session) -> None:
    offset = 3

    def add(number: int, *, factor: int) -> int:
        print("sum", number * factor + offset, flush=True)
        return number * factor + offset

    handle = session.start(add, 5, kwargs={"factor": 2}, gpus=1)
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    assert handle.wait().value == 13
    assert "sum 13" in text


DDP_SCRIPT = """
import argparse
import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--value", type=float)
arguments = parser.parse_args()
dist.init_process_group("gloo")
tensor = torch.tensor([arguments.value + dist.get_rank()])
dist.all_reduce(tensor)
print("reduced", tensor.item(), flush=True)
dist.destroy_process_group()
"""


def test_an_unmodified_torchrun_script_works(session: Session, tmp_path: Path) -> None:
    script = tmp_path / "reduce.py"
    script.write_text(DDP_SCRIPT)
    handle = session.start(script, argv=["--value", "10"], gpus=2, cwd=tmp_path)
    texts = ["", ""]
    for event in handle.events():
        if event["type"] == "log":
            texts[event["rank"]] += event["text"]
    handle.wait()
    assert texts == ["reduced 21.0\n"] * 2


@pytest.mark.slow
@pytest.mark.skipif(not IS_LINUX, reason="zygotes are for Linux")
def test_later_torch_runs_find_torch_imported(session: Session) -> None:
    """The first makes the node keep a process that has it."""
    session.alloc(gpus=2)
    source = "import sys\nwarm = 'torch' in sys.modules\nimport torch"

    def warm() -> bool:
        return bool(session.train(source, cell=True, pull=["warm"]).pulled["warm"])

    assert warm() is False
    until(warm, "a run starts with torch imported", 60)


def test_a_runs_row_says_how_much_is_sent_when_gradients_are_compressed(
    session: Session, tmp_path: Path
) -> None:
    script = tmp_path / "train_ddp.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group()\n"
        "model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(499, 1))\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "for step in range(20):\n"
        "    model(torch.ones(1, 499)).sum().backward()\n"
        "    optimizer.step()\n"
        "dist.destroy_process_group()\n"
    )
    handle = session.start(script, gpus=2, compress="fp16")
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    handle.wait()
    assert "0.002 MB of gradients a step were sent as 0.001 MB" in text
    row = next(r for r in session.runs() if r["id"] == handle.id)
    assert row["metrics"]["sent_mb"] == pytest.approx(0.001)


def test_what_a_framework_lacks_is_told_before_anybody_waits(session: Session) -> None:
    wrong = {
        "import tensorflow": r"--compress is for torch's .* uses tensorflow; leave it out",
        "x = 1": r"uses no framework that is known; leave it out, or say --framework torch",
    }
    for source, says in wrong.items():
        with pytest.raises(UsageError, match=says):
            session.start(source, cell=True, gpus=2, compress="fp16")
    with pytest.raises(UsageError, match="cannot be compressed as 'zip'; give none, fp16, "):
        session.start("import torch", cell=True, compress="zip")  # type: ignore[arg-type]
    if find_spec("horovod") is None:
        with pytest.raises(UsageError, match="'make horovod'"):
            session.start("import horovod.torch as hvd", cell=True, gpus=2)
    assert session.leases() == []


def test_a_failing_rank_is_the_first_thing_that_is_seen(session: Session) -> None:
    session.alloc(gpus=2)
    source = (
        "import time\nfrom aios_jupyter import train\n"
        "if train.rank() == 1:\n    raise ValueError('no such digit')\n"
        "time.sleep(600)\n"
    )
    handle = session.start(source, cell=True, filename="In[7]")
    list(handle.events())
    with pytest.raises(RunError, match="no such digit") as caught:
        handle.wait()
    assert caught.value.rank == 1
    assert "raise ValueError('no such digit')" in caught.value.traceback
    assert "aios_jupyter/" not in caught.value.traceback
    assert len(session.leases()) == 1


def test_stop_from_another_session_ends_all_ranks(session: Session) -> None:
    session.alloc(gpus=2)
    handle = session.start("import time\ntime.sleep(600)", cell=True)
    with connect(start=False) as second:
        second.stop(handle.id)
    list(handle.events())
    with pytest.raises(RunError, match="stopped"):
        handle.wait()


def test_a_second_session_reads_the_whole_log_and_follows(session: Session) -> None:
    session.alloc(gpus=1)
    source = (
        "import time\n"
        "for i in range(2000):\n    print('line', i)\n"
        "time.sleep(1.5)\nprint('last', flush=True)\n"
    )
    handle = session.start(source, cell=True)
    with connect(start=False) as second:
        text = "".join(second.logs(handle.id, follow=True))
    assert text.split("\n") == [f"line {i}" for i in range(2000)] + ["last", ""]
    assert handle.wait().state == "succeeded"
    assert "".join(session.logs(handle.id, rank=0)) == text
    assert "".join(session.logs(handle.id, rank=1)) == ""


def test_two_runs_at_once_on_two_leases(session: Session) -> None:
    results: list[str] = []

    def work(number: int) -> None:
        with connect() as own:
            text = own.train(f"value = {number}", cell=True, gpus=2, pull=["value"])
            results.append(text.pulled["value"])

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [1, 2]


def test_large_values_travel_both_ways(session: Session) -> None:
    import numpy as np

    array = np.arange(20_000_000, dtype=np.uint8)
    result = session.train(
        "twice = array * 2", cell=True, gpus=1, push={"array": array}, pull=["twice"]
    )
    assert np.array_equal(result.pulled["twice"], array * 2)


def test_a_released_lease_ends_its_run_and_says_so(session: Session) -> None:
    lease = session.alloc(gpus=1)
    handle = session.start("import time\ntime.sleep(600)", cell=True)
    started = time.monotonic()
    session.release(lease.id)
    list(handle.events())
    with pytest.raises(RunError, match="released"):
        handle.wait()
    assert time.monotonic() - started < 30
    until(lambda: len(free(session)) == 4, "the device is free")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "for", "cell": True}, "line 1"),
        ({"target": "x = 1", "cell": True, "push": {"lock": threading.Lock()}}, "lock"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_runs(
    session: Session, options: dict[str, object], says: str
) -> None:
    before = len(session.runs())
    with pytest.raises(UsageError, match=says):
        session.start(gpus=1, explicit=["lock"], **options)  # type: ignore[arg-type]
    assert len(session.runs()) == before
    assert len(free(session)) == 4


def test_missing_scripts_and_runs_are_not_found(session: Session) -> None:
    for call in (
        lambda: session.start("no-such-script.py", gpus=1),
        lambda: list(session.logs("r-none")),
        lambda: session.stop("r-none"),
        lambda: session.attach("r-none"),
    ):
        with pytest.raises(NotFoundError):
            call()


def test_a_lease_taken_for_one_cell_ends_with_its_session(session: Session) -> None:
    with connect(start=False) as second:
        second.start("import time\ntime.sleep(600)", cell=True, gpus=2)
        assert len(free(session)) == 2
    until(lambda: len(free(session)) == 4, "the devices are free")
    until(lambda: session.runs()[0]["state"] == "stopped", "the run has ended")


def test_a_detached_run_outlives_its_session_and_another_takes_its_result(
    session: Session,
) -> None:
    source = "import time\nprint('begun', flush=True)\ntime.sleep(2)\nanswer = 42\n"
    with connect(start=False) as first:
        run = first.start(source, cell=True, gpus=1, detach=True, pull=["answer"]).id
    handle = session.attach(run)
    text = "".join(event["text"] for event in handle.events() if event["type"] == "log")
    assert text == "begun\n"
    assert handle.wait().pulled == {"answer": 42}
    until(lambda: len(free(session)) == 4, "its lease has ended with it")
