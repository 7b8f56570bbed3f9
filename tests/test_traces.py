"""Traces of your own, as the policy study reads and replays them."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_traces import replay, strict_fifo
from traces import read

PHILLY = """timestamp,duration,num_gpus,gpu_time,cluster
2017-10-12 10:55:00,50.5,2,101,b
2017-10-12 10:54:57,0,1,0,a
"""
ALIBABA = """name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
p0,12000,16384,1,460,,LS,Running,10,110,20
p1,12000,16384,8,1000,,BE,Succeeded,11,111,11
p2,12000,16384,0,0,,LS,Running,12,112,12
p3,12000,16384,1,1000,,LS,Pending,13,113,
"""
OWN = "submitted,length,gpus,user\n" + "".join(
    f"{100 + n},{30 + n % 7},{1 + n % 3},u{n % 2}\n" for n in range(60)
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_phillys_jobs_come_in_order_and_last_a_second_at_least(tmp_path: Path) -> None:
    first, second = read(written(tmp_path, PHILLY), 10, 16).jobs
    assert (first.user, first.gpus, first.length) == ("a", 1, 1.0)
    assert (second.user, second.gpus, second.length) == ("b", 2, 50.5)
    assert second.submitted - first.submitted == 3.0


def test_alibabas_have_parts_of_gpus_and_those_without_any_are_left_out(tmp_path: Path) -> None:
    trace = read(written(tmp_path, ALIBABA), 10)
    shared, whole = trace.jobs
    assert (shared.part, shared.length, shared.submitted, shared.size) == (0.46, 90.0, 10.0, 0.46)
    assert (whole.part, whole.gpus, whole.user) == (1.0, 8, "BE")
    assert trace.gpus == 915  # so much at once, at a load of 0.92


def test_a_trace_of_ones_own_is_replayed_after_what_is_learned_from(tmp_path: Path) -> None:
    trace = read(written(tmp_path, OWN), 20, 4)
    assert (len(trace.jobs), len(trace.learned), trace.gpus) == (20, 10, 4)
    assert trace.learned[-1].submitted < trace.jobs[0].submitted
    strict, smallest = strict_fifo(trace), replay(trace, "sjf")
    assert len(smallest.waits) == 20 and min(smallest.waits) >= 0.0
    assert sum(smallest.waits) < sum(strict.waits)


def test_parts_of_one_gpu_run_beside_each_other(tmp_path: Path) -> None:
    rows = "".join(f"p{n},1,1,1,400,,LS,Running,{n},{n + 100},{n}\n" for n in range(3))
    trace = read(written(tmp_path, ALIBABA.splitlines()[0] + "\n" + rows), 10, 1)
    first, second, third = strict_fifo(trace).waits
    assert first == second == 0.0 and third == pytest.approx(98.0)
    waits = replay(trace, "fifo").waits
    assert waits[:2] == pytest.approx((0.0, 0.0))


def test_what_is_no_trace_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"trace\.csv has not the columns of a trace"):
        read(written(tmp_path, "a,b\n1,2\n"), 10)
    with pytest.raises(SystemExit, match="no job that takes a GPU"):
        read(written(tmp_path, "submitted,length,gpus,user\n1,2,0,me\n"), 10)
